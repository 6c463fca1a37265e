// Matrix products on all threads: C = alpha A B (+ C) (+ bias), batched, in any layout.
//
// M rows of A and C, N columns of B and C, K depth. Each task owns a rectangle of C and walks all of K
// itself, packing what it needs into its worker's memory; so there is one fork and one join per product and
// nothing to wait for in between. Which rectangles are cut has no influence on the bits (see gemm_kernels.h).
#pragma once
#include <cstdint>

#include "backend/cpu/left_strips.h"
#include "backend/cpu/panel.h"
#include "backend/cpu/parallel.h"
#include "backend/cpu/scratch.h"

namespace danceflux::cpu {

struct Operand {
  Panel panel{};
  std::int64_t batch_stride[2] = {0, 0};  // in elements; zero where broadcast
  const Gather* gather = nullptr;         // instead of the panel
};

/// Called with each strip of rows of C once it is complete and still in the cache. When the product has no c,
/// this is where it goes.
struct Finish {
  void (*call)(const void* self, float* c, std::int64_t c_row, std::int64_t batch, std::int64_t first_row,
               std::int64_t rows, std::int64_t first_column, std::int64_t columns);
  const void* self;
};

struct Product {
  std::int64_t rows = 0, columns = 0, depth = 0;
  std::int64_t batch[2] = {1, 1};
  Operand a, b;  // lines of a are rows of C, lines of b are columns of C
  float* c = nullptr;
  std::int64_t c_row = 0, c_column = 1, c_batch[2] = {0, 0};
  float alpha = 1;
  bool accumulate = false;
  const float* column_bias = nullptr;
  const float* row_bias = nullptr;
  const Finish* finish = nullptr;
};

/// How K is cut: a function of K alone.
struct DepthBlocks {
  explicit DepthBlocks(std::int64_t depth);
  std::int64_t size, count;
};

void multiply(const Product& product, ThreadPool& threads, Workspace& workspace);

}  // namespace danceflux::cpu
