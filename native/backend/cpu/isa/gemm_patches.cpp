// Packing the patches of a convolution straight from the image.
#include "backend/cpu/gemm_kernels.h"
#include "backend/cpu/isa/gemm_kernels_isa.h"
#include "backend/cpu/isa/register_tile.h"
#include "backend/cpu/isa/transpose.h"

namespace danceflux::cpu::DANCEFLUX_ISA_NAMESPACE {
namespace {

DF_INLINE int64_t clamp(int64_t x, int64_t low, int64_t high) { return x < low ? low : x > high ? high : x; }

DF_INLINE void zero_run(float* to, int64_t count) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(to + i, zero());
  if (i < count) store_tail(to + i, zero(), count - i);
}

DF_INLINE void copy_run(float* to, const float* from, int64_t count) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(to + i, load(from + i));
  if (i < count) store_tail(to + i, load_tail(from + i, count - i), count - i);
}

// `count` samples, `stride` apart, of row y of a channel from column x on; zeros where there is no image.
template <bool kUnitStride>
DF_INLINE void copy_span(float* to, const Patches& p, const float* channel, int64_t y, int64_t x,
                         int64_t count) {
  if (y < 0 || y >= p.height) return zero_run(to, count);
  const float* from = channel + y * p.width + x;
  const int64_t stride = kUnitStride ? 1 : p.stride;
  if (x >= 0 && x + (count - 1) * stride < p.width) {
    if constexpr (kUnitStride) return copy_run(to, from, count);
    for (int64_t i = 0; i < count; ++i) to[i] = from[i * stride];
    return;
  }
  // the samples that lie on the image
  const int64_t first = x >= 0 ? 0 : clamp((stride - 1 - x) / stride, 0, count);
  const int64_t last = x >= p.width ? first : clamp((p.width - 1 - x) / stride + 1, first, count);
  zero_run(to, first);
  if constexpr (kUnitStride) {
    copy_run(to + first, from + first, last - first);
  } else {
    for (int64_t i = first; i < last; ++i) to[i] = from[i * stride];
  }
  zero_run(to + last, count - last);
}

// Pixels of one row that stand side by side in a sliver.
struct Span {
  int64_t at, count, y, x;  // `at` in the packed block
};

int find_spans(Span (&spans)[kMaxColumns], const Patches& p, int64_t sliver, int64_t first_pixel,
               int64_t pixels) {
  int found = 0;
  int64_t row = first_pixel / p.pixel_columns, column = first_pixel % p.pixel_columns;
  for (int64_t line = 0; line < pixels;) {
    const int64_t end =
        line / kColumns * kColumns + kColumns < pixels ? line / kColumns * kColumns + kColumns : pixels;
    const int64_t left = p.pixel_columns - column, count = end - line < left ? end - line : left;
    spans[found++] = {line / kColumns * sliver + line % kColumns, count, row * p.stride + p.origin_y,
                      column * p.stride + p.origin_x};
    line += count, column += count;
    if (column == p.pixel_columns) column = 0, ++row;
  }
  return found;
}

struct Tap {
  int64_t channel, row, column;
  Tap(const Patches& p, int64_t number)
      : channel(number / (p.tap_rows * p.tap_columns)),
        row(number / p.tap_columns % p.tap_rows),
        column(number % p.tap_columns) {}
  void next(const Patches& p) {
    if (++column < p.tap_columns) return;
    column = 0;
    if (++row < p.tap_rows) return;
    row = 0;
    ++channel;
  }
};

// All slivers of a tap before the next tap: an image row is read once, end to end, and its shifted copies
// come from the cache.
template <bool kUnitStride>
void pack_pixel_spans(float* to, int64_t sliver, const Patches& p, int64_t first_pixel, int64_t pixels,
                      int64_t first_tap, int64_t taps) {
  Span spans[kMaxColumns];
  const int count = find_spans(spans, p, sliver, first_pixel, pixels);
  Tap tap(p, first_tap);
  for (int64_t k = 0; k < taps; ++k, tap.next(p), to += kColumns) {
    const float* channel = p.image + tap.channel * p.height * p.width;
    for (int i = 0; i < count; ++i)
      copy_span<kUnitStride>(to + spans[i].at, p, channel, spans[i].y + tap.row * p.tap_step,
                             spans[i].x + tap.column * p.tap_step, spans[i].count);
  }
}

// One tap of pixels first_pixel .. +pixels.
template <bool kUnitStride>
void gather_tap(float* to, const Patches& p, const Tap& tap, int64_t first_pixel, int64_t pixels) {
  const float* channel = p.image + tap.channel * p.height * p.width;
  int64_t row = first_pixel / p.pixel_columns, column = first_pixel % p.pixel_columns;
  for (int64_t at = 0; at < pixels; ++row, column = 0) {
    const int64_t left = p.pixel_columns - column, count = pixels - at < left ? pixels - at : left;
    copy_span<kUnitStride>(to + at, p, channel, row * p.stride + p.origin_y + tap.row * p.tap_step,
                           column * p.stride + p.origin_x + tap.column * p.tap_step, count);
    at += count;
  }
}

}  // namespace

void pack_pixels(float* to, int64_t sliver, const Patches& p, int64_t first_pixel, int64_t pixels,
                 int64_t first_tap, int64_t taps) {
  p.stride == 1 ? pack_pixel_spans<true>(to, sliver, p, first_pixel, pixels, first_tap, taps)
                : pack_pixel_spans<false>(to, sliver, p, first_pixel, pixels, first_tap, taps);
}

void pack_taps(float* to, int64_t sliver, const Patches& p, int64_t first_tap, int64_t taps,
               int64_t first_pixel, int64_t pixels) {
  float rows[kLanes][kMaxDepth + kLanes];
  for (int64_t line = 0; line < taps; line += kLanes) {
    for (int i = 0; i < kLanes && line + i < taps; ++i) {
      const Tap tap(p, first_tap + line + i);
      p.stride == 1 ? gather_tap<true>(rows[i], p, tap, first_pixel, pixels)
                    : gather_tap<false>(rows[i], p, tap, first_pixel, pixels);
    }
    float* at = to + line / kColumns * sliver + line % kColumns;
    for (int64_t k = 0; k < pixels; k += kLanes) {
      Vec square[kLanes];
      for (int i = 0; i < kLanes; ++i) square[i] = load(rows[line + i < taps ? i : 0] + k);
      if (k + kLanes <= pixels) {
        store_transposed(at + k * kColumns, kColumns, square);
      } else {
        float rest[kLanes * kLanes];
        store_transposed(rest, kLanes, square);
        for (int64_t i = 0; k + i < pixels; ++i) store(at + (k + i) * kColumns, load(rest + i * kLanes));
      }
    }
  }
}

}  // namespace danceflux::cpu::DANCEFLUX_ISA_NAMESPACE
