// What forward and backward share: the parameters of one route for one vector of channels, and the step sizes of a
// block of pixels.
#pragma once

#include "../scan.h"
#include "../simd.h"

namespace vssm {
namespace VSSM_ISA {

// Pixels worked on together. Each load of a dt weight serves all of them, and their softplus and exp are independent
// of each other, which hides the latency of the polynomials.
constexpr int block = 8;
// Of those, how many go through the polynomials in step: as the registers allow (32 with AVX-512, else 16).
constexpr int in_step = VSSM_VECTOR_BYTES == 64 ? 8 : 4;

// The number of states that has code of its own: 1, or 0 for none. double is for checking, the general code will do.
template <class T>
constexpr int special = sizeof(T) == 4 ? 1 : 0;

VSSM_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
VSSM_INLINE int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Values at p[0], p[stride], ... in the first n lanes.
template <class T>
VSSM_INLINE Vec<T> load_strided(const T* p, int64_t stride, int n) {
    if (stride == 1) return load_first(p, n);
    alignas(VSSM_VECTOR_BYTES) T row[lanes<T>] = {};
    for (int i = 0; i < n && i < lanes<T>; ++i) row[i] = p[i * stride];
    return load(row);
}

template <class T>
VSSM_INLINE void store_strided(T* p, int64_t stride, Vec<T> v, int n) {
    if (stride == 1) return store_first(p, v, n);
    alignas(VSSM_VECTOR_BYTES) T row[lanes<T>];
    store(row, v);
    for (int i = 0; i < n && i < lanes<T>; ++i) p[i * stride] = row[i];
}

// (lanes, R) in memory to R vectors of lanes; missing lanes become zero.
template <class T>
inline void load_columns(const T* p, int64_t R, int n, Vec<T>* columns) {
    Vec<T> square[lanes<T>];
    for (int64_t r = 0; r < R; r += lanes<T>) {
        const int width = static_cast<int>(smaller(R - r, lanes<T>));
        for (int i = 0; i < lanes<T>; ++i) square[i] = i < n ? load_first(p + i * R + r, width) : Vec<T>{};
        transpose<T>(square);
        for (int i = 0; i < width; ++i) columns[r + i] = square[i];
    }
}

// The inverse: R vectors of lanes to (lanes, R) in memory.
template <class T>
inline void store_columns(T* p, int64_t R, int n, const Vec<T>* columns) {
    Vec<T> square[lanes<T>];
    for (int64_t r = 0; r < R; r += lanes<T>) {
        const int width = static_cast<int>(smaller(R - r, lanes<T>));
        for (int i = 0; i < lanes<T>; ++i) square[i] = i < width ? columns[r + i] : Vec<T>{};
        transpose<T>(square);
        for (int i = 0; i < n && i < lanes<T>; ++i) store_first(p + i * R + r, square[i], width);
    }
}

// Where a block of pixels lies: offsets into a map (L, C), and into the rows of proj.
struct Places {
    int64_t pixel[block], row[block];
};

// Ask for the rows that a later block reads. Routes along columns jump by a whole row of the map, which no hardware
// prefetcher follows.
template <class T>
VSSM_INLINE void prefetch(const T* first, const int64_t (&offset)[block]) {
#pragma GCC unroll 8
    for (int j = 0; j < block; ++j) __builtin_prefetch(first + offset[j]);
}

// Route k for the vector of channels that begins at c; `at` moves it from sample to sample.
// Its fields are plain values and kernels keep a copy: a vector store may alias anything, so what is read through a
// reference would be read again after each.
template <class T>
struct Walk {
    int64_t k, c, C, L, R, N;
    bool softplus_dt;
    int n;                 // valid lanes (the vector's size or more)
    int64_t columns;       // of a row of proj that belong to one route: R + 2N
    int64_t row_size;      // of a row of proj
    const int32_t* order;  // or null
    Vec<T>* weight;        // R vectors
    Vec<T>* A2;            // N vectors: A * log2(e), since exp(dt A) is computed as 2^(dt A2)
    Vec<T> bias, D;
    int64_t sequence = 0;  // b * K + k
    int64_t map = 0;       // where the sample's u and y begin
    const T* proj = nullptr;
    const T* dt = nullptr;

    // `vectors` has room for R + N.
    Walk(const ScanArgs& s, int64_t k_, int64_t c_, Vec<T>* vectors)
        : k(k_), c(c_), C(s.channels), L(s.length), R(s.rank), N(s.state), softplus_dt(s.softplus != 0),
          weight(vectors), A2(vectors + s.rank) {
        const int64_t kc = k * C + c;
        n = static_cast<int>(smaller(C - c, lanes<T>));
        columns = R + 2 * N;
        row_size = s.routes * columns;
        order = s.order ? s.order + k * L : nullptr;
        if (R > 0) load_columns(static_cast<const T*>(s.dt_weight) + kc * R, R, n, weight);
        for (int64_t i = 0; i < N; ++i)
            A2[i] = load_strided(static_cast<const T*>(s.A) + kc * N + i, N, n) * T(1.4426950408889634);
        bias = s.dt_bias ? load_first(static_cast<const T*>(s.dt_bias) + kc, n) : Vec<T>{};
        D = s.D ? load_first(static_cast<const T*>(s.D) + kc, n) : Vec<T>{};
    }

    void at(const ScanArgs& s, int64_t b) {
        sequence = b * s.routes + k;
        map = (s.separate ? sequence : b) * L * C + c;
        proj = static_cast<const T*>(s.proj) + (b * L * s.routes + k) * columns;
        dt = s.dt ? static_cast<const T*>(s.dt) + sequence * L * C + c : nullptr;
    }

    // Offset of this walk's part of a tensor (B, K, C, N).
    VSSM_INLINE int64_t carry() const { return (sequence * C + c) * N; }

    // Of steps t .. t + block - 1; past the end the last one again.
    VSSM_INLINE void places(int64_t t, Places& p) const {
#pragma GCC unroll 8
        for (int j = 0; j < block; ++j) {
            const int64_t step = smaller(t + j, L - 1), at = order ? order[step] : step;
            p.pixel[j] = at * C;
            p.row[j] = at * row_size;
        }
    }

    // Step sizes of a block. With Slope also their derivative by the raw dt.
    template <bool Slope>
    VSSM_INLINE void step_sizes(const Places& p, Vec<T> (&d)[block], Vec<T> (&slope)[block]) const {
        Vec<T> z[block];
        if (dt) {
#pragma GCC unroll 8
            for (int j = 0; j < block; ++j) z[j] = load_first(dt + p.pixel[j], n) + bias;
        } else {
            const T* low[block];
#pragma GCC unroll 8
            for (int j = 0; j < block; ++j) {
                low[j] = proj + p.row[j];
                z[j] = bias;
            }
            // Two sums per pixel: eight chains of dependent fma alone do not fill two units of latency four.
            Vec<T> odd[block] = {};
            int64_t r = 0;
            for (; r + 1 < R; r += 2) {
                const Vec<T> w0 = weight[r], w1 = weight[r + 1];
#pragma GCC unroll 8
                for (int j = 0; j < block; ++j) {
                    z[j] = fma(w0, set1(low[j][r]), z[j]);
                    odd[j] = fma(w1, set1(low[j][r + 1]), odd[j]);
                }
            }
            if (r < R) {
                const Vec<T> w = weight[r];
#pragma GCC unroll 8
                for (int j = 0; j < block; ++j) z[j] = fma(w, set1(low[j][r]), z[j]);
            }
#pragma GCC unroll 8
            for (int j = 0; j < block; ++j) z[j] += odd[j];
        }
#pragma GCC unroll 8
        for (int i = 0; i < block; i += in_step) {
            using Group = Pack<Vec<T>, in_step>;
            Group part = pack<Vec<T>, in_step>([&](int j) __attribute__((always_inline)) { return z[i + j]; });
            Group steps = part, slopes = pack<Vec<T>, in_step>([](int) { return set1(T(1)); });
            if (softplus_dt) {
                Group q;
                steps = softplus(part, q);
                if constexpr (Slope) slopes = sigmoid_from(part, q);
            }
#pragma GCC unroll 8
            for (int j = 0; j < in_step; ++j) {
                d[i + j] = steps[j];
                if constexpr (Slope) slope[i + j] = slopes[j];
            }
        }
    }

    // exp(dt A) of the first state.
    VSSM_INLINE void decays(const Vec<T> (&d)[block], Vec<T> (&decay)[block]) const {
        const Vec<T> a = A2[0];
#pragma GCC unroll 8
        for (int i = 0; i < block; i += in_step) {
            const auto part = exp2(pack<Vec<T>, in_step>([&](int j) __attribute__((always_inline)) { return d[i + j] * a; }));
#pragma GCC unroll 8
            for (int j = 0; j < in_step; ++j) decay[i + j] = part[j];
        }
    }
};

}  // namespace VSSM_ISA
}  // namespace vssm
