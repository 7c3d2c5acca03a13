// act(x + bias) over rows, forward and backward; the bias gradient is summed in the same pass.
#include "activation.h"
#include "rows.h"

namespace vssm {
namespace VSSM_ISA {
namespace {

constexpr int64_t mixed = -1;  // rows of two types, converted row by row

template <class T, int64_t act, int64_t type>
int32_t forward(const BiasActArgs& a) {
    const int64_t n = a.channels, block = rows_per_task(n), tasks = (a.rows + block - 1) / block;
    const T* bias = static_cast<const T*>(a.bias);
    int32_t status = ok;
    parallel(tasks, [&](int64_t task) {
        const int64_t first = task * block, last = smaller(a.rows, first + block);
        if constexpr (type != mixed) {
            for (int64_t row = first; row < last; ++row) {
                const int64_t start = row * n;
                each_vector<T>(n, [&](int64_t i, int count) VSSM_BODY {
                    Vec<T> v = load_as<T, type>(a.x.data, start + i, count);
                    if (bias) v += load_first(bias + i, count);
                    store_as<T, type>(a.y.data, start + i, activate<act>(v), count);
                });
            }
            return;
        }
        const Buffers<T> buffer(2, n);
        if (buffer.start == nullptr) {
            status = out_of_memory;
            return;
        }
        for (int64_t row = first; row < last; ++row) {
            const T* x = read_row(a.x, row, n, buffer[0]);
            T* y = begin_row(a.y, row, n, buffer[1]);
            each_vector<T>(n, [&](int64_t i, int count) VSSM_BODY {
                Vec<T> v = load_first(x + i, count);
                if (bias) v += load_first(bias + i, count);
                store_first(y + i, activate<act>(v), count);
            });
            finish_row(a.y, row, n, y);
        }
    });
    return status;
}

template <class T, int64_t act>
int32_t backward(const BiasActArgs& a) {
    const int64_t n = a.channels, block = rows_per_task(n), tasks = (a.rows + block - 1) / block;
    const T* bias = static_cast<const T*>(a.bias);
    const PartialSums<T> partial(tasks, a.dbias ? 1 : 0, n);
    int32_t status = partial.failed() ? out_of_memory : ok;
    if (status != ok) return status;
    parallel(tasks, [&](int64_t task) {
        const Buffers<T> buffer(3, n);
        if (buffer.start == nullptr) {
            status = out_of_memory;
            return;
        }
        T* dbias = a.dbias ? partial.of(task, 0) : nullptr;
        for (int64_t row = task * block; row < smaller(a.rows, (task + 1) * block); ++row) {
            const T* x = read_row(a.x, row, n, buffer[0]);
            const T* gy = read_row(a.y, row, n, buffer[1]);
            T* dx = begin_row(a.dx, row, n, buffer[2]);
            each_vector<T>(n, [&](int64_t i, int count) VSSM_BODY {
                Vec<T> v = load_first(x + i, count);
                if (bias) v += load_first(bias + i, count);
                const Vec<T> d = load_first(gy + i, count) * slope<act>(v);
                store_first(dx + i, d, count);
                if (dbias) store_first(dbias + i, load_first(dbias + i, count) + d, count);
            });
            finish_row(a.dx, row, n, dx);
        }
    });
    if (a.dbias) partial.total(0, static_cast<T*>(a.dbias));
    return status;
}

template <class T, int64_t act>
int32_t forward(const BiasActArgs& a) {
    if (a.x.type == a.y.type && a.x.type == type_of<T>) return forward<T, act, type_of<T>>(a);
    if constexpr (sizeof(T) == 4) {
        if (a.x.type == bf16 && a.y.type == bf16) return forward<T, act, bf16>(a);
        if (a.x.type == f16 && a.y.type == f16) return forward<T, act, f16>(a);
    }
    return forward<T, act, mixed>(a);
}

template <class T>
int32_t choose(const BiasActArgs& a, bool forwards) {
    switch (a.act) {
        case gelu: return forwards ? forward<T, gelu>(a) : backward<T, gelu>(a);
        case silu: return forwards ? forward<T, silu>(a) : backward<T, silu>(a);
        case relu: return forwards ? forward<T, relu>(a) : backward<T, relu>(a);
        case identity: return forwards ? forward<T, identity>(a) : backward<T, identity>(a);
    }
    return bad_argument;
}

}  // namespace

int32_t bias_act_forward(const BiasActArgs* a) { return a->is_double ? choose<double>(*a, true) : choose<float>(*a, true); }
int32_t bias_act_backward(const BiasActArgs* a) {
    return a->is_double ? choose<double>(*a, false) : choose<float>(*a, false);
}

}  // namespace VSSM_ISA
}  // namespace vssm
