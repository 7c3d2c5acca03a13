"""Triton kernels of the forward scan, in three passes over tiles (see triton_steps.py), all tiles at once.

    carries   every tile on its own, from zero: the state it ends with, and how long it lasts (the sum of its steps)
    chain     along the tiles of each route: the state that enters each of them
    apply     every tile again, now from the state that enters it: readout y summed over the routes, or the states

A route of one tile needs `apply` alone. Nothing is written per route and pixel; routes that go the same way share a
tile in registers, and the others add to their y. Sums have a fixed order: the same bits in every run.
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
    then,
)


@triton.jit(do_not_specialize=VARYING, do_not_specialize_on_alignment=UNALIGNED)
def carries(
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
    starts,  # like it, or None: the gradient at the start of each tile
    lasts,  # (B, K, tiles, C): the sum of the steps of each tile
    K,
    channels,
    tiles,
    first,
    way,
    walk,
    maps,
    rows,
    states,
    R: tl.constexpr,
    N: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    ROUTES: tl.constexpr,
    T: tl.constexpr,
    BC: tl.constexpr,
):
    """Program (sample and tile, channels, route of its own): what each tile of ROUTES passes on if nothing enters it.

    Tiles are stored in the order in which their route visits them. The routes first + ROUTES go the same way.
    """
    b, tile = (tl.program_id(0) // tiles).to(tl.int64), tl.program_id(0) % tiles
    plane = tl.program_id(2)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    has = c < channels
    at, exists = pixels(tile, walk, way, T)
    valid = exists[:, None] & has[None, :]
    map_at = map_places(b, plane, c, at, maps)
    x = tl.load(u + map_at, mask=valid, other=0.0).to(tl.float32)
    if gy is not None:
        g_y = tl.load(gy + map_at, mask=valid, other=0.0).to(tl.float32)
    visit = tl.where(way > 0, tile, tiles - 1 - tile)
    at_end = tl.arange(0, T)[:, None] == T - 1
    for i in tl.static_range(len(ROUTES)):
        k = (first + plane + ROUTES[i]).to(tl.int64)
        row_at = b * rows[0] + k * rows[1] + at * rows[3]
        kc = k * channels + c
        slot = (b * K + k) * tiles + visit
        step, _ = step_sizes(dt, low, weight, bias, kc, map_at, row_at, rows[2], exists, has, R, SOFTPLUS)
        tl.store(lasts + slot * channels + c, tl.sum(step, 0), mask=has)
        if starts is not None:
            upto = tl.cumsum(step, 0)
        for n in range(N):
            rate = tl.load(A + kc * N + n, mask=has, other=0.0)[None, :] * LOG2_E
            drive = step * x * numbers(B, row_at, n, rows[2], exists)
            _, h = tl.associative_scan((tl.exp2(step * rate), drive), 0, then)
            to = (slot * N + n) * channels + c
            tl.store(ends + to, tl.sum(tl.where(at_end, h, 0.0), 0), mask=has)
            if starts is not None:
                if gy is not None:
                    g = g_y * numbers(C, row_at, n, rows[2], exists)
                else:
                    state_at = state_places(b, k, n, c, at, states)
                    g = tl.load(gstates + state_at, mask=valid, other=0.0).to(tl.float32)
                # What flows out of a tile has decayed over all steps up to its pixel, that pixel's included.
                tl.store(starts + to, tl.sum(tl.exp2(upto * rate) * g, 0), mask=has)


@triton.jit
def chain(
    passed,  # (B, K, tiles, N, C) of `carries`
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
    BC: tl.constexpr,
):
    """Program (sample and route, channels, state): entering[0] = initial, entering[j + 1] = what leaves tile j.

    BACKWARD counts tiles from the last one of the route.
    """
    bk = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    n = tl.program_id(2)
    has = c < channels
    kc = (bk % K) * channels + c
    rate = tl.load(A + kc * N + n, mask=has, other=0.0)[None, :] * LOG2_E
    if initial is not None:
        h = tl.load(initial + (bk * channels + c) * N + n, mask=has, other=0.0).to(tl.float32)
    else:
        h = tl.zeros((BC,), tl.float32)
    tl.store(entering + (bk * (tiles + 1) * N + n) * channels + c, h, mask=has)
    for first in range(0, tiles, J):
        j = first + tl.arange(0, J)
        if BACKWARD:
            slot = bk * tiles + tiles - 1 - j
        else:
            slot = bk * tiles + j
        valid = (j < tiles)[:, None] & has[None, :]
        last = tl.load(lasts + slot[:, None] * channels + c[None, :], mask=valid, other=0.0)
        end = tl.load(passed + (slot[:, None] * N + n) * channels + c[None, :], mask=valid, other=0.0)
        decay, state = tl.associative_scan((tl.exp2(last * rate), end), 0, then)
        state += decay * h[None, :]
        to = ((bk * (tiles + 1) + j + 1)[:, None] * N + n) * channels + c[None, :]
        tl.store(entering + to, state, mask=valid)
        # Tiles past the end change nothing, so the last row is what the next block starts from.
        h = tl.sum(tl.where(tl.arange(0, J)[:, None] == J - 1, state, 0.0), 0)


@triton.jit(do_not_specialize=VARYING, do_not_specialize_on_alignment=UNALIGNED)
def apply(
    u,
    dt,
    low,
    B,
    C,
    weight,
    bias,
    A,
    D,
    entering,  # (B, K, tiles + 1, N, C) of `chain`, or None: nothing enters
    y,
    out,  # states, or None
    K,
    channels,
    tiles,
    first,
    way,
    walk,
    maps,
    rows,
    states,
    R: tl.constexpr,
    N: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    ROUTES: tl.constexpr,
    ADD: tl.constexpr,
    T: tl.constexpr,
    BC: tl.constexpr,
):
    """Program (sample and tile, channels, route of its own): y (+)= the sum over ROUTES, or each route's states."""
    b, tile = (tl.program_id(0) // tiles).to(tl.int64), tl.program_id(0) % tiles
    plane = tl.program_id(2)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    has = c < channels
    at, exists = pixels(tile, walk, way, T)
    valid = exists[:, None] & has[None, :]
    map_at = map_places(b, plane, c, at, maps)
    x = tl.load(u + map_at, mask=valid, other=0.0).to(tl.float32)
    if ADD:
        total = tl.load(y + map_at, mask=valid, other=0.0)
    else:
        total = tl.zeros((T, BC), tl.float32)
    visit = tl.where(way > 0, tile, tiles - 1 - tile)
    for i in tl.static_range(len(ROUTES)):
        k = (first + plane + ROUTES[i]).to(tl.int64)
        row_at = b * rows[0] + k * rows[1] + at * rows[3]
        kc = k * channels + c
        step, _ = step_sizes(dt, low, weight, bias, kc, map_at, row_at, rows[2], exists, has, R, SOFTPLUS)
        if D is not None:
            total += tl.load(D + kc, mask=has, other=0.0)[None, :] * x
        for n in range(N):
            rate = tl.load(A + kc * N + n, mask=has, other=0.0)[None, :] * LOG2_E
            drive = step * x * numbers(B, row_at, n, rows[2], exists)
            since, h = tl.associative_scan((tl.exp2(step * rate), drive), 0, then)
            if entering is not None:
                slot = (b * K + k) * (tiles + 1) + visit
                h += since * tl.load(entering + (slot * N + n) * channels + c, mask=has, other=0.0)[None, :]
            if out is None:
                total += h * numbers(C, row_at, n, rows[2], exists)
            else:
                tl.store(out + state_places(b, k, n, c, at, states), h, mask=valid)
    if out is None:
        tl.store(y + map_at, total, mask=valid)
