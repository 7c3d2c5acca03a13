"""What the Triton kernels of the scan share: the tile of a walk, its step sizes, and the recurrence through it.

A tile is T positions of a walk, of which P hold consecutive pixels, by BC channels; one warp works on it. A walk goes
along lines of the map: one line, all pixels row by row, or the columns, each in pieces of its own. A route follows the
walk or comes back, and meets the same tiles and pixels in the opposite order. With loads of one channel per thread a
thread holds all pixels of its BC / 32 channels: the recurrence in either direction and sums over pixels stay in its
registers, without shuffles or shared memory. That is why alignment is not specialised on (it would spread a pixel's
channels over a thread).

Positions without a pixel and channels that do not exist get step size 0: the state passes them unchanged, and their
gradients are 0. WHOLE says that every tile has P pixels, which spares the question.

Step sizes are counted in units of ln 2, so that e^(dt A) = 2^(step A): the softplus that is wanted comes out so.

A tile begins anywhere, offset 64 bits wide; from there its pixels are within 32 bits. Strides arrive as tuples: of
maps (sample, route, channel), of rows, that is of low-rank dt, B and C (sample, route, element), of states (sample,
route, state, channel). STEPS are the strides from pixel to pixel in maps, rows and states: constants, so that the
addresses of pixels along rows differ by constants.
"""

# pyright: reportGeneralTypeIssues=false
# (a function of the device cannot be called from Python, so it "does not return")

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)

# What differs between routes and sizes of maps: specialising on it would only multiply the kernels to compile.
VARYING = ("first", "pieces", "line", "line_step")
# Arguments of the kernels on tiles whose alignment Triton shall not know.
UNALIGNED = ("u", "dt", "low", "B", "C", "gy", "gstates", "y", "out", "du_so_far", "du", "ddt", "maps", "states")
UNALIGNED += ("weight", "bias", "A", "D", "entering", "ends", "starts", "lasts", "initial", "last")


@triton.jit
def pixels(tile, pieces, line, line_step, pixel_step, P: tl.constexpr, WHOLE: tl.constexpr, T: tl.constexpr):
    """Where a tile begins on the map, how far from there its pixels (T,) are in the order of the walk, and which exist.

    A line of `line` pixels, `pixel_step` apart, is cut into `pieces` tiles; lines begin `line_step` apart.
    """
    t = tl.arange(0, T)
    begin = tile % pieces * P
    start = tl.cast(tile // pieces, tl.int64) * line_step + tl.cast(begin, tl.int64) * pixel_step
    if WHOLE:
        exists = t < P
    else:
        exists = (t < P) & (begin + t < line)
    return start, t * pixel_step, exists


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
def map_offsets(b, k, c, start, steps, maps, STEPS: tl.constexpr, R: tl.constexpr):
    """Where a tile begins in a map of sample b, of route k where routes have maps of their own; from there the
    offsets (T, BC) within it. With a rank maps are channels-last and one begin serves all channels, else each has its
    own."""
    begin = b * maps[0] + tl.cast(k, tl.int64) * maps[1] + start * STEPS[0]
    offsets = (steps * STEPS[0])[:, None]
    if R > 0:
        offsets += c[None, :]
    else:
        begin = (begin + c.to(tl.int64) * maps[2])[None, :]
    return begin, offsets


@triton.jit
def row_offset(b, k, start, rows, STEPS: tl.constexpr):
    """Offset of the first element of the row in which a tile begins."""
    return b * rows[0] + k * rows[1] + start * STEPS[1]


@triton.jit
def state_offsets(b, k, n, c, start, states, STEPS: tl.constexpr):
    """Offsets (1, BC) of a tile's beginning into the map of state n of route k."""
    begin = b * states[0] + k * states[1] + tl.cast(n, tl.int64) * states[2] + start * STEPS[2]
    return (begin + c.to(tl.int64) * states[3])[None, :]


@triton.jit
def log2p1_ratio(q):
    """log2(1 + q) / q for q in [0, 1], relative error below 4e-7: a polynomial of degree 7.

    log2(1 + q) itself would lose the small q, from which the small steps come.
    """
    p = q * -0.012319459579885006 + 0.0636078417301178
    p = p * q - 0.15535180270671844
    p = p * q + 0.25600966811180115
    p = p * q - 0.3533948063850403
    p = p * q + 0.48006370663642883
    p = p * q - 0.7213100790977478
    return p * q + 1.4426947832107544


@triton.jit
def softplus2(z):
    """log2(1 + 2^z), and its derivative 1 / (1 + 2^-z)."""
    q = tl.exp2(tl.abs(z) * -1.0)
    rest = q * log2p1_ratio(q)  # log2(1 + q)
    r = tl.exp2(rest * -1.0)  # 1 / (1 + q)
    return rest + tl.maximum(z, 0.0), tl.where(z < 0, q * r, r)


@triton.jit
def step_sizes(
    dt,
    low,
    weight,
    bias,
    kc,
    map_at,
    pixel_at,
    row_at,
    row_pixel,
    stride,
    exists,
    has,
    R: tl.constexpr,
    SOFTPLUS: tl.constexpr,
):
    """Step sizes (T, BC) in units of ln 2, and the derivative of the steps by the raw ones.

    Raw ones are read from dt, or are the product of low (T, R) and weight (R, BC); `kc` are the channels' (BC,) indices
    among the parameters of all routes.
    """
    valid = exists[:, None] & has[None, :]
    # Of the two factors the smaller one is scaled: the weights of a thread, or its raw steps.
    SCALED: tl.constexpr = R > 0 and valid.shape[0] > R
    if bias is not None:
        start = tl.load(bias + kc, mask=has, other=0.0)[None, :] * LOG2_E
    else:
        start = tl.zeros((1, valid.shape[1]), tl.float32)
    if R == 0:
        z = tl.load(dt + map_at + pixel_at, mask=valid, other=0.0).to(tl.float32)
    else:
        z = tl.broadcast_to(start, valid.shape) if SCALED else tl.zeros(valid.shape, tl.float32)
        for r in tl.static_range(R):
            weight_r = tl.load(weight + kc * R + r, mask=has, other=0.0)[None, :]
            z += row_values(low + row_at, row_pixel, r, stride, exists) * (weight_r * LOG2_E if SCALED else weight_r)
    if not SCALED:
        z = z * LOG2_E + start
    if SOFTPLUS:
        step, slope = softplus2(z)
    else:
        step, slope = z, tl.full(z.shape, 1.0, tl.float32)
    return tl.where(valid, step, 0.0), tl.where(valid, slope, 0.0)


@triton.jit
def row_values(row, row_pixel, n, stride, exists):
    """Element n of every pixel's low-rank dt, B or C: (T, 1)."""
    return tl.load(row + row_pixel + tl.cast(n, tl.int64) * stride, mask=exists, other=0.0).to(tl.float32)[:, None]


@triton.jit
def split_rows(low, B, C, stride, R: tl.constexpr, N: tl.constexpr):
    """Where B and C begin: behind low-rank dt where there is one, so that a pixel has one address."""
    if R > 0:
        B = low + R * stride
        C = low + (R + N) * stride
    return B, C


@triton.jit
def select_row(tile, at):
    """The row of a tile where `at` is true. A sum of bits with zeros, which a compiler removes; adding 0.0 to a float
    it must not."""
    return tl.sum(tl.where(at, tile.to(tl.int32, bitcast=True), 0), 0).to(tl.float32, bitcast=True)


@triton.jit
def recurrence(decay, drive, h, BACK: tl.constexpr):
    """h = decay h + drive through a tile (T, ...), from its last pixel if BACK: every state, and the last one."""
    T: tl.constexpr = decay.shape[0]
    t = tl.arange(0, T)
    for _ in tl.static_range(len(decay.shape) - 1):
        t = tl.expand_dims(t, -1)
    reached = drive
    for i in tl.static_range(T):
        at = t == (T - 1 - i if BACK else i)
        h = h * select_row(decay, at) + select_row(drive, at)
        reached = tl.where(at, tl.expand_dims(h, 0), reached)
    return reached, h


@triton.jit
def recurrence_before_drive(decay, drive, h, BACK: tl.constexpr):
    """`recur`, but what arrives at each pixel, decay h, before its drive is added."""
    T: tl.constexpr = decay.shape[0]
    t = tl.arange(0, T)[:, None]
    arrived = drive
    for i in tl.static_range(T):
        at = t == (T - 1 - i if BACK else i)
        h *= select_row(decay, at)
        arrived = tl.where(at, h[None, :], arrived)
        h += select_row(drive, at)
    return arrived, h


@triton.jit
def recurrence_gradient(decay, incoming, g, BACK: tl.constexpr):
    """g = incoming + what arrives, decay g of the pixel visited next, against the route's direction: the gradient of
    each state (T, BC), and what leaves the tile, decayed by the pixel visited first (BC,)."""
    T: tl.constexpr = decay.shape[0]
    t = tl.arange(0, T)[:, None]
    out = incoming
    for i in tl.static_range(T):
        at = t == (i if BACK else T - 1 - i)
        g += select_row(incoming, at)
        out = tl.where(at, g[None, :], out)
        g *= select_row(decay, at)
    return out, g


@triton.jit
def compose(a1, h1, a2, h2):
    """The map h -> a1 h + h1, then h -> a2 h + h2."""
    return a1 * a2, a2 * h1 + h2
