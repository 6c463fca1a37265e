// Packing: panels in any layout and storage type become runs of f32 that the register tile reads in order.
#include "backend/cpu/isa/gemm_kernels_isa.h"
#include "backend/cpu/isa/register_tile.h"
#include "backend/cpu/isa/transpose.h"
#include "backend/cpu/simd.h"

namespace danceflux::cpu::DANCEFLUX_ISA_NAMESPACE {
namespace {

// One row per storage type: how a vector of it, whole or in part, is read.
struct F32 {
  using Type = float;
  DF_INLINE static Vec many(const float* p) { return load(p); }
  DF_INLINE static Vec some(const float* p, int64_t count) { return load_tail(p, count); }
};
struct Bf16 {
  using Type = std::uint16_t;
  DF_INLINE static Vec many(const std::uint16_t* p) { return widen_bf16(load_as<HalfVec>(p)); }
  DF_INLINE static Vec some(const std::uint16_t* p, int64_t count) {
    return widen_bf16(load_half_tail(p, count));
  }
};
struct F16 {
  using Type = std::uint16_t;
  DF_INLINE static Vec many(const std::uint16_t* p) { return widen_f16(load_as<HalfVec>(p)); }
  DF_INLINE static Vec some(const std::uint16_t* p, int64_t count) {
    return widen_f16(load_half_tail(p, count));
  }
};

template <class From>
DF_INLINE void copy_run(float* to, const typename From::Type* from, int64_t count) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(to + i, From::many(from + i));
  if (i < count) store_tail(to + i, From::some(from + i, count - i), count - i);
}

constexpr int64_t kFarStride = 1024;

// One sliver of a panel whose lines are runs of k: squares are transposed in registers.
template <class From>
DF_INLINE void interleave_sliver(float* to, int width, const typename From::Type* from, int64_t line_stride,
                                 int64_t lines, int64_t depth) {
  // Runs of a large matrix are too short for the hardware to learn them; the same place of the next lines is
  // what comes next.
  const bool far = line_stride >= kFarStride;
  for (int64_t line = 0; line < lines; line += kLanes) {
    const typename From::Type* source[kLanes];  // past the last line: that line again
    for (int i = 0; i < kLanes; ++i)
      source[i] = from + (line + i < lines ? line + i : lines - 1) * line_stride;
    int64_t k = 0;
    for (; k + kLanes <= depth; k += kLanes) {
      Vec row[kLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) row[i] = From::many(source[i] + k);
      if (far) {
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) __builtin_prefetch(source[i] + kLanes * line_stride + k);
      }
      store_transposed(to + k * width + line, width, row);
    }
    if (k == depth) continue;
    Vec row[kLanes];
    for (int i = 0; i < kLanes; ++i) row[i] = From::some(source[i] + k, depth - k);
    float square[kLanes * kLanes];
    store_transposed(square, kLanes, row);
    for (int64_t rest = 0; k < depth; ++k, ++rest) store(to + k * width + line, load(square + rest * kLanes));
  }
}

template <class From>
void interleave_depth_runs(float* to, int width, int64_t sliver, const Panel& panel, int64_t lines,
                           int64_t depth) {
  const auto* from = static_cast<const typename From::Type*>(panel.data);
  for (int64_t line = 0; line < lines; line += width, to += sliver)
    interleave_sliver<From>(to, width, from + line * panel.line_stride, panel.line_stride,
                            width < lines - line ? width : lines - line, depth);
}

// Reads whole rows of k, as far as the lines go, so that every page and cache line is touched once.
template <class From, int kWidth>
void interleave_line_runs(float* to, int64_t sliver, const Panel& panel, int64_t lines, int64_t depth) {
  constexpr int kWhole = (kWidth + kLanes - 1) / kLanes * kLanes;
  constexpr int kAhead = 8;  // rows: the next ones lie on other pages, where no hardware looks
  const auto* from = static_cast<const typename From::Type*>(panel.data);
  for (int64_t k = 0; k < depth; ++k, from += panel.depth_stride) {
    float* at = to + k * kWidth;
    int64_t line = 0;
    for (; line + kWhole <= lines; line += kWidth, at += sliver) {
      __builtin_prefetch(from + line + kAhead * panel.depth_stride);
      __builtin_prefetch(from + line + kWidth - 1 + kAhead * panel.depth_stride);
      // what spills over a sliver's row is overwritten by the next row
#pragma GCC unroll 4
      for (int i = 0; i < kWhole; i += kLanes) store(at + i, From::many(from + line + i));
    }
    for (; line < lines; line += kWidth, at += sliver)
      copy_run<From>(at, from + line, kWidth < lines - line ? kWidth : lines - line);
  }
}

template <class From>
void interleave_scattered(float* to, int width, int64_t sliver, const Panel& panel, int64_t lines,
                          int64_t depth) {
  const auto* from = static_cast<const typename From::Type*>(panel.data);
  for (int64_t first = 0; first < lines; first += width, to += sliver)
    for (int64_t k = 0; k < depth; ++k)
      for (int64_t line = 0; line < width && first + line < lines; ++line)
        to[k * width + line] =
            From::some(from + (first + line) * panel.line_stride + k * panel.depth_stride, 1)[0];
}

template <class From>
void interleave(float* to, int width, int64_t sliver, const Panel& panel, int64_t lines, int64_t depth) {
  if (panel.line_stride == 1 && width == kRows)
    return interleave_line_runs<From, kRows>(to, sliver, panel, lines, depth);
  if (panel.line_stride == 1 && width == kColumns)
    return interleave_line_runs<From, kColumns>(to, sliver, panel, lines, depth);
  // squares are stored as whole vectors
  if (panel.depth_stride == 1 && width % kLanes == 0)
    return interleave_depth_runs<From>(to, width, sliver, panel, lines, depth);
  interleave_scattered<From>(to, width, sliver, panel, lines, depth);
}

template <class From>
void copy_lines(float* to, int64_t to_line, const Panel& panel, int64_t lines, int64_t depth) {
  const auto* from = static_cast<const typename From::Type*>(panel.data);
  for (int64_t line = 0; line < lines; ++line)
    copy_run<From>(to + line * to_line, from + line * panel.line_stride, depth);
}

}  // namespace

void pack_interleaved(float* to, int width, int64_t sliver, const Panel& panel, int64_t lines,
                      int64_t depth) {
  switch (panel.store) {
    case Store::f32:
      return interleave<F32>(to, width, sliver, panel, lines, depth);
    case Store::bf16:
      return interleave<Bf16>(to, width, sliver, panel, lines, depth);
    case Store::f16:
      return interleave<F16>(to, width, sliver, panel, lines, depth);
  }
}

void pack_rows(float* to, int64_t to_line, const Panel& panel, int64_t lines, int64_t depth) {
  switch (panel.store) {
    case Store::f32:
      return copy_lines<F32>(to, to_line, panel, lines, depth);
    case Store::bf16:
      return copy_lines<Bf16>(to, to_line, panel, lines, depth);
    case Store::f16:
      return copy_lines<F16>(to, to_line, panel, lines, depth);
  }
}

}  // namespace danceflux::cpu::DANCEFLUX_ISA_NAMESPACE
