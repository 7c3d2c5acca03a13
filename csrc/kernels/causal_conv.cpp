// The causal depthwise convolution of sequences whose channels are contiguous, either way in time, with its activation.
//
// A task is a strip of steps of one sample. One vector of channels is taken along the strip with its taps and the last
// `width` values in registers, so a value is loaded once. The backward walks the same way: what the convolution was
// before its activation comes from the window of x, its gradient goes into a second window, from which dx follows
// width - 1 steps behind; gradients of the weights are summed in registers.
#include "activation.h"
#include "rows.h"

namespace vssm {
namespace VSSM_ISA {
namespace {

// Steps of a strip, by shape only.
int64_t strip_steps(const CausalConvArgs& a, int64_t values) {
    const int64_t steps = values / a.channels;
    return smaller(a.length, steps < 16 ? 16 : steps);
}

// Where step s of a sample lies: the sequence is walked from its end when it is reversed.
struct Walk {
    int64_t first, stride;
    Walk(const CausalConvArgs& a, int64_t sample)
        : first((sample * a.length + (a.reverse ? a.length - 1 : 0)) * a.channels),
          stride(a.reverse ? -a.channels : a.channels) {}
    int64_t at(int64_t s) const { return first + s * stride; }
};

template <class T, int width>
struct Past {
    Vec<T> at[width];  // the newest last
    VSSM_INLINE void push(Vec<T> v) {
#pragma GCC unroll 8
        for (int i = 0; i + 1 < width; ++i) at[i] = at[i + 1];
        at[width - 1] = v;
    }
};

template <class T, int width>
VSSM_INLINE Vec<T> weighted(const Vec<T> (&weight)[width], const Past<T, width>& x, Vec<T> sum) {
#pragma GCC unroll 8
    for (int i = 0; i < width; ++i) sum = fma(weight[i], x.at[i], sum);
    return sum;
}

template <class T, int width>
VSSM_INLINE void load_taps(const CausalConvArgs& a, int64_t c, int count, Vec<T> (&weight)[width], Vec<T>& bias) {
    for (int i = 0; i < width; ++i)
        weight[i] = load_first(static_cast<const T*>(a.weight) + i * a.channels + c, count);
    bias = a.bias ? load_first(static_cast<const T*>(a.bias) + c, count) : Vec<T>{};
}

// The window before step s: the width - 1 values before it, zeros before the sequence.
template <class T, int width>
VSSM_INLINE Past<T, width> before(const CausalConvArgs& a, const Walk& walk, int64_t s, int64_t c, int count) {
    Past<T, width> past{};
    for (int64_t p = s - width + 1; p < s; ++p)
        past.push(p < 0 ? Vec<T>{} : load_values<T>(a.x, walk.at(p) + c, count));
    return past;
}

template <class T, int64_t act, int width>
int32_t forward(const CausalConvArgs& a) {
    const int64_t strip = strip_steps(a, 32768), strips = (a.length + strip - 1) / strip;
    parallel(a.batch * strips, [&](int64_t task) {
        const Walk walk(a, task / strips);
        const int64_t begin = task % strips * strip, end = smaller(begin + strip, a.length);
        each_vector<T>(a.channels, [&](int64_t c, int count) VSSM_BODY {
            Vec<T> weight[width], bias;
            load_taps<T, width>(a, c, count, weight, bias);
            Past<T, width> past = before<T, width>(a, walk, begin, c, count);
            for (int64_t s = begin; s < end; ++s) {
                past.push(load_values<T>(a.x, walk.at(s) + c, count));
                store_values<T>(a.y, walk.at(s) + c, activate<act>(weighted<T, width>(weight, past, bias)), count);
            }
        });
    });
    return ok;
}

template <class T, int64_t act, int width>
int32_t backward(const CausalConvArgs& a) {
    const int64_t strip = strip_steps(a, 65536), strips = (a.length + strip - 1) / strip;
    const PartialSums<T> partial(a.batch * strips, width + 1, a.channels);
    if (partial.failed()) return out_of_memory;
    parallel(a.batch * strips, [&](int64_t task) {
        const Walk walk(a, task / strips);
        const int64_t begin = task % strips * strip, end = smaller(begin + strip, a.length);
        each_vector<T>(a.channels, [&](int64_t c, int count) VSSM_BODY {
            Vec<T> weight[width], bias, sums[width + 1] = {};
            load_taps<T, width>(a, c, count, weight, bias);
            Past<T, width> past = before<T, width>(a, walk, begin, c, count), g{};
            // g.at[i] is the gradient at step s - width + 1 + i, so tap width - 1 - i of it goes to that of the oldest.
            for (int64_t s = begin; s < end + width - 1; ++s) {
                Vec<T> d{};
                if (s < a.length) {
                    past.push(load_values<T>(a.x, walk.at(s) + c, count));
                    d = load_values<T>(a.y, walk.at(s) + c, count);
                    if (act != identity) d *= slope<act>(weighted<T, width>(weight, past, bias));
                }
                g.push(d);
                if (s < end) {
#pragma GCC unroll 8
                    for (int i = 0; i < width; ++i) sums[i] = fma(d, past.at[i], sums[i]);
                    sums[width] += d;
                }
                const int64_t done = s - width + 1;
                if (done < begin) continue;
                Vec<T> dx{};
#pragma GCC unroll 8
                for (int i = 0; i < width; ++i) dx = fma(weight[width - 1 - i], g.at[i], dx);
                store_values<T>(a.dx, walk.at(done) + c, dx, count);
            }
            for (int i = 0; i <= width; ++i) store_first(partial.of(task, i) + c, sums[i], count);
        });
    });
    for (int i = 0; i < width; ++i) partial.total(i, static_cast<T*>(a.dweight) + i * a.channels);
    if (a.dbias) partial.total(width, static_cast<T*>(a.dbias));
    return ok;
}

template <class T, int64_t act>
int32_t of_width(const CausalConvArgs& a, bool forwards) {
    switch (a.width) {
        case 2: return forwards ? forward<T, act, 2>(a) : backward<T, act, 2>(a);
        case 3: return forwards ? forward<T, act, 3>(a) : backward<T, act, 3>(a);
        case 4: return forwards ? forward<T, act, 4>(a) : backward<T, act, 4>(a);
    }
    return bad_argument;
}

template <class T>
int32_t choose(const CausalConvArgs& a, bool forwards) {
    if (a.length < 1 || a.channels < 1) return bad_argument;
    switch (a.act) {
        case silu: return of_width<T, silu>(a, forwards);
        case identity: return of_width<T, identity>(a, forwards);
    }
    return bad_argument;
}

}  // namespace

int32_t causal_conv_forward(const CausalConvArgs* a) {
    return a->is_double ? choose<double>(*a, true) : choose<float>(*a, true);
}
int32_t causal_conv_backward(const CausalConvArgs* a) {
    return a->is_double ? choose<double>(*a, false) : choose<float>(*a, false);
}

}  // namespace VSSM_ISA
}  // namespace vssm
