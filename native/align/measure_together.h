// Pairs of tensors measured by several threads. The parts do not depend on the machine and come together in
// order, so neither does the result.
#pragma once
#include <cstdint>
#include <string>

#include "align/measure.h"

namespace danceflux::align {

/// Elements that one thread measures at once.
inline constexpr std::size_t kPart = 1 << 18;

/// As PairMeasure::add(), by several threads when there are many elements.
void add_together(PairMeasure& pair, const void* a, DType a_dtype, const void* b, DType b_dtype,
                  std::size_t elements);

/// Elements in row-major order that lie in a file.
struct StoredElements {
  std::string path;
  std::uint64_t offset = 0;  // bytes
  DType dtype = DType::f32;
};

/// The distance of two tensors of `elements` elements. Each thread reads what it measures, in pieces that
/// stay in its cache, so memory does not grow with the tensors. Throws ERR_FILE.
PairMeasure measure_stored(const StoredElements& a, const StoredElements& b, std::uint64_t elements);

}  // namespace danceflux::align
