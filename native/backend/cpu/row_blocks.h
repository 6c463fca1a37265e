// Sums over rows that many threads share: rows are cut into blocks of fixed length, each block leaves a row
// of partial sums, and the partial rows are added in order. The cuts depend on nothing but the number of
// rows.
#pragma once
#include "backend/cpu/strided.h"

namespace danceflux::cpu {

constexpr std::int64_t kRowsPerBlock = 32;
/// Elements of a dense row whose sum is one piece of the row's.
constexpr std::int64_t kRowPiece = 4096;

inline std::int64_t block_count(std::int64_t rows) { return (rows + kRowsPerBlock - 1) / kRowsPerBlock; }

/// out[j] = sum of partial[i * step + j] over i < blocks, in order, in f64; j < width.
inline void combine_blocks(float* out, const float* partial, std::int64_t step, std::int64_t blocks,
                           std::int64_t width) {
  constexpr std::int64_t kColumns = 128;
  for (std::int64_t begin = 0; begin < width; begin += kColumns) {
    const std::int64_t n = std::min(kColumns, width - begin);
    double sum[kColumns] = {};
    for (std::int64_t i = 0; i < blocks; ++i) {
      for (std::int64_t j = 0; j < n; ++j) sum[j] += static_cast<double>(partial[i * step + begin + j]);
    }
    for (std::int64_t j = 0; j < n; ++j) out[begin + j] = static_cast<float>(sum[j]);
  }
}

}  // namespace danceflux::cpu
