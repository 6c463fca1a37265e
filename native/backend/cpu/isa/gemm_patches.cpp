// Packing the patches of a convolution straight from the image.
#include "backend/cpu/gemm_kernels.h"
#include "backend/cpu/isa/gemm_kernels_isa.h"
#include "backend/cpu/isa/transpose.h"

namespace danceflux::cpu::DANCEFLUX_ISA_NAMESPACE {
namespace {

constexpr int kMostLines = 64;

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
DF_INLINE void copy_span(float* to, const Patches& p, const float* channel, int64_t y, int64_t x, int64_t count) {
  if (y < 0 || y >= p.height) return zero_run(to, count);
  const float* row = channel + y * p.width;
  // the samples that lie on the image
  const int64_t first = x >= 0 ? 0 : clamp((-x + p.stride - 1) / p.stride, 0, count);
  const int64_t last = x >= p.width ? first : clamp((p.width - 1 - x) / p.stride + 1, first, count);
  if (first > 0) zero_run(to, first);
  if (p.stride == 1) {
    copy_run(to + first, row + x + first, last - first);
  } else {
    for (int64_t i = first; i < last; ++i) to[i] = row[x + i * p.stride];
  }
  if (last < count) zero_run(to + last, count - last);
}

// Pixels of one row that stand side by side in a sliver.
struct Span {
  int64_t at, count, y, x;
};

int find_spans(Span (&spans)[kMostLines], const Patches& p, int64_t first_pixel, int64_t pixels) {
  int found = 0;
  int64_t row = first_pixel / p.pixel_columns, column = first_pixel % p.pixel_columns;
  for (int64_t at = 0; at < pixels; ++row, column = 0) {
    const int64_t left = p.pixel_columns - column, count = pixels - at < left ? pixels - at : left;
    spans[found++] = {at, count, row * p.stride + p.origin_y, column * p.stride + p.origin_x};
    at += count;
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

}  // namespace

void pack_pixels(float* to, int width, const Patches& p, int64_t first_pixel, int64_t pixels, int64_t first_tap, int64_t taps) {
  Span spans[kMostLines];
  const int count = find_spans(spans, p, first_pixel, pixels);
  Tap tap(p, first_tap);
  for (int64_t k = 0; k < taps; ++k, tap.next(p), to += width) {
    const float* channel = p.image + tap.channel * p.height * p.width;
    for (int i = 0; i < count; ++i)
      copy_span(to + spans[i].at, p, channel, spans[i].y + tap.row * p.tap_step, spans[i].x + tap.column * p.tap_step, spans[i].count);
  }
}

void pack_taps(float* to, int width, const Patches& p, int64_t first_tap, int64_t taps, int64_t first_pixel, int64_t pixels) {
  float rows[kLanes][kMaxDepth + kLanes];
  for (int64_t line = 0; line < taps; line += kLanes) {
    for (int i = 0; i < kLanes && line + i < taps; ++i) {
      const Tap tap(p, first_tap + line + i);
      const float* channel = p.image + tap.channel * p.height * p.width;
      int64_t row = first_pixel / p.pixel_columns, column = first_pixel % p.pixel_columns;
      for (int64_t at = 0; at < pixels; ++row, column = 0) {
        const int64_t left = p.pixel_columns - column, count = pixels - at < left ? pixels - at : left;
        copy_span(rows[i] + at, p, channel, row * p.stride + p.origin_y + tap.row * p.tap_step,
                  column * p.stride + p.origin_x + tap.column * p.tap_step, count);
        at += count;
      }
    }
    for (int64_t k = 0; k < pixels; k += kLanes) {
      Vec square[kLanes];
      for (int i = 0; i < kLanes; ++i) square[i] = load(rows[line + i < taps ? i : 0] + k);
      if (k + kLanes <= pixels) {
        store_transposed(to + k * width + line, width, square);
      } else {
        float rest[kLanes * kLanes];
        store_transposed(rest, kLanes, square);
        for (int64_t i = 0; k + i < pixels; ++i) store(to + (k + i) * width + line, load(rest + i * kLanes));
      }
    }
  }
}

}  // namespace danceflux::cpu::DANCEFLUX_ISA_NAMESPACE
