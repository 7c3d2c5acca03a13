// The backward scan. States are computed again, then time runs backwards; every sum over pixels, channels and samples
// is taken here, so that nothing of size L * K * C but the gradients themselves is written.
//
// A task is a slab of samples and a group of channel vectors. A group's share of dproj (a sum over channels) and a
// slab's share of the weights' gradients (sums over samples) are added up at the end in a fixed order. Slabs and
// groups depend on sizes alone, so the result does not depend on the number of threads.
#include "../core.h"
#include "scan_steps.h"

namespace vssm {
namespace VSSM_ISA {
namespace {

// Bytes of per-step memory up to which a whole sequence is kept; beyond, chunks of `chunk_bytes` are computed twice.
// Half a megabyte to a megabyte stays in the second-level cache.
constexpr int64_t whole_bytes = 1 << 20, chunk_bytes = 1 << 18;
constexpr int64_t wanted_tasks = 16;

// How the work is cut, and where partial sums go.
struct Plan {
    int64_t vectors, groups, slabs;
    int64_t steps;   // per chunk
    int64_t chunks;  // per sequence
};

template <class T>
Plan make_plan(const ScanArgs& s) {
    Plan plan{};
    plan.vectors = (s.channels + lanes<T> - 1) / lanes<T>;
    // Enough tasks for the fewest partial sums; groups and slabs of equal size.
    const int64_t weights = s.routes * s.channels * (s.rank + s.state + 2);
    const int64_t rows = s.batch * s.length * s.routes * (s.rank + 2 * s.state);
    int64_t best_tasks = 0, best_cost = 0;
    for (int64_t groups = 1; groups <= plan.vectors; ++groups) {
        if (plan.vectors % groups) continue;
        for (int64_t slabs = 1; slabs <= s.batch; ++slabs) {
            if (s.batch % slabs) continue;
            const int64_t tasks = smaller(groups * slabs, wanted_tasks);
            const int64_t cost = (groups > 1 ? groups * rows : 0) + (slabs > 1 ? slabs * weights : 0);
            if (tasks > best_tasks || (tasks == best_tasks && cost < best_cost)) {
                best_tasks = tasks;
                best_cost = cost;
                plan.groups = groups;
                plan.slabs = slabs;
            }
        }
    }
    const int64_t step_bytes = (2 + 2 * s.state) * static_cast<int64_t>(sizeof(Vec<T>));
    plan.steps = round_up(s.length, block);
    if (s.chunk > 0) plan.steps = smaller(plan.steps, round_up(s.chunk, block));
    else if (plan.steps * step_bytes > whole_bytes)
        plan.steps = smaller(plan.steps, round_up(chunk_bytes / step_bytes, block));
    plan.chunks = (s.length + plan.steps - 1) / plan.steps;
    return plan;
}

// Partial sums of one task: where its share of each gradient goes, or null.
template <class T>
struct Shares {
    T *dproj, *ddt_weight, *ddt_bias, *dA, *dD;
};

// The vectors that a task works in.
template <class T>
struct Desk {
    Vec<T>*parameters, *A, *h, *carry, *sum_weight, *sum_A, *products, *checkpoints, *dt, *slope, *decay, *state;

    static int64_t size(const ScanArgs& s, const Plan& plan) {
        return 2 * s.rank + (5 + 2 * block + plan.chunks) * s.state + plan.steps * (2 + 2 * s.state) + s.state;
    }

    Desk(const ScanArgs& s, const Plan& plan, Vec<T>* v) {
        const int64_t R = s.rank, N = s.state, steps = plan.steps;
        auto take = [&v](int64_t n) {
            Vec<T>* here = v;
            v += n;
            return here;
        };
        parameters = take(R + N);
        A = take(N);
        h = take(N);
        carry = take(N);
        sum_weight = take(R);
        sum_A = take(N);
        products = take(2 * block * N);
        checkpoints = take(plan.chunks * N);
        dt = take(steps);
        slope = take(steps);
        decay = take(steps * N);
        state = take((steps + 1) * N);
    }
};

template <class T, int N, bool Readout>
struct Backward {
    const ScanArgs& s;
    const Plan& plan;
    const Shares<T>& share;
    const Desk<T>& desk;
    Walk<T>& w;
    bool first_vector;  // of the group: writes its share of dproj, later ones add
    Vec<T> sum_D{}, sum_bias{};

    int64_t states() const { return N ? N : s.state; }

    // Steps [begin, end) forwards from the state in desk.h; with Keep everything the way back needs is stored.
    template <bool Keep>
    void recompute(int64_t begin, int64_t end) {
        const T* u = static_cast<const T*>(s.u) + w.map;
        const int64_t C = s.channels, n_states = states();
        Vec<T> h0 = desk.h[0];
        if constexpr (Keep)
            for (int64_t i = 0; i < n_states; ++i) desk.state[i] = desk.h[i];
        for (int64_t t = begin; t < end; t += block) {
            int64_t p[block];
            Vec<T> dt[block], slope[block], decay[block];
            w.positions(t, p);
            w.template step_sizes<Keep>(p, dt, slope);
            if constexpr (N == 1) {
#pragma GCC unroll 8
                for (int j = 0; j < block; ++j) decay[j] = exp2(dt[j] * w.A2[0]);
            }
            const int64_t at = t - begin;
            const int count = static_cast<int>(smaller(block, end - t));
            for (int j = 0; j < count; ++j) {
                const T* B = w.row(p[j]) + s.rank;
                const Vec<T> dtx = dt[j] * load_first(u + p[j] * C, w.n);
                if constexpr (Keep) {
                    desk.dt[at + j] = dt[j];
                    desk.slope[at + j] = slope[j];
                }
                if constexpr (N == 1) {
                    h0 = fma(decay[j], h0, dtx * B[0]);
                    if constexpr (Keep) {
                        desk.decay[at + j] = decay[j];
                        desk.state[at + j + 1] = h0;
                    }
                } else {
                    for (int64_t i = 0; i < n_states; ++i) {
                        const Vec<T> a = exp2(dt[j] * w.A2[i]);
                        desk.h[i] = fma(a, desk.h[i], dtx * B[i]);
                        if constexpr (Keep) {
                            desk.decay[(at + j) * n_states + i] = a;
                            desk.state[(at + j + 1) * n_states + i] = desk.h[i];
                        }
                    }
                }
            }
        }
        if constexpr (N == 1) desk.h[0] = h0;
    }

    // Steps [begin, end) backwards; desk.carry is the gradient that reaches the last one's state from later steps.
    void reverse(int64_t begin, int64_t end) {
        const int64_t C = s.channels, L = s.length, R = s.rank, n_states = states();
        const T* u = static_cast<const T*>(s.u) + w.map;
        const T* gy = static_cast<const T*>(s.gy) + w.map;
        const T* gstates = static_cast<const T*>(s.gstates) + w.sequence * n_states * L * C + w.c;
        T* du = static_cast<T*>(s.du) + w.map;
        T* ddt = static_cast<T*>(s.ddt) + w.sequence * L * C + w.c;
        const bool add = w.k > 0 && !s.separate;
        Vec<T> carry0 = desk.carry[0], sum_A0 = desk.sum_A[0];
        const Vec<T> A0 = desk.A[0];

        for (int64_t t = begin + (end - begin - 1) / block * block; t >= begin; t -= block) {
            int64_t p[block];
            w.positions(t, p);
            const int64_t at = t - begin;
            const int count = static_cast<int>(smaller(block, end - t));
            Vec<T> dz[block];
            for (int j = count; j < block; ++j) {
                dz[j] = Vec<T>{};
                for (int64_t i = 0; i < n_states; ++i)
                    desk.products[i * 2 * block + j] = desk.products[(i * 2 + 1) * block + j] = Vec<T>{};
            }
            for (int j = count - 1; j >= 0; --j) {
                const T* B = w.row(p[j]) + R;
                const Vec<T> x = load_first(u + p[j] * C, w.n);
                const Vec<T> g = Readout ? load_first(gy + p[j] * C, w.n) : Vec<T>{};
                const Vec<T> dt = desk.dt[at + j], dtx = dt * x;
                Vec<T> through_B{}, through_A{};  // dL/d(dt u) and dL/d(dt) along the decay
                for (int64_t i = 0; i < n_states; ++i) {
                    Vec<T>& carry = N == 1 ? carry0 : desk.carry[i];
                    Vec<T>& sum_A = N == 1 ? sum_A0 : desk.sum_A[i];
                    const Vec<T> gh = Readout ? fma(g, set1(B[n_states + i]), carry)
                                              : load_first(gstates + (i * L + p[j]) * C, w.n) + carry;
                    desk.products[i * 2 * block + j] = gh * dtx;
                    if constexpr (Readout)
                        desk.products[(i * 2 + 1) * block + j] = g * desk.state[(at + j + 1) * n_states + i];
                    through_B = fma(gh, set1(B[i]), through_B);
                    carry = gh * desk.decay[(at + j) * n_states + i];
                    const Vec<T> e = carry * desk.state[(at + j) * n_states + i];
                    through_A = fma(e, N == 1 ? A0 : desk.A[i], through_A);
                    sum_A = fma(e, dt, sum_A);
                }
                Vec<T> dx = through_B * dt;
                if constexpr (Readout) {
                    dx = fma(w.D, g, dx);
                    sum_D = fma(g, x, sum_D);
                }
                T* to = du + p[j] * C;
                if (add) dx = load_first(to, w.n) + dx;
                store_first(to, dx, w.n);
                dz[j] = fma(through_B, x, through_A) * desk.slope[at + j];
                sum_bias += dz[j];
                if (w.dt) store_first(ddt + p[j] * C, dz[j], w.n);
            }
            if (R > 0) {
                weight_gradient(p, dz);
                low_rank_gradient(p, dz, count);
            }
            state_gradients(p, count);
        }
        if constexpr (N == 1) {
            desk.carry[0] = carry0;
            desk.sum_A[0] = sum_A0;
        }
    }

    // d dt_weight += dz (x) low: a sum over pixels for each of R columns.
    VSSM_INLINE void weight_gradient(const int64_t (&p)[block], const Vec<T> (&dz)[block]) {
        const T* low[block];
#pragma GCC unroll 8
        for (int j = 0; j < block; ++j) low[j] = w.row(p[j]);
        for (int64_t r = 0; r < s.rank; ++r) {
            Vec<T> sum = desk.sum_weight[r];
#pragma GCC unroll 8
            for (int j = 0; j < block; ++j) sum = fma(dz[j], set1(low[j][r]), sum);
            desk.sum_weight[r] = sum;
        }
    }

    // d low = dz dt_weight: a sum over this vector's channels. Lanes run over the R columns here.
    VSSM_INLINE void low_rank_gradient(const int64_t (&p)[block], const Vec<T> (&dz)[block], int count) {
        const int64_t R = s.rank;
        const T* weight = static_cast<const T*>(s.dt_weight) + (w.k * s.channels + w.c) * R;
        const int channels = static_cast<int>(smaller(w.n, lanes<T>));
        alignas(VSSM_VECTOR_BYTES) T rows[block][lanes<T>];
#pragma GCC unroll 8
        for (int j = 0; j < block; ++j) store(rows[j], dz[j]);
        for (int64_t r = 0; r < R; r += lanes<T>) {
            const int width = static_cast<int>(smaller(R - r, lanes<T>));
            Vec<T> sum[block] = {};
            for (int i = 0; i < channels; ++i) {
                const Vec<T> row = load_first(weight + i * R + r, width);
#pragma GCC unroll 8
                for (int j = 0; j < block; ++j) sum[j] = fma(row, set1(rows[j][i]), sum[j]);
            }
#pragma GCC unroll 8
            for (int j = 0; j < block; ++j) {
                if (j >= count) break;
                T* to = dproj(p[j]) + r;
                if (!first_vector) sum[j] = load_first(to, width) + sum[j];
                store_first(to, sum[j], width);
            }
        }
    }

    // dB and dC: sums over this vector's channels of the products kept for the block.
    VSSM_INLINE void state_gradients(const int64_t (&p)[block], int count) {
        const int64_t n_states = states();
        for (int64_t i = 0; i < n_states; ++i) {
            alignas(VSSM_VECTOR_BYTES) T sums[2 * block];
            for (int q = 0; q < 2 * block; q += lanes<T>) {
                Vec<T> rows[lanes<T>];
#pragma GCC unroll 16
                for (int j = 0; j < lanes<T>; ++j) rows[j] = desk.products[i * 2 * block + q + j];
                store(sums + q, sum_rows<T>(rows));
            }
            for (int j = 0; j < count; ++j) {
                T* to = dproj(p[j]) + s.rank + i;
                const T dC = Readout ? sums[block + j] : T(0);
                to[0] = first_vector ? sums[j] : to[0] + sums[j];
                to[n_states] = first_vector ? dC : to[n_states] + dC;
            }
        }
    }

    VSSM_INLINE T* dproj(int64_t p) const { return share.dproj + (w.proj - static_cast<const T*>(s.proj)) + p * s.routes * w.columns; }

    // The whole sequence of the sample w stands at.
    void sample() {
        const int64_t n_states = states();
        for (int64_t i = 0; i < n_states; ++i) {
            desk.h[i] = s.initial ? load_strided(static_cast<const T*>(s.initial) + w.carry() + i, n_states, w.n) : Vec<T>{};
            desk.carry[i] = s.glast ? load_strided(static_cast<const T*>(s.glast) + w.carry() + i, n_states, w.n) : Vec<T>{};
        }
        for (int64_t chunk = 0; chunk < plan.chunks; ++chunk) {
            for (int64_t i = 0; i < n_states; ++i) desk.checkpoints[chunk * n_states + i] = desk.h[i];
            if (chunk + 1 < plan.chunks) recompute<false>(chunk * plan.steps, (chunk + 1) * plan.steps);
        }
        for (int64_t chunk = plan.chunks - 1; chunk >= 0; --chunk) {
            const int64_t begin = chunk * plan.steps, end = smaller(s.length, begin + plan.steps);
            for (int64_t i = 0; i < n_states; ++i) desk.h[i] = desk.checkpoints[chunk * n_states + i];
            recompute<true>(begin, end);
            reverse(begin, end);
        }
        if (s.dinitial)
            for (int64_t i = 0; i < n_states; ++i)
                store_strided(static_cast<T*>(s.dinitial) + w.carry() + i, n_states, desk.carry[i], w.n);
    }
};

template <class T, int N, bool Readout>
void run_task(const ScanArgs& s, const Plan& plan, int64_t task, const Shares<T>& share, Vec<T>* memory) {
    const Desk<T> desk(s, plan, memory);
    const int64_t slab = task / plan.groups, group = task % plan.groups;
    const int64_t samples = s.batch / plan.slabs, width = plan.vectors / plan.groups;
    for (int64_t v = group * width; v < (group + 1) * width; ++v) {
        for (int64_t k = 0; k < s.routes; ++k) {
            Walk<T> w(s, k, v * lanes<T>, desk.parameters);
            const int64_t kc = k * s.channels + w.c;
            for (int64_t i = 0; i < s.state; ++i) {
                desk.A[i] = load_strided(static_cast<const T*>(s.A) + kc * s.state + i, s.state, w.n);
                desk.sum_A[i] = Vec<T>{};
            }
            for (int64_t r = 0; r < s.rank; ++r) desk.sum_weight[r] = Vec<T>{};
            Backward<T, N, Readout> back{s, plan, share, desk, w, v == group * width};
            for (int64_t b = slab * samples; b < (slab + 1) * samples; ++b) {
                w.at(b);
                back.sample();
            }
            if (s.rank > 0) store_columns(share.ddt_weight + kc * s.rank, s.rank, w.n, desk.sum_weight);
            for (int64_t i = 0; i < s.state; ++i)
                store_strided(share.dA + kc * s.state + i, s.state, desk.sum_A[i], w.n);
            if (share.ddt_bias) store_first(share.ddt_bias + kc, back.sum_bias, w.n);
            if (share.dD) store_first(share.dD + kc, back.sum_D, w.n);
        }
    }
}

// out[i] = parts[0][i] + parts[1][i] + ..., each part `size` long.
template <class T>
void add_parts(T* out, const T* parts, int64_t count, int64_t size) {
    constexpr int64_t span = 4096;
    parallel((size + span - 1) / span, [&](int64_t task) {
        const int64_t begin = task * span, end = smaller(size, begin + span);
        for (int64_t i = begin; i < end; i += lanes<T>) {
            const int n = static_cast<int>(smaller(end - i, lanes<T>));
            Vec<T> sum = load_first(parts + i, n);
            for (int64_t q = 1; q < count; ++q) sum += load_first(parts + q * size + i, n);
            store_first(out + i, sum, n);
        }
    });
}

template <class T, int N, bool Readout>
int32_t backward(const ScanArgs& s) {
    const Plan plan = make_plan<T>(s);
    const int64_t KC = s.routes * s.channels, rows = s.batch * s.length * s.routes * (s.rank + 2 * s.state);
    const int64_t sizes[] = {rows, KC * s.rank, s.ddt_bias ? KC : 0, KC * s.state, s.dD ? KC : 0};
    T* const out[] = {static_cast<T*>(s.dproj), static_cast<T*>(s.ddt_weight), static_cast<T*>(s.ddt_bias),
                      static_cast<T*>(s.dA), static_cast<T*>(s.dD)};
    const int64_t parts[] = {plan.groups, plan.slabs, plan.slabs, plan.slabs, plan.slabs};
    T* partial[5];
    int64_t total = 0;
    for (int i = 0; i < 5; ++i) total += parts[i] > 1 ? parts[i] * sizes[i] : 0;
    T* memory = total ? static_cast<T*>(malloc(total * sizeof(T))) : nullptr;
    if (total && memory == nullptr) return out_of_memory;
    total = 0;
    for (int i = 0; i < 5; ++i) {
        partial[i] = parts[i] > 1 ? memory + total : out[i];
        total += parts[i] > 1 ? parts[i] * sizes[i] : 0;
    }

    int32_t status = ok;
    parallel(plan.groups * plan.slabs, [&](int64_t task) {
        auto* desk = static_cast<Vec<T>*>(scratch(Desk<T>::size(s, plan) * sizeof(Vec<T>)));
        if (desk == nullptr) {
            __atomic_store_n(&status, out_of_memory, __ATOMIC_RELAXED);
            return;
        }
        const int64_t slab = task / plan.groups, group = task % plan.groups;
        Shares<T> share{partial[0] + (plan.groups > 1 ? group * rows : 0), partial[1] + slab * sizes[1],
                        s.ddt_bias ? partial[2] + slab * sizes[2] : nullptr, partial[3] + slab * sizes[3],
                        s.dD ? partial[4] + slab * sizes[4] : nullptr};
        run_task<T, N, Readout>(s, plan, task, share, desk);
    });
    for (int i = 0; i < 5; ++i)
        if (parts[i] > 1 && sizes[i] > 0 && status == ok) add_parts(out[i], partial[i], parts[i], sizes[i]);
    free(memory);
    return status;
}

template <class T>
int32_t choose(const ScanArgs& s) {
    if (s.gy) return s.state == 1 ? backward<T, 1, true>(s) : backward<T, 0, true>(s);
    return s.state == 1 ? backward<T, 1, false>(s) : backward<T, 0, false>(s);
}

}  // namespace

int32_t scan_backward(const ScanArgs* s) {
    if ((s->dt == nullptr) == (s->rank == 0) || (s->gy == nullptr) == (s->gstates == nullptr)) return bad_argument;
    if (!s->du || !s->dproj || !s->dA || (s->dt ? !s->ddt : !s->ddt_weight)) return bad_argument;
    return s->is_double ? choose<double>(*s) : choose<float>(*s);
}

}  // namespace VSSM_ISA
}  // namespace vssm
