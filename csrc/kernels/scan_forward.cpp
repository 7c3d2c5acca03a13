// The forward scan: y = sum over routes of C h + D u, or the states h themselves.
//
// A task is one sample and one vector of channels, over all routes: what the routes add up to stays in that core's
// cache, and every sum has the same order whatever the number of threads.
#include "../core.h"
#include "scan_steps.h"

namespace vssm {
namespace VSSM_ISA {
namespace {

// N is the number of states, 0 when it is known at run time only. First: this route writes y, later ones add.
template <class T, int N, bool Readout, bool First>
void walk(const ScanArgs& s, const Walk<T> w, Vec<T>* h_memory) {
    const int64_t L = w.L, C = w.C, R = w.R, states = N ? N : w.N;
    const int n = w.n;
    const T* u = static_cast<const T*>(s.u) + w.map;
    T* y = static_cast<T*>(s.y) + w.map;
    T* out = static_cast<T*>(s.states) + w.sequence * states * L * C + w.c;
    Vec<T> h0{};
    auto h = [&](int64_t i) __attribute__((always_inline)) -> Vec<T>& { return N == 1 ? h0 : h_memory[i]; };
    for (int64_t i = 0; i < states; ++i)
        h(i) = s.initial ? load_strided(static_cast<const T*>(s.initial) + w.carry() + i, states, n) : Vec<T>{};

    Places next;
    w.places(0, next);
    for (int64_t t = 0; t < L; t += block) {
        const Places p = next;
        Vec<T> dt[block], decay[block];
        w.places(t + block, next);
        prefetch(u, next.pixel);
        if constexpr (Readout) prefetch(y, next.pixel);
        prefetch(w.proj, next.row);
        w.template step_sizes<false>(p, dt, decay);
        if constexpr (N == 1) w.decays(dt, decay);
        auto step = [&](int j) __attribute__((always_inline)) {
            const T* BC = w.proj + p.row[j] + R;
            const Vec<T> x = load_first(u + p.pixel[j], n);
            const Vec<T> dtx = dt[j] * x;
            Vec<T> sum = w.D * x;
            for (int64_t i = 0; i < states; ++i) {
                const Vec<T> a = N == 1 ? decay[j] : exp2(dt[j] * w.A2[i]);
                h(i) = fma(a, h(i), dtx * BC[i]);
                if constexpr (Readout) sum = fma(h(i), set1(BC[states + i]), sum);
                else store_first(out + i * L * C + p.pixel[j], h(i), n);
            }
            if constexpr (Readout) {
                T* at = y + p.pixel[j];
                if constexpr (!First) sum = load_first(at, n) + sum;
                store_first(at, sum, n);
            }
        };
        if (N == 1 && t + block <= L) {
#pragma GCC unroll 8
            for (int j = 0; j < block; ++j) step(j);
        } else {
#pragma GCC unroll 1
            for (int j = 0; j < block && t + j < L; ++j) step(j);
        }
    }
    if (s.last)
        for (int64_t i = 0; i < states; ++i)
            store_strided(static_cast<T*>(s.last) + w.carry() + i, states, h(i), n);
}

template <class T, int N, bool Readout>
int32_t forward(const ScanArgs& s) {
    const int64_t vectors = (s.channels + lanes<T> - 1) / lanes<T>;
    int32_t status = ok;
    parallel(s.batch * vectors, [&](int64_t task) {
        auto* memory = static_cast<Vec<T>*>(scratch((s.rank + 2 * s.state) * sizeof(Vec<T>)));
        if (memory == nullptr) {
            __atomic_store_n(&status, out_of_memory, __ATOMIC_RELAXED);
            return;
        }
        for (int64_t k = 0; k < s.routes; ++k) {
            Walk<T> w(s, k, task % vectors * lanes<T>, memory);
            w.at(s, task / vectors);
            Vec<T>* h = memory + s.rank + s.state;
            if (k == 0 || s.separate) walk<T, N, Readout, true>(s, w, h);
            else walk<T, N, Readout, false>(s, w, h);
        }
    });
    return status;
}

template <class T, bool Readout>
int32_t choose(const ScanArgs& s) {
    if (special<T> && s.state == 1) return forward<T, special<T>, Readout>(s);
    return forward<T, 0, Readout>(s);
}

template <class T>
int32_t choose(const ScanArgs& s) {
    return s.y ? choose<T, true>(s) : choose<T, false>(s);
}

}  // namespace

int32_t scan_forward(const ScanArgs* s) {
    if ((s->dt == nullptr) == (s->rank == 0) || (s->y == nullptr) == (s->states == nullptr)) return bad_argument;
    return s->is_double ? choose<double>(*s) : choose<float>(*s);
}

}  // namespace VSSM_ISA
}  // namespace vssm
