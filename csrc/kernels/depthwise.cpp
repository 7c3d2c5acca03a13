// The depthwise 3x3 convolution of channels-last maps: bias, activation and residual in the same pass.
//
// A task is a strip of rows of one sample. One vector of channels is taken through the whole strip with its nine
// weights in registers; along a row a window of 3x3 pixels slides, so a pixel costs three loads. The backward first
// writes g, the gradient before the activation, for the strip and one row around it; then a second sweep with the
// same window over g yields dx (the weights mirrored) and, with x, the gradient of the weights.
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

// The nine weights of `count` channels from (channels, 9), in order or mirrored.
template <class T>
VSSM_INLINE void load_weights(const T* weight, int64_t c, int count, bool mirrored, Vec<T> (&out)[9]) {
    alignas(VSSM_VECTOR_BYTES) T square[9][lanes<T>] = {};
    for (int j = 0; j < count; ++j)
        for (int i = 0; i < 9; ++i) square[i][j] = weight[(c + j) * 9 + (mirrored ? 8 - i : i)];
    for (int i = 0; i < 9; ++i) out[i] = load(square[i]);
}

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

template <class T, int64_t act>
int32_t forward(const DepthwiseArgs& a) {
    const int64_t C = a.channels, size = a.width * C, strip = strip_rows(a, 32768);
    const int64_t strips = (a.height + strip - 1) / strip;
    const T* weights = static_cast<const T*>(a.weight);
    const T* biases = static_cast<const T*>(a.bias);
    const bool convert_in = a.x.type != type_of<T>, convert_out = a.y.type != type_of<T>;
    const Zeros<T> zeros;
    int32_t status = ok;
    parallel(a.batch * strips, [&](int64_t task) {
        const int64_t sample = task / strips, top = task % strips * strip, end = smaller(top + strip, a.height);
        const Buffers<T> buffer((convert_in ? end - top + 2 : 0) + (convert_out ? end - top : 0), size);
        if (buffer.start == nullptr) {
            status = out_of_memory;
            return;
        }
        const Strip<T> x(a.x, zeros, a, sample, top - 1, end + 1, buffer[0]);
        T* converted = buffer.start + (convert_in ? (end - top + 2) * size : 0);
        const auto out_row = [&](int64_t y) {
            return convert_out ? converted + (y - top) * size
                               : static_cast<T*>(a.y.data) + (sample * a.height + y) * size;
        };
        each_channel_block(C, lanes<T>, [&](int64_t c, int count) VSSM_BODY {
            Vec<T> weight[9];
            load_weights(weights, c, count, false, weight);
            const Vec<T> bias = biases ? load_first(biases + c, count) : Vec<T>{};
            for (int64_t y = top; y < end; ++y) {
                Row<T> rows[3] = {x.row(y - 1), x.row(y), x.row(y + 1)};
                for (auto& row : rows) row.data += row.stride ? c : 0;
                T* out = out_row(y) + c;
                const bool residual = a.residual;
                along(rows, a.width, count, [&](int64_t px, const Window<T>& w) VSSM_BODY {
                    Vec<T> v = activate<act>(weighted(weight, w, bias));
                    if (residual) v += w.at[1][1];
                    store_first(out + px * C, v, count);
                });
            }
        });
        if (convert_out)
            for (int64_t y = top; y < end; ++y) finish_row(a.y, sample * a.height + y, size, out_row(y));
    });
    return status;
}

template <class T, int64_t act>
int32_t backward(const DepthwiseArgs& a) {
    const int64_t C = a.channels, size = a.width * C, strip = strip_rows(a, 65536);
    const int64_t strips = (a.height + strip - 1) / strip;
    const T* weights = static_cast<const T*>(a.weight);
    const T* biases = static_cast<const T*>(a.bias);
    const bool convert_in = a.x.type != type_of<T>, convert_g = a.y.type != type_of<T>;
    const bool convert_out = a.dx.type != type_of<T>;
    const Zeros<T> zeros;
    const PartialSums<T> partial(a.batch * strips, 10, C);
    int32_t status = partial.failed() ? out_of_memory : ok;
    if (status != ok) return status;
    parallel(a.batch * strips, [&](int64_t task) {
        const int64_t sample = task / strips, top = task % strips * strip, end = smaller(top + strip, a.height);
        const int64_t rows_in = end - top + 4, rows_g = end - top + 2;
        const Buffers<T> buffer(
            (convert_in ? rows_in : 0) + (convert_g ? rows_g : 0) + (act == identity ? 0 : rows_g) +
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
        T* g = act == identity ? nullptr : take(rows_g);
        T* converted = convert_out ? take(end - top) : nullptr;
        const auto g_row = [&](int64_t y) -> Row<T> {
            if (act == identity || y < 0 || y >= a.height) return gy.row(y);
            return {g + (y - top + 1) * size, C};
        };
        each_channel_block(C, lanes<T>, [&](int64_t c, int count) VSSM_BODY {
            Vec<T> weight[9];
            if constexpr (act != identity) {
                load_weights(weights, c, count, false, weight);
                const Vec<T> bias = biases ? load_first(biases + c, count) : Vec<T>{};
                for (int64_t y = top > 0 ? top - 1 : 0; y < smaller(end + 1, a.height); ++y) {
                    Row<T> rows[3] = {x.row(y - 1), x.row(y), x.row(y + 1)};
                    for (auto& row : rows) row.data += row.stride ? c : 0;
                    const T* incoming = gy.row(y).data + c;
                    T* out = g + (y - top + 1) * size + c;
                    along(rows, a.width, count, [&](int64_t px, const Window<T>& w) VSSM_BODY {
                        const Vec<T> d = slope<act>(weighted(weight, w, bias));
                        store_first(out + px * C, d * load_first(incoming + px * C, count), count);
                    });
                }
            }
            load_weights(weights, c, count, true, weight);
            Vec<T> dweight[9] = {}, dbias{};
            for (int64_t y = top; y < end; ++y) {
                Row<T> rows[3] = {g_row(y - 1), g_row(y), g_row(y + 1)};
                for (auto& row : rows) row.data += row.stride ? c : 0;
                const T* in = x.row(y).data + c;
                const T* incoming = gy.row(y).data + c;
                T* out = (convert_out ? converted + (y - top) * size
                                      : static_cast<T*>(a.dx.data) + (sample * a.height + y) * size) + c;
                const bool residual = a.residual;
                along(rows, a.width, count, [&](int64_t px, const Window<T>& w) VSSM_BODY {
                    Vec<T> v = weighted(weight, w, Vec<T>{});
                    if (residual) v += load_first(incoming + px * C, count);
                    store_first(out + px * C, v, count);
                    const Vec<T> value = load_first(in + px * C, count);
#pragma GCC unroll 9
                    for (int i = 0; i < 9; ++i) dweight[i] = fma(value, w.at[2 - i / 3][2 - i % 3], dweight[i]);
                    dbias += w.at[1][1];
                });
            }
            for (int i = 0; i < 9; ++i) store_first(partial.of(task, i) + c, dweight[i], count);
            store_first(partial.of(task, 9) + c, dbias, count);
        });
        if (convert_out)
            for (int64_t y = top; y < end; ++y)
                finish_row(a.dx, sample * a.height + y, size, converted + (y - top) * size);
    });
    for (int i = 0; i < 9; ++i) partial.total(i, static_cast<T*>(a.dweight) + i * C);
    if (a.dbias) partial.total(9, static_cast<T*>(a.dbias));
    return status;
}

template <class T>
int32_t choose(const DepthwiseArgs& a, bool forwards) {
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
