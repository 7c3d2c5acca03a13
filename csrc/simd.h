// Vectors of float or double and the elementary functions the kernels need.
//
// Written with the vector extensions of GCC and Clang and compiled once per instruction set: the build defines
// VSSM_ISA (a namespace name) and passes the matching -m flags. Everything lives in vssm::VSSM_ISA, so that no two
// variants share a symbol: a kernel file must not use templates or inline functions from outside this namespace
// (the linker could keep the AVX-512 copy of a std:: template for the baseline).
//
// A lambda or function taking vectors is always inlined (VSSM_INLINE); a vector never crosses a call.
#pragma once

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__AVX2__) || defined(__SSE2__)
#include <immintrin.h>
#endif

#ifndef VSSM_ISA
#error "the build defines VSSM_ISA: avx512, avx2, baseline or neon"
#endif

#if defined(__AVX512F__)
#define VSSM_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define VSSM_VECTOR_BYTES 32
#else
#define VSSM_VECTOR_BYTES 16
#endif

#define VSSM_INLINE inline __attribute__((always_inline))

namespace vssm {
namespace VSSM_ISA {

template <class T>
struct Simd;

// `U` is `V` without alignment and free to alias: a dereferenced U* is an unaligned load. (memcpy would do, but
// GCC 12 sends it through the stack.)
template <>
struct Simd<float> {
    typedef float V __attribute__((vector_size(VSSM_VECTOR_BYTES)));
    typedef float U __attribute__((vector_size(VSSM_VECTOR_BYTES), aligned(4), may_alias));
    typedef int32_t I __attribute__((vector_size(VSSM_VECTOR_BYTES)));
    static constexpr int lanes = VSSM_VECTOR_BYTES / 4;
};

template <>
struct Simd<double> {
    typedef double V __attribute__((vector_size(VSSM_VECTOR_BYTES)));
    typedef double U __attribute__((vector_size(VSSM_VECTOR_BYTES), aligned(8), may_alias));
    typedef int64_t I __attribute__((vector_size(VSSM_VECTOR_BYTES)));
    static constexpr int lanes = VSSM_VECTOR_BYTES / 8;
};

template <class T>
using Vec = typename Simd<T>::V;
template <class T>
constexpr int lanes = Simd<T>::lanes;

// The integers 0 .. n - 1 as a type, to write shuffles with (std::index_sequence, without std).
template <int... I>
struct Lanes {};
template <int N, int... I>
struct CountLanes : CountLanes<N - 1, N - 1, I...> {};
template <int... I>
struct CountLanes<0, I...> {
    using type = Lanes<I...>;
};
template <int N>
using AllLanes = typename CountLanes<N>::type;

using VecF = Vec<float>;
using VecD = Vec<double>;
using VecI = Simd<float>::I;

template <class T>
VSSM_INLINE Vec<T> load(const T* p) {
    return *reinterpret_cast<const typename Simd<T>::U*>(p);
}

template <class T>
VSSM_INLINE void store(T* p, Vec<T> v) {
    *reinterpret_cast<typename Simd<T>::U*>(p) = v;
}

template <class T>
VSSM_INLINE Vec<T> set1(T x) {
    return x - Vec<T>{};  // x - 0 is x for every x, so the compiler drops the subtraction
}

// All bits set in the first n lanes.
template <class T>
VSSM_INLINE typename Simd<T>::I first_lanes(int n) {
    alignas(VSSM_VECTOR_BYTES) static constexpr int32_t index[16] = {0, 1, 2,  3,  4,  5,  6,  7,
                                                                     8, 9, 10, 11, 12, 13, 14, 15};
    if constexpr (sizeof(T) == 4) {
        return *reinterpret_cast<const VecI*>(index) < n;
    } else {
        typename Simd<T>::I wide = {};
        for (int i = 0; i < lanes<T>; ++i) wide[i] = i;
        return wide < n;
    }
}

// The first n lanes, the others zero; nothing past p[n - 1] is touched. n >= lanes means all.
template <class T>
VSSM_INLINE Vec<T> load_first(const T* p, int n) {
    if (n >= lanes<T>) return load(p);
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4) return (Vec<T>)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
    else return (Vec<T>)_mm512_maskz_loadu_pd((__mmask8)((1u << n) - 1), p);
#elif defined(__AVX2__)
    if constexpr (sizeof(T) == 4) return (Vec<T>)_mm256_maskload_ps(p, (__m256i)first_lanes<T>(n));
    else return (Vec<T>)_mm256_maskload_pd(p, (__m256i)first_lanes<T>(n));
#else
    alignas(VSSM_VECTOR_BYTES) T row[lanes<T>] = {};
    for (int i = 0; i < n; ++i) row[i] = p[i];
    return load(row);
#endif
}

template <class T>
VSSM_INLINE void store_first(T* p, Vec<T> v, int n) {
    if (n >= lanes<T>) return store(p, v);
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4) _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)v);
    else _mm512_mask_storeu_pd(p, (__mmask8)((1u << n) - 1), (__m512d)v);
#elif defined(__AVX2__)
    if constexpr (sizeof(T) == 4) _mm256_maskstore_ps(p, (__m256i)first_lanes<T>(n), (__m256)v);
    else _mm256_maskstore_pd(p, (__m256i)first_lanes<T>(n), (__m256d)v);
#else
    alignas(VSSM_VECTOR_BYTES) T row[lanes<T>];
    store(row, v);
    for (int i = 0; i < n; ++i) p[i] = row[i];
#endif
}

// a * b + c; one rounding where the instruction set has it (-ffp-contract=fast fuses the expression).
template <class V>
VSSM_INLINE V fma(V a, V b, V c) {
    return a * b + c;
}

// The larger / smaller of x and a bound; a NaN in x stays NaN.
VSSM_INLINE VecF at_least(VecF x, VecF bound) {
#if defined(__AVX512F__)
    return (VecF)_mm512_max_ps((__m512)bound, (__m512)x);
#elif defined(__AVX2__)
    return (VecF)_mm256_max_ps((__m256)bound, (__m256)x);
#elif defined(__SSE2__)
    return (VecF)_mm_max_ps((__m128)bound, (__m128)x);
#else
    return x < bound ? bound : x;
#endif
}

VSSM_INLINE VecF at_most(VecF x, VecF bound) {
#if defined(__AVX512F__)
    return (VecF)_mm512_min_ps((__m512)bound, (__m512)x);
#elif defined(__AVX2__)
    return (VecF)_mm256_min_ps((__m256)bound, (__m256)x);
#elif defined(__SSE2__)
    return (VecF)_mm_min_ps((__m128)bound, (__m128)x);
#else
    return x > bound ? bound : x;
#endif
}

VSSM_INLINE VecF abs(VecF x) { return (VecF)((VecI)x & 0x7fffffff); }
VSSM_INLINE VecD abs(VecD x) { return (VecD)((Simd<double>::I)x & 0x7fffffffffffffffLL); }
VSSM_INLINE VecD at_least(VecD x, VecD bound) { return x < bound ? bound : x; }
VSSM_INLINE VecD at_most(VecD x, VecD bound) { return x > bound ? bound : x; }

// 1 / x for normal x, within 1 ulp or so.
VSSM_INLINE VecF reciprocal(VecF x) {
#if defined(__AVX512F__)
    VecF r = (VecF)_mm512_rcp14_ps((__m512)x);
    return fma(r, fma(-x, r, set1(1.0f)), r);
#elif defined(__AVX2__)
    VecF r = (VecF)_mm256_rcp_ps((__m256)x);
    return fma(r, fma(-x, r, set1(1.0f)), r);
#else
    return 1.0f / x;
#endif
}
VSSM_INLINE VecD reciprocal(VecD x) { return 1.0 / x; }

// Sum of the lanes: the upper half is added to the lower half until one lane is left.
template <class T>
VSSM_INLINE T sum(Vec<T> v) {
#if defined(__AVX2__)
    if constexpr (sizeof(T) == 4) {
#if defined(__AVX512F__)
        const __m256 eight = _mm512_castps512_ps256((__m512)v) + _mm512_extractf32x8_ps((__m512)v, 1);
#else
        const __m256 eight = (__m256)v;
#endif
        const __m128 four = _mm256_castps256_ps128(eight) + _mm256_extractf128_ps(eight, 1);
        const __m128 two = four + _mm_movehl_ps(four, four);
        return two[0] + two[1];
    }
#endif
    alignas(VSSM_VECTOR_BYTES) T row[lanes<T>];
    store(row, v);
    for (int half = lanes<T> / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) row[i] += row[i + half];
    return row[0];
}

// One step of a butterfly over blocks of `width` lanes: of every pair of blocks in a and b, the first ones (of a, then
// of b) or the second ones.
template <int Width, int Second, class V, int... I>
VSSM_INLINE V pick_blocks(V a, V b, Lanes<I...>) {
    constexpr int n = sizeof...(I);
    return __builtin_shufflevector(
        a, b, (I % Width + Second * Width + I / (2 * Width) * 2 * Width + (I / Width % 2 ? n : 0))...);
}

template <class T, int Width, class Rows>
VSSM_INLINE void transpose_step(Rows& rows) {
    if constexpr (Width > 0) {
#pragma GCC unroll 16
        for (int i = 0; i < lanes<T>; ++i) {
            if (i / Width % 2 == 0) {
                Vec<T> a = rows[i], b = rows[i + Width];
                rows[i] = pick_blocks<Width, 0>(a, b, AllLanes<lanes<T>>{});
                rows[i + Width] = pick_blocks<Width, 1>(a, b, AllLanes<lanes<T>>{});
            }
        }
        transpose_step<T, Width / 2>(rows);
    }
}

// The square of lanes x lanes values turned about its diagonal.
template <class T>
VSSM_INLINE void transpose(Vec<T> (&rows)[lanes<T>]) {
    transpose_step<T, lanes<T> / 2>(rows);
}

template <class T, int Width, class Rows>
VSSM_INLINE void sum_rows_step(Rows& rows) {
    if constexpr (Width > 0) {
#pragma GCC unroll 16
        for (int i = 0; i < Width; ++i) {
            Vec<T> a = rows[i], b = rows[i + Width];
            rows[i] = pick_blocks<Width, 0>(a, b, AllLanes<lanes<T>>{}) +
                      pick_blocks<Width, 1>(a, b, AllLanes<lanes<T>>{});
        }
        sum_rows_step<T, Width / 2>(rows);
    }
}

// Lane i of the result is the sum of the lanes of rows[i]. Overwrites rows.
template <class T>
VSSM_INLINE Vec<T> sum_rows(Vec<T> (&rows)[lanes<T>]) {
    sum_rows_step<T, lanes<T> / 2>(rows);
    return rows[0];
}

// f(x) lane by lane through libm: double precision is for checking, not for speed.
template <class F>
VSSM_INLINE VecD each(VecD x, F f) {
    alignas(VSSM_VECTOR_BYTES) double row[lanes<double>];
    store(row, x);
    for (int i = 0; i < lanes<double>; ++i) row[i] = f(row[i]);
    return load(row);
}

// p * 2^n for integral n in [-300, 300] held both as floats and in the low bits of `shifted` = n + 1.5 * 2^23.
VSSM_INLINE VecF scale_by_power(VecF p, VecF n, VecF shifted) {
#if defined(__AVX512F__)
    return (VecF)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
    // In two steps, so that results below 2^-126 and above 2^127 come out right.
    VecI whole = (VecI)shifted - 0x4b400000;
    VecI half = whole >> 1;
    VecF first = (VecF)((half + 127) << 23);
    VecF second = (VecF)((whole - half + 127) << 23);
    return p * first * second;
#endif
}

// 2^x. Range reduction to |f| <= 1/2, degree-6 near-minimax polynomial: within 1.2 ulp, right at +-inf, NaN kept,
// subnormal results kept.
VSSM_INLINE VecF exp2(VecF x) {
    x = at_most(at_least(x, set1(-160.0f)), set1(140.0f));
    const VecF shift = set1(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
    VecF shifted = x + shift;
    VecF n = shifted - shift;
    VecF f = x - n;
    VecF p = set1(0.000154531629f);
    p = fma(p, f, set1(0.00133908634f));
    p = fma(p, f, set1(0.00961808256f));
    p = fma(p, f, set1(0.0555035711f));
    p = fma(p, f, set1(0.240226508f));
    p = fma(p, f, set1(0.693147188f));
    p = fma(p, f, set1(1.0f));
    return scale_by_power(p, n, shifted);
}
VSSM_INLINE VecD exp2(VecD x) {
    return each(x, [](double v) { return ::exp2(v); });
}

// e^x, as exp2. The product x * log2(e) is carried in two parts: relative error below 1.5 ulp for every x.
VSSM_INLINE VecF exp(VecF x) {
    x = at_most(at_least(x, set1(-110.0f)), set1(95.0f));
    const VecF shift = set1(12582912.0f);
    VecF shifted = fma(x, set1(1.44269504f), shift);
    VecF n = shifted - shift;
    VecF f = fma(n, set1(-0.693359375f), x);
    f = fma(n, set1(2.12194440e-4f), f);
    VecF p = set1(0.00139262508f);
    p = fma(p, f, set1(0.00836323288f));
    p = fma(p, f, set1(0.0416665542f));
    p = fma(p, f, set1(0.166665767f));
    p = fma(p, f, set1(0.5f));
    p = fma(p, f, set1(1.0f));
    p = fma(p, f, set1(1.0f));
    return scale_by_power(p, n, shifted);
}
VSSM_INLINE VecD exp(VecD x) {
    return each(x, [](double v) { return ::exp(v); });
}

// log(1 + q) for q in [0, 1], relative error below 1.5 ulp: q times a degree-8 polynomial in q - 1/2.
VSSM_INLINE VecF log1p_of_unit(VecF q) {
    VecF s = q - 0.5f;
    VecF p = set1(0.00512610214f);
    p = fma(p, s, set1(-0.00856965611f));
    p = fma(p, s, set1(0.0116395754f));
    p = fma(p, s, set1(-0.0202303406f));
    p = fma(p, s, set1(0.036625606f));
    p = fma(p, s, set1(-0.0677111866f));
    p = fma(p, s, set1(0.132609494f));
    p = fma(p, s, set1(-0.288526673f));
    p = fma(p, s, set1(0.810930216f));
    return q * p;
}
VSSM_INLINE VecD log1p_of_unit(VecD q) {
    return each(q, [](double v) { return ::log1p(v); });
}

// log(1 + e^z), and e^-|z| which the derivative needs. No cancellation anywhere. torch takes the identity above 20:
// in float the two agree (e^-20 is below the last bit of 20), in double it has to be said.
VSSM_INLINE VecF softplus(VecF z, VecF& q) {
    q = exp(-abs(z));
    return at_least(z, VecF{}) + log1p_of_unit(q);
}
VSSM_INLINE VecD softplus(VecD z, VecD& q) {
    q = exp(-abs(z));
    return z > 20.0 ? z : at_least(z, VecD{}) + log1p_of_unit(q);
}

// 1 / (1 + e^-z) given q = e^-|z|: the derivative of softplus.
template <class V>
VSSM_INLINE V sigmoid_from(V z, V q) {
    V r = reciprocal(q + 1);
    return z < 0 ? q * r : r;
}

template <class V>
VSSM_INLINE V sigmoid(V z) {
    return sigmoid_from(z, exp(-abs(z)));
}

}  // namespace VSSM_ISA
}  // namespace vssm
