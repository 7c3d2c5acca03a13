"""What the Triton kernels of the scan share: the tile of a walk, its step sizes, and the combinations of a scan.

A tile is T consecutive pixels of a walk by BC channels. A walk goes over the map along its rows or its columns; a
route follows it (way +1) or comes back (way -1), and reads the same tiles with their pixels in its own order. With
BC = 32 channels per warp and loads of one channel per thread a thread holds all T pixels of its channel: scans along
time and sums over pixels then stay within a thread, without shuffles or shared memory. That is why no kernel scans in
reverse (which Triton does by shuffles) and why alignment is not specialised on (it would spread a pixel's channels).

Pixels and channels that do not exist get step size 0: the state passes them unchanged, and their gradients are 0.

Strides arrive as tuples: of maps (sample, route, channel, pixel), of rows, that is of low-rank dt, B and C (sample,
route, number, pixel), of states (sample, route, state, channel, pixel). Offsets are 64 bits wide.
"""

# pyright: reportGeneralTypeIssues=false
# (a function of the device cannot be called from Python, so it "does not return")

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)

# What differs between routes: specialising on it would only multiply the kernels to compile.
VARYING = ("first", "way")
# Arguments of the kernels on tiles whose alignment Triton shall not know.
UNALIGNED = ("u", "dt", "low", "B", "C", "gy", "gstates", "y", "out", "du_so_far", "du", "ddt", "scratch")
UNALIGNED += ("maps", "states")


@triton.jit
def pixels(tile, walk, way, T: tl.constexpr):
    """Positions (T,) on the map of a tile's pixels, in the order of a route that goes `way`, and which exist.

    walk is (length, inner size, outer step, inner step): step s is at pixel (s // inner, s % inner) of the walk.
    """
    length, inner, outer_step, inner_step = walk
    t = tl.arange(0, T)
    s = tile * T + tl.where(way > 0, t, T - 1 - t)
    return ((s // inner) * outer_step + (s % inner) * inner_step).to(tl.int64), s < length


@triton.jit
def map_places(b, k, c, at, maps):
    """Offsets (T, BC) into a map: of sample b, of route k where routes have maps of their own."""
    return b * maps[0] + k.to(tl.int64) * maps[1] + c.to(tl.int64)[None, :] * maps[2] + at[:, None] * maps[3]


@triton.jit
def state_places(b, k, n, c, at, states):
    """Offsets (T, BC) into the map of state n of route k."""
    start = b * states[0] + k * states[1] + tl.cast(n, tl.int64) * states[2]
    return start + c.to(tl.int64)[None, :] * states[3] + at[:, None] * states[4]


@triton.jit
def log1p_ratio(q):
    """log(1 + q) / q for q in [0, 1], relative error below 1 ulp: a degree-8 polynomial in q - 1/2.

    log(1 + q) itself would lose the small q, from which the small steps come.
    """
    s = q - 0.5
    p = s * 0.00512610214 - 0.00856965611
    p = p * s + 0.0116395754
    p = p * s - 0.0202303406
    p = p * s + 0.036625606
    p = p * s - 0.0677111866
    p = p * s + 0.132609494
    p = p * s - 0.288526673
    return p * s + 0.810930216


@triton.jit
def softplus(z):
    """log(1 + e^z), and its derivative 1 / (1 + e^-z)."""
    q = tl.exp2(tl.abs(z) * -LOG2_E)
    r = 1.0 / (q + 1.0)
    return q * log1p_ratio(q) + tl.maximum(z, 0.0), tl.where(z < 0, q * r, r)


@triton.jit
def step_sizes(
    dt, low, weight, bias, kc, map_at, row_at, number_stride, exists, has, R: tl.constexpr, SOFTPLUS: tl.constexpr
):
    """Step sizes (T, BC) and their derivative by the raw ones.

    Raw ones are read from dt, or are the product of low (T, R) and weight (BC, R); `kc` are the channels' (BC,) places
    among the parameters of all routes.
    """
    valid = exists[:, None] & has[None, :]
    if R > 0:
        z = tl.zeros(valid.shape, tl.float32)
        for r in range(R):
            row = tl.load(low + row_at + r * number_stride, mask=exists, other=0.0).to(tl.float32)
            z += row[:, None] * tl.load(weight + kc * R + r, mask=has, other=0.0)[None, :]
    else:
        z = tl.load(dt + map_at, mask=valid, other=0.0).to(tl.float32)
    if bias is not None:
        z += tl.load(bias + kc, mask=has, other=0.0)[None, :]
    if SOFTPLUS:
        step, slope = softplus(z)
    else:
        step, slope = z, tl.full(z.shape, 1.0, tl.float32)
    return tl.where(valid, step, 0.0), tl.where(valid, slope, 0.0)


@triton.jit
def numbers(pointer, row_at, n, number_stride, exists):
    """Number n of every pixel's B or C (or low-rank dt): (T, 1)."""
    return tl.load(pointer + row_at + n * number_stride, mask=exists, other=0.0).to(tl.float32)[:, None]


@triton.jit
def then(a1, h1, a2, h2):
    """The map h -> a1 h + h1, then h -> a2 h + h2."""
    return a1 * a2, a2 * h1 + h2


@triton.jit
def then_arriving(a1, arrived1, drive1, a2, arrived2, drive2):
    """`then` with h = arrived + drive kept in two parts: what came from before, a_t h_{t-1}, and the last drive.

    The backward needs the first alone; h - drive would cancel where a state forgets fast.
    """
    return a1 * a2, arrived2 + a2 * (arrived1 + drive1), drive2


@triton.jit
def then_before_decay(reach1, g1, a1, reach2, g2, a2):
    """Gradients against time: g_t = c_t + a_{t+1} g_{t+1}. A piece takes X to reach X + g, before its last decay."""
    return reach2 * a1 * reach1, g2 + reach2 * a1 * g1, a2
