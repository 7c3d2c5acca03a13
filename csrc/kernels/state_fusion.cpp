// State fusion: a depthwise convolution whose taps are the union of dilated 3x3 grids, over a map whose border repeats;
// optionally followed by the readout C * fused + D * u.
//
// A task is one vector of channels of one sample (forward: of a strip of rows). It copies its channels into a plane of
// its own, where the pixels of a row are contiguous and the repeated columns are written out; a row outside of the map
// is the clamped row. Every tap is then one load at a constant distance, and the weights of the 25 taps of dilations
// 1, 3, 5 fit the registers of AVX-512.
#include "state_fusion.h"

namespace vssm {
namespace VSSM_ISA {
namespace {

template <class T, class Taps>
int32_t forward(const Problem<T>& p) {
    const StateFusionArgs& a = p.a;
    // Strips whose plane stays in the second-level cache.
    const int64_t row_bytes = Plane<T>::values(1, a.width, p.reach) * sizeof(T);
    int64_t strip = (int64_t{1} << 19) / row_bytes - 2 * p.reach;
    strip = smaller(a.height, strip < 8 ? 8 : strip);
    const int64_t strips = (a.height + strip - 1) / strip;
    const T* C = static_cast<const T*>(a.C);
    const T* D = static_cast<const T*>(a.D);
    int32_t status = ok;
    parallel(a.batch * Block<T>::blocks(a) * strips, [&](int64_t task) {
        const Block<T> block(a, task / strips);
        const int64_t top = task % strips * strip, end = smaller(top + strip, a.height);
        const int64_t first = clamp(top - p.reach, a.height), last = clamp(end - 1 + p.reach, a.height) + 1;
        const int64_t taken = Taps::memory(p);
        const int64_t size = Plane<T>::values(last - first, a.width, p.reach);
        T* memory = static_cast<T*>(scratch((taken + size + a.width * lanes<T>) * sizeof(T)));
        if (memory == nullptr) {
            status = out_of_memory;
            return;
        }
        const Plane<T> plane{memory + taken, a.width, p.reach, last - first};
        T* line = memory + taken + size;
        block.copy_in(plane, first, last);
        Taps taps(p, memory, block.c, block.used);
        const Vec<T> skip = D ? load_first(D + block.c, block.used) : Vec<T>{};
        for (int64_t y = top; y < end; ++y) {
            const Neighbours<T, Taps> rows(plane, y, a.height, first);
            fuse_row(taps, rows, line, a.width);
            if (C) {
                const T* of_row = C + block.pixel(y, 0);
                for (int64_t x = 0; x < a.width; ++x) store(line + x * lanes<T>, load(line + x * lanes<T>) * of_row[x]);
            }
            if (D) {
                block.each_read(a.u, y, [&](int64_t x, Vec<T> u) VSSM_BODY {
                    store(line + x * lanes<T>, fma(skip, u, load(line + x * lanes<T>)));
                });
            }
            block.write(a.y, y, line);
        }
    });
    return status;
}

// Gradients of the taps from one row: sum += g(x) h(x + tap). A function of its own for the registers' sake, as
// fuse_row.
template <class T, class Taps>
__attribute__((noinline)) void add_tap_sums(Taps& of_task, const Neighbours<T, Taps>& of_row, const T* g, int64_t width) {
    Taps taps = of_task;
    const Neighbours<T, Taps> rows = of_row;
    for (int64_t x = 0; x < width; ++x) {
        const Vec<T> v = load(g + x * lanes<T>);
        taps.each([&](const Vec<T>&, Vec<T>& sum, const Tap& tap, int) VSSM_BODY {
            sum = fma(v, load(rows[tap.dy] + (x + tap.dx) * lanes<T>), sum);
        });
    }
    of_task.take_sums(taps);
}

// Gradients of the pixels that one row of fused pixels saw: dh(x + tap) += weight g(x). Row by row of taps: near the
// border several rows of taps reach the same row of the map.
template <class T, class Taps>
__attribute__((noinline)) void spread(const Taps& of_task, const Neighbours<T, Taps>& of_row, const T* g, int64_t from,
                                      int64_t to) {
    Taps taps = of_task;
    const Neighbours<T, Taps> rows = of_row;
    for (int64_t x = from; x < to; ++x) {
        Vec<T> v{};
        taps.each([&](const Vec<T>& weight, Vec<T>&, const Tap& tap, int) VSSM_BODY {
            if (tap.first) v = load(rows[tap.dy] + x * lanes<T>);
            v = fma(weight, load(g + (x - tap.dx) * lanes<T>), v);
            if (tap.last) store(rows[tap.dy] + x * lanes<T>, v);
        });
    }
}

template <class T, class Taps>
int32_t backward(const Problem<T>& p) {
    const StateFusionArgs& a = p.a;
    const int64_t blocks = Block<T>::blocks(a), pixels = a.height * a.width;
    const T* C = static_cast<const T*>(a.C);
    const T* D = static_cast<const T*>(a.D);
    const PartialSums<T> partial(a.batch, p.count + 1, a.channels);  // one sum per tap, and dD
    const PartialSums<T> readout(a.batch * blocks, C ? 1 : 0, pixels);
    T* row_of_channels = static_cast<T*>(malloc(a.channels * sizeof(T) + 1));
    int32_t status = partial.failed() || readout.failed() || row_of_channels == nullptr ? out_of_memory : ok;
    if (status == ok) parallel(a.batch * blocks, [&](int64_t task) {
        const Block<T> block(a, task);
        const int64_t taken = Taps::memory(p), size = Plane<T>::values(a.height, a.width, p.reach);
        const int64_t line = Plane<T>::values(1, a.width, 2 * p.reach);
        T* memory = static_cast<T*>(scratch((taken + 2 * size + line + a.width * lanes<T>) * sizeof(T)));
        if (memory == nullptr) {
            status = out_of_memory;
            return;
        }
        const Plane<T> h{memory + taken, a.width, p.reach, a.height}, dh{memory + taken + size, a.width, p.reach, a.height};
        const Plane<T> gradient{memory + taken + 2 * size, a.width, 2 * p.reach, 1};  // one row, zeros around it
        memset(dh.data, 0, (size + line) * sizeof(T));
        block.copy_in(h, 0, a.height);
        Taps taps(p, memory, block.c, block.used);
        const Vec<T> skip = D ? load_first(D + block.c, block.used) : Vec<T>{};
        Vec<T> dskip{};
        T* const g = gradient.row(0);
        T* const fused = memory + taken + 2 * size + line;
        for (int64_t y = 0; y < a.height; ++y) {
            const Neighbours<T, Taps> rows(h, y, a.height, 0), drows(dh, y, a.height, 0);
            block.each_read(a.y, y, [&](int64_t x, Vec<T> v) VSSM_BODY { store(g + x * lanes<T>, v); });
            if (D) {
                block.each_read(a.u, y, [&](int64_t x, Vec<T> u) VSSM_BODY {
                    const Vec<T> v = load(g + x * lanes<T>);
                    dskip = fma(v, u, dskip);
                    store(fused + x * lanes<T>, skip * v);
                });
                block.write(a.du, y, fused);
            }
            if (C) {
                fuse_row(taps, rows, fused, a.width);
                const int64_t row = y * a.width;
                for (int64_t x = 0; x < a.width; ++x) {
                    const Vec<T> v = load(g + x * lanes<T>);
                    readout.of(task, 0)[row + x] = sum<T>(v * load(fused + x * lanes<T>));
                    store(g + x * lanes<T>, v * C[block.pixel(y, x)]);
                }
            }
            add_tap_sums(taps, rows, g, a.width);
            spread(taps, drows, g, -p.reach, a.width + p.reach);
        }
        for (int64_t y = 0; y < a.height; ++y) {
            T* row = dh.row(y);
            T* right = row + (a.width - 1) * lanes<T>;
            for (int64_t x = 1; x <= p.reach; ++x) {
                store(row, load(row) + load(row - x * lanes<T>));
                store(right, load(right) + load(right + x * lanes<T>));
            }
            block.write(a.dh, y, row);
        }
        int i = 0;
        taps.each([&](const Vec<T>&, Vec<T>& sum, const Tap&, int) VSSM_BODY {
            store_first(partial.of(block.sample, i++) + block.c, sum, block.used);
        });
        store_first(partial.of(block.sample, p.count) + block.c, dskip, block.used);
    });
    if (status == ok) {
        p.unfold(partial, row_of_channels);
        if (D) partial.total(p.count, static_cast<T*>(a.dD));
        T* dC = static_cast<T*>(a.dC);
        for (int64_t i = 0; C && i < a.batch * pixels; ++i) {
            dC[i] = 0;
            for (int64_t j = 0; j < blocks; ++j) dC[i] += readout.of(i / pixels * blocks + j, 0)[i % pixels];
        }
    }
    free(row_of_channels);
    return status;
}

template <class T, class Taps>
int32_t run(const Problem<T>& p, bool forwards) {
    return forwards ? forward<T, Taps>(p) : backward<T, Taps>(p);
}

template <class T>
int32_t choose(const StateFusionArgs& a, bool forwards) {
    if (a.count < 1 || a.height < 1 || a.width < 1 || a.channels < 1) return bad_argument;
    const Problem<T> p(a);
    if (p.weights == nullptr) return out_of_memory;
    if constexpr (sizeof(T) == 4)  // the published dilations; double precision is for checking
        if (FixedTaps<T, 1, 3, 5>::fits(p)) return run<T, FixedTaps<T, 1, 3, 5>>(p, forwards);
    return run<T, AnyTaps<T>>(p, forwards);
}

}  // namespace

int32_t state_fusion_forward(const StateFusionArgs* a) {
    return a->is_double ? choose<double>(*a, true) : choose<float>(*a, true);
}
int32_t state_fusion_backward(const StateFusionArgs* a) {
    return a->is_double ? choose<double>(*a, false) : choose<float>(*a, false);
}

}  // namespace VSSM_ISA
}  // namespace vssm
