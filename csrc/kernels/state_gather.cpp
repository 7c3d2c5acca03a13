// Blending of states: each pixel's state becomes a weighted sum of states read, bilinearly, at learned places.
//
// The channels of a pixel are contiguous and share places and weights, so a state costs four vectors of channels per
// place. Forward and the gradients of places and weights are sums per pixel: a task is a row of one map. The gradient of
// the states is scattered; a task is then a block of channels of one map, which no other task writes.
#include "../core.h"
#include "../pointwise.h"
#include "../simd.h"
#include "rows.h"

namespace vssm {
namespace VSSM_ISA {
namespace {

// Four neighbours of a place: where their channels begin, negative outside of the map, and how much each counts.
template <class T>
struct Neighbours {
    int64_t at[4];
    T weight[4];
    T fy, fx;  // the place within its cell

    VSSM_INLINE void find(const StateGatherArgs& a, T y, T x) {
        // Beyond a pixel around the map all is zero; so far that no integer can say, too.
        const bool near = y >= T(-1) && y < T(a.height) && x >= T(-1) && x < T(a.width);
        const T top = near ? __builtin_floor(y) : T(0), left = near ? __builtin_floor(x) : T(0);
        const int64_t row = static_cast<int64_t>(top), column = static_cast<int64_t>(left);
        fy = y - top, fx = x - left;
        for (int i = 0; i < 4; ++i) {
            const int64_t r = row + i / 2, c = column + i % 2;
            const bool inside = near && r >= 0 && r < a.height && c >= 0 && c < a.width;
            at[i] = inside ? (r * a.width + c) * a.channels : -1;
            weight[i] = (i / 2 ? fy : 1 - fy) * (i % 2 ? fx : 1 - fx);
        }
    }
};

// Place `k` of pixel (row, column) of map `map`; maps are counted over batch and sequences.
template <class T>
struct Places {
    const StateGatherArgs& a;
    int64_t plane, map;
    VSSM_INLINE int64_t weight_at(int64_t k, int64_t pixel) const { return (map * a.count + k) * plane + pixel; }
    VSSM_INLINE int64_t offset_at(int64_t k, int axis, int64_t pixel) const {
        return ((map * a.count + k) * 2 + axis) * plane + pixel;
    }
    VSSM_INLINE void find(Neighbours<T>& n, int64_t k, int64_t row, int64_t column) const {
        const int64_t pixel = row * a.width + column;
        const T* offsets = static_cast<const T*>(a.offsets);
        n.find(a, static_cast<T>(row) + offsets[offset_at(k, 0, pixel)],
               static_cast<T>(column) + offsets[offset_at(k, 1, pixel)]);
    }
};

// The neighbours of some places that count: where their channels begin, and their share of the result.
template <class T>
struct Sources {
    static constexpr int64_t places = 8;
    int64_t at[4 * places], count = 0;
    T share[4 * places];

    VSSM_INLINE void add(const Neighbours<T>& n, T weight) {
        for (int i = 0; i < 4; ++i) {
            if (n.at[i] < 0) continue;
            at[count] = n.at[i];
            share[count++] = weight * n.weight[i];
        }
    }
};

template <class T>
int32_t forward(const StateGatherArgs& a) {
    const int64_t plane = a.height * a.width;
    const T* weights = static_cast<const T*>(a.weights);
    parallel(a.maps * a.height, [&](int64_t task) {
        const int64_t map = task / a.height, row = task % a.height;
        const Places<T> places{a, plane, map};
        for (int64_t column = 0; column < a.width; ++column) {
            const int64_t pixel = row * a.width + column;
            for (int64_t first = 0; first < a.count; first += Sources<T>::places) {
                Sources<T> sources;
                for (int64_t k = first; k < smaller(first + Sources<T>::places, a.count); ++k) {
                    Neighbours<T> n;
                    places.find(n, k, row, column);
                    sources.add(n, weights[places.weight_at(k, pixel)]);
                }
                for (int64_t state = 0; state < a.states; ++state) {
                    const int64_t base = (map * a.states + state) * plane * a.channels;
                    const T* h = static_cast<const T*>(a.h) + base;
                    T* y = static_cast<T*>(a.y) + base + pixel * a.channels;
                    each_vector<T>(a.channels, [&](int64_t c, int lanes_in) VSSM_BODY {
                        Vec<T> total = first > 0 ? load_first(y + c, lanes_in) : Vec<T>{};
                        for (int64_t i = 0; i < sources.count; ++i)
                            total = fma(set1(sources.share[i]), load_first(h + sources.at[i] + c, lanes_in), total);
                        store_first(y + c, total, lanes_in);
                    });
                }
            }
        }
    });
    return ok;
}

template <class T>
void gradients_of_places(const StateGatherArgs& a) {
    const int64_t plane = a.height * a.width;
    const T* weights = static_cast<const T*>(a.weights);
    parallel(a.maps * a.height, [&](int64_t task) {
        const int64_t map = task / a.height, row = task % a.height;
        const Places<T> places{a, plane, map};
        for (int64_t column = 0; column < a.width; ++column) {
            const int64_t pixel = row * a.width + column;
            for (int64_t k = 0; k < a.count; ++k) {
                Neighbours<T> n;
                places.find(n, k, row, column);
                T dot[4] = {};  // of the gradient with each neighbour
                for (int64_t state = 0; state < a.states; ++state) {
                    const int64_t base = (map * a.states + state) * plane * a.channels;
                    const T* h = static_cast<const T*>(a.h) + base;
                    const T* g = static_cast<const T*>(a.y) + base + pixel * a.channels;
                    for (int i = 0; i < 4; ++i) {
                        if (n.at[i] < 0) continue;
                        Vec<T> total{};
                        each_vector<T>(a.channels, [&](int64_t c, int lanes_in) VSSM_BODY {
                            total = fma(load_first(g + c, lanes_in), load_first(h + n.at[i] + c, lanes_in), total);
                        });
                        dot[i] += sum<T>(total);
                    }
                }
                T sampled = 0;
                for (int i = 0; i < 4; ++i) sampled += n.weight[i] * dot[i];
                const T weight = weights[places.weight_at(k, pixel)];
                const T down = (1 - n.fx) * (dot[2] - dot[0]) + n.fx * (dot[3] - dot[1]);
                const T right = (1 - n.fy) * (dot[1] - dot[0]) + n.fy * (dot[3] - dot[2]);
                const bool any = n.at[0] >= 0 || n.at[1] >= 0 || n.at[2] >= 0 || n.at[3] >= 0;
                static_cast<T*>(a.dweights)[places.weight_at(k, pixel)] = any ? sampled : T(0);
                static_cast<T*>(a.doffsets)[places.offset_at(k, 0, pixel)] = any ? weight * down : T(0);
                static_cast<T*>(a.doffsets)[places.offset_at(k, 1, pixel)] = any ? weight * right : T(0);
            }
        }
    });
}

template <class T>
void gradient_of_states(const StateGatherArgs& a) {
    constexpr int64_t block = 64;
    const int64_t plane = a.height * a.width, blocks = (a.channels + block - 1) / block;
    const T* weights = static_cast<const T*>(a.weights);
    parallel(a.maps * a.states * blocks, [&](int64_t task) {
        const int64_t first = task % blocks * block, size = smaller(block, a.channels - first);
        const int64_t map = task / blocks / a.states, base = task / blocks * plane * a.channels + first;
        const T* g = static_cast<const T*>(a.y) + base;
        T* dh = static_cast<T*>(a.dh) + base;
        const Places<T> places{a, plane, map};
        for (int64_t pixel = 0; pixel < plane; ++pixel)
            for (int64_t c = 0; c < size; ++c) dh[pixel * a.channels + c] = 0;
        for (int64_t pixel = 0; pixel < plane; ++pixel) {
            for (int64_t k = 0; k < a.count; ++k) {
                Neighbours<T> n;
                places.find(n, k, pixel / a.width, pixel % a.width);
                const T weight = weights[places.weight_at(k, pixel)];
                for (int i = 0; i < 4; ++i) {
                    if (n.at[i] < 0) continue;
                    const Vec<T> w = set1(weight * n.weight[i]);
                    each_vector<T>(size, [&](int64_t c, int lanes_in) VSSM_BODY {
                        T* to = dh + n.at[i] + c;
                        store_first(to, fma(w, load_first(g + pixel * a.channels + c, lanes_in), load_first(to, lanes_in)),
                                    lanes_in);
                    });
                }
            }
        }
    });
}

template <class T>
int32_t backward(const StateGatherArgs& a) {
    gradients_of_places<T>(a);
    gradient_of_states<T>(a);
    return ok;
}

}  // namespace

int32_t state_gather_forward(const StateGatherArgs* a) { return a->is_double ? forward<double>(*a) : forward<float>(*a); }
int32_t state_gather_backward(const StateGatherArgs* a) {
    return a->is_double ? backward<double>(*a) : backward<float>(*a);
}

}  // namespace VSSM_ISA
}  // namespace vssm
