// State fusion: a depthwise convolution whose taps are the union of dilated 3x3 grids, over a map whose border repeats;
// optionally followed by the readout C * fused + D * u.
//
// A task is one vector of channels of one sample (forward: of a strip of rows). It copies its channels into a plane of
// its own, where the pixels of a row are contiguous and the repeated columns are written out; a row outside of the map
// is the clamped row. Every tap is then one load at a constant distance, and the weights of the 25 taps of dilations
// 1, 3, 5 fit the registers of AVX-512.
#include "rows.h"

namespace vssm {
namespace VSSM_ISA {
namespace {

struct Tap {
    int dy, dx;
    bool first, last;  // of the taps in its row
};

VSSM_INLINE constexpr bool in_grid(int64_t dy, int64_t dx, int64_t d) {
    return (dy == 0 || dy == d || dy == -d) && (dx == 0 || dx == d || dx == -d);
}

// The distinct taps of dilated 3x3 grids in reading order; returns their number.
template <class D>
constexpr int list_taps(const D* dilations, int64_t n, int reach, Tap* taps) {
    int count = 0;
    for (int dy = -reach; dy <= reach; ++dy) {
        const int row = count;
        for (int dx = -reach; dx <= reach; ++dx) {
            bool hit = false;
            for (int64_t i = 0; i < n; ++i) hit = hit || in_grid(dy, dx, dilations[i]);
            if (hit) taps[count++] = {dy, dx, false, false};
        }
        if (count > row) taps[row].first = taps[count - 1].last = true;
    }
    return count;
}

VSSM_INLINE int64_t clamp(int64_t i, int64_t n) { return i < 0 ? 0 : i < n ? i : n - 1; }

// What a call asks for: its taps, and their weights (taps, channels).
template <class T>
struct Problem {
    const StateFusionArgs& a;
    const int64_t* dilations;
    int reach = 0, count = 0;
    Tap* taps;
    T* weights = nullptr;

    explicit Problem(const StateFusionArgs& a)
        : a(a), dilations(reinterpret_cast<const int64_t*>(&a + 1)),
          taps(static_cast<Tap*>(malloc((8 * a.count + 1) * sizeof(Tap)))) {
        if (taps == nullptr) return;
        for (int64_t i = 0; i < a.count; ++i)
            if (dilations[i] > reach) reach = static_cast<int>(dilations[i]);
        count = list_taps(dilations, a.count, reach, taps);
        weights = static_cast<T*>(calloc(count * a.channels + 1, sizeof(T)));
        if (weights == nullptr) return;
        for (int64_t i = 0; i < a.count; ++i) {
            const T* kernel = static_cast<const T*>(a.kernels) + i * a.channels * 9;
            const T alpha = static_cast<const T*>(a.alphas)[i];
            for (int k = 0; k < 9; ++k) {
                T* row = weights + tap_of(i, k) * a.channels;
                for (int64_t c = 0; c < a.channels; ++c) row[c] += alpha * kernel[c * 9 + k];
            }
        }
    }
    ~Problem() {
        free(taps);
        free(weights);
    }

    // The tap that entry k of kernel i falls on.
    int tap_of(int64_t i, int k) const {
        int t = 0;
        while (taps[t].dy != (k / 3 - 1) * dilations[i] || taps[t].dx != (k % 3 - 1) * dilations[i]) ++t;
        return t;
    }

    // The gradients of kernels and alphas, given those of the taps, one row of channels per tap.
    void unfold(const PartialSums<T>& dweights, T* row) const {
        for (int64_t i = 0; i < a.count; ++i) {
            const T* kernel = static_cast<const T*>(a.kernels) + i * a.channels * 9;
            T* dkernel = static_cast<T*>(a.dkernels) + i * a.channels * 9;
            const T alpha = static_cast<const T*>(a.alphas)[i];
            double dalpha = 0;
            for (int k = 0; k < 9; ++k) {
                dweights.total(tap_of(i, k), row);
                for (int64_t c = 0; c < a.channels; ++c) {
                    dkernel[c * 9 + k] = alpha * row[c];
                    dalpha += static_cast<double>(kernel[c * 9 + k]) * static_cast<double>(row[c]);
                }
            }
            static_cast<T*>(a.dalphas)[i] = static_cast<T>(dalpha);
        }
    }
};

// Taps known when compiled: the loop over them unrolls, distances are constants, weights and sums are registers.
template <class T, int... dilations>
struct FixedTaps {
    static constexpr int n = sizeof...(dilations);
    static constexpr int values[n] = {dilations...};
    static constexpr int reach = values[n - 1];  // in increasing order
    struct List {
        Tap at[8 * n + 1];
    };
    static constexpr List make_list() {
        List made{};
        list_taps(values, n, reach, made.at);
        return made;
    }
    static constexpr List list = make_list();
    static constexpr int count = 8 * n + 1;

    Vec<T> weight[count], sum[count];

    static bool fits(const Problem<T>& p) {
        for (int i = 0; i < n; ++i)
            if (p.a.count != n || p.dilations[i] != values[i]) return false;
        return true;
    }
    static int64_t memory(const Problem<T>&) { return 0; }

    VSSM_INLINE FixedTaps(const Problem<T>& p, T*, int64_t c, int used) {
#pragma GCC unroll 32
        for (int i = 0; i < count; ++i) {
            weight[i] = load_first(p.weights + i * p.a.channels + c, used);
            sum[i] = Vec<T>{};
        }
    }
    template <class Body, int... I>
    VSSM_INLINE void unrolled(const Body& body, Lanes<I...>) {
        (body(weight[I], sum[I], list.at[I], I % 4), ...);
    }
    template <class Body>
    VSSM_INLINE void each(const Body& body) {
        unrolled(body, AllLanes<count>{});
    }
};

// Any taps: weights and sums in the memory of the task.
template <class T>
struct AnyTaps {
    const Tap* taps;
    int count;
    Vec<T>*weight, *sum;

    static int64_t memory(const Problem<T>& p) { return 2 * p.count * lanes<T>; }

    AnyTaps(const Problem<T>& p, T* memory, int64_t c, int used)
        : taps(p.taps), count(p.count), weight(reinterpret_cast<Vec<T>*>(memory)), sum(weight + p.count) {
        for (int i = 0; i < count; ++i) {
            weight[i] = load_first(p.weights + i * p.a.channels + c, used);
            sum[i] = Vec<T>{};
        }
    }
    template <class Body>
    VSSM_INLINE void each(const Body& body) {
        for (int i = 0; i < count; ++i) body(weight[i], sum[i], taps[i], 0);
    }
};

// Rows of pixels of one vector of channels each, `margin` more pixels on either side.
template <class T>
struct Plane {
    T* data;
    int64_t width, margin;

    static int64_t values(int64_t rows, int64_t width, int64_t margin) {
        return rows * (width + 2 * margin) * lanes<T>;
    }
    // Pixel 0 of row y.
    T* row(int64_t y) const { return data + (y * (width + 2 * margin) + margin) * lanes<T>; }
};

template <class T>
struct Block {
    const StateFusionArgs& a;
    int64_t sample, c;
    int used;  // channels of the vector that exist

    Block(const StateFusionArgs& a, int64_t index)
        : a(a), sample(index / blocks(a)), c(index % blocks(a) * lanes<T>),
          used(static_cast<int>(smaller<int64_t>(lanes<T>, a.channels - c))) {}
    static int64_t blocks(const StateFusionArgs& a) { return (a.channels + lanes<T> - 1) / lanes<T>; }

    // Element of a map where the block's channels of pixel (y, x) begin.
    VSSM_INLINE int64_t at(int64_t y, int64_t x) const { return pixel(y, x) * a.channels + c; }
    VSSM_INLINE int64_t pixel(int64_t y, int64_t x) const { return (sample * a.height + y) * a.width + x; }

    // body(x, value) for every pixel of row y of a map. Pixels lie a row of channels apart, which no hardware prefetcher
    // follows when it is a page.
    template <class Body>
    VSSM_INLINE void each_read(const Tensor& t, int64_t y, const Body& body) const {
        const int64_t width = a.width, step = a.channels;
        if (t.type == type_of<T> && used >= lanes<T>) {
            const T* from = static_cast<const T*>(t.data) + at(y, 0);
            for (int64_t x = 0; x < width; ++x, from += step) {
                __builtin_prefetch(from + 8 * step);
                body(x, load(from));
            }
        } else {
            for (int64_t x = 0; x < width; ++x) body(x, load_values<T>(t, at(y, x), used));
        }
    }

    // Row y of a map from a line of vectors.
    VSSM_INLINE void write(const Tensor& t, int64_t y, const T* line) const {
        const int64_t width = a.width, step = a.channels;
        if (t.type == type_of<T> && used >= lanes<T>) {
            T* to = static_cast<T*>(t.data) + at(y, 0);
            for (int64_t x = 0; x < width; ++x, to += step) {
                __builtin_prefetch(to + 8 * step, 1);
                store(to, load(line + x * lanes<T>));
            }
        } else {
            for (int64_t x = 0; x < width; ++x) store_values<T>(t, at(y, x), load(line + x * lanes<T>), used);
        }
    }

    // Rows [first, last) of the map and their repeated borders.
    void copy_in(const Plane<T>& plane, int64_t first, int64_t last) const {
        for (int64_t y = first; y < last; ++y) {
            T* row = plane.row(y - first);
            each_read(a.h, y, [&](int64_t x, Vec<T> v) VSSM_BODY { store(row + x * lanes<T>, v); });
            for (int64_t x = 1; x <= plane.margin; ++x) {
                store(row - x * lanes<T>, load(row));
                store(row + (a.width - 1 + x) * lanes<T>, load(row + (a.width - 1) * lanes<T>));
            }
        }
    }
};

// Row y + dy of a plane whose first row is row `first` of the map, clamped to the map: looked up once per row where the
// reach is known, so that no tap asks about the border.
template <class T, class Taps>
struct Neighbours {
    T* at[2 * Taps::reach + 1];
    VSSM_INLINE Neighbours(const Plane<T>& plane, int64_t y, int64_t height, int64_t first) {
#pragma GCC unroll 16
        for (int dy = -Taps::reach; dy <= Taps::reach; ++dy)
            at[dy + Taps::reach] = plane.row(clamp(y + dy, height) - first);
    }
    VSSM_INLINE T* operator[](int dy) const { return at[dy + Taps::reach]; }
};

template <class T>
struct Neighbours<T, AnyTaps<T>> {
    Plane<T> plane;
    int64_t y, height, first;
    VSSM_INLINE Neighbours(const Plane<T>& plane, int64_t y, int64_t height, int64_t first)
        : plane(plane), y(y), height(height), first(first) {}
    VSSM_INLINE T* operator[](int dy) const { return plane.row(clamp(y + dy, height) - first); }
};

template <class T, class Taps>
VSSM_INLINE Vec<T> fuse(Taps& taps, const Neighbours<T, Taps>& rows, int64_t x) {
    Vec<T> part[4] = {};
    taps.each([&](const Vec<T>& weight, Vec<T>&, const Tap& tap, int j) VSSM_BODY {
        part[j] = fma(weight, load(rows[tap.dy] + (x + tap.dx) * lanes<T>), part[j]);
    });
    return (part[0] + part[1]) + (part[2] + part[3]);
}

// A row of fused pixels. Not inlined, and without conversions: all registers are left to the weights.
template <class T, class Taps>
__attribute__((noinline)) void fuse_row(const Taps& of_task, const Neighbours<T, Taps>& of_row, T* line, int64_t width) {
    Taps taps = of_task;
    const Neighbours<T, Taps> rows = of_row;
    for (int64_t x = 0; x < width; ++x) store(line + x * lanes<T>, fuse(taps, rows, x));
}

template <class T, class Taps>
int32_t forward(const Problem<T>& p) {
    const StateFusionArgs& a = p.a;
    // Strips whose plane stays in the second-level cache.
    const int64_t row_bytes = Plane<T>::values(1, a.width, p.reach) * sizeof(T);
    int64_t strip = (int64_t{1} << 19) / row_bytes - 2 * p.reach;
    strip = smaller(a.height, strip < 8 ? 8 : strip);
    const int64_t strips = (a.height + strip - 1) / strip;
    const T* C = static_cast<const T*>(a.C);
    const T* D = static_cast<const T*>(a.D);
    int32_t status = ok;
    parallel(a.batch * Block<T>::blocks(a) * strips, [&](int64_t task) {
        const Block<T> block(a, task / strips);
        const int64_t top = task % strips * strip, end = smaller(top + strip, a.height);
        const int64_t first = clamp(top - p.reach, a.height), last = clamp(end - 1 + p.reach, a.height) + 1;
        const int64_t taken = Taps::memory(p);
        const int64_t size = Plane<T>::values(last - first, a.width, p.reach);
        T* memory = static_cast<T*>(scratch((taken + size + a.width * lanes<T>) * sizeof(T)));
        if (memory == nullptr) {
            status = out_of_memory;
            return;
        }
        const Plane<T> plane{memory + taken, a.width, p.reach};
        T* line = memory + taken + size;
        block.copy_in(plane, first, last);
        Taps taps(p, memory, block.c, block.used);
        const Vec<T> skip = D ? load_first(D + block.c, block.used) : Vec<T>{};
        for (int64_t y = top; y < end; ++y) {
            const Neighbours<T, Taps> rows(plane, y, a.height, first);
            fuse_row(taps, rows, line, a.width);
            if (C) {
                const T* of_row = C + block.pixel(y, 0);
                for (int64_t x = 0; x < a.width; ++x) store(line + x * lanes<T>, load(line + x * lanes<T>) * of_row[x]);
            }
            if (D) {
                block.each_read(a.u, y, [&](int64_t x, Vec<T> u) VSSM_BODY {
                    store(line + x * lanes<T>, fma(skip, u, load(line + x * lanes<T>)));
                });
            }
            block.write(a.y, y, line);
        }
    });
    return status;
}

template <class T, class Taps>
int32_t backward(const Problem<T>& p) {
    const StateFusionArgs& a = p.a;
    const int64_t blocks = Block<T>::blocks(a), pixels = a.height * a.width;
    const T* C = static_cast<const T*>(a.C);
    const T* D = static_cast<const T*>(a.D);
    const PartialSums<T> partial(a.batch, p.count + 1, a.channels);  // one sum per tap, and dD
    const PartialSums<T> readout(a.batch * blocks, C ? 1 : 0, pixels);
    T* row_of_channels = static_cast<T*>(malloc(a.channels * sizeof(T) + 1));
    int32_t status = partial.failed() || readout.failed() || row_of_channels == nullptr ? out_of_memory : ok;
    if (status == ok) parallel(a.batch * blocks, [&](int64_t task) {
        const Block<T> block(a, task);
        const int64_t taken = Taps::memory(p), size = Plane<T>::values(a.height, a.width, p.reach);
        const int64_t line = Plane<T>::values(1, a.width, 2 * p.reach);
        T* memory = static_cast<T*>(scratch((taken + 2 * size + line) * sizeof(T)));
        if (memory == nullptr) {
            status = out_of_memory;
            return;
        }
        const Plane<T> h{memory + taken, a.width, p.reach}, dh{memory + taken + size, a.width, p.reach};
        const Plane<T> gradient{memory + taken + 2 * size, a.width, 2 * p.reach};  // one row, zeros around it
        memset(dh.data, 0, (size + line) * sizeof(T));
        block.copy_in(h, 0, a.height);
        Taps taps(p, memory, block.c, block.used);
        const Vec<T> skip = D ? load_first(D + block.c, block.used) : Vec<T>{};
        Vec<T> dskip{};
        T* g = gradient.row(0);
        for (int64_t y = 0; y < a.height; ++y) {
            const Neighbours<T, Taps> rows(h, y, a.height, 0), drows(dh, y, a.height, 0);
            for (int64_t x = 0; x < a.width; ++x) {
                Vec<T> v = load_values<T>(a.y, block.at(y, x), block.used);
                if (D) {
                    dskip = fma(v, load_values<T>(a.u, block.at(y, x), block.used), dskip);
                    store_values<T>(a.du, block.at(y, x), skip * v, block.used);
                }
                if (C) {
                    readout.of(task, 0)[y * a.width + x] = sum<T>(v * fuse(taps, rows, x));
                    v *= C[block.pixel(y, x)];
                }
                store(g + x * lanes<T>, v);
            }
            for (int64_t x = 0; x < a.width; ++x) {
                const Vec<T> v = load(g + x * lanes<T>);
                taps.each([&](const Vec<T>&, Vec<T>& sum, const Tap& tap, int) VSSM_BODY {
                    sum = fma(v, load(rows[tap.dy] + (x + tap.dx) * lanes<T>), sum);
                });
            }
            // Row by row of taps: near the border several rows of taps reach the same row of the map.
            for (int64_t x = -p.reach; x < a.width + p.reach; ++x) {
                Vec<T> v{};
                taps.each([&](const Vec<T>& weight, Vec<T>&, const Tap& tap, int) VSSM_BODY {
                    if (tap.first) v = load(drows[tap.dy] + x * lanes<T>);
                    v = fma(weight, load(g + (x - tap.dx) * lanes<T>), v);
                    if (tap.last) store(drows[tap.dy] + x * lanes<T>, v);
                });
            }
        }
        for (int64_t y = 0; y < a.height; ++y) {
            T* row = dh.row(y);
            T* right = row + (a.width - 1) * lanes<T>;
            for (int64_t x = 1; x <= p.reach; ++x) {
                store(row, load(row) + load(row - x * lanes<T>));
                store(right, load(right) + load(right + x * lanes<T>));
            }
            block.write(a.dh, y, row);
        }
        int i = 0;
        taps.each([&](const Vec<T>&, Vec<T>& sum, const Tap&, int) VSSM_BODY {
            store_first(partial.of(block.sample, i++) + block.c, sum, block.used);
        });
        store_first(partial.of(block.sample, p.count) + block.c, dskip, block.used);
    });
    if (status == ok) {
        p.unfold(partial, row_of_channels);
        if (D) partial.total(p.count, static_cast<T*>(a.dD));
        T* dC = static_cast<T*>(a.dC);
        for (int64_t i = 0; C && i < a.batch * pixels; ++i) {
            dC[i] = 0;
            for (int64_t j = 0; j < blocks; ++j) dC[i] += readout.of(i / pixels * blocks + j, 0)[i % pixels];
        }
    }
    free(row_of_channels);
    return status;
}

template <class T, class Taps>
int32_t run(const Problem<T>& p, bool forwards) {
    return forwards ? forward<T, Taps>(p) : backward<T, Taps>(p);
}

template <class T>
int32_t choose(const StateFusionArgs& a, bool forwards) {
    if (a.count < 1 || a.height < 1 || a.width < 1 || a.channels < 1) return bad_argument;
    const Problem<T> p(a);
    if (p.weights == nullptr) return out_of_memory;
    if constexpr (sizeof(T) == 4)  // the published dilations; double precision is for checking
        if (FixedTaps<T, 1, 3, 5>::fits(p)) return run<T, FixedTaps<T, 1, 3, 5>>(p, forwards);
    return run<T, AnyTaps<T>>(p, forwards);
}

}  // namespace

int32_t state_fusion_forward(const StateFusionArgs* a) {
    return a->is_double ? choose<double>(*a, true) : choose<float>(*a, true);
}
int32_t state_fusion_backward(const StateFusionArgs* a) {
    return a->is_double ? choose<double>(*a, false) : choose<float>(*a, false);
}

}  // namespace VSSM_ISA
}  // namespace vssm
