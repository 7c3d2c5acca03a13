// Activations and their derivatives on vectors.
//
// GELU is x Phi(x) = max(x, 0) - h(|x|) with h(a) = a Phi(-a), which has no cancellation: what is approximated is below
// 0.17 and vanishes at both ends. Its derivative is Phi(-a) - a phi(a) mirrored. With AVX-512 both are piecewise
// polynomials of degree 5 on 16 pieces, whose coefficients a permutation looks up in registers; elsewhere an
// exponential times a rational function. Both are cut off at |x| = 6, where they are below 1e-8. Absolute errors of h: 2.6e-8; of the derivative: 9e-8 (torch: 1.1e-6, 2.9e-7).
#pragma once

#include "../simd.h"

namespace vssm {
namespace VSSM_ISA {
namespace {

enum Act : int64_t { gelu = 0, silu = 1, relu = 2, identity = 3 };

// x cut off at -bound and bound, bound > 0; |x| cut off at bound.
VSSM_INLINE VecF clamped(VecF x, float bound) {
#if defined(__AVX512F__)
    return (VecF)_mm512_range_ps((__m512)x, (__m512)set1(bound), 2);  // the smaller magnitude, the sign of x
#else
    return at_most(at_least(x, set1(-bound)), set1(bound));
#endif
}
VSSM_INLINE VecF magnitude(VecF x, float bound) {
#if defined(__AVX512F__)
    return (VecF)_mm512_range_ps((__m512)x, (__m512)set1(bound), 2 | 2 << 2);  // without sign
#else
    return at_most(abs(x), set1(bound));
#endif
}
VSSM_INLINE VecD magnitude(VecD x, float) { return abs(x); }

#if defined(__AVX512F__)

// Piece i is centred at i / 2.5816667, and the argument is its distance in pieces, |f| <= 1/2. Minimax to 1e-8.
alignas(64) const float gelu_tail_table[6][16] = {
    {0.0f, 0.135280728f, 0.169859603f, 0.142477274f, 0.0939616263f, 0.051108405f, 0.023381643f, 0.00908251107f,
     0.00301082339f, 0.000854240789f, 0.000207808029f, 4.33932037e-05f, 7.78362391e-06f, 1.1999482e-06f,
     1.59044021e-07f, 1.81282704e-08f},
    {0.193673298f, 0.0797505155f, -0.00374879502f, -0.0439208001f, -0.0486014597f, -0.0356531329f,
     -0.0202228297f, -0.00931400619f, -0.00355974375f, -0.00114204129f, -0.000309655763f, -7.12688052e-05f,
     -1.39644198e-05f, -2.33430205e-06f, -3.33402681e-07f, -4.07346512e-08f},
    {-0.0598554388f, -0.0513637774f, -0.0310345311f, -0.00989876874f, 0.00360947684f, 0.00803237408f,
     0.00683687069f, 0.00405668654f, 0.00187030016f, 0.000697710144f, 0.000214826752f, 5.52169186e-05f,
     1.19322622e-05f, 2.17834372e-06f, 3.37102051e-07f, 4.43319088e-08f},
    {-7.19734771e-06f, 0.00534585863f, 0.00753904087f, 0.00605685916f, 0.00288342731f, 0.000285806833f,
     -0.000845200499f, -0.000889448042f, -0.000551449892f, -0.000252194819f, -9.09233422e-05f,
     -2.66200441e-05f, -6.43213207e-06f, -1.29545663e-06f, -2.18916298e-07f, -3.11844346e-08f},
    {0.00152465166f, 0.00102487637f, 4.77462709e-05f, -0.000682701357f, -0.000787861529f, -0.000469469669f,
     -0.000118901276f, 6.04609231e-05f, 8.84811961e-05f, 5.7295998e-05f, 2.58345517e-05f, 8.95696849e-06f,
     2.48578567e-06f, 5.63892058e-07f, 1.05877511e-07f, 1.65905423e-08f},
    {-4.98749941e-05f, -0.000168878571f, -0.000194089982f, -8.51570439e-05f, 3.48478388e-05f, 7.83616852e-05f,
     5.52626443e-05f, 1.77634538e-05f, -3.19860123e-06f, -7.36403399e-06f, -4.84215843e-06f, -2.10199642e-06f,
     -6.86818282e-07f, -1.77442331e-07f, -3.71580242e-08f, -6.4000063e-09f},
};
alignas(64) const float gelu_slope_tail_table[6][16] = {
    {0.5f, 0.20588927f, -0.00967812445f, -0.113388866f, -0.125472784f, -0.0920445174f, -0.0522086062f,
     -0.0240456574f, -0.00919007044f, -0.00294836937f, -0.000799428031f, -0.000183992466f, -3.60515733e-05f,
     -6.02642604e-06f, -8.60744649e-07f, -1.05165469e-07f},
    {-0.309057891f, -0.265211642f, -0.16023989f, -0.0511065088f, 0.0186395869f, 0.0414738953f, 0.0352998786f,
     0.0209450778f, 0.00965665001f, 0.00360253337f, 0.00110931916f, 0.000285166199f, 6.16360412e-05f,
     1.12553607e-05f, 1.74243996e-06f, 2.29259228e-07f},
    {-4.76577412e-07f, 0.0414028689f, 0.0583891422f, 0.0469103418f, 0.0223325808f, 0.00221392768f,
     -0.00654601818f, -0.00688887341f, -0.00427106814f, -0.0019532803f, -0.000704200123f, -0.000206164841f,
     -4.98123336e-05f, -1.0031591e-05f, -1.6950263e-06f, -2.41419002e-07f},
    {0.0154605694f, 0.0106549533f, 0.000455854577f, -0.00713819358f, -0.00819261651f, -0.00484948233f,
     -0.00120301405f, 0.000644563173f, 0.000920826918f, 0.000591183081f, 0.000264714588f, 9.11550233e-05f,
     2.51195797e-05f, 5.65574965e-06f, 1.05347704e-06f, 1.6367035e-07f},
    {-1.31005872e-05f, -0.0021756494f, -0.00250147143f, -0.00109905784f, 0.000447504135f, 0.0010096326f,
     0.000713031972f, 0.000229820231f, -4.08172418e-05f, -9.48904126e-05f, -6.25105167e-05f, -2.71727586e-05f,
     -8.88983232e-06f, -2.29966508e-06f, -4.8221051e-07f, -8.31704625e-08f},
    {-0.000504294585f, -0.000285582006f, 0.000148821026f, 0.000352656527f, 0.000226531498f, 5.70136217e-06f,
     -9.93593931e-05f, -8.08134791e-05f, -2.84443431e-05f, 1.97439931e-06f, 8.28091197e-06f, 5.36244033e-06f,
     2.20120774e-06f, 6.69501674e-07f, 1.5953897e-07f, 3.06186081e-08f},
};

VSSM_INLINE VecF piecewise(VecF a, const float (*table)[16]) {
    const VecF shift = set1(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
    const VecF scale = set1(2.5816667f);
    const VecF shifted = fma(a, scale, shift);
    const VecF f = fma(a, scale, -(shifted - shift));
    const __m512i piece = (__m512i)shifted;  // the permutation reads the low four bits
    VecF p = (VecF)_mm512_permutexvar_ps(piece, (__m512)load(table[5]));
    p = fma(p, f, (VecF)_mm512_permutexvar_ps(piece, (__m512)load(table[4])));
    p = fma(p, f, (VecF)_mm512_permutexvar_ps(piece, (__m512)load(table[3])));
    p = fma(p, f, (VecF)_mm512_permutexvar_ps(piece, (__m512)load(table[2])));
    p = fma(p, f, (VecF)_mm512_permutexvar_ps(piece, (__m512)load(table[1])));
    return fma(p, f, (VecF)_mm512_permutexvar_ps(piece, (__m512)load(table[0])));
}

VSSM_INLINE VecF gelu_tail(VecF a) { return piecewise(a, gelu_tail_table); }
VSSM_INLINE VecF gelu_slope_tail(VecF a) { return piecewise(a, gelu_slope_tail_table); }

#else

// Phi(-a) e^(a^2 / 2) on [0, 6], to 1e-9.
VSSM_INLINE VecF scaled_tail(VecF a) {
    VecF n = fma(set1(0.0102116115f), a, set1(0.0878846311f));
    n = fma(n, a, set1(0.300914023f));
    n = fma(n, a, set1(0.5f));
    VecF d = fma(set1(0.0256697632f), a, set1(0.218906797f));
    d = fma(d, a, set1(0.792579704f));
    d = fma(d, a, set1(1.39971252f));
    d = fma(d, a, set1(1.0f));
    return n * reciprocal(d);
}

VSSM_INLINE VecF gelu_tail(VecF a) {
    return a * exp(a * a * -0.5f) * scaled_tail(a);
}

VSSM_INLINE VecF gelu_slope_tail(VecF a) {
    return exp(a * a * -0.5f) * fma(a, set1(-0.398942280f), scaled_tail(a));
}

#endif

VSSM_INLINE VecD gelu_tail(VecD a) {
    return each(a, [](double v) { return 0.5 * v * ::erfc(v * 0.70710678118654752440); });
}
VSSM_INLINE VecD gelu_slope_tail(VecD a) {
    return each(a, [](double v) {
        return 0.5 * ::erfc(v * 0.70710678118654752440) - 0.39894228040143267794 * v * ::exp(-0.5 * v * v);
    });
}

// 1 / (1 + e^-x), and what it lacks to 1 without cancellation. Beyond the clamp it is 1, or so small that its product
// with x is.
VSSM_INLINE VecF logistic(VecF x, VecF& complement) {
    x = clamped(x, 87.0f);
    const VecF shift = set1(12582912.0f);
    const VecF shifted = fma(x, set1(-1.44269504f), shift);
    const VecF n = shifted - shift;
    VecF f = fma(n, set1(-0.693359375f), -x);
    f = fma(n, set1(2.12194440e-4f), f);
    VecF p = set1(0.00139262508f);  // e^f as in simd.h
    p = fma(p, f, set1(0.00836323288f));
    p = fma(p, f, set1(0.0416665542f));
    p = fma(p, f, set1(0.166665767f));
    p = fma(p, f, set1(0.5f));
    p = fma(p, f, set1(1.0f));
    p = fma(p, f, set1(1.0f));
    const VecF e = scale_by_power(p, n), s = reciprocal(e + 1.0f);
    complement = e * s;
    return s;
}
VSSM_INLINE VecD logistic(VecD x, VecD& complement) {
    complement = 1.0 / (1.0 + exp(x));
    return 1.0 / (1.0 + exp(-x));
}

template <int64_t act, class V>
VSSM_INLINE V activate(V x) {
    if constexpr (act == gelu) return at_least(x, V{}) - gelu_tail(magnitude(x, 6.0f));
    if constexpr (act == silu) {
        V unused;
        return x * logistic(x, unused);
    }
    if constexpr (act == relu) return at_least(x, V{});
    return x;
}

// The derivative at x.
template <int64_t act, class V>
VSSM_INLINE V slope(V x) {
    if constexpr (act == gelu) {
        const V tail = gelu_slope_tail(magnitude(x, 6.0f));
        return x > 0 ? 1 - tail : tail;
    }
    if constexpr (act == silu) {
        V complement;
        const V s = logistic(x, complement);
        return fma(x * s, complement, s);
    }
    if constexpr (act == relu) return x > 0 ? V{} + 1 : V{};
    return V{} + 1;
}

}  // namespace
}  // namespace VSSM_ISA
}  // namespace vssm
