// Conversions between float types, transposes, and AdamW (an update with a conversion at its end).
#include "backend/cpu/row_kernels.h"
#include "backend/cpu/simd.h"

namespace danceflux::cpu::DANCEFLUX_ISA_NAMESPACE {
namespace {

// ---- conversions: every type has a way to and from a vector of f32 ---------------------------------------
struct F32 {
  using Element = float;
  DF_INLINE static Vec get(const float* p) { return load(p); }
  DF_INLINE static Vec get_tail(const float* p, int64_t n) { return load_tail(p, n); }
  DF_INLINE static void put(float* p, Vec v) { store(p, v); }
  DF_INLINE static void put_tail(float* p, Vec v, int64_t n) { store_tail(p, v, n); }
};
struct Bf16 {
  using Element = std::uint16_t;
  DF_INLINE static Vec get(const Element* p) { return widen_bf16(load_as<HalfVec>(p)); }
  DF_INLINE static Vec get_tail(const Element* p, int64_t n) { return widen_bf16(load_half_tail(p, n)); }
  DF_INLINE static void put(Element* p, Vec v) { store_half(p, narrow_bf16(v)); }
  DF_INLINE static void put_tail(Element* p, Vec v, int64_t n) { store_half_tail(p, narrow_bf16(v), n); }
};
struct F16 {
  using Element = std::uint16_t;
  DF_INLINE static Vec get(const Element* p) { return widen_f16(load_as<HalfVec>(p)); }
  DF_INLINE static Vec get_tail(const Element* p, int64_t n) { return widen_f16(load_half_tail(p, n)); }
  DF_INLINE static void put(Element* p, Vec v) { store_half(p, narrow_f16(v)); }
  DF_INLINE static void put_tail(Element* p, Vec v, int64_t n) { store_half_tail(p, narrow_f16(v), n); }
};
struct F64 {
  using Element = double;
  DF_INLINE static Vec get(const double* p) { return get_tail(p, kLanes); }
  DF_INLINE static Vec get_tail(const double* p, int64_t n) {
    Vec v{};
    for (int64_t i = 0; i < n; ++i) v[i] = static_cast<float>(p[i]);
    return v;
  }
  DF_INLINE static void put(double* p, Vec v) { put_tail(p, v, kLanes); }
  DF_INLINE static void put_tail(double* p, Vec v, int64_t n) {
    for (int64_t i = 0; i < n; ++i) p[i] = v[i];
  }
};

template <class To, class From>
void convert_row(void* out, const void* x, int64_t n) {
  auto* to = static_cast<typename To::Element*>(out);
  const auto* from = static_cast<const typename From::Element*>(x);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) To::put(to + i, From::get(from + i));
  if (i < n) To::put_tail(to + i, From::get_tail(from + i, n - i), n - i);
}
/// One type to itself: bits, whatever they mean.
template <class Type>
void copy_row(void* out, const void* x, int64_t n) {
  __builtin_memcpy(out, x, static_cast<std::size_t>(n) * sizeof(typename Type::Element));
}

// ---- transposes ------------------------------------------------------------------------------------------
template <class T>
DF_INLINE void transpose_plain(T* out, int64_t out_step, const T* x, int64_t x_step, int64_t rows,
                               int64_t columns) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) out[i * out_step + j] = x[j * x_step + i];
  }
}

typedef std::uint32_t Quad __attribute__((vector_size(16)));

DF_INLINE void transpose_4x4(std::uint32_t* out, int64_t out_step, const std::uint32_t* x, int64_t x_step) {
  const Quad a = load_as<Quad>(x), b = load_as<Quad>(x + x_step), c = load_as<Quad>(x + 2 * x_step),
             d = load_as<Quad>(x + 3 * x_step);
  const Quad ab_low = __builtin_shufflevector(a, b, 0, 4, 1, 5),
             ab_high = __builtin_shufflevector(a, b, 2, 6, 3, 7);
  const Quad cd_low = __builtin_shufflevector(c, d, 0, 4, 1, 5),
             cd_high = __builtin_shufflevector(c, d, 2, 6, 3, 7);
  const Quad rows[4] = {__builtin_shufflevector(ab_low, cd_low, 0, 1, 4, 5),
                        __builtin_shufflevector(ab_low, cd_low, 2, 3, 6, 7),
                        __builtin_shufflevector(ab_high, cd_high, 0, 1, 4, 5),
                        __builtin_shufflevector(ab_high, cd_high, 2, 3, 6, 7)};
  for (int i = 0; i < 4; ++i) __builtin_memcpy(out + i * out_step, &rows[i], sizeof(Quad));
}

constexpr int64_t kTile = 16;  // of 4-byte elements: a cache line, read whole from x and written whole to out

/// Through a small buffer, since lines of out that lie a power of two apart would push each other out of the
/// first cache.
DF_INLINE void transpose_tile(std::uint32_t* out, int64_t out_step, const std::uint32_t* x, int64_t x_step) {
  alignas(64) std::uint32_t tile[kTile * kTile];
  for (int64_t j = 0; j < kTile; j += 4) {
    for (int64_t i = 0; i < kTile; i += 4)
      transpose_4x4(tile + i * kTile + j, kTile, x + j * x_step + i, x_step);
  }
  for (int64_t i = 0; i < kTile; ++i)
    __builtin_memcpy(out + i * out_step, tile + i * kTile, sizeof(std::uint32_t) * kTile);
}

void transpose_words(void* out, int64_t out_step, const void* x, int64_t x_step, int64_t rows,
                     int64_t columns) {
  auto* to = static_cast<std::uint32_t*>(out);
  const auto* from = static_cast<const std::uint32_t*>(x);
  const int64_t whole_rows = rows / kTile * kTile, whole_columns = columns / kTile * kTile;
  for (int64_t i = 0; i < whole_rows; i += kTile) {
    for (int64_t j = 0; j < whole_columns; j += kTile) {
      for (int64_t k = 0; k < kTile; ++k) __builtin_prefetch(from + (j + kTile + k) * x_step + i);
      transpose_tile(to + i * out_step + j, out_step, from + j * x_step + i, x_step);
    }
  }
  transpose_plain(to + whole_columns, out_step, from + whole_columns * x_step, x_step, whole_rows,
                  columns - whole_columns);
  transpose_plain(to + whole_rows * out_step, out_step, from + whole_rows, x_step, rows - whole_rows,
                  columns);
}

/// Tiles whose rows and columns both fit in the first cache.
template <class T>
void transpose(void* out, int64_t out_step, const void* x, int64_t x_step, int64_t rows, int64_t columns) {
  auto* to = static_cast<T*>(out);
  const auto* from = static_cast<const T*>(x);
  for (int64_t i = 0; i < rows; i += kTile) {
    const int64_t tile_rows = rows - i < kTile ? rows - i : kTile;
    for (int64_t j = 0; j < columns; j += kTile) {
      const int64_t tile_columns = columns - j < kTile ? columns - j : kTile;
      transpose_plain(to + i * out_step + j, out_step, from + j * x_step + i, x_step, tile_rows,
                      tile_columns);
    }
  }
}

// ---- AdamW -----------------------------------------------------------------------------------------------
// Products and sums are rounded one by one, in PyTorch's order: decay, first moment (a step towards the
// gradient), second moment, denominator, step.
template <class Type>
void adamw(void* parameter, float* master, float* m, float* v, const float* gradient, int64_t n,
           const AdamWStep& step) {
  auto* to = static_cast<typename Type::Element*>(parameter);
  const bool separate = parameter != static_cast<void*>(master);
  int64_t i = 0;
  const auto update = [&](auto get, auto put, auto put_parameter) {
    const Vec g = get(gradient) * step.gradient_scale;
    const Vec decayed = get(master) * step.decay;
    const Vec first = get(m) + step.one_minus_beta1 * (g - get(m));
    const Vec second = get(v) * step.beta2 + step.one_minus_beta2 * g * g;
    const Vec denominator = sqrt(second) / step.root_correction2 + step.eps;
    const Vec next = decayed - step.step_size * first / denominator;
    put(m, first);
    put(v, second);
    put(master, next);
    if (separate) put_parameter(next);
  };
  for (; i + kLanes <= n; i += kLanes) {
    update([i](const float* p) { return load(p + i); }, [i](float* p, Vec x) { store(p + i, x); },
           [&](Vec x) { Type::put(to + i, x); });
  }
  if (i < n) {
    update([i, n](const float* p) { return load_tail(p + i, n - i); },
           [i, n](float* p, Vec x) { store_tail(p + i, x, n - i); },
           [&](Vec x) { Type::put_tail(to + i, x, n - i); });
  }
}

}  // namespace

const ConvertRows convert_rows{
    {{copy_row<F32>, convert_row<F32, Bf16>, convert_row<F32, F16>, convert_row<F32, F64>},
     {convert_row<Bf16, F32>, copy_row<Bf16>, convert_row<Bf16, F16>, convert_row<Bf16, F64>},
     {convert_row<F16, F32>, convert_row<F16, Bf16>, copy_row<F16>, convert_row<F16, F64>},
     {convert_row<F64, F32>, convert_row<F64, Bf16>, convert_row<F64, F16>, copy_row<F64>}},
    {transpose<std::uint8_t>, transpose<std::uint16_t>, transpose_words, transpose<std::uint64_t>},
    {adamw<F32>, adamw<Bf16>, adamw<F16>}};

}  // namespace danceflux::cpu::DANCEFLUX_ISA_NAMESPACE
