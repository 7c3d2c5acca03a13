// The depthwise 3x3 convolution of channels-last maps: bias, activation and residual in the same pass.
//
// A task is a strip of rows of one sample. Row after row, one vector of channels is taken along the row with its nine
// weights in registers and a window of 3x3 pixels that slides, so a pixel costs three loads. Those loads are a pixel
// apart; to keep memory streaming, the row after next is prefetched in the order it lies in. The backward keeps a ring
// of three rows of g, the gradient before the activation: a sweep with the same window over g yields dx (the weights
// mirrored) and, with x, the gradient of the weights.
#include "activation.h"
#include "rows.h"

namespace vssm {
namespace VSSM_ISA {
namespace {

// A row of a map: pixel x begins at data + x * stride. Outside of the map: zeros with stride 0.
template <class T>
struct Row {
    const T* data;
    int64_t stride;
    Row at(int64_t c) const { return {data + (stride ? c : 0), stride}; }
};

template <class T>
struct Zeros {
    alignas(64) T values[lanes<T>] = {};
};

template <class T>
struct Window {
    Vec<T> at[3][3];  // [row][column]

    VSSM_INLINE void begin(const Row<T> (&rows)[3], int count) {
        for (int u = 0; u < 3; ++u) {
            at[u][1] = Vec<T>{};
            at[u][2] = load_first(rows[u].data, count);
        }
    }
    // Move on so that pixel x is the centre; `inside`: x + 1 is in the row.
    VSSM_INLINE void slide(const Row<T> (&rows)[3], int64_t x, bool inside, int count) {
        for (int u = 0; u < 3; ++u) {
            at[u][0] = at[u][1];
            at[u][1] = at[u][2];
            at[u][2] = inside ? load_first(rows[u].data + (x + 1) * rows[u].stride, count) : Vec<T>{};
        }
    }
};

template <class T>
VSSM_INLINE Vec<T> weighted(const Vec<T> (&weight)[9], const Window<T>& w, Vec<T> start) {
    Vec<T> part[3] = {start, Vec<T>{}, Vec<T>{}};
#pragma GCC unroll 9
    for (int i = 0; i < 9; ++i) part[i % 3] = fma(weight[i], w.at[i / 3][i % 3], part[i % 3]);
    return part[0] + (part[1] + part[2]);
}

// body(x, window) for every pixel of a row.
template <class T, class Body>
VSSM_INLINE void along(const Row<T> (&rows)[3], int64_t width, int count, const Body& body) {
    Window<T> window;
    window.begin(rows, count);
    for (int64_t x = 0; x + 1 < width; ++x) {
        window.slide(rows, x, true, count);
        body(x, window);
    }
    window.slide(rows, width - 1, false, count);
    body(width - 1, window);
}

// The weights (channels, 9) as nine rows of channels, each padded to whole vectors, and the bias.
template <class T>
class TapMajor {
  public:
    TapMajor(const Tensor& given, const Tensor& given_bias, int64_t channels)
        : stride_((channels + lanes<T> - 1) / lanes<T> * lanes<T>),
          memory_(static_cast<T*>(calloc(20 * stride_ + 1, sizeof(T)))) {
        if (memory_ == nullptr) return;
        const T* weight = read_row(given, 0, 9 * channels, memory_ + 9 * stride_);
        bias = read_weight(given_bias, channels, memory_ + 18 * stride_);
        int64_t c = 0;
        if constexpr (lanes<T> >= 9) {
            for (; c + lanes<T> <= channels; c += lanes<T>) {
                Vec<T> square[lanes<T>];
                for (int j = 0; j < lanes<T>; ++j) square[j] = load_first(weight + (c + j) * 9, 9);
                transpose<T>(square);
                for (int i = 0; i < 9; ++i) store(memory_ + i * stride_ + c, square[i]);
            }
        }
        for (; c < channels; ++c)
            for (int i = 0; i < 9; ++i) memory_[i * stride_ + c] = weight[c * 9 + i];
    }
    ~TapMajor() { free(memory_); }
    bool failed() const { return memory_ == nullptr; }

    const T* bias = nullptr;

    VSSM_INLINE void get(int64_t c, bool mirrored, Vec<T> (&out)[9]) const {
        for (int i = 0; i < 9; ++i) out[i] = load(memory_ + (mirrored ? 8 - i : i) * stride_ + c);
    }

  private:
    int64_t stride_;
    T* memory_;
};

// Fetches a row of a map line by line while another one is worked on, a line per pixel and vector of channels.
template <class T>
struct Prefetch {
    const T* next;
    const T* end;
    VSSM_INLINE void step() {
        if (next < end) __builtin_prefetch(next);
        next += 64 / sizeof(T);
    }
};

// Rows [first, last) of a sample as rows of T, converted into `buffer` where the map has another type.
template <class T>
struct Strip {
    const Tensor& map;
    const Zeros<T>& zeros;
    int64_t base, height, width, channels, first;
    T* buffer;

    Strip(const Tensor& map, const Zeros<T>& zeros, const DepthwiseArgs& a, int64_t sample, int64_t first,
          int64_t last, T* buffer)
        : map(map), zeros(zeros), base(sample * a.height), height(a.height), width(a.width), channels(a.channels),
          first(first), buffer(buffer) {
        if (map.type == type_of<T>) return;
        for (int64_t y = first; y < last; ++y)
            if (y >= 0 && y < height) read_row(map, base + y, width * channels, buffer + (y - first) * width * channels);
    }
    Row<T> row(int64_t y) const {
        if (y < 0 || y >= height) return {zeros.values, 0};
        const int64_t size = width * channels;
        if (map.type == type_of<T>) return {static_cast<const T*>(map.data) + (base + y) * size, channels};
        return {buffer + (y - first) * size, channels};
    }
};

template <class Body>
VSSM_INLINE void each_channel_block(int64_t channels, int step, const Body& body) {
    int64_t c = 0;
    for (; c + step <= channels; c += step) body(c, step);
    if (c < channels) body(c, static_cast<int>(channels - c));
}

// Rows a task works on: strips of about `values` values, by shape only.
int64_t strip_rows(const DepthwiseArgs& a, int64_t values) {
    const int64_t rows = values / (a.width * a.channels);
    return rows < 1 ? 1 : smaller(rows, a.height);
}

// `type` is that of y.
template <class T, int64_t act, int64_t type>
int32_t forward(const DepthwiseArgs& a) {
    const int64_t C = a.channels, size = a.width * C, strip = strip_rows(a, 32768);
    const int64_t strips = (a.height + strip - 1) / strip;
    const TapMajor<T> weights(a.weight, a.bias, C);
    const T* biases = weights.bias;
    const bool convert_in = a.x.type != type_of<T>;
    const Zeros<T> zeros;
    int32_t status = weights.failed() ? out_of_memory : ok;
    if (status != ok) return status;
    parallel(a.batch * strips, [&](int64_t task) {
        const int64_t sample = task / strips, top = task % strips * strip, end = smaller(top + strip, a.height);
        const Buffers<T> buffer(convert_in ? end - top + 2 : 0, size);
        if (buffer.start == nullptr) {
            status = out_of_memory;
            return;
        }
        const Strip<T> x(a.x, zeros, a, sample, top - 1, end + 1, buffer[0]);
        const bool residual = a.residual;
        for (int64_t y = top; y < end; ++y) {
            const Row<T> above = x.row(y - 1), centre = x.row(y), below = x.row(y + 1);
            const T* fetched = x.row(y + 2).data;
            Prefetch<T> reads{fetched, y + 2 < smaller(end + 1, a.height) ? fetched + size : fetched};
            const int64_t out = (sample * a.height + y) * size;
            each_channel_block(C, lanes<T>, [&](int64_t c, int count) VSSM_BODY {
                Vec<T> weight[9];
                weights.get(c, false, weight);
                const Vec<T> bias = biases ? load_first(biases + c, count) : Vec<T>{};
                const Row<T> rows[3] = {above.at(c), centre.at(c), below.at(c)};
                along(rows, a.width, count, [&](int64_t px, const Window<T>& w) VSSM_BODY {
                    reads.step();
                    Vec<T> v = activate<act>(weighted(weight, w, bias));
                    if (residual) v += w.at[1][1];
                    store_as<T, type>(a.y.data, out + px * C + c, v, count);
                });
            });
        }
    });
    return status;
}

template <class T, int64_t act>
int32_t backward(const DepthwiseArgs& a) {
    const int64_t C = a.channels, size = a.width * C, strip = strip_rows(a, 65536);
    const int64_t strips = (a.height + strip - 1) / strip;
    const TapMajor<T> weights(a.weight, a.bias, C);
    const T* biases = weights.bias;
    const bool convert_in = a.x.type != type_of<T>, convert_g = a.y.type != type_of<T>;
    const bool convert_out = a.dx.type != type_of<T>;
    const Zeros<T> zeros;
    const PartialSums<T> partial(a.batch * strips, 10, C);
    int32_t status = partial.failed() || weights.failed() ? out_of_memory : ok;
    if (status != ok) return status;
    parallel(a.batch * strips, [&](int64_t task) {
        const int64_t sample = task / strips, top = task % strips * strip, end = smaller(top + strip, a.height);
        const int64_t rows_in = end - top + 4, rows_g = end - top + 2;
        const Buffers<T> buffer((convert_in ? rows_in : 0) + (convert_g ? rows_g : 0) + (act == identity ? 0 : 3) +
                                    (convert_out ? end - top : 0),
                                size);
        if (buffer.start == nullptr) {
            status = out_of_memory;
            return;
        }
        T* free_rows = buffer.start;
        const auto take = [&](int64_t rows) {
            T* taken = free_rows;
            free_rows += rows * size;
            return taken;
        };
        const Strip<T> x(a.x, zeros, a, sample, top - 2, end + 2, convert_in ? take(rows_in) : nullptr);
        const Strip<T> gy(a.y, zeros, a, sample, top - 1, end + 1, convert_g ? take(rows_g) : nullptr);
        T* ring = act == identity ? nullptr : take(3);
        T* converted = convert_out ? take(end - top) : nullptr;
        const auto g_row = [&](int64_t y) -> Row<T> {
            if (act == identity || y < 0 || y >= a.height) return gy.row(y);
            return {ring + y % 3 * size, C};
        };
        const auto fill_g = [&](int64_t y) {
            if (act == identity || y < 0 || y >= a.height) return;
            const Row<T> above = x.row(y - 1), centre = x.row(y), below = x.row(y + 1), incoming = gy.row(y);
            T* out = ring + y % 3 * size;
            each_channel_block(C, lanes<T>, [&](int64_t c, int count) VSSM_BODY {
                Vec<T> weight[9];
                weights.get(c, false, weight);
                const Vec<T> bias = biases ? load_first(biases + c, count) : Vec<T>{};
                const Row<T> rows[3] = {above.at(c), centre.at(c), below.at(c)};
                along(rows, a.width, count, [&](int64_t px, const Window<T>& w) VSSM_BODY {
                    const Vec<T> d = slope<act>(weighted(weight, w, bias));
                    store_first(out + px * C + c, d * load_first(incoming.data + px * C + c, count), count);
                });
            });
        };
        const bool residual = a.residual;
        fill_g(top - 1);
        fill_g(top);
        for (int64_t y = top; y < end; ++y) {
            fill_g(y + 1);
            const Row<T> above = g_row(y - 1), centre = g_row(y), below = g_row(y + 1);
            const T *in = x.row(y).data, *incoming = gy.row(y).data;
            T* out = convert_out ? converted + (y - top) * size
                                 : static_cast<T*>(a.dx.data) + (sample * a.height + y) * size;
            each_channel_block(C, lanes<T>, [&](int64_t c, int count) VSSM_BODY {
                Vec<T> weight[9], sums[10];
                weights.get(c, true, weight);
                for (int i = 0; i < 10; ++i) sums[i] = load_first(partial.of(task, i) + c, count);
                const Row<T> rows[3] = {above.at(c), centre.at(c), below.at(c)};
                along(rows, a.width, count, [&](int64_t px, const Window<T>& w) VSSM_BODY {
                    Vec<T> v = weighted(weight, w, Vec<T>{});
                    if (residual) v += load_first(incoming + px * C + c, count);
                    store_first(out + px * C + c, v, count);
                    const Vec<T> value = load_first(in + px * C + c, count);
#pragma GCC unroll 9
                    for (int i = 0; i < 9; ++i) sums[i] = fma(value, w.at[2 - i / 3][2 - i % 3], sums[i]);
                    sums[9] += w.at[1][1];
                });
                for (int i = 0; i < 10; ++i) store_first(partial.of(task, i) + c, sums[i], count);
            });
        }
        if (convert_out)
            for (int64_t y = top; y < end; ++y)
                finish_row(a.dx, sample * a.height + y, size, converted + (y - top) * size);
    });
    for (int i = 0; i < 9; ++i) partial.total(i, static_cast<T*>(a.dweight) + i * C);
    if (a.dbias) partial.total(9, static_cast<T*>(a.dbias));
    return status;
}

template <class T, int64_t act>
int32_t forward(const DepthwiseArgs& a) {
    if constexpr (sizeof(T) == 4) {
        if (a.y.type == bf16) return forward<T, act, bf16>(a);
        if (a.y.type == f16) return forward<T, act, f16>(a);
    }
    return a.y.type == type_of<T> ? forward<T, act, type_of<T>>(a) : bad_argument;
}

template <class T>
int32_t choose(const DepthwiseArgs& a, bool forwards) {
    if (a.height < 1 || a.width < 1 || a.channels < 1) return bad_argument;
    switch (a.act) {
        case silu: return forwards ? forward<T, silu>(a) : backward<T, silu>(a);
        case identity: return forwards ? forward<T, identity>(a) : backward<T, identity>(a);
    }
    return bad_argument;
}

}  // namespace

int32_t depthwise_forward(const DepthwiseArgs* a) {
    return a->is_double ? choose<double>(*a, true) : choose<float>(*a, true);
}
int32_t depthwise_backward(const DepthwiseArgs* a) {
    return a->is_double ? choose<double>(*a, false) : choose<float>(*a, false);
}

}  // namespace VSSM_ISA
}  // namespace vssm
