// Rows of any of the four types, seen by a kernel as rows of its compute type; sums over rows in a fixed order.
#pragma once

#include "../core.h"
#include "../pointwise.h"
#include "../simd.h"

namespace vssm {
namespace VSSM_ISA {
namespace {

template <class A>
VSSM_INLINE A smaller(A a, A b) {
    return a < b ? a : b;
}

typedef float Alias __attribute__((may_alias));
constexpr int half_lanes = lanes<float>;
typedef uint16_t Vec16 __attribute__((vector_size(half_lanes * 2)));
typedef uint16_t Vec16U __attribute__((vector_size(half_lanes * 2), aligned(2), may_alias));
typedef uint32_t VecU __attribute__((vector_size(VSSM_VECTOR_BYTES)));

VSSM_INLINE VecF from_bf16(Vec16 h) {
#if defined(__AVX512F__)
    return (VecF)((VecU)_mm512_cvtepu16_epi32((__m256i)h) << 16);
#else
    return (VecF)(__builtin_convertvector(h, VecU) << 16);
#endif
}

VSSM_INLINE Vec16 to_bf16(VecF x) {
#if defined(__AVX512F__)
    if (rounds_to_bf16) {  // one instruction for nine, of a later instruction set than this file; subnormals become zero
        __m256i halves;
        asm("vcvtneps2bf16 %1, %0" : "=v"(halves) : "v"((__m512)x));
        return (Vec16)halves;
    }
#endif
    const VecU bits = (VecU)x;
    const VecU rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;  // to nearest, ties to even
    return __builtin_convertvector(x == x ? rounded : (bits >> 16) | 0x40, Vec16);
}

VSSM_INLINE VecF from_f16(Vec16 h) {
#if defined(__AVX512F__)
    return (VecF)_mm512_cvtph_ps((__m256i)h);
#else
    const VecU wide = __builtin_convertvector(h, VecU), magnitude = wide & 0x7fff;
    const VecU finite = (VecU)((VecF)(magnitude << 13) * 0x1p112f);
    const VecU value = magnitude < 0x7c00 ? finite : (magnitude << 13) | 0x7f800000;
    return (VecF)(value | (wide & 0x8000) << 16);
#endif
}

VSSM_INLINE Vec16 to_f16(VecF x) {
#if defined(__AVX512F__)
    return (Vec16)_mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
    const VecU sign = (VecU)x & 0x80000000u, bits = (VecU)x ^ sign;
    const VecU normal = (bits - 0x38000000u + 0xfff + ((bits >> 13) & 1)) >> 13;
    const VecU subnormal = (VecU)((VecF)bits + 0.5f) - 0x3f000000u;  // adding 1/2 rounds at 2^-24
    VecU half = bits < 0x38800000u ? subnormal : normal;
    half = bits >= 0x47800000u ? (VecU{} + 0x7c00) : half;
    half = bits > 0x7f800000u ? (VecU{} + 0x7e00) : half;
    return __builtin_convertvector(half | sign >> 16, Vec16);
#endif
}

template <int64_t type>
VSSM_INLINE VecF widen(Vec16 h) {
    return type == bf16 ? from_bf16(h) : from_f16(h);
}
template <int64_t type>
VSSM_INLINE Vec16 narrow(VecF x) {
    return type == bf16 ? to_bf16(x) : to_f16(x);
}

// The first `count` of half_lanes values; nothing past them is touched, and lanes beyond are zero.
VSSM_INLINE Vec16 load_halves(const uint16_t* p, int count) {
    if (count >= half_lanes) return *(const Vec16U*)p;
    uint16_t halves[half_lanes] = {};
    memcpy(halves, p, count * 2);
    return *(const Vec16U*)halves;
}
VSSM_INLINE void store_halves(uint16_t* p, Vec16 v, int count) {
    if (count >= half_lanes) {
        *(Vec16U*)p = v;
        return;
    }
    uint16_t halves[half_lanes];
    *(Vec16U*)halves = v;
    memcpy(p, halves, count * 2);
}

template <int64_t type>
void widen_row(const uint16_t* from, float* to, int64_t n) {
    int64_t i = 0;
    for (; i + half_lanes <= n; i += half_lanes) store(to + i, widen<type>(*(const Vec16U*)(from + i)));
    if (i < n) store_first(to + i, widen<type>(load_halves(from + i, (int)(n - i))), (int)(n - i));
}

template <int64_t type>
void narrow_row(const float* from, uint16_t* to, int64_t n) {
    int64_t i = 0;
    for (; i + half_lanes <= n; i += half_lanes) *(Vec16U*)(to + i) = narrow<type>(load(from + i));
    if (i < n) store_halves(to + i, narrow<type>(load_first(from + i, (int)(n - i))), (int)(n - i));
}

template <class T>
constexpr int64_t type_of = sizeof(T) == 4 ? f32 : f64;

// Row `row` of `n` values as T: the memory itself when it is of type T, else converted into `buffer`.
template <class T>
inline const T* read_row(const Tensor& t, int64_t row, int64_t n, T* buffer) {
    if (t.type == type_of<T>) return static_cast<const T*>(t.data) + row * n;
    const uint16_t* halves = static_cast<const uint16_t*>(t.data) + row * n;
    if constexpr (sizeof(T) == 4) {
        if (t.type == bf16) widen_row<bf16>(halves, buffer, n);
        else widen_row<f16>(halves, buffer, n);
    } else {
        // Double precision is for checking: through float, in the second half of the same buffer.
        Alias* singles = reinterpret_cast<Alias*>(buffer) + n;
        if (t.type == bf16) widen_row<bf16>(halves, singles, n);
        if (t.type == f16) widen_row<f16>(halves, singles, n);
        const Alias* from = t.type == f32 ? static_cast<const Alias*>(t.data) + row * n : singles;
        for (int64_t i = 0; i < n; ++i) buffer[i] = from[i];
    }
    return buffer;
}

// A weight of n values as T, or null where there is none.
template <class T>
inline const T* read_weight(const Tensor& t, int64_t n, T* buffer) {
    return t.data ? read_row(t, 0, n, buffer) : nullptr;
}

// Where to compute row `row`: in place when the tensor is of type T, else in `buffer`, which finish_row converts.
template <class T>
inline T* begin_row(const Tensor& t, int64_t row, int64_t n, T* buffer) {
    return t.type == type_of<T> ? static_cast<T*>(t.data) + row * n : buffer;
}

template <class T>
inline void finish_row(const Tensor& t, int64_t row, int64_t n, T* buffer) {
    if (t.type == type_of<T>) return;
    uint16_t* halves = static_cast<uint16_t*>(t.data) + row * n;
    Alias* singles = reinterpret_cast<Alias*>(buffer);
    if constexpr (sizeof(T) == 8) {
        for (int64_t i = 0; i < n; ++i) singles[i] = static_cast<float>(buffer[i]);
        if (t.type == f32) memcpy(static_cast<float*>(t.data) + row * n, singles, n * 4);
    }
    if (t.type == bf16) narrow_row<bf16>(singles, halves, n);
    if (t.type == f16) narrow_row<f16>(singles, halves, n);
}

// `count` values from element i on, for kernels that walk a map by pixels; lanes beyond are zero.
template <class T>
VSSM_INLINE Vec<T> load_values(const Tensor& t, int64_t i, int count) {
    if (t.type == type_of<T>) return load_first(static_cast<const T*>(t.data) + i, count);
    if constexpr (sizeof(T) == 8) {
        if (t.type == f32) {
            Vec<T> v{};
            for (int j = 0; j < count; ++j) v[j] = static_cast<const float*>(t.data)[i + j];
            return v;
        }
    }
    const Vec16 h = load_halves(static_cast<const uint16_t*>(t.data) + i, count);
    const VecF wide = t.type == bf16 ? from_bf16(h) : from_f16(h);
    if constexpr (sizeof(T) == 4) return wide;
    Vec<T> v{};
    for (int j = 0; j < count; ++j) v[j] = wide[j];
    return v;
}

template <class T>
VSSM_INLINE void store_values(const Tensor& t, int64_t i, Vec<T> v, int count) {
    if (t.type == type_of<T>) return store_first(static_cast<T*>(t.data) + i, v, count);
    VecF narrow_from{};
    if constexpr (sizeof(T) == 4) narrow_from = v;
    else
        for (int j = 0; j < count; ++j) narrow_from[j] = static_cast<float>(v[j]);
    if (t.type == f32) return store_first(static_cast<float*>(t.data) + i, narrow_from, count);
    store_halves(static_cast<uint16_t*>(t.data) + i, t.type == bf16 ? to_bf16(narrow_from) : to_f16(narrow_from), count);
}

// The same where the type is known when compiled: one of the halves, or type_of<T>.
template <class T, int64_t type>
VSSM_INLINE Vec<T> load_as(const void* data, int64_t i, int count) {
    if constexpr (type == type_of<T>) return load_first(static_cast<const T*>(data) + i, count);
    else return widen<type>(load_halves(static_cast<const uint16_t*>(data) + i, count));
}
template <class T, int64_t type>
VSSM_INLINE void store_as(void* data, int64_t i, Vec<T> v, int count) {
    if constexpr (type == type_of<T>) store_first(static_cast<T*>(data) + i, v, count);
    else store_halves(static_cast<uint16_t*>(data) + i, narrow<type>(v), count);
}

// v with zeros from lane n on.
template <class T>
VSSM_INLINE Vec<T> first_lanes(Vec<T> v, int n) {
    typename Simd<T>::I lane;
    for (int i = 0; i < lanes<T>; ++i) lane[i] = i;
    return lane < n ? v : Vec<T>{};
}

// body(i, count) for every vector of a row; `count` lanes of it are in the row.
#define VSSM_BODY __attribute__((always_inline))
template <class T, class Body>
VSSM_INLINE void each_vector(int64_t n, const Body& body) {
    int64_t i = 0;
    for (; i + lanes<T> <= n; i += lanes<T>) body(i, lanes<T>);
    if (i < n) body(i, static_cast<int>(n - i));
}

// Rows a task works on: about 16k values, so that tasks are worth their start and sums stay short. By shape only.
inline int64_t rows_per_task(int64_t channels) {
    const int64_t rows = 16384 / (channels > 0 ? channels : 1);
    return rows < 8 ? 8 : rows;
}

// `count` rows of the calling thread's scratch memory.
template <class T>
struct Buffers {
    T* start;
    int64_t stride;
    Buffers(int64_t count, int64_t n) : stride((n + 15) / 16 * 16) {
        start = static_cast<T*>(scratch((count * stride + 1) * static_cast<int64_t>(sizeof(T))));
    }
    T* operator[](int64_t i) const { return start + i * stride; }
};

// What tasks add up by channel: `sums` arrays of `channels` values per task, added in the order of the tasks.
template <class T>
class PartialSums {
  public:
    PartialSums(int64_t tasks, int64_t sums, int64_t channels)
        : tasks_(tasks), width_(sums * channels), channels_(channels),
          memory_(static_cast<T*>(sums ? calloc(static_cast<size_t>(tasks * width_) + 1, sizeof(T)) : nullptr)) {}
    ~PartialSums() { free(memory_); }
    bool failed() const { return width_ > 0 && memory_ == nullptr; }
    T* of(int64_t task, int64_t sum) const { return memory_ + task * width_ + sum * channels_; }

    void total(int64_t sum, T* out) const {
        for (int64_t i = 0; i < channels_; ++i) out[i] = 0;
        for (int64_t task = 0; task < tasks_; ++task) {
            const T* part = of(task, sum);
            for (int64_t i = 0; i < channels_; ++i) out[i] += part[i];
        }
    }

  private:
    int64_t tasks_, width_, channels_;
    T* memory_;
};

}  // namespace
}  // namespace VSSM_ISA
}  // namespace vssm
