// The readout of states: y = sum_m C_m h_m + skip x over the M = routes * states maps of a sample.
//
// A pixel's channels are contiguous in each map and its weights C_m are M numbers, so everything is one pass over h. A
// task is some pixels of one sample.
#include "../core.h"
#include "../pointwise.h"
#include "../simd.h"
#include "rows.h"

namespace vssm {
namespace VSSM_ISA {
namespace {

template <class T>
struct Pixels {
    int64_t begin, end;  // of the plane
    const T* h;          // of the sample, likewise C: (M, pixels)
    const T* C;
    int64_t sample;

    Pixels(const ReadoutArgs& a, int64_t task, int64_t step) {
        const int64_t tasks = (a.pixels + step - 1) / step;
        sample = task / tasks;
        begin = task % tasks * step;
        end = smaller(begin + step, a.pixels);
        h = static_cast<const T*>(a.h) + sample * a.terms * a.pixels * a.channels;
        C = static_cast<const T*>(a.C) + sample * a.terms * a.pixels;
    }
};

inline int64_t pixels_per_task(const ReadoutArgs& a) { return rows_per_task(a.channels * a.terms); }

inline int64_t task_count(const ReadoutArgs& a) {
    const int64_t step = pixels_per_task(a);
    return a.batch * ((a.pixels + step - 1) / step);
}

template <class T>
int32_t forward(const ReadoutArgs& a) {
    const T* skip = static_cast<const T*>(a.skip);
    parallel(task_count(a), [&](int64_t task) {
        const Pixels<T> p(a, task, pixels_per_task(a));
        for (int64_t pixel = p.begin; pixel < p.end; ++pixel) {
            const int64_t at = (p.sample * a.pixels + pixel) * a.channels;
            const T* x = skip ? static_cast<const T*>(a.x) + at : nullptr;
            T* y = static_cast<T*>(a.y) + at;
            each_vector<T>(a.channels, [&](int64_t c, int count) VSSM_BODY {
                Vec<T> total = skip ? load_first(skip + c, count) * load_first(x + c, count) : Vec<T>{};
                for (int64_t m = 0; m < a.terms; ++m) {
                    const T* h = p.h + (m * a.pixels + pixel) * a.channels + c;
                    total = fma(set1(p.C[m * a.pixels + pixel]), load_first(h, count), total);
                }
                store_first(y + c, total, count);
            });
        }
    });
    return ok;
}

// dh_m = C_m g and dC_m = <g, h_m>.
template <class T>
int32_t backward(const ReadoutArgs& a) {
    parallel(task_count(a), [&](int64_t task) {
        const Pixels<T> p(a, task, pixels_per_task(a));
        T* dh = static_cast<T*>(a.dh) + (p.h - static_cast<const T*>(a.h));
        T* dC = static_cast<T*>(a.dC) + (p.C - static_cast<const T*>(a.C));
        for (int64_t pixel = p.begin; pixel < p.end; ++pixel) {
            const T* g = static_cast<const T*>(a.y) + (p.sample * a.pixels + pixel) * a.channels;
            for (int64_t m = 0; m < a.terms; ++m) {
                const int64_t at = (m * a.pixels + pixel) * a.channels;
                const Vec<T> C = set1(p.C[m * a.pixels + pixel]);
                Vec<T> total{};
                each_vector<T>(a.channels, [&](int64_t c, int count) VSSM_BODY {
                    const Vec<T> gradient = load_first(g + c, count);
                    total = fma(gradient, load_first(p.h + at + c, count), total);
                    store_first(dh + at + c, gradient * C, count);
                });
                dC[m * a.pixels + pixel] = sum<T>(total);
            }
        }
    });
    return ok;
}

}  // namespace

int32_t readout_forward(const ReadoutArgs* a) { return a->is_double ? forward<double>(*a) : forward<float>(*a); }
int32_t readout_backward(const ReadoutArgs* a) { return a->is_double ? backward<double>(*a) : backward<float>(*a); }

}  // namespace VSSM_ISA
}  // namespace vssm
