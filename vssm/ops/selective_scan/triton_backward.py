"""Triton kernel of the backward scan: the states of a tile once more, then every gradient of its routes.

`tile_states` and `state_passing` of triton_forward.py have found the state that enters each tile and the gradient that
enters it from later tiles, so tiles are independent again. Sums over channels (dB, dC, low-rank dt) leave one part per
tile of channels, sums over pixels and samples (the weights) one part per program; parts are added in a fixed order
afterwards. No atomics: the same bits in every run.
"""

# pyright: reportGeneralTypeIssues=false
# (a function of the device cannot be called from Python, so it "does not return")

import triton
import triton.language as tl

from vssm.ops.selective_scan.triton_steps import (
    LN_2,
    UNALIGNED,
    VARYING,
    channels_of,
    map_offsets,
    pixels,
    recurrence_before_drive,
    recurrence_gradient,
    row_offset,
    row_values,
    split_rows,
    state_offsets,
    step_sizes,
)


@triton.jit
def product(a, b, total, PRECISION: tl.constexpr):
    """total + a b on the tensor cores. "tf32x3" here: what a GPU cuts off of each factor is multiplied separately.

    tl.dot's own "tf32x3" spends four times the instructions on values that are not finite.
    """
    if PRECISION == "tf32x3":
        low_a, low_b = tf32_remainder(a), tf32_remainder(b)
        total = tl.dot(low_a, b, total, input_precision="tf32")
        total = tl.dot(a, low_b, total, input_precision="tf32")
        total = tl.dot(a, b, total, input_precision="tf32")
    else:
        total = tl.dot(a, b, total, input_precision=PRECISION)
    return total


@triton.jit
def tf32_remainder(x):
    """The bits of x beyond those that tf32 keeps."""
    return x - (x.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)


@triton.jit
def add_sums(row_sums, tile, column, index, PRECISION: tl.constexpr):
    """row_sums (T, WP) with the sums over the channels of a tile (T, BC) added in column `index`: a product with ones,
    since sums across threads take five exchanges each."""
    ones = tl.broadcast_to((column == index)[None, :], (tile.shape[1], column.shape[0])).to(tl.float32)
    if PRECISION == "tf32x3":
        row_sums = tl.dot(tf32_remainder(tile), ones, row_sums, input_precision="tf32")
        row_sums = tl.dot(tile, ones, row_sums, input_precision="tf32")
    else:
        row_sums = tl.dot(tile, ones, row_sums, input_precision=PRECISION)
    return row_sums


@triton.jit(do_not_specialize=VARYING, do_not_specialize_on_alignment=UNALIGNED)
def gradients(
    u,
    dt,
    low,
    B,
    C,
    weight,
    bias,
    A,
    D,
    gy,
    gstates,
    entering,  # (B, K, tiles + 1, N, C), or None
    arriving,  # like it, tiles counted from the route's end, or None
    du_so_far,
    du,
    ddt,
    drows,  # of the first tile of channels: gradients of the rows (low, B, C)
    dweight,  # (programs, K, C, R)
    dbias,  # (programs, K, C); dD likewise
    dA,  # (programs, K, C, N)
    dD,
    samples,
    K,
    tiles,
    first,
    part,  # elements from one tile of channels to the next in drows
    pieces,
    line,
    line_step,
    pixel_step,
    maps,
    rows,
    gradient_rows,  # strides of drows, as rows
    states,
    CHANNELS: tl.constexpr,
    R: tl.constexpr,
    RP: tl.constexpr,  # R, N and the sums over channels padded to what a tile can have
    N: tl.constexpr,
    NP: tl.constexpr,
    WP: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    PRECISION: tl.constexpr,
    P: tl.constexpr,
    WHOLE: tl.constexpr,
    STEPS: tl.constexpr,
    BACK: tl.constexpr,
    T: tl.constexpr,
    BC: tl.constexpr,
):
    """Program (share of the tiles, channels, route): du = du_so_far + this route's, and all its other gradients."""
    share = tl.program_id(0)
    k = (tl.program_id(2) + first).to(tl.int64)
    B, C = split_rows(low, B, C, rows[2], R, N)
    c, has = channels_of(tl.program_id(1), CHANNELS, BC)
    kc = k * CHANNELS + c
    to_part = tl.program_id(1).to(tl.int64) * part
    sum_A = tl.zeros((BC, NP), tl.float32)
    sum_bias = tl.zeros((BC,), tl.float32)
    sum_D = tl.zeros((BC,), tl.float32)
    # Sums over the channels of a tile: of low-rank dt, and of B and C while they are few enough to stay in registers.
    FEW: tl.constexpr = N <= 16
    if not FEW:
        SUMS: tl.constexpr = R
    elif gy is None:
        SUMS: tl.constexpr = R + N
    else:
        SUMS: tl.constexpr = R + 2 * N
    column = tl.arange(0, WP)
    if R > 0:
        r = tl.arange(0, RP)
        sum_weight = tl.zeros((BC, RP), tl.float32)
    if D is not None:
        skip = tl.load(D + kc, mask=has, other=0.0)[None, :]

    for item in range(share, samples * tiles, tl.num_programs(0)):
        b, tile = (item // tiles).to(tl.int64), item % tiles
        visit = tiles - 1 - tile if BACK else tile
        start, steps, exists = pixels(tile, pieces, line, line_step, pixel_step, P, WHOLE, T)
        row_pixel = steps * STEPS[1]
        valid = exists[:, None] & has[None, :]
        map_at, pixel_at = map_offsets(b, k, c, start, steps, maps, STEPS, R)
        row_at = row_offset(b, k, start, rows, STEPS)

        x = tl.load(u + map_at + pixel_at, mask=valid, other=0.0).to(tl.float32)
        step2, slope = step_sizes(
            dt, low, weight, bias, kc, map_at, pixel_at, row_at, row_pixel, rows[2], exists, has, R, SOFTPLUS
        )
        step = step2 * LN_2
        driven = step * x
        row = drows + to_part + row_offset(b, k, start, gradient_rows, STEPS) + row_pixel
        row_sums = tl.zeros((T, WP), tl.float32)
        through_drive = tl.zeros((T, BC), tl.float32)  # dL / d(dt u)
        through_decay = tl.zeros((T, BC), tl.float32)  # dL / d(dt) along exp(dt A)
        if gy is not None:
            g_y = tl.load(gy + map_at + pixel_at, mask=valid, other=0.0).to(tl.float32)
        for n in range(N):
            rate = tl.load(A + kc * N + n, mask=has, other=0.0)
            B_n = row_values(B + row_at, row_pixel, n, rows[2], exists)
            drive = driven * B_n
            decay = tl.exp2(step2 * rate[None, :])
            h = tl.zeros((BC,), tl.float32)
            if entering is not None:
                slot = (b * K + k) * (tiles + 1) + visit
                h += tl.load(entering + (slot * N + n) * CHANNELS + c, mask=has, other=0.0)
            arrived, last = recurrence_before_drive(decay, drive, h, BACK)

            if gy is not None:
                incoming = g_y * row_values(C + row_at, row_pixel, n, rows[2], exists)
                read = g_y * (arrived + drive)
                if FEW:
                    row_sums = add_sums(row_sums, read, column, R + N + n, PRECISION)
                else:
                    tl.store(row + tl.cast(R + N + n, tl.int64) * gradient_rows[2], tl.sum(read, 1), mask=exists)
            else:
                state_at = state_offsets(b, k, n, c, start, states, STEPS)
                incoming = tl.load(gstates + state_at + (steps * STEPS[2])[:, None], mask=valid, other=0.0).to(
                    tl.float32
                )
            g_last = tl.zeros((BC,), tl.float32)
            if arriving is not None:
                slot = (b * K + k) * (tiles + 1) + tiles - 1 - visit
                g_last += tl.load(arriving + (slot * N + n) * CHANNELS + c, mask=has, other=0.0)
            g, leaving = recurrence_gradient(decay, incoming, g_last, BACK)
            if FEW:
                row_sums = add_sums(row_sums, g * driven, column, R + n, PRECISION)
            else:
                tl.store(row + tl.cast(R + n, tl.int64) * gradient_rows[2], tl.sum(g * driven, 1), mask=exists)
            through_drive += g * B_n
            along = g * arrived
            through_decay += along * rate[None, :]
            along_sum = tl.sum(along * step, 0)[:, None]
            if N == 1:
                sum_A += along_sum
            else:
                sum_A += tl.where((tl.arange(0, NP) == n)[None, :], along_sum, 0.0)
        dx = through_drive * step
        if D is not None:
            dx += skip * g_y
            sum_D += tl.sum(g_y * x, 0)
        if du_so_far is not None:
            dx += tl.load(du_so_far + map_at + pixel_at, mask=valid, other=0.0)
        tl.store(du + map_at + pixel_at, dx, mask=valid)
        dz = (through_drive * x + through_decay) * slope
        sum_bias += tl.sum(dz, 0)
        if R > 0:
            in_rank = exists[:, None] & (r < R)[None, :]
            low_at = row_at + r.to(tl.int64)[None, :] * rows[2] + row_pixel[:, None]
            rows_low = tl.load(low + low_at, mask=in_rank, other=0.0).to(tl.float32)
            sum_weight = product(tl.trans(dz), rows_low, sum_weight, PRECISION)
            in_weight = has[:, None] & (column < R)[None, :]
            weights = tl.load(weight + kc[:, None] * R + column[None, :], mask=in_weight, other=0.0)
            row_sums = product(dz, weights, row_sums, PRECISION)
        else:
            tl.store(ddt + map_at + pixel_at, dz, mask=valid)
        if R > 0 or FEW:
            at = row[:, None] + column.to(tl.int64)[None, :] * gradient_rows[2]
            tl.store(at, row_sums, mask=exists[:, None] & (column < SUMS)[None, :])

    at_share = share.to(tl.int64) * K * CHANNELS + kc
    n_all = tl.arange(0, NP)
    tl.store(dA + at_share[:, None] * N + n_all[None, :], sum_A, mask=has[:, None] & (n_all < N)[None, :])
    if dbias is not None:
        tl.store(dbias + at_share, sum_bias, mask=has)
    if D is not None:
        tl.store(dD + at_share, sum_D, mask=has)
    if R > 0:
        tl.store(dweight + at_share[:, None] * R + r[None, :], sum_weight, mask=has[:, None] & (r < R)[None, :])
