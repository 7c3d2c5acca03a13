// The parts of a state fusion: taps and their weights, planes of one vector of channels, and rows of fused pixels.
#pragma once

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
    VSSM_INLINE void take_sums(const FixedTaps& other) {
#pragma GCC unroll 32
        for (int i = 0; i < count; ++i) sum[i] = other.sum[i];
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
    void take_sums(const AnyTaps&) {}  // copies share their memory
    template <class Body>
    VSSM_INLINE void each(const Body& body) {
        for (int i = 0; i < count; ++i) body(weight[i], sum[i], taps[i], 0);
    }
};

// Rows of pixels of one vector of channels each, `margin` more pixels on either side. Of a plane with fewer rows than
// its map, row y takes the place of row y - rows.
template <class T>
struct Plane {
    T* data;
    int64_t width, margin, rows;

    static int64_t values(int64_t rows, int64_t width, int64_t margin) {
        return rows * (width + 2 * margin) * lanes<T>;
    }
    // Pixel 0 of row y.
    T* row(int64_t y) const { return data + (static_cast<uint32_t>(y) % static_cast<uint32_t>(rows) * (width + 2 * margin) + margin) * lanes<T>; }

    // Repeat the first and last pixel of row y into the margins.
    void repeat_borders(int64_t y) const {
        T* at = row(y);
        for (int64_t x = 1; x <= margin; ++x) {
            store(at - x * lanes<T>, load(at));
            store(at + (width - 1 + x) * lanes<T>, load(at + (width - 1) * lanes<T>));
        }
    }
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
    VSSM_INLINE int64_t raster(int64_t y, int64_t x) const { return y * a.width + x; }  // within the sample

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
            plane.repeat_borders(y - first);
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

}  // namespace
}  // namespace VSSM_ISA
}  // namespace vssm
