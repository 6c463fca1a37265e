// What a matrix product needs of an instruction set. Plain data and function pointers: included by the files
// in isa/.
//
// The law of bits: an element of C is, for each block of K in order, one chain acc = fma(a[k], b[k], acc)
// from zero over rising k, then c = fma(alpha, acc, c). It does not matter which tile, packed or not, which
// edge or which lane computes it. M rows of A and C, N columns of B and C, K depth.
#pragma once
#include <cstdint>

#include "backend/cpu/panel.h"
#include "backend/cpu/patches.h"

namespace danceflux::cpu {

/// No block of K is longer, and no block of columns of B wider.
constexpr std::int64_t kMaxDepth = 576, kMaxColumns = 512;
/// No plane of copy_planes has more pixels.
constexpr std::int64_t kMaxPlane = 1024;

/// Packing may write so many floats past the end of a sliver.
constexpr std::int64_t kSliverSlack = 16;

/// A strip of C: up to `rows` x `columns` (columns <= nr), for one block of K.
struct StripArgs {
  std::int64_t rows, columns, depth;
  // a[(row / mr) * a_tile + (row % mr) * a_row + k * a_depth]
  const float* a;
  std::int64_t a_row, a_depth, a_tile;
  // b[k * b_depth + column], or b[b_offsets[k] + column] where offsets are given; whole vectors are read
  const float* b;
  std::int64_t b_depth;
  const std::int64_t* b_offsets;
  // c[row * c_row + column]
  float* c;
  std::int64_t c_row;
  float alpha;
  bool load_c;  // c += instead of c =
  // added after alpha; or null
  const float* column_bias;
  const float* row_bias;
};

struct GemmKernels {
  int mr, nr;  // the register tile
  int lanes;   // of a vector; nr is a multiple
  /// Any number of rows; at most nr columns.
  void (*strip)(const StripArgs& args);
  /// Slivers of `width` lines (mr or nr), `sliver` floats from one to the next, which is at least width *
  /// depth and kSliverSlack more when the width is no multiple of a vector: to[(line / width) * sliver + k *
  /// width + line % width] = panel(line, k). What lies past the last line of the last sliver is never used.
  void (*pack_interleaved)(float* to, int width, std::int64_t sliver, const Panel& panel, std::int64_t lines,
                           std::int64_t depth);
  /// to[line * to_line + k] = panel(line, k), for panels whose depth stride is 1.
  void (*pack_rows)(float* to, std::int64_t to_line, const Panel& panel, std::int64_t lines,
                    std::int64_t depth);
  /// As pack_interleaved, nr wide, of at most kMaxColumns lines. Lines are pixels and k runs over taps:
  void (*pack_pixels)(float* to, std::int64_t sliver, const Patches& patches, std::int64_t first_pixel,
                      std::int64_t pixels, std::int64_t first_tap, std::int64_t taps);
  /// Lines are taps and k runs over pixels:
  void (*pack_taps)(float* to, std::int64_t sliver, const Patches& patches, std::int64_t first_tap,
                    std::int64_t taps, std::int64_t first_pixel, std::int64_t pixels);
  /// Image rows first_row .. +rows (which may lie beside the image) of each channel, once per tap column s:
  /// the pixel that tap column meets at each place, or zero. to[((channel - first_channel) * tap_columns + s)
  /// * plane + row * width + x]; as many pixels per row as the image is wide; `plane` has room for whole
  /// vectors.
  void (*copy_planes)(float* to, std::int64_t plane, const Patches& patches, std::int64_t first_channel,
                      std::int64_t channels, std::int64_t first_row, std::int64_t rows);
};

}  // namespace danceflux::cpu
