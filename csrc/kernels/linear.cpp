// y = act(x W' + bias) + residual in float, for the shapes of networks: a matrix product whose result is finished while
// it lies in the registers or the first cache.
//
// A tile of the result is kept in registers over the whole inner dimension: rows of one operand are broadcast value by
// value, a packed panel of the other holds, for each inner index, a few vectors side by side. With many rows the panels
// are made of the weight and the tile is stored as it lies. With few rows, where the weight is read once and packing it
// would cost as much as the product, the panels are made of x, rows of the weight are broadcast, and the tile is
// transposed when stored. Every value is summed in the order of the inner index, whatever the split into tasks.
#include "activation.h"
#include "rows.h"

namespace vssm {
namespace VSSM_ISA {
namespace {

constexpr int L = lanes<float>;
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr bool many_registers = true;  // 32 vectors
#else
constexpr bool many_registers = false;  // 16
#endif

// Vectors of the widest panel, and rows of a tile that fill the registers beside one line of a panel.
constexpr int widest = many_registers ? 4 : 3;
template <int Width>
constexpr int tile_rows = many_registers ? (Width == 4 ? 6 : Width == 3 ? 8 : 12) : (Width == 3 ? 4 : Width == 2 ? 5 : 8);

constexpr int64_t few_rows = 256;      // below, panels of x
constexpr int64_t rows_per_panel = 1024;  // a panel of the weight is packed once for so many
constexpr int64_t columns_per_task = 32;

// A row of `vectors` cut into panels of `width`; the last one may be narrower.
struct Panels {
    int64_t vectors, width, count;
    Panels(int64_t columns, bool wide) : vectors((columns + L - 1) / L) {
        width = wide && vectors % 3 != 0 && vectors % 4 == 0 ? widest : 3;
        count = (vectors + width - 1) / width;
    }
    int64_t first(int64_t panel) const { return panel * width * L; }
    int64_t width_of(int64_t panel) const { return smaller(width, vectors - panel * width); }
    int64_t offset(int64_t panel, int64_t inner) const { return panel * width * L * inner; }
    int64_t size(int64_t inner) const { return vectors * L * inner; }
};

template <bool Whole>
VSSM_INLINE void pack_square(const float* rows, int64_t stride, int64_t count, int depth, int64_t pitch, float* out) {
    VecF square[L];
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) {
        square[i] = Whole ? load(rows + i * stride) : i < count ? load_first(rows + i * stride, depth) : VecF{};
    }
    transpose<float>(square);
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) {
        if (Whole || i < depth) store(out + i * pitch, square[i]);
    }
}

// panel[k][i] = rows[i][k] for `count` rows of `inner` values, zero for the others up to width * L.
void pack(const float* rows, int64_t stride, int64_t count, int64_t inner, int64_t width, float* panel) {
    for (int64_t j = 0; j < width; ++j, rows += L * stride, count -= L, panel += L) {
        int64_t k = 0;
        if (count >= L) {
            for (; k + L <= inner; k += L) pack_square<true>(rows + k, stride, L, L, width * L, panel + k * width * L);
        }
        for (; k < inner; k += L) {
            const int depth = static_cast<int>(smaller<int64_t>(L, inner - k));
            pack_square<false>(rows + k, stride, count, depth, width * L, panel + k * width * L);
        }
    }
}

// The same where rows[k][i] is in memory already.
void pack_transposed(const float* rows, int64_t stride, int64_t count, int64_t inner, int64_t width, float* panel) {
    for (int64_t k = 0; k < inner; ++k) {
        for (int64_t j = 0; j < width; ++j) {
            const int64_t left = count - j * L;
            const int valid = static_cast<int>(smaller<int64_t>(L, left > 0 ? left : 0));
            store(panel + (k * width + j) * L, valid > 0 ? load_first(rows + k * stride + j * L, valid) : VecF{});
        }
    }
}

// acc[i] += sum over k of rows[i][k] * panel[k]. Fetches Rows * inner values from `ahead` on the way, if it is given:
// a weight comes from memory or the third cache, and no hardware prefetcher follows so many rows at once.
template <int Rows, int Width, bool Ahead = false>
VSSM_INLINE void multiply(const float* rows, int64_t stride, const float* panel, int64_t inner,
                          VecF (&acc)[Rows][Width], const float* ahead = nullptr) {
    for (int64_t k = 0; k < inner; ++k) {
        if constexpr (Ahead) __builtin_prefetch(ahead + k * Rows, 0, 2);
        VecF line[Width];
#pragma GCC unroll 4
        for (int j = 0; j < Width; ++j) line[j] = load(panel + (k * Width + j) * L);
#pragma GCC unroll 12
        for (int i = 0; i < Rows; ++i) {
            const VecF value = set1(rows[i * stride + k]);
#pragma GCC unroll 4
            for (int j = 0; j < Width; ++j) acc[i][j] = fma(value, line[j], acc[i][j]);
        }
    }
}

template <int64_t act>
void activate_all(float* p, int64_t count) {
    for (int64_t i = 0; i < count; i += L) {
        const int n = static_cast<int>(smaller<int64_t>(L, count - i));
        store_first(p + i, activate<act>(load_first(p + i, n)), n);
    }
}

void apply(int64_t act, float* p, int64_t count) {
    if (act == gelu) activate_all<gelu>(p, count);
    if (act == silu) activate_all<silu>(p, count);
    if (act == relu) activate_all<relu>(p, count);
}

// ---- many rows: panels of the weight ----

template <int Rows, int Width>
VSSM_INLINE void add_rows(VecF (&acc)[Rows][Width], const float* rows, int64_t stride, int columns) {
#pragma GCC unroll 12
    for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < Width; ++j) acc[i][j] += load_first(rows + i * stride + j * L, columns - j * L);
}

template <int Rows, int Width>
void tile_of_rows(const LinearArgs& a, const float* panel, int64_t m, int64_t n) {
    const int columns = static_cast<int>(smaller<int64_t>(Width * L, a.out - n));
    const bool whole = columns == Width * L;
    const float* residual = a.residual ? a.residual + m * a.out + n : nullptr;
    float* y = a.y + m * a.out + n;
    VecF acc[Rows][Width];
#pragma GCC unroll 4
    for (int j = 0; j < Width; ++j) {
        const VecF bias = a.bias ? load_first(a.bias + n + j * L, columns - j * L) : VecF{};
#pragma GCC unroll 12
        for (int i = 0; i < Rows; ++i) acc[i][j] = bias;
    }
    if (residual && a.act == identity) add_rows(acc, residual, a.out, columns);
    multiply(a.x + m * a.x_stride, a.x_stride, panel, a.in, acc);
    if (a.act != identity) {
        alignas(VSSM_VECTOR_BYTES) float tile[Rows * Width * L];
#pragma GCC unroll 12
        for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 4
            for (int j = 0; j < Width; ++j) store(tile + (i * Width + j) * L, acc[i][j]);
        apply(a.act, tile, Rows * Width * L);
#pragma GCC unroll 12
        for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 4
            for (int j = 0; j < Width; ++j) acc[i][j] = load(tile + (i * Width + j) * L);
        if (residual) add_rows(acc, residual, a.out, columns);
    }
#pragma GCC unroll 12
    for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < Width; ++j) {
            if (whole) store(y + i * a.out + j * L, acc[i][j]);
            else store_first(y + i * a.out + j * L, acc[i][j], columns - j * L);
        }
}

template <int Width, int Rows = tile_rows<Width>>
void tiles_of_rows(const LinearArgs& a, const float* panel, int64_t m, int64_t end, int64_t n) {
    for (; m + Rows <= end; m += Rows) tile_of_rows<Rows, Width>(a, panel, m, n);
    if constexpr (Rows > 1) {
        if (m < end) tiles_of_rows<Width, Rows / 2>(a, panel, m, end, n);
    }
}

int32_t many(const LinearArgs& a) {
    const Panels panels(a.out, true);
    // Few panels: shorter blocks of rows, for other threads to have work.
    const int64_t wanted = (a.rows + rows_per_panel - 1) / rows_per_panel, shared = (8 + panels.count - 1) / panels.count;
    const int64_t blocks = wanted > shared ? wanted : smaller(shared, (a.rows + few_rows - 1) / few_rows);
    const int64_t step = (a.rows + blocks - 1) / blocks;
    int32_t status = ok;
    parallel(blocks * panels.count, [&](int64_t task) {
        const int64_t m = task / panels.count * step, end = smaller(m + step, a.rows);
        const int64_t p = task % panels.count, n = panels.first(p), width = panels.width_of(p);
        const float* panel = a.packed + panels.offset(p, a.in);
        if (a.packed == nullptr) {
            float* fresh = static_cast<float*>(scratch(width * L * a.in * int64_t(sizeof(float))));
            if (fresh == nullptr) {
                status = out_of_memory;
                return;
            }
            pack(a.weight + n * a.in, a.in, a.out - n, a.in, width, fresh);
            panel = fresh;
        }
        switch (width) {
            case 1: return tiles_of_rows<1>(a, panel, m, end, n);
            case 2: return tiles_of_rows<2>(a, panel, m, end, n);
            case 3: return tiles_of_rows<3>(a, panel, m, end, n);
            default: return tiles_of_rows<widest>(a, panel, m, end, n);
        }
    });
    return status;
}

// ---- few rows: panels of x ----

// tile[i][:] = the result's columns n + i for one panel of rows, without activation and residual. The first panel asks
// for the rows of the weight that the next square of columns needs.
template <int Rows, int Width>
void tile_of_columns(const LinearArgs& a, const float* panel, int64_t n, bool first, float* tile) {
    VecF acc[Rows][Width];
#pragma GCC unroll 8
    for (int i = 0; i < Rows; ++i) {
        const VecF bias = a.bias ? set1(a.bias[n + i]) : VecF{};
#pragma GCC unroll 3
        for (int j = 0; j < Width; ++j) acc[i][j] = bias;
    }
    const float* rows = a.weight + n * a.in;
    if (first) multiply<Rows, Width, true>(rows, a.in, panel, a.in, acc, rows + L * a.in);
    else multiply(rows, a.in, panel, a.in, acc);
#pragma GCC unroll 8
    for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 3
        for (int j = 0; j < Width; ++j) store(tile + (i * Width + j) * L, acc[i][j]);
}

template <int Width, int Rows = tile_rows<3>>
VSSM_INLINE void tiles_of_columns(const LinearArgs& a, const float* panel, int64_t n, int count, bool first, float* tile) {
    int i = 0;
    for (; i + Rows <= count; i += Rows) tile_of_columns<Rows, Width>(a, panel, n + i, first, tile + i * Width * L);
    if constexpr (Rows > 1) {
        if (i < count) tiles_of_columns<Width, Rows / 2>(a, panel, n + i, count - i, first, tile + i * Width * L);
    }
}

// The result's columns n .. n + count - 1, count <= L, of the rows of one panel.
template <int Width>
void square_of_columns(const LinearArgs& a, const float* panel, int64_t m, int64_t n, int count) {
    alignas(VSSM_VECTOR_BYTES) float tile[L * Width * L];
    for (int64_t i = m; i < smaller(m + Width * L, a.rows); ++i) {  // a column of lines, needed when the tile is done
        if (a.y_columns) break;
        __builtin_prefetch(a.y + i * a.out + n, 1);
        if (a.residual) __builtin_prefetch(a.residual + i * a.out + n);
    }
    tiles_of_columns<Width>(a, panel, n, count, m == 0, tile);
    if (a.act != identity) apply(a.act, tile, count * Width * L);
    if (a.y_columns) {
        for (int i = 0; i < count; ++i)
            for (int j = 0; j < Width; ++j) {
                const int64_t at = m + j * L;
                if (at >= a.rows) break;
                store_first(a.y + (n + i) * a.y_columns + at, load(tile + (i * Width + j) * L),
                            static_cast<int>(smaller<int64_t>(L, a.rows - at)));
            }
        return;
    }
    for (int j = 0; j < Width; ++j) {
        const int64_t rows = smaller<int64_t>(L, a.rows - m - j * L), first = (m + j * L) * a.out + n;
        VecF square[L];
#pragma GCC unroll 16
        for (int i = 0; i < L; ++i) square[i] = i < count ? load(tile + (i * Width + j) * L) : VecF{};
        transpose<float>(square);
#pragma GCC unroll 16
        for (int i = 0; i < L; ++i) {
            if (i >= rows) break;
            const int64_t at = first + i * a.out;
            if (a.residual) square[i] += load_first(a.residual + at, count);
            store_first(a.y + at, square[i], count);
        }
    }
}

// A row of x that fills no vector: dot products with rows of the weight, which lie in the first cache by now.
void dot_products(const LinearArgs& a, const float* x, int64_t m, int64_t n, int64_t end) {
    float* y = a.y + m * a.out;
    const float* residual = a.residual ? a.residual + m * a.out : nullptr;
    for (int64_t first = n; first < end; first += 8) {
        const int count = static_cast<int>(smaller<int64_t>(8, end - first));
        const float* rows[8];
        for (int i = 0; i < 8; ++i) rows[i] = a.weight + (first + (i < count ? i : 0)) * a.in;
        VecF acc[8] = {};
        for (int64_t k = 0; k < a.in; k += L) {
            const int depth = static_cast<int>(smaller<int64_t>(L, a.in - k));
            const VecF value = load_first(x + k, depth);
#pragma GCC unroll 8
            for (int i = 0; i < 8; ++i) acc[i] = fma(value, load_first(rows[i] + k, depth), acc[i]);
        }
        float sums[8];
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i) sums[i] = sum<float>(acc[i]);
        if (a.bias) {
            for (int i = 0; i < count; ++i) sums[i] += a.bias[first + i];
        }
        apply(a.act, sums, count);
        for (int i = 0; i < count; ++i) {
            if (a.y_columns) a.y[(first + i) * a.y_columns + m] = sums[i];
            else y[first + i] = residual ? sums[i] + residual[first + i] : sums[i];
        }
    }
}

int32_t few(const LinearArgs& a) {
    const int64_t remainder = a.rows % L;
    const int64_t dots = remainder * 4 <= L ? remainder : 0;  // fewer than this cost less one by one than padded
    const Panels panels(a.rows - dots, false);
    float* packed = static_cast<float*>(scratch((panels.size(a.in) + dots * a.in + 1) * int64_t(sizeof(float))));
    if (packed == nullptr) return out_of_memory;
    float* const single = packed + panels.size(a.in);  // the rows that become dot products
    const bool transposed = a.x_stride < 0;
    const int64_t stride = transposed ? -a.x_stride : a.x_stride;
    parallel(panels.count, [&](int64_t p) {
        const int64_t m = panels.first(p);
        const auto fill = transposed ? pack_transposed : pack;
        fill(a.x + m * (transposed ? 1 : stride), stride, a.rows - dots - m, a.in, panels.width_of(p),
             packed + panels.offset(p, a.in));
    });
    for (int64_t i = 0; i < dots; ++i) {
        const float* x = a.x + (a.rows - dots + i) * (transposed ? 1 : stride);
        for (int64_t k = 0; k < a.in; ++k) single[i * a.in + k] = x[transposed ? k * stride : k];
    }
    parallel((a.out + columns_per_task - 1) / columns_per_task, [&](int64_t task) {
        const int64_t begin = task * columns_per_task, end = smaller(begin + columns_per_task, a.out);
        for (int64_t n = begin; n < end; n += L) {  // these rows of the weight stay in the first cache
            const int count = static_cast<int>(smaller<int64_t>(L, end - n));
            for (int64_t p = 0; p < panels.count; ++p) {
                const float* panel = packed + panels.offset(p, a.in);
                switch (panels.width_of(p)) {
                    case 1: square_of_columns<1>(a, panel, panels.first(p), n, count); break;
                    case 2: square_of_columns<2>(a, panel, panels.first(p), n, count); break;
                    default: square_of_columns<3>(a, panel, panels.first(p), n, count);
                }
            }
        }
        for (int64_t i = 0; i < dots; ++i) dot_products(a, single + i * a.in, a.rows - dots + i, begin, end);
    });
    return ok;
}

}  // namespace

int32_t linear_forward(const LinearArgs* a) {
    if (a->act < gelu || a->act > identity) return bad_argument;
    if (a->y_columns && a->residual) return bad_argument;
    if (a->rows < few_rows && a->packed == nullptr) return few(*a);
    return a->x_stride < 0 || a->y_columns ? bad_argument : many(*a);
}

// The panels of a weight, for linear_forward with `packed`: (ceil(out / lanes) * lanes * in) floats into y.
int32_t linear_pack(const LinearArgs* a) {
    const Panels panels(a->out, true);
    parallel(panels.count, [&](int64_t p) {
        const int64_t n = panels.first(p);
        pack(a->weight + n * a->in, a->in, a->out - n, a->in, panels.width_of(p), a->y + panels.offset(p, a->in));
    });
    return ok;
}

// y[o][k][i] = weight[o][i][k] for `out` matrices of `rows` x `in`: a convolution's weight from (C', C, k k) to
// (C', k k, C), as a convolution on channels-last maps wants it. torch's copy takes ten times as long.
int32_t swap_channels(const LinearArgs* a) {
    const int64_t size = a->rows * a->in, whole = a->rows / L * L;
    parallel(a->out, [&](int64_t o) {
        const float* from = a->weight + o * size;
        float* to = a->y + o * size;
        for (int64_t i = 0; i < whole; i += L) {
            for (int64_t k = 0; k < a->in; k += L) {
                const int depth = static_cast<int>(smaller<int64_t>(L, a->in - k));
                pack_square<false>(from + i * a->in + k, a->in, L, depth, a->rows, to + k * a->rows + i);
            }
        }
        for (int64_t i = whole; i < a->rows; ++i)
            for (int64_t k = 0; k < a->in; ++k) to[k * a->rows + i] = from[i * a->in + k];
    });
    return ok;
}

}  // namespace VSSM_ISA
}  // namespace vssm
