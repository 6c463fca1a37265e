// The left operand of a product, strip by strip of rows: read where it lies, or packed into a worker's
// memory.
//
// M rows, K depth.
#pragma once
#include <cstdint>

#include "backend/cpu/gemm_kernels.h"
#include "backend/cpu/panel.h"

namespace danceflux::cpu {

/// An operand that is not a strided matrix (the patches of a convolution). Writes lines first_line .. +lines,
/// depths first_k .. +depth of batch entry `batch` as slivers of `width` lines, `sliver` floats apart, as
/// GemmKernels::pack_interleaved does.
struct Gather {
  void (*pack)(const void* self, float* to, int width, std::int64_t sliver, std::int64_t batch,
               std::int64_t first_line, std::int64_t lines, std::int64_t first_k, std::int64_t depth);
  const void* self;
};

/// Floats from line to line up to which an operand is read where it lies: beyond, its lines fall on few
/// places of the cache.
constexpr std::int64_t kNearLine = 768;

inline const void* shifted(const Panel& panel, std::int64_t elements) {
  return static_cast<const char*>(panel.data) + elements * (panel.store == Store::f32 ? 4 : 2);
}

class LeftStrips {
 public:
  /// For at most `rows` rows at a time and blocks of K of at most `block`. Counts memory; see bind.
  LeftStrips(const GemmKernels& kernels, std::int64_t rows, std::int64_t block);
  std::int64_t floats() const { return floats_; }
  std::int64_t strip_rows() const { return strip_rows_; }

  /// Which operand: `panel` of batch entry `batch`, or `gather` when that is set. Rows `first` .. + `rows` of
  /// it. `once`: each strip meets one sliver of columns only, so that packing it is a waste.
  void bind(float* memory, const Panel& panel, const Gather* gather, std::int64_t batch, std::int64_t first,
            std::int64_t rows, bool once);
  void enter_block(std::int64_t k, std::int64_t depth) { k_ = k, depth_ = depth; }
  /// Fills in rows and a of `strip` for the strip from row `i` on (a multiple of strip_rows, taken in rising
  /// order).
  void take(StripArgs& strip, std::int64_t i);
  /// Step `step` of `steps` in which strip `i` is used: a share of what is packed next comes nearer.
  void fetch_ahead(std::int64_t i, std::int64_t step, std::int64_t steps) const;

 private:
  // rows of a packed strip must not all fall on the same lines of the cache
  std::int64_t line_room() const { return block_ + 16; }
  std::int64_t sliver() const { return kernels_.mr * block_ + kSliverSlack; }
  void take_in_place(StripArgs& strip, std::int64_t i) const;

  const GemmKernels& kernels_;
  std::int64_t block_, strip_rows_, group_rows_, floats_;
  float* memory_ = nullptr;
  Panel panel_{};
  const Gather* gather_ = nullptr;
  std::int64_t batch_ = 0, first_ = 0, rows_ = 0, k_ = 0, depth_ = 0;
  bool near_ = false;
};

}  // namespace danceflux::cpu
