// C [M, N] = A [M, K] B [K, N], f32, any strides of A and B.
#pragma once
#include <cstdint>

namespace ascend_double {

struct Matrix {
  const float* data;
  std::int64_t row, column;  // strides in elements
};

/// Where the sum over K begins. The device staggers it from core to core unless CLOSE_MATMUL_K_SHIFT=1, so
/// that a row's bits depend on where it stands; without determinism it depends on chance as well.
struct KOrder {
  bool shifted = false;
  std::uint64_t chance = 0;
};

/// c [M, N] contiguous; added to when `accumulate`.
void gemm(std::int64_t m, std::int64_t n, std::int64_t k, const Matrix& a, const Matrix& b, float* c,
          bool accumulate, const KOrder& order = {});

/// CLOSE_MATMUL_K_SHIFT as it was when the library was opened.
bool k_shift();

}  // namespace ascend_double
