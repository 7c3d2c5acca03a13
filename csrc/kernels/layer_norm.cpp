// Layer normalisation of rows, forward and backward, with a gate after it if wanted; without
// centring it is the division by the root mean square.
//
// A row is read from memory once and then worked on in the first-level cache: mean, variance about the mean, result.
// The backward recomputes the statistics and sums the weight gradients in the same pass.
#include "activation.h"
#include "rows.h"

namespace vssm {
namespace VSSM_ISA {
namespace {

// Sums over the channels of a row, as a vector to be added up by lanes. Four running sums hide the latency of an addition
// and keep each sum short.
template <class T>
VSSM_INLINE Vec<T> row_sum(const T* x, int64_t n) {
    constexpr int step = lanes<T>;
    Vec<T> s[4] = {};
    int64_t i = 0;
    for (; i + 4 * step <= n; i += 4 * step)
        for (int j = 0; j < 4; ++j) s[j] += load(x + i + j * step);
    for (; i + step <= n; i += step) s[0] += load(x + i);
    if (i < n) s[1] += load_first(x + i, static_cast<int>(n - i));
    return (s[0] + s[1]) + (s[2] + s[3]);
}

template <class T>
VSSM_INLINE Vec<T> row_sum_of_squares(const T* x, int64_t n, T mean) {
    constexpr int step = lanes<T>;
    const Vec<T> centre = set1(mean);
    Vec<T> q[4] = {};
    int64_t i = 0;
    for (; i + 4 * step <= n; i += 4 * step)
        for (int j = 0; j < 4; ++j) {
            const Vec<T> d = load(x + i + j * step) - centre;
            q[j] = fma(d, d, q[j]);
        }
    for (; i + step <= n; i += step) {
        const Vec<T> d = load(x + i) - centre;
        q[0] = fma(d, d, q[0]);
    }
    if (i < n) {
        const int count = static_cast<int>(n - i);
        const Vec<T> d = first_lanes<T>(load_first(x + i, count) - centre, count);
        q[1] = fma(d, d, q[1]);
    }
    return (q[0] + q[1]) + (q[2] + q[3]);
}

template <class T>
VSSM_INLINE T inverse_root(T var) {
    return 1 / static_cast<T>(sizeof(T) == 4 ? __builtin_sqrtf(var) : __builtin_sqrt(var));
}

template <class T>
struct Statistics {
    T mean, rstd;
};

template <class T>
VSSM_INLINE Statistics<T> statistics(const T* x, int64_t n, T eps, bool centred) {
    const T mean = centred ? sum<T>(row_sum(x, n)) / static_cast<T>(n) : T(0);
    return {mean, inverse_root(sum<T>(row_sum_of_squares(x, n, mean)) / static_cast<T>(n) + eps)};
}

// The same of several rows, up to one per lane: to add up lanes, divide and take a root for each would be half of the
// work in short rows.
template <class T>
VSSM_INLINE void statistics(const T* const* x, int64_t rows, int64_t n, T eps, bool centred, Statistics<T>* of_row) {
    alignas(VSSM_VECTOR_BYTES) T mean[lanes<T>], var[lanes<T>];
    Vec<T> sums[lanes<T>] = {};
    for (int64_t r = 0; r < rows && centred; ++r) sums[r] = row_sum(x[r], n);
    store(mean, sum_rows<T>(sums) / set1(static_cast<T>(n)));
    for (int64_t r = 0; r < lanes<T>; ++r) sums[r] = r < rows ? row_sum_of_squares(x[r], n, mean[r]) : Vec<T>{};
    store(var, sum_rows<T>(sums) / set1(static_cast<T>(n)) + eps);
    for (int r = 0; r < lanes<T>; ++r) of_row[r] = {mean[r], inverse_root(var[r])};
}

// Rows whose statistics are taken together: as many as the first-level cache holds. Long rows that need no conversion
// are better read just before they are written.
template <class T>
int64_t rows_together(const LayerNormArgs& a) {
    const int64_t rows = 4096 / a.channels;
    if (rows < 2 || (a.x.type == type_of<T> && a.channels > 8 * lanes<T>)) return 1;
    return smaller<int64_t>(rows, lanes<T>);
}

// `type` is that of y.
template <class T, int64_t type>
int32_t forward(const LayerNormArgs& a) {
    const int64_t n = a.channels, block = rows_per_task(n), tasks = (a.rows + block - 1) / block;
    const int64_t together = rows_together<T>(a);
    const T eps = static_cast<T>(a.eps);
    int32_t status = ok;
    parallel(tasks, [&](int64_t task) {
        const Buffers<T> buffer(together + 3, n);
        if (buffer.start == nullptr) {
            status = out_of_memory;
            return;
        }
        const T* weight = read_weight(a.weight, n, buffer[together + 1]);
        const T* bias = read_weight(a.bias, n, buffer[together + 2]);
        const auto write = [&](int64_t row, const T* x, Statistics<T> s) VSSM_BODY {
            const Vec<T> mean = set1(s.mean), rstd = set1(s.rstd);
            const int64_t start = row * n;
            if (a.gate.data) {
                const T* gate = read_row(a.gate, row, n, buffer[together]);
                each_vector<T>(n, [&](int64_t i, int count) VSSM_BODY {
                    Vec<T> v = (load_first(x + i, count) - mean) * rstd;
                    if (weight) v *= load_first(weight + i, count);
                    if (bias) v += load_first(bias + i, count);
                    store_as<T, type>(a.y.data, start + i, v * activate<silu>(load_first(gate + i, count)), count);
                });
            } else if (weight && bias) {
                each_vector<T>(n, [&](int64_t i, int count) VSSM_BODY {
                    const Vec<T> v = (load_first(x + i, count) - mean) * rstd;
                    const Vec<T> y = fma(v, load_first(weight + i, count), load_first(bias + i, count));
                    store_as<T, type>(a.y.data, start + i, y, count);
                });
            } else {
                each_vector<T>(n, [&](int64_t i, int count) VSSM_BODY {
                    Vec<T> v = (load_first(x + i, count) - mean) * rstd;
                    if (weight) v *= load_first(weight + i, count);
                    if (bias) v += load_first(bias + i, count);
                    store_as<T, type>(a.y.data, start + i, v, count);
                });
            }
        };
        const int64_t end = smaller(a.rows, (task + 1) * block);
        int64_t row = task * block;
        for (; together == 1 && row < end; ++row) {
            const T* x = read_row(a.x, row, n, buffer[0]);
            write(row, x, statistics(x, n, eps, a.centred));
        }
        for (; row < end; row += together) {
            const int64_t rows = smaller(together, end - row);
            const T* x[lanes<T>];
            for (int64_t r = 0; r < rows; ++r) x[r] = read_row(a.x, row + r, n, buffer[r]);
            Statistics<T> of_row[lanes<T>];
            statistics(x, rows, n, eps, a.centred, of_row);
            for (int64_t r = 0; r < rows; ++r) write(row + r, x[r], of_row[r]);
        }
    });
    return status;
}

template <class T>
int32_t backward(const LayerNormArgs& a) {
    const int64_t n = a.channels, block = rows_per_task(n), tasks = (a.rows + block - 1) / block;
    const PartialSums<T> partial(tasks, 2, n);
    int32_t status = partial.failed() ? out_of_memory : ok;
    if (status != ok) return status;
    parallel(tasks, [&](int64_t task) {
        const Buffers<T> buffer(7, n);
        if (buffer.start == nullptr) {
            status = out_of_memory;
            return;
        }
        const T* weight = read_weight(a.weight, n, buffer[5]);
        const T* bias = read_weight(a.bias, n, buffer[6]);
        T* dweight = partial.of(task, 0);
        T* dbias = partial.of(task, 1);
        for (int64_t row = task * block; row < smaller(a.rows, (task + 1) * block); ++row) {
            const T* x = read_row(a.x, row, n, buffer[0]);
            const T* gy = read_row(a.y, row, n, buffer[1]);
            const Statistics<T> s = statistics(x, n, static_cast<T>(a.eps), a.centred);
            const Vec<T> mean = set1(s.mean), rstd = set1(s.rstd);
            T* g = buffer[2];  // gradient of the normalised row, after the weight
            Vec<T> sum_g{}, sum_gx{};
            const T* gate = a.gate.data ? read_row(a.gate, row, n, buffer[3]) : nullptr;
            T* dgate = gate ? begin_row(a.dgate, row, n, buffer[4]) : nullptr;
            each_vector<T>(n, [&](int64_t i, int count) VSSM_BODY {
                const Vec<T> normed = (load_first(x + i, count) - mean) * rstd;
                Vec<T> d = load_first(gy + i, count);
                const Vec<T> w = weight ? load_first(weight + i, count) : set1(T(1));
                if (gate) {
                    Vec<T> complement;
                    const Vec<T> z = load_first(gate + i, count), sigma = logistic(z, complement), swish = z * sigma;
                    Vec<T> affine = normed * w;
                    if (bias) affine += load_first(bias + i, count);
                    store_first(dgate + i, d * affine * fma(swish, complement, sigma), count);
                    d *= swish;
                }
                store_first(dweight + i, fma(d, normed, load_first(dweight + i, count)), count);
                store_first(dbias + i, load_first(dbias + i, count) + d, count);
                d *= w;
                store_first(g + i, d, count);
                sum_g += d;  // lanes past the row are zero: d is
                sum_gx = fma(d, normed, sum_gx);
            });
            if (gate) finish_row(a.dgate, row, n, dgate);
            const Vec<T> mean_g = set1(a.centred ? sum<T>(sum_g) / static_cast<T>(n) : T(0));
            const Vec<T> mean_gx = set1(sum<T>(sum_gx) / static_cast<T>(n));
            T* dx = begin_row(a.dx, row, n, buffer[1]);
            each_vector<T>(n, [&](int64_t i, int count) VSSM_BODY {
                const Vec<T> normed = (load_first(x + i, count) - mean) * rstd;
                store_first(dx + i, (load_first(g + i, count) - fma(normed, mean_gx, mean_g)) * rstd, count);
            });
            finish_row(a.dx, row, n, dx);
        }
    });
    if (a.dweight) partial.total(0, static_cast<T*>(a.dweight));
    if (a.dbias) partial.total(1, static_cast<T*>(a.dbias));
    return status;
}

}  // namespace

int32_t layer_norm_forward(const LayerNormArgs* a) {
    // The result has the widest type among the tensors, so it is never narrower than double where that is computed in.
    if (a->is_double) return a->y.type == f64 ? forward<double, f64>(*a) : bad_argument;
    if (a->y.type == bf16) return forward<float, bf16>(*a);
    return a->y.type == f16 ? forward<float, f16>(*a) : forward<float, f32>(*a);
}
int32_t layer_norm_backward(const LayerNormArgs* a) {
    return a->is_double ? backward<double>(*a) : backward<float>(*a);
}

}  // namespace VSSM_ISA
}  // namespace vssm
