// Batch normalisation of rows in training: statistics over all rows, then one pass that scales, shifts and activates,
// or in the backward two, one for the sums and one for the gradient.
#include "activation.h"
#include "rows.h"

namespace vssm {
namespace VSSM_ISA {
namespace {

// body(first, last, partial sums 0 and 1) for blocks of rows; then finish(c, task, sums) in the order of the tasks.
template <class T, class Body, class Finish>
int32_t reduce(const BatchNormArgs& a, const Body& body, const Finish& finish) {
    const int64_t n = a.channels, block = rows_per_task(n), tasks = (a.rows + block - 1) / block;
    const PartialSums<T> partial(tasks, 2, n);
    if (partial.failed()) return out_of_memory;
    parallel(tasks, [&](int64_t task) {
        body(task * block, smaller(a.rows, (task + 1) * block), partial.of(task, 0), partial.of(task, 1));
    });
    for (int64_t c = 0; c < n; ++c) {
        finish(c, [&](const auto& each) {
            for (int64_t task = 0; task < tasks; ++task) {
                const int64_t rows = smaller(a.rows, (task + 1) * block) - task * block;
                each(rows, double(partial.of(task, 0)[c]), double(partial.of(task, 1)[c]));
            }
        });
    }
    return ok;
}

// Mean and sum of squares about it in each block, while the block is in the cache; blocks are put together as in
// Chan, Golub, LeVeque (1979). A block is short and its sums are about its first row and its mean, so T does.
template <class T>
int32_t statistics(const BatchNormArgs& a) {
    const int64_t n = a.channels;
    const T* x = static_cast<const T*>(a.x);
    const auto block = [&](int64_t first, int64_t last, T* mean, T* squares) {
        const T* start = x + first * n;
        for (int64_t row = first + 1; row < last; ++row)
            each_vector<T>(n, [&](int64_t i, int count) VSSM_BODY {
                const Vec<T> d = load_first(x + row * n + i, count) - load_first(start + i, count);
                store_first(mean + i, load_first(mean + i, count) + d, count);
            });
        for (int64_t i = 0; i < n; ++i) mean[i] = start[i] + mean[i] / static_cast<T>(last - first);
        for (int64_t row = first; row < last; ++row)
            each_vector<T>(n, [&](int64_t i, int count) VSSM_BODY {
                const Vec<T> d = load_first(x + row * n + i, count) - load_first(mean + i, count);
                store_first(squares + i, fma(d, d, load_first(squares + i, count)), count);
            });
    };
    return reduce<T>(a, block, [&](int64_t c, const auto& blocks) {
        double rows = 0, mean = 0, squares = 0;
        blocks([&](int64_t more, double block_mean, double block_squares) {
            const double d = block_mean - mean, all = rows + more;
            mean += d * more / all;
            squares += block_squares + d * d * rows * more / all;
            rows = all;
        });
        static_cast<T*>(a.mean)[c] = static_cast<T>(mean);
        static_cast<T*>(a.var)[c] = static_cast<T>(squares / rows);
    });
}

template <class T, int64_t act>
int32_t forward(const BatchNormArgs& a) {
    const int64_t n = a.channels, block = rows_per_task(n);
    const T *scale = static_cast<const T*>(a.scale), *shift = static_cast<const T*>(a.shift);
    parallel((a.rows + block - 1) / block, [&](int64_t task) {
        for (int64_t row = task * block; row < smaller(a.rows, (task + 1) * block); ++row) {
            const T* x = static_cast<const T*>(a.x) + row * n;
            const T* residual = a.residual ? static_cast<const T*>(a.residual) + row * n : nullptr;
            T* y = static_cast<T*>(a.y) + row * n;
            each_vector<T>(n, [&](int64_t i, int count) VSSM_BODY {
                const Vec<T> v = fma(load_first(x + i, count), load_first(scale + i, count), load_first(shift + i, count));
                const Vec<T> added = residual ? load_first(residual + i, count) : Vec<T>{};
                store_first(y + i, activate<act>(v) + added, count);
            });
        }
    });
    return ok;
}

// The gradient before the activation.
template <class T, int64_t act>
VSSM_INLINE Vec<T> before(Vec<T> g, Vec<T> x, const T* scale, const T* shift, int count) {
    if constexpr (act == identity) return g;
    return fma(x, load_first(scale, count), load_first(shift, count)) > 0 ? g : Vec<T>{};
}

template <class T, int64_t act>
int32_t sums(const BatchNormArgs& a) {
    const int64_t n = a.channels;
    const T *scale = static_cast<const T*>(a.scale), *shift = static_cast<const T*>(a.shift);
    const T *mean = static_cast<const T*>(a.mean), *rstd = static_cast<const T*>(a.var);
    const auto block = [&](int64_t first, int64_t last, T* sum, T* sum_x) {
        for (int64_t row = first; row < last; ++row) {
            const T *x = static_cast<const T*>(a.x) + row * n, *g = static_cast<const T*>(a.g) + row * n;
            each_vector<T>(n, [&](int64_t i, int count) VSSM_BODY {
                const Vec<T> value = load_first(x + i, count);
                const Vec<T> d = before<T, act>(load_first(g + i, count), value, scale + i, shift + i, count);
                const Vec<T> normed = (value - load_first(mean + i, count)) * load_first(rstd + i, count);
                store_first(sum + i, load_first(sum + i, count) + d, count);
                store_first(sum_x + i, fma(d, normed, load_first(sum_x + i, count)), count);
            });
        }
    };
    return reduce<T>(a, block, [&](int64_t c, const auto& blocks) {
        double total = 0, total_x = 0;
        blocks([&](int64_t, double sum, double sum_x) {
            total += sum;
            total_x += sum_x;
        });
        static_cast<T*>(a.dshift)[c] += static_cast<T>(total);
        static_cast<T*>(a.dscale)[c] += static_cast<T>(total_x);
    });
}

template <class T, int64_t act>
int32_t backward(const BatchNormArgs& a) {
    const int64_t n = a.channels, block = rows_per_task(n);
    const T *scale = static_cast<const T*>(a.scale), *shift = static_cast<const T*>(a.shift);
    const T *slope = static_cast<const T*>(a.slope), *offset = static_cast<const T*>(a.offset);
    parallel((a.rows + block - 1) / block, [&](int64_t task) {
        for (int64_t row = task * block; row < smaller(a.rows, (task + 1) * block); ++row) {
            const T *x = static_cast<const T*>(a.x) + row * n, *g = static_cast<const T*>(a.g) + row * n;
            T* dx = static_cast<T*>(a.y) + row * n;
            each_vector<T>(n, [&](int64_t i, int count) VSSM_BODY {
                const Vec<T> value = load_first(x + i, count);
                const Vec<T> d = before<T, act>(load_first(g + i, count), value, scale + i, shift + i, count);
                const Vec<T> rest = fma(value, load_first(slope + i, count), load_first(offset + i, count));
                store_first(dx + i, fma(d, load_first(scale + i, count), rest), count);
            });
        }
    });
    return ok;
}

#define VSSM_CHOOSE(function)                                                                      \
    if (a->act != relu && a->act != identity) return bad_argument;                                 \
    if (a->is_double) return a->act == relu ? function<double, relu>(*a) : function<double, identity>(*a); \
    return a->act == relu ? function<float, relu>(*a) : function<float, identity>(*a);

}  // namespace

int32_t batch_norm_statistics(const BatchNormArgs* a) {
    return a->is_double ? statistics<double>(*a) : statistics<float>(*a);
}
int32_t batch_norm_forward(const BatchNormArgs* a) { VSSM_CHOOSE(forward) }
int32_t batch_norm_sums(const BatchNormArgs* a) { VSSM_CHOOSE(sums) }
int32_t batch_norm_backward(const BatchNormArgs* a) { VSSM_CHOOSE(backward) }

}  // namespace VSSM_ISA
}  // namespace vssm
