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

// Route k for the vector of channels that begins at c; `at` moves it from sample to sample.
template <class T>
struct Walk {
    const ScanArgs& s;
    int64_t k, c;
    int n;                 // valid lanes (the vector's size or more)
    int64_t columns;       // of a row of proj that belong to one route: R + 2N
    const int32_t* order;  // or null
    Vec<T>* weight;        // R vectors
    Vec<T>* A2;            // N vectors: A * log2(e), since exp(dt A) is computed as 2^(dt A2)
    Vec<T> bias, D;
    int64_t sequence = 0;  // b * K + k
    int64_t map = 0;       // where the sample's u and y begin
    const T* proj = nullptr;
    const T* dt = nullptr;

    // `vectors` has room for R + N.
    Walk(const ScanArgs& args, int64_t k_, int64_t c_, Vec<T>* vectors)
        : s(args), k(k_), c(c_), weight(vectors), A2(vectors + args.rank) {
        const int64_t R = s.rank, N = s.state, kc = k * s.channels + c;
        n = static_cast<int>(smaller(s.channels - c, lanes<T>));
        columns = R + 2 * N;
        order = s.order ? s.order + k * s.length : nullptr;
        if (R > 0) load_columns(static_cast<const T*>(s.dt_weight) + kc * R, R, n, weight);
        for (int64_t i = 0; i < N; ++i)
            A2[i] = load_strided(static_cast<const T*>(s.A) + kc * N + i, N, n) * T(1.4426950408889634);
        bias = s.dt_bias ? load_first(static_cast<const T*>(s.dt_bias) + kc, n) : Vec<T>{};
        D = s.D ? load_first(static_cast<const T*>(s.D) + kc, n) : Vec<T>{};
    }

    void at(int64_t b) {
        const int64_t C = s.channels, L = s.length;
        sequence = b * s.routes + k;
        map = (s.separate ? sequence : b) * L * C + c;
        proj = static_cast<const T*>(s.proj) + (b * L * s.routes + k) * columns;
        dt = s.dt ? static_cast<const T*>(s.dt) + sequence * L * C + c : nullptr;
    }

    // Offset of this walk's part of a tensor (B, K, C, N).
    VSSM_INLINE int64_t carry() const { return (sequence * s.channels + c) * s.state; }

    VSSM_INLINE int64_t position(int64_t t) const { return order ? order[t] : t; }
    VSSM_INLINE const T* row(int64_t p) const { return proj + p * s.routes * columns; }

    // Positions of steps t .. t + block - 1; past the end the last one again.
    VSSM_INLINE void positions(int64_t t, int64_t (&p)[block]) const {
#pragma GCC unroll 8
        for (int j = 0; j < block; ++j) p[j] = position(smaller(t + j, s.length - 1));
    }

    // Step sizes at those positions. With Slope also their derivative by the raw dt.
    template <bool Slope>
    VSSM_INLINE void step_sizes(const int64_t (&p)[block], Vec<T> (&d)[block], Vec<T> (&slope)[block]) const {
        Vec<T> z[block];
        if (dt) {
#pragma GCC unroll 8
            for (int j = 0; j < block; ++j) z[j] = load_first(dt + p[j] * s.channels, n) + bias;
        } else {
            const T* low[block];
#pragma GCC unroll 8
            for (int j = 0; j < block; ++j) {
                low[j] = row(p[j]);
                z[j] = bias;
            }
            for (int64_t r = 0; r < s.rank; ++r) {
                const Vec<T> w = weight[r];
#pragma GCC unroll 8
                for (int j = 0; j < block; ++j) z[j] = fma(w, set1(low[j][r]), z[j]);
            }
        }
        if (!s.softplus) {
#pragma GCC unroll 8
            for (int j = 0; j < block; ++j) {
                d[j] = z[j];
                if constexpr (Slope) slope[j] = set1(T(1));
            }
            return;
        }
#pragma GCC unroll 8
        for (int j = 0; j < block; ++j) {
            Vec<T> q;
            d[j] = softplus(z[j], q);
            if constexpr (Slope) slope[j] = sigmoid_from(z[j], q);
        }
    }
};

}  // namespace VSSM_ISA
}  // namespace vssm
