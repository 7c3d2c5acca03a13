"""Triton kernel of the backward scan: the states of a tile once more, then every gradient of one route.

`carries` and `chain` of triton_forward.py have found the state that enters each tile and the gradient that enters it
from later tiles, so tiles are independent again. Sums over channels (dB, dC, low-rank dt) leave one part per tile of
channels, sums over pixels and samples (the weights) one part per program; parts are added in a fixed order afterwards.
No atomics: the same bits in every run.
"""

# pyright: reportGeneralTypeIssues=false
# (a function of the device cannot be called from Python, so it "does not return")

import triton
import triton.language as tl

from vssm.ops.selective_scan.triton_steps import (
    LOG2_E,
    UNALIGNED,
    VARYING,
    map_places,
    numbers,
    pixels,
    state_places,
    step_sizes,
    then_arriving,
    then_before_decay,
)


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
    dlow,  # of the first tile of channels; dB and dC likewise
    dB,
    dC,
    dweight,  # (programs, K, C, R)
    dbias,  # (programs, K, C); dD likewise
    dA,  # (programs, K, C, N)
    dD,
    scratch,  # (programs, 2, T, BC)
    samples,
    K,
    channels,
    tiles,
    first,
    part,  # numbers from one tile of channels to the next in dlow, dB and dC
    way,
    walk,
    maps,
    rows,
    states,
    R: tl.constexpr,
    N: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    PRECISION: tl.constexpr,
    T: tl.constexpr,
    BC: tl.constexpr,
    RP: tl.constexpr,  # R and N padded to what a tile can have
    NP: tl.constexpr,
):
    """Program (share of the tiles, channels, route): du = du_so_far + this route's, and all its other gradients."""
    share = tl.program_id(0)
    k = (tl.program_id(2) + first).to(tl.int64)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    has = c < channels
    kc = k * channels + c
    to_part = tl.program_id(1).to(tl.int64) * part
    sum_A = tl.zeros((BC, NP), tl.float32)
    sum_bias = tl.zeros((BC,), tl.float32)
    sum_D = tl.zeros((BC,), tl.float32)
    if R > 0:
        r = tl.arange(0, RP)
        sum_weight = tl.zeros((BC, RP), tl.float32)
    if D is not None:
        skip = tl.load(D + kc, mask=has, other=0.0)[None, :]

    program = (tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)) * tl.num_programs(0) + share
    t = tl.arange(0, T)[:, None]
    here = scratch + program.to(tl.int64) * (2 * T * BC) + tl.arange(0, BC)[None, :]
    for item in range(share, samples * tiles, tl.num_programs(0)):
        b, tile = (item // tiles).to(tl.int64), item % tiles
        visit = tl.where(way > 0, tile, tiles - 1 - tile)
        at, exists = pixels(tile, walk, -way, T)
        valid = exists[:, None] & has[None, :]
        map_at = map_places(b, k, c, at, maps)
        row_at = b * rows[0] + k * rows[1] + at * rows[3]
        at_along, exists_along = pixels(tile, walk, way, T)
        map_along = map_places(b, k, c, at_along, maps)
        row_along = b * rows[0] + k * rows[1] + at_along * rows[3]

        x = tl.load(u + map_at, mask=valid, other=0.0).to(tl.float32)
        step, slope = step_sizes(dt, low, weight, bias, kc, map_at, row_at, rows[2], exists, has, R, SOFTPLUS)
        tl.store(here + t * BC, step)
        tl.debug_barrier()
        step_along = tl.load(here + (T - 1 - t) * BC)
        x_along = tl.load(u + map_along, mask=exists_along[:, None] & has[None, :], other=0.0).to(tl.float32)
        through_drive = tl.zeros((T, BC), tl.float32)  # dL / d(dt u)
        through_decay = tl.zeros((T, BC), tl.float32)  # dL / d(dt) along exp(dt A)
        if gy is not None:
            g_y = tl.load(gy + map_at, mask=valid, other=0.0).to(tl.float32)
        for n in range(N):
            rate = tl.load(A + kc * N + n, mask=has, other=0.0)[None, :]
            drive_along = step_along * x_along * numbers(B, row_along, n, rows[2], exists_along)
            decay_along = tl.exp2(step_along * (rate * LOG2_E))
            nothing = tl.zeros((T, BC), tl.float32)
            since, arrived, _ = tl.associative_scan((decay_along, nothing, drive_along), 0, then_arriving)
            if entering is not None:
                slot = (b * K + k) * (tiles + 1) + visit
                arrived += since * tl.load(entering + (slot * N + n) * channels + c, mask=has, other=0.0)[None, :]
            tl.store(here + (T + t) * BC, arrived)
            tl.debug_barrier()
            arrived = tl.load(here + (T + T - 1 - t) * BC)
            tl.debug_barrier()

            B_n = numbers(B, row_at, n, rows[2], exists)
            if gy is not None:
                incoming = g_y * numbers(C, row_at, n, rows[2], exists)
                dC_n = tl.sum(g_y * (arrived + step * x * B_n), 1)
                tl.store(dC + to_part + row_at + n * rows[2], dC_n, mask=exists)
            else:
                incoming = tl.load(gstates + state_places(b, k, n, c, at, states), mask=valid, other=0.0).to(tl.float32)
            decay = tl.exp2(step * (rate * LOG2_E))
            reach, g, _ = tl.associative_scan((nothing + 1.0, incoming, decay), 0, then_before_decay)
            if arriving is not None:
                slot = (b * K + k) * (tiles + 1) + tiles - 1 - visit
                g += reach * tl.load(arriving + (slot * N + n) * channels + c, mask=has, other=0.0)[None, :]
            tl.store(dB + to_part + row_at + n * rows[2], tl.sum(g * step * x, 1), mask=exists)
            through_drive += g * B_n
            along = g * arrived
            through_decay += along * rate
            sum_A += tl.where((tl.arange(0, NP) == n)[None, :], tl.sum(along * step, 0)[:, None], 0.0)
        dx = through_drive * step
        if D is not None:
            dx += skip * g_y
            sum_D += tl.sum(g_y * x, 0)
        if du_so_far is not None:
            dx += tl.load(du_so_far + map_at, mask=valid, other=0.0)
        tl.store(du + map_at, dx, mask=valid)
        dz = (through_drive * x + through_decay) * slope
        sum_bias += tl.sum(dz, 0)
        if R > 0:
            low_at = row_at[:, None] + r[None, :] * rows[2]
            low_valid = exists[:, None] & (r < R)[None, :]
            low_rows = tl.load(low + low_at, mask=low_valid, other=0.0).to(tl.float32)
            sum_weight += tl.dot(tl.trans(dz), low_rows, input_precision=PRECISION)
            weights = tl.load(weight + kc[:, None] * R + r[None, :], mask=has[:, None] & (r < R)[None, :], other=0.0)
            tl.store(dlow + to_part + low_at, tl.dot(dz, weights, input_precision=PRECISION), mask=low_valid)
        else:
            tl.store(ddt + map_at, dz, mask=valid)

    at_share = share.to(tl.int64) * K * channels + kc
    n_all = tl.arange(0, NP)
    tl.store(dA + at_share[:, None] * N + n_all[None, :], sum_A, mask=has[:, None] & (n_all < N)[None, :])
    if dbias is not None:
        tl.store(dbias + at_share, sum_bias, mask=has)
    if D is not None:
        tl.store(dD + at_share, sum_D, mask=has)
    if R > 0:
        tl.store(dweight + at_share[:, None] * R + r[None, :], sum_weight, mask=has[:, None] & (r < R)[None, :])
