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

// The even numbers of 0 .. 2 kLanes - 1: of two vectors that overlap in one element, so that nothing past the
// last is read.
#if defined(__AVX512F__)
#define DF_EVEN_SAMPLES(a, b) \
  __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 17, 19, 21, 23, 25, 27, 29, 31)
#elif defined(__AVX2__)
#define DF_EVEN_SAMPLES(a, b) __builtin_shufflevector(a, b, 0, 2, 4, 6, 9, 11, 13, 15)
#else
#define DF_EVEN_SAMPLES(a, b) __builtin_shufflevector(a, b, 0, 2, 5, 7)
#endif

// Elements first .. last - 1 of a vector, which may lie partly or wholly beside it; zeros elsewhere. Reads
// nothing else.
DF_INLINE Vec load_between(const float* from, int64_t first, int64_t last) {
#if defined(__AVX512F__)
  const unsigned below = first <= 0 ? 0u : first >= kLanes ? 0xffffu : (1u << first) - 1;
  const unsigned upto = last <= 0 ? 0u : last >= kLanes ? 0xffffu : (1u << last) - 1;
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>(upto & ~below), from);
#elif defined(__AVX2__)
  return _mm256_maskload_ps(from, reinterpret_cast<__m256i>(lane_mask(last) & ~lane_mask(first)));
#else
  Vec v{};
  for (int i = 0; i < kLanes; ++i) {
    if (i >= first && i < last) v[i] = from[i];
  }
  return v;
#endif
}

// kLanes samples, kStride apart (0: `stride`).
template <int kStride>
DF_INLINE Vec read_samples(const float* from, int64_t stride) {
  if constexpr (kStride == 1) return load(from);
  if constexpr (kStride == 2) return DF_EVEN_SAMPLES(load(from), load(from + kLanes - 1));
  float samples[kLanes];
  for (int i = 0; i < kLanes; ++i) samples[i] = from[i * stride];
  return load(samples);
}

// Samples first .. last - 1 of them, zeros elsewhere.
template <int kStride>
DF_INLINE Vec read_between(const float* from, int64_t stride, int64_t first, int64_t last) {
  if constexpr (kStride == 1) return load_between(from, first, last);
  if constexpr (kStride == 2) {
    const int64_t low = 2 * first, high = last > first ? 2 * last - 1 : low;
    return DF_EVEN_SAMPLES(load_between(from, low, high),
                           load_between(from + kLanes - 1, low - (kLanes - 1), high - (kLanes - 1)));
  }
  float samples[kLanes] = {};
  for (int64_t i = first; i < last; ++i) samples[i] = from[i * stride];
  return load(samples);
}

// `count` samples of row y of a channel from column x on; zeros where there is no image.
template <int kStride>
DF_INLINE void copy_span(float* to, const Patches& p, const float* channel, int64_t y, int64_t x,
                         int64_t count) {
  if (y < 0 || y >= p.height) return zero_run(to, count);
  const float* from = channel + y * p.width + x;
  const int64_t stride = kStride ? kStride : p.stride;
  int64_t first = 0, last = count;  // the samples that lie on the image
  if (x < 0 || x + (count - 1) * stride >= p.width) {
    if (x < 0) first = clamp((stride - 1 - x) / stride, 0, count);
    last = x >= p.width ? first : clamp((p.width - 1 - x) / stride + 1, first, count);
  }
  for (int64_t at = 0; at < count; at += kLanes) {
    const int64_t left = count - at, low = clamp(first - at, 0, kLanes), high = clamp(last - at, low, kLanes);
    const Vec samples = low == 0 && high == kLanes
                            ? read_samples<kStride>(from + at * stride, stride)
                            : read_between<kStride>(from + at * stride, stride, low, high);
    left >= kLanes ? store(to + at, samples) : store_tail(to + at, samples, left);
  }
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
template <int kStride>
void pack_pixel_spans(float* to, int64_t sliver, const Patches& p, int64_t first_pixel, int64_t pixels,
                      int64_t first_tap, int64_t taps) {
  Span spans[kMaxColumns];
  const int count = find_spans(spans, p, sliver, first_pixel, pixels);
  Tap tap(p, first_tap);
  for (int64_t k = 0; k < taps; ++k, tap.next(p), to += kColumns) {
    const float* channel = p.image + tap.channel * p.height * p.width;
    for (int i = 0; i < count; ++i)
      copy_span<kStride>(to + spans[i].at, p, channel, spans[i].y + tap.row * p.tap_step,
                         spans[i].x + tap.column * p.tap_step, spans[i].count);
  }
}

// One tap of pixels first_pixel .. +pixels.
template <int kStride>
void gather_tap(float* to, const Patches& p, const Tap& tap, int64_t first_pixel, int64_t pixels) {
  const float* channel = p.image + tap.channel * p.height * p.width;
  int64_t row = first_pixel / p.pixel_columns, column = first_pixel % p.pixel_columns;
  for (int64_t at = 0; at < pixels; ++row, column = 0) {
    const int64_t left = p.pixel_columns - column, count = pixels - at < left ? pixels - at : left;
    copy_span<kStride>(to + at, p, channel, row * p.stride + p.origin_y + tap.row * p.tap_step,
                       column * p.stride + p.origin_x + tap.column * p.tap_step, count);
    at += count;
  }
}

}  // namespace

void pack_pixels(float* to, int64_t sliver, const Patches& p, int64_t first_pixel, int64_t pixels,
                 int64_t first_tap, int64_t taps) {
  const auto pack = p.stride == 1   ? pack_pixel_spans<1>
                    : p.stride == 2 ? pack_pixel_spans<2>
                                    : pack_pixel_spans<0>;
  pack(to, sliver, p, first_pixel, pixels, first_tap, taps);
}

void pack_taps(float* to, int64_t sliver, const Patches& p, int64_t first_tap, int64_t taps,
               int64_t first_pixel, int64_t pixels) {
  const auto gather = p.stride == 1 ? gather_tap<1> : p.stride == 2 ? gather_tap<2> : gather_tap<0>;
  float rows[kLanes][kMaxDepth + kLanes];
  for (int64_t line = 0; line < taps; line += kLanes) {
    for (int i = 0; i < kLanes && line + i < taps; ++i) {
      const Tap tap(p, first_tap + line + i);
      gather(rows[i], p, tap, first_pixel, pixels);
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

namespace {

// Lanes whose bit is set; reads nothing else.
DF_INLINE Vec load_lanes(const float* from, unsigned bits) {
#if defined(__AVX512F__)
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>(bits), from);
#elif defined(__AVX2__)
  const IntVec lane_bits = {1, 2, 4, 8, 16, 32, 64, 128};
  return _mm256_maskload_ps(
      from, reinterpret_cast<__m256i>((splat_int(static_cast<std::int32_t>(bits)) & lane_bits) == lane_bits));
#else
  if (bits == (1u << kLanes) - 1) return load(from);
  Vec v{};
  for (int i = 0; i < kLanes; ++i) {
    if (bits >> i & 1) v[i] = from[i];
  }
  return v;
#endif
}

// For each vector of a plane, the lanes that find a pixel `shift` columns to the right.
int64_t find_lanes(unsigned (&lanes)[kMaxPlane / kLanes], const Patches& p, int64_t shift, int64_t first_row,
                   int64_t rows) {
  const int64_t pixels = rows * p.width, vectors = (pixels + kLanes - 1) / kLanes;
  int64_t row = first_row, x = shift;
  for (int64_t v = 0; v < vectors; ++v) {
    lanes[v] = 0;
    for (int64_t i = 0; i < kLanes && v * kLanes + i < pixels; ++i) {
      if (row >= 0 && row < p.height && x >= 0 && x < p.width) lanes[v] |= 1u << i;
      if (++x == p.width + shift) x = shift, ++row;
    }
  }
  return vectors;
}

}  // namespace

void copy_planes(float* to, int64_t plane, const Patches& p, int64_t first_channel, int64_t channels,
                 int64_t first_row, int64_t rows) {
  unsigned lanes[kMaxPlane / kLanes];
  for (int64_t s = 0; s < p.tap_columns; ++s) {
    const int64_t shift = p.origin_x + s * p.tap_step;
    const int64_t vectors = find_lanes(lanes, p, shift, first_row, rows);
    for (int64_t channel = 0; channel < channels; ++channel) {
      const float* from =
          p.image + (first_channel + channel) * p.height * p.width + first_row * p.width + shift;
      float* at = to + (channel * p.tap_columns + s) * plane;
      for (int64_t v = 0; v < vectors; ++v) store(at + v * kLanes, load_lanes(from + v * kLanes, lanes[v]));
    }
  }
}

}  // namespace danceflux::cpu::DANCEFLUX_ISA_NAMESPACE
