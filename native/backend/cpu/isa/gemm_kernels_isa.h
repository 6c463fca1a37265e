// The packing functions of this instruction set, for its table.
#pragma once
#include "backend/cpu/panel.h"
#include "backend/cpu/patches.h"

namespace danceflux::cpu::DANCEFLUX_ISA_NAMESPACE {

void pack_interleaved(float* to, int width, std::int64_t sliver, const Panel& panel, std::int64_t lines,
                      std::int64_t depth);
void pack_rows(float* to, std::int64_t to_line, const Panel& panel, std::int64_t lines, std::int64_t depth);
void pack_pixels(float* to, std::int64_t sliver, const Patches& patches, std::int64_t first_pixel,
                 std::int64_t pixels, std::int64_t first_tap, std::int64_t taps);
void pack_taps(float* to, std::int64_t sliver, const Patches& patches, std::int64_t first_tap,
               std::int64_t taps, std::int64_t first_pixel, std::int64_t pixels);
void copy_planes(float* to, std::int64_t plane, const Patches& patches, std::int64_t first_channel,
                 std::int64_t channels, std::int64_t first_row, std::int64_t rows);

}  // namespace danceflux::cpu::DANCEFLUX_ISA_NAMESPACE
