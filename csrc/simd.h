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

// a * b + c; one rounding where the instruction set has it. Spelled out, because of `a * b + c * d` a compiler fuses
// whichever product it likes, and in a recurrence only one of them is off the critical path.
VSSM_INLINE VecF fma(VecF a, VecF b, VecF c) {
#if defined(__AVX512F__)
    return (VecF)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__)
    return (VecF)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}
VSSM_INLINE VecD fma(VecD a, VecD b, VecD c) {
#if defined(__AVX512F__)
    return (VecD)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif defined(__AVX2__)
    return (VecD)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#else
    return a * b + c;
#endif
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
VSSM_INLINE VecD at_least(VecD x, VecD bound) { return x < bound ? bound : x; }
VSSM_INLINE VecD at_most(VecD x, VecD bound) { return x > bound ? bound : x; }

VSSM_INLINE VecF abs(VecF x) { return (VecF)((VecI)x & INT32_MAX); }
VSSM_INLINE VecD abs(VecD x) { return (VecD)((Simd<double>::I)x & INT64_MAX); }
VSSM_INLINE VecF minus_abs(VecF x) { return (VecF)((VecI)x | INT32_MIN); }
VSSM_INLINE VecD minus_abs(VecD x) { return (VecD)((Simd<double>::I)x | INT64_MIN); }

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

VSSM_INLINE VecF select_negative(VecF z, VecF a, VecF b) { return z < 0 ? a : b; }
VSSM_INLINE VecD select_negative(VecD z, VecD a, VecD b) { return z < 0 ? a : b; }

// Several vectors that go through a computation in step. One polynomial is a chain of dependent operations, which a
// core cannot overlap far enough with the next one; eight chains side by side keep its units busy.
template <class V, int Count>
struct Pack {
    V v[Count];
    VSSM_INLINE V& operator[](int i) { return v[i]; }
    VSSM_INLINE const V& operator[](int i) const { return v[i]; }
};

// result[i] = f(i)
template <class V, int Count, class F>
VSSM_INLINE Pack<V, Count> pack(F f) {
    Pack<V, Count> result;
#pragma GCC unroll 16
    for (int i = 0; i < Count; ++i) result.v[i] = f(i);
    return result;
}

#define VSSM_PACKED(expression) pack<V, Count>([&](int i) __attribute__((always_inline)) { return expression; })
#define VSSM_PACK template <class V, int Count> VSSM_INLINE Pack<V, Count>
VSSM_PACK operator+(Pack<V, Count> a, Pack<V, Count> b) { return VSSM_PACKED(a.v[i] + b.v[i]); }
VSSM_PACK operator-(Pack<V, Count> a, Pack<V, Count> b) { return VSSM_PACKED(a.v[i] - b.v[i]); }
VSSM_PACK operator*(Pack<V, Count> a, Pack<V, Count> b) { return VSSM_PACKED(a.v[i] * b.v[i]); }
VSSM_PACK operator+(Pack<V, Count> a, V b) { return VSSM_PACKED(a.v[i] + b); }
VSSM_PACK operator-(Pack<V, Count> a, V b) { return VSSM_PACKED(a.v[i] - b); }
VSSM_PACK operator*(Pack<V, Count> a, V b) { return VSSM_PACKED(a.v[i] * b); }
VSSM_PACK fma(Pack<V, Count> a, Pack<V, Count> b, Pack<V, Count> c) { return VSSM_PACKED(fma(a.v[i], b.v[i], c.v[i])); }
VSSM_PACK fma(Pack<V, Count> a, Pack<V, Count> b, V c) { return VSSM_PACKED(fma(a.v[i], b.v[i], c)); }
VSSM_PACK fma(Pack<V, Count> a, V b, Pack<V, Count> c) { return VSSM_PACKED(fma(a.v[i], b, c.v[i])); }
VSSM_PACK fma(Pack<V, Count> a, V b, V c) { return VSSM_PACKED(fma(a.v[i], b, c)); }
VSSM_PACK at_least(Pack<V, Count> a, V b) { return VSSM_PACKED(at_least(a.v[i], b)); }
VSSM_PACK at_most(Pack<V, Count> a, V b) { return VSSM_PACKED(at_most(a.v[i], b)); }
VSSM_PACK minus_abs(Pack<V, Count> a) { return VSSM_PACKED(minus_abs(a.v[i])); }
VSSM_PACK reciprocal(Pack<V, Count> a) { return VSSM_PACKED(reciprocal(a.v[i])); }
VSSM_PACK select_negative(Pack<V, Count> z, Pack<V, Count> a, Pack<V, Count> b) {
    return VSSM_PACKED(select_negative(z.v[i], a.v[i], b.v[i]));
}

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
#if defined(__clang__) || __GNUC__ >= 12
    return __builtin_shufflevector(
        a, b, (I % Width + Second * Width + I / (2 * Width) * 2 * Width + (I / Width % 2 ? n : 0))...);
#else
    using Index = decltype(a < b);
    return __builtin_shuffle(
        a, b, Index{(I % Width + Second * Width + I / (2 * Width) * 2 * Width + (I / Width % 2 ? n : 0))...});
#endif
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

// f(x) lane by lane through libm: double precision is for checking, not for speed. Out of line, to keep the code small.
inline __attribute__((noinline)) void apply(double* row, double (*f)(double)) {
    for (int i = 0; i < lanes<double>; ++i) row[i] = f(row[i]);
}
VSSM_INLINE VecD each(VecD x, double (*f)(double)) {
    alignas(VSSM_VECTOR_BYTES) double row[lanes<double>];
    store(row, x);
    apply(row, f);
    return load(row);
}

// x rounded to an integer n, and x - n. Adding 1.5 * 2^23 rounds; its sum's low bits are n.
VSSM_INLINE VecF rounded(VecF x) {
    const VecF shift = set1(12582912.0f);
    return (x + shift) - shift;
}

// What is left of x after rounding to an integer. For exp2: x may be clamped where 2^x is 0 or infinite in any case,
// which keeps infinities out of the difference.
VSSM_INLINE VecF remainder(VecF& x) {
#if defined(__AVX512F__)
    return (VecF)_mm512_reduce_ps((__m512)x, 0);  // 0 for an infinity
#else
    x = at_most(at_least(x, set1(-160.0f)), set1(140.0f));
    return x - rounded(x);
#endif
}

// p * 2^n for integral n in [-300, 300].
VSSM_INLINE VecF scale_by_power(VecF p, VecF n) {
#if defined(__AVX512F__)
    return (VecF)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
    // In two steps, so that results below 2^-126 and above 2^127 come out right.
    VecI whole = (VecI)(n + 12582912.0f) - 0x4b400000;
    VecI half = whole >> 1;
    VecF first = (VecF)((half + 127) << 23);
    VecF second = (VecF)((whole - half + 127) << 23);
    return p * first * second;
#endif
}
VSSM_PACK rounded(Pack<V, Count> a) { return VSSM_PACKED(rounded(a.v[i])); }
VSSM_PACK remainder(Pack<V, Count>& a) { return VSSM_PACKED(remainder(a.v[i])); }
VSSM_PACK scale_by_power(Pack<V, Count> p, Pack<V, Count> n) { return VSSM_PACKED(scale_by_power(p.v[i], n.v[i])); }

// The functions below take a VecF or a Pack of them (X); double goes through libm, lane by lane.

// 2^x. Range reduction to |f| <= 1/2, degree-6 near-minimax polynomial: within 1.2 ulp, right at +-inf, NaN kept,
// subnormal results kept.
template <class X>
VSSM_INLINE X exp2(X x) {
    const X f = remainder(x), n = x - f;
    X p = fma(f, set1(0.000154531629f), set1(0.00133908634f));
    p = fma(p, f, set1(0.00961808256f));
    p = fma(p, f, set1(0.0555035711f));
    p = fma(p, f, set1(0.240226508f));
    p = fma(p, f, set1(0.693147188f));
    p = fma(p, f, set1(1.0f));
    return scale_by_power(p, n);
}

// e^x for x in [-110, 95]. The product x * log2(e) is carried in two parts: relative error below 1.5 ulp for every x.
template <class X>
VSSM_INLINE X exp_in_range(X x) {
    const X n = rounded(x * set1(1.44269504f));
    X f = fma(n, set1(-0.693359375f), x);
    f = fma(n, set1(2.12194440e-4f), f);
    X p = fma(f, set1(0.00139262508f), set1(0.00836323288f));
    p = fma(p, f, set1(0.0416665542f));
    p = fma(p, f, set1(0.166665767f));
    p = fma(p, f, set1(0.5f));
    p = fma(p, f, set1(1.0f));
    p = fma(p, f, set1(1.0f));
    return scale_by_power(p, n);
}

// e^x, as accurate as exp2 and right at the same special values.
template <class X>
VSSM_INLINE X exp(X x) {
    return exp_in_range(at_most(at_least(x, set1(-110.0f)), set1(95.0f)));
}

// e^x for x <= 0.
template <class X>
VSSM_INLINE X exp_not_positive(X x) {
    return exp_in_range(at_least(x, set1(-110.0f)));
}

// log(1 + q) / q for q in [0, 1], relative error below 1 ulp: a degree-8 polynomial in q - 1/2.
template <class X>
VSSM_INLINE X log1p_ratio(X q) {
    const X s = q - set1(0.5f);
    X p = fma(s, set1(0.00512610214f), set1(-0.00856965611f));
    p = fma(p, s, set1(0.0116395754f));
    p = fma(p, s, set1(-0.0202303406f));
    p = fma(p, s, set1(0.036625606f));
    p = fma(p, s, set1(-0.0677111866f));
    p = fma(p, s, set1(0.132609494f));
    p = fma(p, s, set1(-0.288526673f));
    p = fma(p, s, set1(0.810930216f));
    return p;
}

// log(1 + e^z), and q = e^-|z| which the derivative needs. No cancellation anywhere. torch takes the identity above
// 20: in float the two agree (e^-20 is below the last bit of 20), in double it has to be said.
template <class X>
VSSM_INLINE X softplus(X z, X& q) {
    q = exp_not_positive(minus_abs(z));
    return fma(q, log1p_ratio(q), at_least(z, set1(0.0f)));
}

// 1 / (1 + e^-z) given q = e^-|z|: the derivative of softplus.
template <class X>
VSSM_INLINE X sigmoid_from(X z, X q) {
    const X r = reciprocal(q + set1(1.0f));
    return select_negative(z, q * r, r);
}

VSSM_INLINE VecD exp2(VecD x) {
    return each(x, ::exp2);
}
VSSM_INLINE VecD exp(VecD x) {
    return each(x, ::exp);
}
VSSM_INLINE VecD softplus(VecD z, VecD& q) {
    q = exp(minus_abs(z));
    const VecD small = at_least(z, VecD{}) + each(q, ::log1p);
    return z > 20.0 ? z : small;
}
VSSM_INLINE VecD sigmoid_from(VecD z, VecD q) {
    const VecD r = 1.0 / (q + 1.0);
    return z < 0 ? q * r : r;
}
template <int Count>
VSSM_INLINE Pack<VecD, Count> exp2(Pack<VecD, Count> x) {
    return pack<VecD, Count>([&](int i) { return exp2(x.v[i]); });
}
template <int Count>
VSSM_INLINE Pack<VecD, Count> softplus(Pack<VecD, Count> z, Pack<VecD, Count>& q) {
    return pack<VecD, Count>([&](int i) { return softplus(z.v[i], q.v[i]); });
}
template <int Count>
VSSM_INLINE Pack<VecD, Count> sigmoid_from(Pack<VecD, Count> z, Pack<VecD, Count> q) {
    return pack<VecD, Count>([&](int i) { return sigmoid_from(z.v[i], q.v[i]); });
}

template <class X>
VSSM_INLINE X sigmoid(X z) {
    return sigmoid_from(z, exp_not_positive(minus_abs(z)));
}
VSSM_INLINE VecD sigmoid(VecD z) { return sigmoid_from(z, exp(minus_abs(z))); }

}  // namespace VSSM_ISA
}  // namespace vssm
