#include "backend/cpu/left_strips.h"

#include <algorithm>

namespace danceflux::cpu {
namespace {

// Packed rows of A at a time: they stay in the first cache while all columns of B pass.
constexpr std::int64_t kStripFloats = 6144;
// Slivers packed at a time when the rows of A are not dense: their places in memory are a cache line or more.
constexpr std::int64_t kGroupSlivers = 8;

}  // namespace

LeftStrips::LeftStrips(const GemmKernels& kernels, std::int64_t rows, std::int64_t block)
    : kernels_(kernels), block_(std::max<std::int64_t>(block, 1)) {
  const std::int64_t mr = kernels.mr, all = (rows + mr - 1) / mr * mr;
  strip_rows_ = std::max(mr, std::min(kStripFloats / block_ / mr * mr, all));
  group_rows_ = std::max(strip_rows_, std::min(kGroupSlivers * mr / strip_rows_ * strip_rows_, all));
  floats_ = (group_rows_ / mr + 1) * std::max(mr * line_room(), sliver());
}

void LeftStrips::bind(float* memory, const Panel& panel, const Gather* gather, std::int64_t batch,
                      std::int64_t first, std::int64_t rows, bool once) {
  memory_ = memory, panel_ = panel, gather_ = gather, batch_ = batch, first_ = first, rows_ = rows;
  const std::int64_t stride = panel.depth_stride == 1 ? panel.line_stride : panel.depth_stride;
  near_ = !gather && panel.store == Store::f32 && (once || stride <= kNearLine);
}

void LeftStrips::take_in_place(StripArgs& strip, std::int64_t i) const {
  strip.a = static_cast<const float*>(
      shifted(panel_, (first_ + i) * panel_.line_stride + k_ * panel_.depth_stride));
  strip.a_row = panel_.line_stride, strip.a_depth = panel_.depth_stride;
  strip.a_tile = kernels_.mr * panel_.line_stride;
}

void LeftStrips::take(StripArgs& strip, std::int64_t i) {
  strip.rows = std::min(strip_rows_, rows_ - i);
  if (near_) return take_in_place(strip, i);
  Panel part = panel_;
  if (!gather_) part.data = shifted(panel_, (first_ + i) * panel_.line_stride + k_ * panel_.depth_stride);
  if (!gather_ && panel_.depth_stride == 1) {
    kernels_.pack_rows(memory_, line_room(), part, strip.rows, depth_);
    strip.a = memory_;
    strip.a_row = line_room(), strip.a_depth = 1, strip.a_tile = kernels_.mr * line_room();
    return;
  }
  if (i % group_rows_ == 0 && depth_ > 0) {
    const std::int64_t lines = std::min(group_rows_, rows_ - i);
    if (gather_)
      gather_->pack(gather_->self, memory_, kernels_.mr, sliver(), batch_, first_ + i, lines, k_, depth_);
    else
      kernels_.pack_interleaved(memory_, kernels_.mr, sliver(), part, lines, depth_);
  }
  strip.a = memory_ + i % group_rows_ / kernels_.mr * sliver();
  strip.a_row = 1, strip.a_depth = kernels_.mr, strip.a_tile = sliver();
}

void LeftStrips::fetch_ahead(std::int64_t i, std::int64_t step, std::int64_t steps) const {
  if (gather_ || near_) return;
  const bool along_k = panel_.depth_stride == 1;
  const std::int64_t unit = along_k ? strip_rows_ : group_rows_;
  const std::int64_t first = i / unit * unit + unit, lines = std::min(unit, rows_ - first);
  if (lines <= 0) return;
  // `runs` stretches of memory, each `bytes` long
  const std::int64_t runs = along_k ? lines : depth_, size = panel_.store == Store::f32 ? 4 : 2;
  const std::int64_t bytes = (along_k ? depth_ : lines) * size;
  const std::int64_t stride = (along_k ? panel_.line_stride : panel_.depth_stride) * size;
  const std::int64_t all_steps = steps * (unit / strip_rows_),
                     at_step = i % unit / strip_rows_ * steps + step;
  const char* base = static_cast<const char*>(
      shifted(panel_, (first_ + first) * panel_.line_stride + k_ * panel_.depth_stride));
  for (std::int64_t run = runs * at_step / all_steps; run < runs * (at_step + 1) / all_steps; ++run)
    for (std::int64_t byte = 0; byte < bytes; byte += 64)
      __builtin_prefetch(base + run * stride + byte, 0, 2);
}

}  // namespace danceflux::cpu
