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
constexpr int64_t wanted_tasks = 8;

// Vectors of one step's record: [dt | slope of softplus | state after the step, N | decay, N]. With one state the decay
// is computed again on the way back, which costs less than its share of the cache.
template <class T>
int64_t record_size(int64_t states) {
    return special<T> && states == 1 ? 3 : 2 + 2 * states;
}

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
    const int64_t step_bytes = record_size<T>(s.state) * static_cast<int64_t>(sizeof(Vec<T>));
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

// The vectors that a task works in. `steps` holds a record for every step of the chunk and one for the step before it.
template <class T>
struct Desk {
    Vec<T>*parameters, *A, *h, *carry, *sum_weight, *sum_A, *products, *checkpoints, *steps;

    static int64_t size(const ScanArgs& s, const Plan& plan) {
        return 2 * s.rank + (5 + 2 * block + plan.chunks) * s.state + (plan.steps + 1) * record_size<T>(s.state);
    }

    Desk(const ScanArgs& s, const Plan& plan, Vec<T>* v) {
        const int64_t R = s.rank, N = s.state;
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
        steps = take((plan.steps + 1) * record_size<T>(N));
    }
};

// The way there and back of one vector of channels along one route. Fields are read once into locals: see Walk.
template <class T, int N, bool Readout>
struct Backward {
    using V = Vec<T>;
    const ScanArgs& s;
    const Plan& plan;
    const Desk<T>& desk;
    T* share_dproj;
    bool first_vector;  // of the group: writes its share of dproj, later ones add
    V sum_D{}, sum_bias{};

    // Steps [begin, end) forwards from the state in desk.h; with Keep everything the way back needs is stored.
    template <bool Keep>
    void recompute(const Walk<T> w, int64_t begin, int64_t end) {
        const int64_t R = w.R, states = N ? N : w.N, record = record_size<T>(states);
        const int n = w.n;
        const T* u = static_cast<const T*>(s.u) + w.map;
        V *const h_memory = desk.h, *to = desk.steps;
        V h0 = h_memory[0];
        auto h = [&](int64_t i) __attribute__((always_inline)) -> V& { return N == 1 ? h0 : h_memory[i]; };
        if constexpr (Keep)
            for (int64_t i = 0; i < states; ++i) to[2 + i] = h(i);
        Places next;
        w.places(begin, next);
        for (int64_t t = begin; t < end; t += block) {
            const Places p = next;
            V dt[block], slope[block], decay[block];
            w.places(t + block, next);
            prefetch(u, next.pixel);
            prefetch(w.proj, next.row);
            w.template step_sizes<Keep>(p, dt, slope);
            if constexpr (N == 1) w.decays(dt, decay);
            auto step = [&](int j) __attribute__((always_inline)) {
                const T* B = w.proj + p.row[j] + R;
                const V dtx = dt[j] * load_first(u + p.pixel[j], n);
                to += record;
                if constexpr (Keep) {
                    to[0] = dt[j];
                    to[1] = slope[j];
                }
                for (int64_t i = 0; i < states; ++i) {
                    const V a = N == 1 ? decay[j] : exp2(dt[j] * w.A2[i]);
                    h(i) = fma(a, h(i), dtx * B[i]);
                    if constexpr (Keep) {
                        to[2 + i] = h(i);
                        if constexpr (N != 1) to[2 + states + i] = a;
                    }
                }
            };
            if (N == 1 && t + block <= end) {
#pragma GCC unroll 8
                for (int j = 0; j < block; ++j) step(j);
            } else {
#pragma GCC unroll 1
                for (int j = 0; j < block && t + j < end; ++j) step(j);
            }
        }
        if constexpr (N == 1) h_memory[0] = h0;
    }

    // Steps [begin, end) backwards; desk.carry is the gradient that reaches the last one's state from later steps.
    void reverse(const Walk<T> w, int64_t begin, int64_t end) {
        const int64_t R = w.R, states = N ? N : w.N, record = record_size<T>(states), map_size = w.L * w.C;
        const int n = w.n;
        const T* u = static_cast<const T*>(s.u) + w.map;
        const T* gy = static_cast<const T*>(s.gy) + w.map;
        const T* gstates = static_cast<const T*>(s.gstates) + w.sequence * states * map_size + w.c;
        T* du = static_cast<T*>(s.du) + w.map;
        T* ddt = s.ddt ? static_cast<T*>(s.ddt) + w.sequence * map_size + w.c : nullptr;
        T* dproj = share_dproj + (w.proj - static_cast<const T*>(s.proj));
        const bool add = w.k > 0 && !s.separate;
        const V* step_record = desk.steps + (end - begin + 1) * record;
        const V* const A_memory = desk.A;
        V *const carry_memory = desk.carry, *const sum_A_memory = desk.sum_A;
        const V A0 = A_memory[0];
        V carry0 = carry_memory[0], sum_A0 = sum_A_memory[0], to_D = sum_D, to_bias = sum_bias;
        V products_here[2 * block];
        V* const products = N == 1 ? products_here : desk.products;

        const int64_t last = begin + (end - begin - 1) / block * block;
        Places next;
        w.places(last, next);
        for (int64_t t = last; t >= begin; t -= block) {
            const Places p = next;
            w.places(t > begin ? t - block : begin, next);
            prefetch(u, next.pixel);
            prefetch(du, next.pixel);
            if constexpr (Readout) prefetch(gy, next.pixel);
            prefetch(w.proj, next.row);
            prefetch(dproj, next.row);
            const int count = static_cast<int>(smaller(block, end - t));
            V dz[block], decay[block];
            if constexpr (N == 1) {
                V dt[block];
#pragma GCC unroll 8
                for (int j = 0; j < block; ++j) dt[j] = step_record[(j < count ? j - count : -1) * record];
                w.decays(dt, decay);
            }
            auto step = [&](int j) __attribute__((always_inline)) {
                step_record -= record;
                const T* B = w.proj + p.row[j] + R;
                const V x = load_first(u + p.pixel[j], n);
                const V g = Readout ? load_first(gy + p.pixel[j], n) : V{};
                const V dt = step_record[0], dtx = dt * x;
                V through_B{}, through_A{};  // dL/d(dt u) and dL/d(dt) along the decay
                for (int64_t i = 0; i < states; ++i) {
                    V& carry = N == 1 ? carry0 : carry_memory[i];
                    V& sum_A = N == 1 ? sum_A0 : sum_A_memory[i];
                    const V gh = Readout ? fma(g, set1(B[states + i]), carry)
                                         : load_first(gstates + i * map_size + p.pixel[j], n) + carry;
                    products[i * 2 * block + j] = gh * dtx;
                    if constexpr (Readout) products[(i * 2 + 1) * block + j] = g * step_record[2 + i];
                    through_B = N == 1 ? gh * B[i] : fma(gh, set1(B[i]), through_B);
                    carry = gh * (N == 1 ? decay[j] : step_record[2 + states + i]);
                    const V e = carry * step_record[2 + i - record];
                    through_A = N == 1 ? e * A0 : fma(e, A_memory[i], through_A);
                    sum_A = fma(e, dt, sum_A);
                }
                V dx = through_B * dt;
                if constexpr (Readout) {
                    dx = fma(w.D, g, dx);
                    to_D = fma(g, x, to_D);
                }
                T* to = du + p.pixel[j];
                if (add) dx = load_first(to, n) + dx;
                store_first(to, dx, n);
                dz[j] = fma(through_B, x, through_A) * step_record[1];
                to_bias += dz[j];
                if (ddt) store_first(ddt + p.pixel[j], dz[j], n);
            };
            if (N == 1 && count == block) {
#pragma GCC unroll 8
                for (int j = block - 1; j >= 0; --j) step(j);
            } else {
                for (int j = count; j < block; ++j) {
                    dz[j] = V{};
                    for (int64_t i = 0; i < states; ++i)
                        products[i * 2 * block + j] = products[(i * 2 + 1) * block + j] = V{};
                }
#pragma GCC unroll 1
                for (int j = count - 1; j >= 0; --j) step(j);
            }
            if (R > 0) {
                weight_gradient(w, p, dz);
                low_rank_gradient(w, dproj, p, dz, count);
            }
            for (int64_t i = 0; i < states; ++i)
                state_gradient(products + i * 2 * block, dproj + R + i, states, p, count);
        }
        sum_D = to_D;
        sum_bias = to_bias;
        if constexpr (N == 1) {
            carry_memory[0] = carry0;
            sum_A_memory[0] = sum_A0;
        }
    }

    // d dt_weight += dz (x) low: a sum over pixels for each of R columns.
    VSSM_INLINE void weight_gradient(const Walk<T>& w, const Places& p, const V (&dz)[block]) {
        V* const sums = desk.sum_weight;
        const T* low[block];
#pragma GCC unroll 8
        for (int j = 0; j < block; ++j) low[j] = w.proj + p.row[j];
        for (int64_t r = 0; r < w.R; ++r) {
            V sum = sums[r];
#pragma GCC unroll 8
            for (int j = 0; j < block; ++j) sum = fma(dz[j], set1(low[j][r]), sum);
            sums[r] = sum;
        }
    }

    // d low = dz dt_weight: a sum over this vector's channels. Lanes run over the R columns here.
    VSSM_INLINE void low_rank_gradient(
        const Walk<T>& w, T* dproj, const Places& p, const V (&dz)[block], int count) {
        const int64_t R = w.R;
        const T* weight = static_cast<const T*>(s.dt_weight) + (w.k * w.C + w.c) * R;
        const int channels = static_cast<int>(smaller(w.n, lanes<T>));
        alignas(VSSM_VECTOR_BYTES) T rows[block][lanes<T>];
#pragma GCC unroll 8
        for (int j = 0; j < block; ++j) store(rows[j], dz[j]);
        for (int64_t r = 0; r < R; r += lanes<T>) {
            const int width = static_cast<int>(smaller(R - r, lanes<T>));
            V sum[block] = {};
            for (int i = 0; i < channels; ++i) {
                const V row = load_first(weight + i * R + r, width);
#pragma GCC unroll 8
                for (int j = 0; j < block; ++j) sum[j] = fma(row, set1(rows[j][i]), sum[j]);
            }
#pragma GCC unroll 8
            for (int j = 0; j < block; ++j) {
                if (j >= count) break;
                T* to = dproj + p.row[j] + r;
                if (!first_vector) sum[j] = load_first(to, width) + sum[j];
                store_first(to, sum[j], width);
            }
        }
    }

    // dB and dC of one state: sums over this vector's channels of the block's products.
    VSSM_INLINE void state_gradient(
        const V* products, T* to_B, int64_t states, const Places& p, int count) {
        alignas(VSSM_VECTOR_BYTES) T sums[2 * block];
        for (int q = 0; q < 2 * block; q += lanes<T>) {
            V rows[lanes<T>];
#pragma GCC unroll 16
            for (int j = 0; j < lanes<T>; ++j) rows[j] = products[q + j];
            store(sums + q, sum_rows<T>(rows));
        }
        for (int j = 0; j < count; ++j) {
            T* to = to_B + p.row[j];
            const T dC = Readout ? sums[block + j] : T(0);
            to[0] = first_vector ? sums[j] : to[0] + sums[j];
            to[states] = first_vector ? dC : to[states] + dC;
        }
    }

    // The whole sequence of the sample w stands at.
    void sample(const Walk<T>& w) {
        const int64_t states = w.N;
        const T *initial = static_cast<const T*>(s.initial), *glast = static_cast<const T*>(s.glast);
        for (int64_t i = 0; i < states; ++i) {
            desk.h[i] = initial ? load_strided(initial + w.carry() + i, states, w.n) : V{};
            desk.carry[i] = glast ? load_strided(glast + w.carry() + i, states, w.n) : V{};
        }
        for (int64_t chunk = 0; chunk < plan.chunks; ++chunk) {
            for (int64_t i = 0; i < states; ++i) desk.checkpoints[chunk * states + i] = desk.h[i];
            if (chunk + 1 < plan.chunks) recompute<false>(w, chunk * plan.steps, (chunk + 1) * plan.steps);
        }
        for (int64_t chunk = plan.chunks - 1; chunk >= 0; --chunk) {
            const int64_t begin = chunk * plan.steps, end = smaller(w.L, begin + plan.steps);
            for (int64_t i = 0; i < states; ++i) desk.h[i] = desk.checkpoints[chunk * states + i];
            recompute<true>(w, begin, end);
            reverse(w, begin, end);
        }
        if (s.dinitial)
            for (int64_t i = 0; i < states; ++i)
                store_strided(static_cast<T*>(s.dinitial) + w.carry() + i, states, desk.carry[i], w.n);
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
            Backward<T, N, Readout> back{s, plan, desk, share.dproj, v == group * width};
            for (int64_t b = slab * samples; b < (slab + 1) * samples; ++b) {
                w.at(s, b);
                back.sample(w);
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

template <class T, bool Readout>
int32_t choose(const ScanArgs& s) {
    if (special<T> && s.state == 1) return backward<T, special<T>, Readout>(s);
    return backward<T, 0, Readout>(s);
}

template <class T>
int32_t choose(const ScanArgs& s) {
    return s.gy ? choose<T, true>(s) : choose<T, false>(s);
}

}  // namespace

int32_t scan_backward(const ScanArgs* s) {
    if ((s->dt == nullptr) == (s->rank == 0) || (s->gy == nullptr) == (s->gstates == nullptr)) return bad_argument;
    if (!s->du || !s->dproj || !s->dA || (s->dt ? !s->ddt : !s->ddt_weight)) return bad_argument;
    return s->is_double ? choose<double>(*s) : choose<float>(*s);
}

}  // namespace VSSM_ISA
}  // namespace vssm
