"""What the Triton kernels of the scan share: the tile of a walk, its step sizes, and the recurrence through it.

A tile is T consecutive pixels of a walk by BC channels. A walk goes over the map along its rows or its columns; a
route follows it or comes back, and meets the same tiles and pixels in the opposite order. With 32 channels per warp
and loads of one channel per thread a thread holds all T pixels of its channel: the recurrence in either direction and
sums over pixels stay in the thread's registers, without shuffles or shared memory. That is why alignment is not
specialised on (it would spread a pixel's channels over a thread).

Pixels and channels that do not exist get step size 0: the state passes them unchanged, and their gradients are 0.

Strides arrive as tuples: of maps (sample, route, channel), of rows, that is of low-rank dt, B and C (sample, route,
number), of states (sample, route, state, channel). STEPS are the strides from pixel to pixel in maps, rows and states:
constants, so that the pixels of a tile differ by constants in the addresses. Offsets are 64 bits wide.
"""

# pyright: reportGeneralTypeIssues=false
# (a function of the device cannot be called from Python, so it "does not return")

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)

# What differs between routes: specialising on it would only multiply the kernels to compile.
VARYING = ("first",)
# Arguments of the kernels on tiles whose alignment Triton shall not know.
UNALIGNED = ("u", "dt", "low", "B", "C", "gy", "gstates", "y", "out", "du_so_far", "du", "ddt", "scratch")
UNALIGNED += ("maps", "states")


@triton.jit
def pixels(tile, length, height, width, COLUMNS: tl.constexpr, LOW: tl.constexpr, T: tl.constexpr):
    """Positions (T,) on the map of a tile's pixels in the order of the walk, and which exist.

    LOW is the height of a map lower than a tile, whose columns follow each other within it, and 0 of a higher one.
    """
    t = tl.arange(0, T)
    begin = tile * T
    exists = begin + t < length
    if COLUMNS:
        row = begin % height + t
        if LOW > 0:
            columns = row // LOW
        else:
            columns = (row >= height).to(tl.int32)
        at = row.to(tl.int64) * width + columns.to(tl.int64) * (1 - height * width) + begin // height
    else:
        at = tl.cast(begin, tl.int64) + t
    return at, exists


@triton.jit
def channels_of(block, C: tl.constexpr, BC: tl.constexpr):
    """Channels (BC,) of a tile, and which exist: all of them, known to the compiler, where C is filled."""
    c = block * BC + tl.arange(0, BC)
    if C % BC == 0:
        has = tl.full((BC,), 1, tl.int1)
    else:
        has = c < C
    return c, has


@triton.jit
def map_places(b, k, c, at, maps, STEPS: tl.constexpr):
    """Offsets (T, BC) into a map: of sample b, of route k where routes have maps of their own."""
    start = b * maps[0] + tl.cast(k, tl.int64) * maps[1]
    return start + c.to(tl.int64)[None, :] * maps[2] + at[:, None] * STEPS[0]


@triton.jit
def row_places(b, k, at, rows, STEPS: tl.constexpr):
    """Offsets (T,) of the first number of every pixel's row."""
    return b * rows[0] + k * rows[1] + at * STEPS[1]


@triton.jit
def state_places(b, k, n, c, at, states, STEPS: tl.constexpr):
    """Offsets (T, BC) into the map of state n of route k."""
    start = b * states[0] + k * states[1] + tl.cast(n, tl.int64) * states[2]
    return start + c.to(tl.int64)[None, :] * states[3] + at[:, None] * STEPS[2]


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
def low_rank(low, row_at, stride, exists, R: tl.constexpr, RP: tl.constexpr):
    """The low-rank step sizes (T, RP) of a tile's pixels."""
    r = tl.arange(0, RP)
    at = row_at[:, None] + r.to(tl.int64)[None, :] * stride
    return tl.load(low + at, mask=exists[:, None] & (r < R)[None, :], other=0.0).to(tl.float32)


@triton.jit
def step_sizes(
    dt,
    low,
    weight,
    bias,
    kc,
    map_at,
    scratch,
    row_at,
    stride,
    exists,
    has,
    R: tl.constexpr,
    RP: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Step sizes (T, BC) and their derivative by the raw ones.

    Raw ones are read from dt, or are the product of low (T, R) and weight (R, BC); `kc` are the channels' (BC,) places
    among the parameters of all routes. With multiply-adds every thread reads all R numbers of every pixel, so with a
    higher rank the tensor cores are quicker. They scatter a channel's pixels over threads; `scratch`, memory (T, BC) of
    this program alone, gathers them again.
    """
    valid = exists[:, None] & has[None, :]
    if R == 0:
        z = tl.load(dt + map_at, mask=valid, other=0.0).to(tl.float32)
    elif scratch is None:
        z = tl.zeros(valid.shape, tl.float32)
        for r in tl.static_range(R):
            z += numbers(low, row_at, r, stride, exists) * tl.load(weight + kc * R + r, mask=has, other=0.0)[None, :]
    else:
        r = tl.arange(0, RP)
        weights = tl.load(weight + kc[None, :] * R + r[:, None], mask=(r < R)[:, None] & has[None, :], other=0.0)
        z = tl.dot(low_rank(low, row_at, stride, exists, R, RP), weights, input_precision=PRECISION)
        tl.debug_barrier()
        tl.store(scratch, z, mask=valid)
        tl.debug_barrier()
        z = tl.load(scratch, mask=valid, other=0.0)
    if bias is not None:
        z += tl.load(bias + kc, mask=has, other=0.0)[None, :]
    if SOFTPLUS:
        step, slope = softplus(z)
    else:
        step, slope = z, tl.full(z.shape, 1.0, tl.float32)
    return tl.where(valid, step, 0.0), tl.where(valid, slope, 0.0)


@triton.jit
def numbers(pointer, row_at, n, stride, exists):
    """Number n of every pixel's B or C: (T, 1)."""
    return tl.load(pointer + row_at + n * stride, mask=exists, other=0.0).to(tl.float32)[:, None]


@triton.jit
def pick(tile, at):
    """The row of a tile where `at` (T, 1) is true. A sum of bits with zeros, which a compiler removes; adding 0.0 to a
    float it must not."""
    return tl.sum(tl.where(at, tile.to(tl.int32, bitcast=True), 0), 0).to(tl.float32, bitcast=True)


@triton.jit
def recur(decay, drive, h, BACK: tl.constexpr):
    """h = decay h + drive through a tile, from its last pixel if BACK: what arrives at each pixel, decay h (T, BC),
    before its drive is added, and the last state (BC,)."""
    T: tl.constexpr = decay.shape[0]
    t = tl.arange(0, T)[:, None]
    arrived = drive
    for i in tl.static_range(T):
        at = t == (T - 1 - i if BACK else i)
        h *= pick(decay, at)
        arrived = tl.where(at, h[None, :], arrived)
        h += pick(drive, at)
    return arrived, h


@triton.jit
def recur_gradient(decay, incoming, g, BACK: tl.constexpr):
    """g = incoming + what arrives, decay g of the pixel visited next, against the route's direction: the gradient of
    each state (T, BC), and what leaves the tile, decayed by the pixel visited first (BC,)."""
    T: tl.constexpr = decay.shape[0]
    t = tl.arange(0, T)[:, None]
    out = incoming
    for i in tl.static_range(T):
        at = t == (i if BACK else T - 1 - i)
        g += pick(incoming, at)
        out = tl.where(at, g[None, :], out)
        g *= pick(decay, at)
    return out, g


@triton.jit
def then(a1, h1, a2, h2):
    """The map h -> a1 h + h1, then h -> a2 h + h2."""
    return a1 * a2, a2 * h1 + h2
