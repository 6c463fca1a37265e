#include "ascend_double/ops/gemm.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "ascend_double/ops/dense.h"

namespace ascend_double {
namespace {

constexpr std::int64_t kRows = 4, kColumns = 8;  // of a tile that is held in registers
constexpr std::int64_t kRowBlock = 64, kColumnBlock = 256, kDepth = 256;  // of what is packed at a time

// On opening, before anybody can change the environment: as the operator library does it.
const bool k_shift_closed = [] {
  const char* value = std::getenv("CLOSE_MATMUL_K_SHIFT");
  return value && std::strcmp(value, "1") == 0;
}();

// Strips of kRows rows: for each k, kRows values side by side.
void pack(const float* from, std::int64_t lane_stride, std::int64_t k_stride, std::int64_t lanes,
          std::int64_t depth, std::int64_t width, float* to) {
  for (std::int64_t first = 0; first < lanes; first += width, to += width * depth) {
    const std::int64_t filled = std::min(width, lanes - first);
    const float* strip = from + first * lane_stride;
    for (std::int64_t k = 0; k < depth; ++k) {
      for (std::int64_t lane = 0; lane < filled; ++lane)
        to[k * width + lane] = strip[lane * lane_stride + k * k_stride];
      for (std::int64_t lane = filled; lane < width; ++lane) to[k * width + lane] = 0;
    }
  }
}

using Lanes = float __attribute__((vector_size(16)));

inline Lanes lanes_at(const float* at) {
  Lanes lanes;
  std::memcpy(&lanes, at, sizeof lanes);
  return lanes;
}

// tile [kRows, kColumns] += a strip times b strip, k in order.
void multiply(const float* a, const float* b, std::int64_t depth, float* tile) {
  Lanes sums[kRows][2];
  for (int row = 0; row < kRows; ++row)
    for (int half = 0; half < 2; ++half) sums[row][half] = lanes_at(tile + row * kColumns + half * 4);
  for (std::int64_t k = 0; k < depth; ++k, a += kRows, b += kColumns) {
    const Lanes left = lanes_at(b), right = lanes_at(b + 4);
    for (int row = 0; row < kRows; ++row) {
      const Lanes value = Lanes{} + a[row];
      sums[row][0] += value * left;
      sums[row][1] += value * right;
    }
  }
  std::memcpy(tile, sums, sizeof sums);
}

struct Block {
  std::int64_t row, rows, column, columns;
};

void add_product(const Block& block, std::int64_t k, std::int64_t depth, const Matrix& a, const Matrix& b,
                 float* c, std::int64_t n, std::vector<float>& a_packed, std::vector<float>& b_packed) {
  pack(a.data + block.row * a.row + k * a.column, a.row, a.column, block.rows, depth, kRows, a_packed.data());
  pack(b.data + block.column * b.column + k * b.row, b.column, b.row, block.columns, depth, kColumns,
       b_packed.data());
  for (std::int64_t j = 0; j < block.columns; j += kColumns)
    for (std::int64_t i = 0; i < block.rows; i += kRows) {
      float tile[kRows * kColumns] = {};
      const std::int64_t rows = std::min(kRows, block.rows - i),
                         columns = std::min(kColumns, block.columns - j);
      float* corner = c + (block.row + i) * n + block.column + j;
      for (std::int64_t row = 0; row < rows; ++row)
        std::memcpy(tile + row * kColumns, corner + row * n,
                    static_cast<std::size_t>(columns) * sizeof(float));
      multiply(a_packed.data() + i * depth, b_packed.data() + j * depth, depth, tile);
      for (std::int64_t row = 0; row < rows; ++row)
        std::memcpy(corner + row * n, tile + row * kColumns,
                    static_cast<std::size_t>(columns) * sizeof(float));
    }
}

}  // namespace

bool k_shift() { return !k_shift_closed; }

void gemm(std::int64_t m, std::int64_t n, std::int64_t k, const Matrix& a, const Matrix& b, float* c,
          bool accumulate, const KOrder& order) {
  if (!accumulate) std::fill(c, c + m * n, 0.0f);
  if (m == 0 || n == 0 || k == 0) return;
  const std::int64_t row_blocks = (m + kRowBlock - 1) / kRowBlock,
                     column_blocks = (n + kColumnBlock - 1) / kColumnBlock;
  const std::int64_t grain =
      std::max<std::int64_t>(1, 4'000'000 / (kRowBlock * std::min(n, kColumnBlock) * k));
  parallel(row_blocks * column_blocks, grain, [&](std::int64_t first, std::int64_t last) {
    std::vector<float> a_packed(kRowBlock * kDepth), b_packed(kColumnBlock * kDepth);
    for (std::int64_t at = first; at < last; ++at) {
      const std::int64_t row = at / column_blocks * kRowBlock, column = at % column_blocks * kColumnBlock;
      const Block block{row, std::min(kRowBlock, m - row), column, std::min(kColumnBlock, n - column)};
      std::int64_t start = order.shifted ? row / kRowBlock * 16 % k : 0;
      if (order.chance)
        start = static_cast<std::int64_t>((order.chance + static_cast<std::uint64_t>(row)) %
                                          static_cast<std::uint64_t>(k));
      const std::int64_t spans[2][2] = {{start, k}, {0, start}};
      for (const auto& span : spans)
        for (std::int64_t from = span[0]; from < span[1]; from += kDepth)
          add_product(block, from, std::min(kDepth, span[1] - from), a, b, c, n, a_packed, b_packed);
    }
  });
}

}  // namespace ascend_double
