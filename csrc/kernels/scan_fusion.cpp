// One raster scan with one state per channel, fused and read out as it goes: y = C * fusion(h) + D * u, h the states.
//
// A task is one vector of channels of one sample. The scan runs ahead by as many rows as the taps reach; only the rows
// between live in the task's memory, and neither the states nor their fusion are written to a map.
#include "scan_steps.h"
#include "state_fusion.h"

namespace vssm {
namespace VSSM_ISA {
namespace {

// The scan of a raster, some rows at a time, into consecutive vectors.
template <class T>
struct RasterScan {
    const Walk<T> walk;
    const T* u;
    Vec<T> h{};
    int64_t t = 0;

    RasterScan(const ScanArgs& s, const Walk<T>& walk) : walk(walk), u(static_cast<const T*>(s.u) + walk.map) {}

    // The states of the next pixels, by whole blocks, at least `count`; returns how many.
    __attribute__((noinline)) int64_t advance(int64_t count, T* out) {
        const Walk<T> w = walk;  // plain values, which no store can change
        const T* const map = u;
        Vec<T> state = h;
        int64_t done = 0;
        Places next;
        w.places(t, next);
        for (; done < count; done += block) {
            const Places p = next;
            Vec<T> dt[block], decay[block];
            w.places(t + done + block, next);
            prefetch(map, next.pixel);
            prefetch(w.proj, next.row);
            w.template step_sizes<false>(p, dt, decay);
            w.decays(dt, decay);
#pragma GCC unroll 8
            for (int j = 0; j < block; ++j) {
                state = fma(decay[j], state, dt[j] * load_first(map + p.pixel[j], w.n) * w.proj[p.row[j] + w.R]);
                store(out + (done + j) * lanes<T>, state);
            }
        }
        h = state;
        t += done;
        return done;
    }
};

template <class T, class Taps>
int32_t run(const ScanArgs& s, const Problem<T>& p) {
    const StateFusionArgs& a = p.a;
    const int64_t blocks = Block<T>::blocks(a), width = a.width, ring = smaller<int64_t>(2 * p.reach + 1, a.height);
    int32_t status = ok;
    parallel(a.batch * blocks, [&](int64_t task) {
        const Block<T> b(a, task);
        const int64_t parameters = (s.rank + s.state) * lanes<T>, taken = Taps::memory(p);
        const int64_t size = Plane<T>::values(ring, width, p.reach), ahead = (width + block) * lanes<T>;
        T* memory = static_cast<T*>(scratch((parameters + taken + size + ahead + width * lanes<T>) * sizeof(T)));
        if (memory == nullptr) {
            status = out_of_memory;
            return;
        }
        Walk<T> walk(s, 0, b.c, reinterpret_cast<Vec<T>*>(memory));
        walk.at(s, b.sample);
        RasterScan<T> scan(s, walk);
        Taps taps(p, memory + parameters, b.c, b.used);
        const Plane<T> plane{memory + parameters + taken, width, p.reach, ring};
        T* const states = plane.data + size;  // scanned, and not yet in the plane
        T* const line = states + ahead;
        const T* C = walk.proj + walk.R + 1;
        int64_t waiting = 0, scanned = 0;
        for (int64_t y = 0; y < a.height; ++y) {
            for (; scanned <= smaller(y + p.reach, a.height - 1); ++scanned) {
                waiting += scan.advance(width - waiting, states + waiting * lanes<T>);
                T* row = plane.row(scanned);
                for (int64_t x = 0; x < width; ++x) store(row + x * lanes<T>, load(states + x * lanes<T>));
                plane.repeat_borders(scanned);
                waiting -= width;
                for (int64_t x = 0; x < waiting; ++x)
                    store(states + x * lanes<T>, load(states + (width + x) * lanes<T>));
            }
            fuse_row(taps, Neighbours<T, Taps>(plane, y, a.height, 0), line, width);
            b.each_read(a.u, y, [&](int64_t x, Vec<T> u) VSSM_BODY {
                const Vec<T> v = load(line + x * lanes<T>) * C[b.raster(y, x) * walk.row_size];
                store(line + x * lanes<T>, fma(walk.D, u, v));
            });
            b.write(a.y, y, line);
        }
    });
    return status;
}

template <class T>
int32_t choose(const ScanFusionArgs& a) {
    const Problem<T> p(a.fusion);
    if (p.weights == nullptr) return out_of_memory;
    if (p.a.count == 0) return bad_argument;
    if constexpr (sizeof(T) == 4)
        if (FixedTaps<T, 1, 3, 5>::fits(p)) return run<T, FixedTaps<T, 1, 3, 5>>(a.scan, p);
    return run<T, AnyTaps<T>>(a.scan, p);
}

}  // namespace

int32_t scan_fusion_forward(const ScanFusionArgs* a) {
    const ScanArgs& s = a->scan;
    if (s.routes != 1 || s.state != 1 || s.rank == 0 || s.order || s.initial || s.separate) return bad_argument;
    return s.is_double ? choose<double>(*a) : choose<float>(*a);
}

}  // namespace VSSM_ISA
}  // namespace vssm
