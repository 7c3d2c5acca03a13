"""Triton kernels of the forward scan on tiles (see triton_steps.py).

Where samples and channels fill the GPU, one pass:

    sequential_scan   along the tiles of each route, the state in registers: y summed over the routes, or the states

Where they do not, three, over all tiles at once; a route of one tile needs `tile_scan` alone:

    tile_states       every tile on its own, from zero: its last state, and how long it lasts (the sum of its steps)
    state_passing     along the tiles of each route: the state that enters each of them
    tile_scan         every tile again, now from the state that enters it

Nothing is written per route and pixel. In `tile_scan` routes along the same walk, there and back, share a tile in
registers; the others add to their y. Sums have a fixed order: the same bits in every run. The three passes multiply
decays over many tiles, so a decay above 1 (A > 0, which no model has) overflows sooner than in the recurrence.
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
    compose,
    map_offsets,
    pixels,
    recurrence,
    recurrence_gradient,
    row_offset,
    row_values,
    split_rows,
    state_offsets,
    step_sizes,
)


@triton.jit(do_not_specialize=VARYING, do_not_specialize_on_alignment=UNALIGNED)
def tile_states(
    u,
    dt,
    low,
    B,
    C,
    weight,
    bias,
    A,
    gy,
    gstates,
    ends,  # (B, K, tiles, N, C): the state at the end of each tile
    starts,  # like it, or None: the gradient that flows out of the beginning of each tile
    lasts,  # (B, K, tiles, C): the sum of the steps of each tile
    K,
    tiles,
    first,
    pieces,
    line,
    line_step,
    pixel_step,
    maps,
    rows,
    states,
    CHANNELS: tl.constexpr,
    R: tl.constexpr,
    N: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    P: tl.constexpr,
    WHOLE: tl.constexpr,
    STEPS: tl.constexpr,
    ROUTES: tl.constexpr,
    BACK: tl.constexpr,
    T: tl.constexpr,
    BC: tl.constexpr,
):
    """Program (sample and tile, channels, route of its own): what each tile of ROUTES passes on if nothing enters it.

    Tiles are stored in the order in which their route visits them. The routes first + ROUTES go along the same walk,
    each with its BACK.
    """
    b, tile = (tl.program_id(0) // tiles).to(tl.int64), tl.program_id(0) % tiles
    plane = tl.program_id(2)
    B, C = split_rows(low, B, C, rows[2], R, N)
    c, has = channels_of(tl.program_id(1), CHANNELS, BC)
    start, steps, exists = pixels(tile, pieces, line, line_step, pixel_step, P, WHOLE, T)
    row_pixel = steps * STEPS[1]
    valid = exists[:, None] & has[None, :]
    map_at, pixel_at = map_offsets(b, plane, c, start, steps, maps, STEPS, R)
    x = tl.load(u + map_at + pixel_at, mask=valid, other=0.0).to(tl.float32)
    scaled = x * LN_2  # steps are in units of ln 2
    if gy is not None:
        g_y = tl.load(gy + map_at + pixel_at, mask=valid, other=0.0).to(tl.float32)
    nothing = tl.zeros((BC,), tl.float32)
    for i in tl.static_range(len(ROUTES)):
        k = (first + plane + ROUTES[i]).to(tl.int64)
        row_at = row_offset(b, k, start, rows, STEPS)
        kc = k * CHANNELS + c
        visit = tiles - 1 - tile if BACK[i] else tile
        slot = (b * K + k) * tiles + visit
        step, slope = step_sizes(
            dt, low, weight, bias, kc, map_at, pixel_at, row_at, row_pixel, rows[2], exists, has, R, SOFTPLUS
        )
        tl.store(lasts + slot * CHANNELS + c, tl.sum(step, 0), mask=has)
        driven = step * scaled
        for n in range(N):
            rate = tl.load(A + kc * N + n, mask=has, other=0.0)[None, :]
            decay = tl.exp2(step * rate)
            to = (slot * N + n) * CHANNELS + c
            reached, h = recurrence(
                decay, driven * row_values(B + row_at, row_pixel, n, rows[2], exists), nothing, BACK[i]
            )
            tl.store(ends + to, h, mask=has)
            if starts is not None:
                if gy is not None:
                    incoming = g_y * row_values(C + row_at, row_pixel, n, rows[2], exists)
                else:
                    state_at = state_offsets(b, k, n, c, start, states, STEPS)
                    incoming = tl.load(gstates + state_at + (steps * STEPS[2])[:, None], mask=valid, other=0.0).to(
                        tl.float32
                    )
                flowing, g = recurrence_gradient(decay, incoming, nothing, BACK[i])
                tl.store(starts + to, g, mask=has)


@triton.jit(do_not_specialize_on_alignment=("passed", "lasts", "entering", "channels"))
def state_passing(
    passed,  # (B, K, tiles, N, C) of `tile_states`
    lasts,
    A,
    initial,  # (B, K, C, N) or None
    entering,  # (B, K, tiles + 1, N, C)
    K,
    channels,
    tiles,
    N: tl.constexpr,
    BACKWARD: tl.constexpr,
    J: tl.constexpr,
    S: tl.constexpr,
    BC: tl.constexpr,
):
    """Program (sample and route, channels, state): entering[0] = initial, entering[j + 1] = what leaves tile j.

    BACKWARD counts tiles from the last one of the route. S warps take J tiles each: first what their tiles do to a
    state, then, knowing what the warps before them pass on, the states. The axes are (J, S, BC) since the slowest one
    is what a thread keeps to itself.
    """
    bk = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    n = tl.program_id(2)
    has = c < channels
    kc = (bk % K) * channels + c
    rate = tl.load(A + kc * N + n, mask=has, other=0.0)[None, None, :]
    to = entering + (bk * (tiles + 1) * N + n) * channels + c  # of tile 0
    if initial is not None:
        h = tl.load(initial + (bk * channels + c) * N + n, mask=has, other=0.0).to(tl.float32)
    else:
        h = tl.zeros((BC,), tl.float32)
    tl.store(to, h, mask=has)
    s = tl.arange(0, S)
    for first in range(0, tiles, J * S):
        j = first + (s * J)[None, :] + tl.arange(0, J)[:, None]
        if BACKWARD:
            slot = bk * tiles + tiles - 1 - j
        else:
            slot = bk * tiles + j
        valid = (j < tiles)[:, :, None] & has[None, None, :]
        last = tl.load(lasts + slot[:, :, None] * channels + c[None, None, :], mask=valid, other=0.0)
        end = tl.load(passed + (slot[:, :, None] * N + n) * channels + c[None, None, :], mask=valid, other=0.0)
        decay = tl.exp2(last * rate)
        at = to[None, None, :] + ((j + 1).to(tl.int64) * N)[:, :, None] * channels
        before = tl.broadcast_to(h[None, :], (S, BC))
        if S > 1:
            alone, passing = recurrence(decay, end, tl.zeros((S, BC), tl.float32), False)
            lasting = tl.exp2(tl.sum(last, 0) * tl.sum(rate, 0))
            lasting, passing = tl.associative_scan((lasting, passing), 0, compose)
            # What the warps up to s pass on is what enters warp s + 1: handed over through memory.
            behind = first + (s + 1) * J
            there = to[None, :] + (behind.to(tl.int64) * N)[:, None] * channels
            inside = (behind <= tiles)[:, None] & has[None, :]
            tl.store(there, lasting * before + passing, mask=inside)
            tl.debug_barrier()
            there = to[None, :] + ((first + s * J).to(tl.int64) * N)[:, None] * channels
            before = tl.load(there, mask=(first + s * J <= tiles)[:, None] & has[None, :], other=0.0)
            tl.debug_barrier()
        state, left = recurrence(decay, end, before, False)
        tl.store(at, state, mask=valid)
        # Tiles past the end change nothing, so the last warp has what the next block starts from.
        h = tl.sum(tl.where((s == S - 1)[:, None], left, 0.0), 0)


@triton.jit(do_not_specialize=VARYING, do_not_specialize_on_alignment=UNALIGNED)
def tile_scan(
    u,
    dt,
    low,
    B,
    C,
    weight,
    bias,
    A,
    D,
    entering,  # (B, K, tiles + 1, N, C) of `state_passing`, or None: nothing enters
    y,
    out,  # states, or None
    K,
    tiles,
    first,
    pieces,
    line,
    line_step,
    pixel_step,
    maps,
    rows,
    states,
    CHANNELS: tl.constexpr,
    R: tl.constexpr,
    N: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    P: tl.constexpr,
    WHOLE: tl.constexpr,
    STEPS: tl.constexpr,
    ROUTES: tl.constexpr,
    BACK: tl.constexpr,
    ADD: tl.constexpr,
    T: tl.constexpr,
    BC: tl.constexpr,
):
    """Program (sample and tile, channels, route of its own): y (+)= the sum over ROUTES, or each route's states."""
    b, tile = (tl.program_id(0) // tiles).to(tl.int64), tl.program_id(0) % tiles
    plane = tl.program_id(2)
    B, C = split_rows(low, B, C, rows[2], R, N)
    c, has = channels_of(tl.program_id(1), CHANNELS, BC)
    start, steps, exists = pixels(tile, pieces, line, line_step, pixel_step, P, WHOLE, T)
    row_pixel = steps * STEPS[1]
    valid = exists[:, None] & has[None, :]
    map_at, pixel_at = map_offsets(b, plane, c, start, steps, maps, STEPS, R)
    x = tl.load(u + map_at + pixel_at, mask=valid, other=0.0).to(tl.float32)
    scaled = x * LN_2  # steps are in units of ln 2
    total = tl.zeros((T, BC), tl.float32)
    if D is not None:
        skip = tl.zeros((BC,), tl.float32)
        for i in tl.static_range(len(ROUTES)):
            skip += tl.load(D + (first + plane + ROUTES[i]).to(tl.int64) * CHANNELS + c, mask=has, other=0.0)
        total = skip[None, :] * x
    if ADD:
        total += tl.load(y + map_at + pixel_at, mask=valid, other=0.0)
    for i in tl.static_range(len(ROUTES)):
        k = (first + plane + ROUTES[i]).to(tl.int64)
        row_at = row_offset(b, k, start, rows, STEPS)
        kc = k * CHANNELS + c
        visit = tiles - 1 - tile if BACK[i] else tile
        step, slope = step_sizes(
            dt, low, weight, bias, kc, map_at, pixel_at, row_at, row_pixel, rows[2], exists, has, R, SOFTPLUS
        )
        driven = step * scaled
        for n in range(N):
            rate = tl.load(A + kc * N + n, mask=has, other=0.0)[None, :]
            drive = driven * row_values(B + row_at, row_pixel, n, rows[2], exists)
            h = tl.zeros((BC,), tl.float32)
            if entering is not None:
                slot = (b * K + k) * (tiles + 1) + visit
                h += tl.load(entering + (slot * N + n) * CHANNELS + c, mask=has, other=0.0)
            reached, last = recurrence(tl.exp2(step * rate), drive, h, BACK[i])
            if out is None:
                total += reached * row_values(C + row_at, row_pixel, n, rows[2], exists)
            else:
                tl.store(
                    out + state_offsets(b, k, n, c, start, states, STEPS) + (steps * STEPS[2])[:, None],
                    reached,
                    mask=valid,
                )
    if out is None:
        tl.store(y + map_at + pixel_at, total, mask=valid)


@triton.jit(do_not_specialize=VARYING, do_not_specialize_on_alignment=UNALIGNED)
def sequential_scan(
    u,
    dt,
    low,
    B,
    C,
    weight,
    bias,
    A,
    D,
    initial,  # (B, K, C, N) or None
    last,  # (B, K, C, N), or None: the state that leaves each route
    y,
    out,  # states, or None
    K,
    tiles,
    first,
    pieces,
    line,
    line_step,
    pixel_step,
    maps,
    rows,
    states,
    CHANNELS: tl.constexpr,
    R: tl.constexpr,
    N: tl.constexpr,
    NP: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    P: tl.constexpr,
    WHOLE: tl.constexpr,
    STEPS: tl.constexpr,
    ROUTES: tl.constexpr,
    BACK: tl.constexpr,
    ADD: tl.constexpr,
    T: tl.constexpr,
    BC: tl.constexpr,
):
    """Program (sample, channels, route of its own): y (+)= the sum over ROUTES, or each route's states."""
    b = tl.program_id(0).to(tl.int64)
    plane = tl.program_id(2)
    B, C = split_rows(low, B, C, rows[2], R, N)
    c, has = channels_of(tl.program_id(1), CHANNELS, BC)
    all_n = tl.arange(0, NP)
    if D is not None:
        skip = tl.zeros((BC,), tl.float32)
        for i in tl.static_range(len(ROUTES)):
            skip += tl.load(D + (first + plane + ROUTES[i]).to(tl.int64) * CHANNELS + c, mask=has, other=0.0)
    for i in tl.static_range(len(ROUTES)):
        if i > 0:
            tl.debug_barrier()  # y of the route before is read
        k = (first + plane + ROUTES[i]).to(tl.int64)
        kc = k * CHANNELS + c
        ends = ((b * K + k) * CHANNELS + c)[None, :] * N + all_n[:, None]
        inside = (all_n < N)[:, None] & has[None, :]
        if initial is not None:
            state = tl.load(initial + ends, mask=inside, other=0.0).to(tl.float32)
        else:
            state = tl.zeros((NP, BC), tl.float32)
        for visit in range(tiles):
            tile = tiles - 1 - visit if BACK[i] else visit
            start, steps, exists = pixels(tile, pieces, line, line_step, pixel_step, P, WHOLE, T)
            row_pixel = steps * STEPS[1]
            valid = exists[:, None] & has[None, :]
            map_at, pixel_at = map_offsets(b, plane, c, start, steps, maps, STEPS, R)
            x = tl.load(u + map_at + pixel_at, mask=valid, other=0.0).to(tl.float32)
            row_at = row_offset(b, k, start, rows, STEPS)
            step, slope = step_sizes(
                dt, low, weight, bias, kc, map_at, pixel_at, row_at, row_pixel, rows[2], exists, has, R, SOFTPLUS
            )
            driven = step * (x * LN_2)
            if out is None:
                total = tl.zeros((T, BC), tl.float32)
                if D is not None and i == 0:
                    total = skip[None, :] * x
                if ADD or i > 0:
                    total += tl.load(y + map_at + pixel_at, mask=valid, other=0.0)
            for n in range(N):
                rate = tl.load(A + kc * N + n, mask=has, other=0.0)[None, :]
                drive = driven * row_values(B + row_at, row_pixel, n, rows[2], exists)
                here = (all_n == n)[:, None]
                h = tl.sum(tl.where(here, state, 0.0), 0)
                reached, h = recurrence(tl.exp2(step * rate), drive, h, BACK[i])
                state = tl.where(here, h[None, :], state)
                if out is None:
                    total += reached * row_values(C + row_at, row_pixel, n, rows[2], exists)
                else:
                    at = state_offsets(b, k, n, c, start, states, STEPS) + (steps * STEPS[2])[:, None]
                    tl.store(out + at, reached, mask=valid)
            if out is None:
                tl.store(y + map_at + pixel_at, total, mask=valid)
        if last is not None:
            tl.store(last + ends, state, mask=inside)
