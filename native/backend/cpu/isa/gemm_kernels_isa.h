// The packing functions of this instruction set, for its table.
#pragma once
#include "backend/cpu/panel.h"

namespace danceflux::cpu::DANCEFLUX_ISA_NAMESPACE {

void pack_interleaved(float* to, int width, const Panel& panel, std::int64_t lines, std::int64_t depth);
void pack_rows(float* to, std::int64_t to_line, const Panel& panel, std::int64_t lines, std::int64_t depth);

}  // namespace danceflux::cpu::DANCEFLUX_ISA_NAMESPACE
