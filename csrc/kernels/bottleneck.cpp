// The middle of a bottleneck: the depthwise 3x3 convolution with stride 2 and the ReLUs on both sides of it.
//
// The caller makes h for a strip of rows that fits the second-level cache, and hands it over before it has left. Tasks
// own channels, so nothing is added across them.
//
// The backward walks 2x2 cells of h. A cell lies between four results, and each of its four pixels met those of the
// results that a tap of the kernel reaches: nine products in all, once for the gradient of h, once for the weights'.
#include "rows.h"

namespace vssm {
namespace VSSM_ISA {
namespace {

constexpr int64_t vectors_per_task = 8;

// body(c, count) for every vector of channels, in parallel.
template <class T, class Body>
void each_channels(int64_t channels, const Body& body) {
    const int64_t step = vectors_per_task * lanes<T>;
    parallel((channels + step - 1) / step, [&](int64_t task) {
        const int64_t end = smaller(channels, (task + 1) * step);
        for (int64_t c = task * step; c < end; c += lanes<T>)
            body(c, static_cast<int>(smaller<int64_t>(lanes<T>, end - c)));
    });
}

template <class T>
int32_t forward(const BottleneckArgs& a) {
    const int64_t C = a.channels, row = a.width * C;
    const T *weight = static_cast<const T*>(a.weight), *bias = static_cast<const T*>(a.bias);
    each_channels<T>(C, [&](int64_t c, int count) VSSM_BODY {
        Vec<T> w[9];
        for (int i = 0; i < 9; ++i) w[i] = load_first(weight + i * C + c, count);
        const Vec<T> start = load_first(bias + c, count);
        for (int64_t s = 0; s < a.samples; ++s)
            for (int64_t y = 0; y < a.out_height; ++y) {
                const int64_t centre = 2 * y + a.above;
                const T* in = static_cast<const T*>(a.h) + (s * a.height + centre) * row + c;
                T* out = static_cast<T*>(a.y) + (s * a.out_height + y) * a.out_width * C + c;
                const bool inside[3] = {centre > 0, true, centre + 1 < a.height};
                const auto at = [&](int u, int64_t x) VSSM_BODY {
                    return inside[u] && x < a.width ? load_first(in + (u - 1) * row + x * C, count) : Vec<T>{};
                };
                Vec<T> left[3] = {};
                for (int64_t x = 0; x < a.out_width; ++x) {
                    Vec<T> sum[3] = {start, Vec<T>{}, Vec<T>{}};
                    for (int u = 0; u < 3; ++u) {
                        const Vec<T> middle = at(u, 2 * x), right = at(u, 2 * x + 1);
                        sum[u] = fma(w[3 * u], left[u], sum[u]);
                        sum[u] = fma(w[3 * u + 1], middle, sum[u]);
                        sum[u] = fma(w[3 * u + 2], right, sum[u]);
                        left[u] = right;
                    }
                    store_first(out + x * C, at_least(sum[0] + (sum[1] + sum[2]), Vec<T>{}), count);
                }
            }
    });
    return ok;
}

template <class T>
VSSM_INLINE void add_to(T* at, Vec<T> v) {
    store(at, load(at) + v);
}

// Weights and sums of the channels of one task, a row per tap, padded to whole vectors.
template <class T>
struct Block {
    static constexpr int64_t channels = vectors_per_task * lanes<T>;
    alignas(64) T w[9][channels] = {}, dw[9][channels] = {}, dh_sum[channels] = {}, dbias[channels] = {};
};

// The gradient of the pixels of h between two rows of results, whose gradients are `up` and `down` (null: outside).
// odd: the row of h between their centres; even: the centre row of `down`. Null: not asked for.
//
// Channels are innermost: pixels are often a multiple of 4 KB apart, where a load waits for an unrelated store.
template <class T>
VSSM_INLINE void cells(Block<T>& b, const BottleneckArgs& a, int64_t n, T* odd, T* even, const T* up, const T* down) {
    const int64_t C = a.channels;
    for (int64_t x = 0; x <= a.out_width; ++x) {
        const bool left = x > 0 && 2 * x - 1 < a.width, right = 2 * x < a.width, result = x < a.out_width;
        for (int64_t i = 0; i < n; i += lanes<T>) {
            const int count = static_cast<int>(smaller<int64_t>(lanes<T>, n - i));
            const auto at = [&](const T* row, bool inside, int64_t pixel) VSSM_BODY {
                return row && inside ? load_first(row + pixel * C + i, count) : Vec<T>{};
            };
            const Vec<T> g0 = at(up, x > 0, x - 1), g1 = at(up, result, x);
            const Vec<T> g2 = at(down, x > 0, x - 1), g3 = at(down, result, x);
            const Vec<T> h0 = at(odd, left, 2 * x - 1), h1 = at(odd, right, 2 * x);
            const Vec<T> h2 = at(even, left, 2 * x - 1), h3 = at(even, right, 2 * x);
            const auto w = [&](int tap) VSSM_BODY { return load(b.w[tap] + i); };
            const auto put = [&](T* row, bool inside, int64_t pixel, Vec<T> d, Vec<T> h) VSSM_BODY {
                d = h > 0 ? d : Vec<T>{};
                if (row && inside) store_first(row + pixel * C + i, d, count);
                return d;
            };
            const Vec<T> d0 = put(odd, left, 2 * x - 1, fma(w(8), g0, w(6) * g1) + fma(w(2), g2, w(0) * g3), h0);
            const Vec<T> d1 = put(odd, right, 2 * x, fma(w(7), g1, w(1) * g3), h1);
            const Vec<T> d2 = put(even, left, 2 * x - 1, fma(w(5), g2, w(3) * g3), h2);
            const Vec<T> d3 = put(even, right, 2 * x, w(4) * g3, h3);
            add_to(b.dh_sum + i, (d0 + d1) + (d2 + d3));
            const auto add = [&](int tap, Vec<T> h, Vec<T> g) VSSM_BODY {
                store(b.dw[tap] + i, fma(h, g, load(b.dw[tap] + i)));
            };
            add(8, h0, g0);
            add(6, h0, g1);
            add(2, h0, g2);
            add(0, h0, g3);
            add(7, h1, g1);
            add(1, h1, g3);
            add(5, h2, g2);
            add(3, h2, g3);
            add(4, h3, g3);
        }
    }
}

// Row `g` of gradients where its result `value` is positive, else zero.
template <class T>
VSSM_INLINE void mask(Block<T>& b, const BottleneckArgs& a, int64_t n, T* g, const T* value) {
    for (int64_t x = 0; x < a.out_width; ++x)
        for (int64_t i = 0; i < n; i += lanes<T>) {
            const int count = static_cast<int>(smaller<int64_t>(lanes<T>, n - i));
            const int64_t at = x * a.channels + i;
            const Vec<T> d = load_first(value + at, count) > 0 ? load_first(g + at, count) : Vec<T>{};
            store_first(g + at, d, count);
            add_to(b.dbias + i, d);
        }
}

template <class T>
int32_t backward(const BottleneckArgs& a) {
    const int64_t C = a.channels, row = a.width * C, out_row = a.out_width * C;
    parallel((C + Block<T>::channels - 1) / Block<T>::channels, [&](int64_t task) {
        const int64_t c = task * Block<T>::channels, n = smaller(Block<T>::channels, C - c);
        Block<T> b;
        for (int tap = 0; tap < 9; ++tap)
            memcpy(b.w[tap], static_cast<const T*>(a.weight) + tap * C + c, n * sizeof(T));
        for (int64_t s = 0; s < a.samples; ++s) {
            T* h = static_cast<T*>(a.h) + s * a.height * row + c;
            const T* value = static_cast<const T*>(a.y) + s * a.out_height * out_row + c;
            T* g = static_cast<T*>(a.g) + s * a.out_height * out_row + c;
            const T* up = a.g_above ? static_cast<const T*>(a.g_above) + c : nullptr;
            for (int64_t y = 0; y < a.out_height + (a.last ? 1 : 0); ++y) {
                T* down = y < a.out_height ? g + y * out_row : nullptr;
                if (down) mask(b, a, n, down, value + y * out_row);
                const int64_t even = 2 * y + a.above, odd = even - 1;
                cells(b, a, n, odd >= 0 && odd < a.height ? h + odd * row : nullptr,
                      even < a.height ? h + even * row : nullptr, up, down);
                up = down;
            }
        }
        const auto add_up = [&](void* sum, int64_t at, const T* part) {
            for (int64_t i = 0; i < n; ++i) static_cast<T*>(sum)[at + i] += part[i];
        };
        for (int tap = 0; tap < 9; ++tap) add_up(a.dweight, tap * C + c, b.dw[tap]);
        add_up(a.dh_sum, c, b.dh_sum);
        add_up(a.dbias, c, b.dbias);
    });
    return ok;
}

}  // namespace

int32_t bottleneck_forward(const BottleneckArgs* a) { return a->is_double ? forward<double>(*a) : forward<float>(*a); }
int32_t bottleneck_backward(const BottleneckArgs* a) {
    return a->is_double ? backward<double>(*a) : backward<float>(*a);
}

}  // namespace VSSM_ISA
}  // namespace vssm
