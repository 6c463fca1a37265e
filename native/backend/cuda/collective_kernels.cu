// What a communicator computes itself.
#include "backend/cuda/collective.h"

namespace danceflux::cuda {
namespace {

constexpr int kThreads = 256;
/// Levels of the tree: enough for 2^24 ranks.
constexpr int kLevels = 24;

// Sums of 1, 2, 4, ... neighbours wait on a stack for one of their size, as the digits of a binary counter
// do; those left at the end join from the smallest up.
__global__ void tree_sum(float* out, const float* parts, std::int64_t count, int ranks) {
  const std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= count) return;
  float waiting[kLevels];
  int depth = 0;
  for (int rank = 0; rank < ranks; ++rank) {
    float sum = parts[rank * count + i];
    for (int pending = rank; pending & 1; pending >>= 1) sum = waiting[--depth] + sum;
    waiting[depth++] = sum;
  }
  float whole = waiting[--depth];
  while (depth > 0) whole = waiting[--depth] + whole;
  out[i] = whole;
}

template <class T>
__global__ void round_elements(T* out, const float* x, std::int64_t count) {
  const std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i < count) out[i] = narrow_to<T>(x[i]);
}

}  // namespace

void sum_parts(cudaStream_t stream, float* out, const float* parts, std::int64_t count, int ranks) {
  start_kernel(stream, {.x = blocks_for(count, kThreads), .threads = kThreads}, tree_sum, out, parts, count,
               ranks);
}

void round_to(cudaStream_t stream, void* out, DType dtype, const float* x, std::int64_t count) {
  with_stored("collective", dtype, [&](auto type) {
    using T = decltype(type);
    start_kernel(stream, {.x = blocks_for(count, kThreads), .threads = kThreads}, round_elements<T>,
                 static_cast<T*>(out), x, count);
  });
}

}  // namespace danceflux::cuda
