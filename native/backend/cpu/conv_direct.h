// Convolutions of stride 1 without gathering: a task copies the part of the image that it needs, zeros around
// it where the image ends, and the register tile reads every tap from there at its offset. The sums are those
// of the gathered product, bit for bit.
//
// C channels, O outputs, h x w pixels, kh x kw taps.
#pragma once
#include <cstdint>

#include "backend/cpu/gemm.h"
#include "backend/cpu/patches.h"

namespace danceflux::cpu {

struct DirectConv {
  std::int64_t images, channels, outputs, pixel_rows;
  Patches patches;  // of the first image; stride 1
  std::int64_t image_stride;
  // weights: lines are outputs, depth runs over (c, r, s)
  Panel weights;
  const Gather* gather = nullptr;  // instead of the panel
  float* out = nullptr;            // [images, outputs, pixel_rows, pixel_columns]
  const float* bias = nullptr;     // one per output, or null
};

/// Whether that is worth it, and possible.
bool goes_direct(const Patches& patches, std::int64_t channels);

void convolve(const DirectConv& conv, ThreadPool& threads, Workspace& workspace);

}  // namespace danceflux::cpu
