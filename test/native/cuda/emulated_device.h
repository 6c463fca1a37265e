// Blocks, warps and barriers on the host, so that kernels (native/backend/cuda/*.cu, compiled as plain C++)
// run where there is no GPU: under sanitizers, against the op table. One block at a time; its threads are
// fibers, and each warp runs alone to the next barrier of the block, in an order that differs from launch to
// launch, so that a missing barrier changes bits.
//
// Stricter than the hardware: a barrier that only some threads of a block reach, or a shuffle that only some
// lanes of a warp reach, fails, shared memory begins as NaN, and a copy in the background arrives no sooner
// than it is waited for.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

#include "stand_in/cuda_runtime_api.h"

namespace emulated {

struct Index {
  unsigned x = 0, y = 0, z = 0;
};
struct Place {
  Index thread, block, block_size, grid_size;
};
/// Where the running fiber is.
extern thread_local Place place;

/// body() once per thread of every block. Throws what a body threw, and std::logic_error for barriers that do
/// not meet.
void run(unsigned x, unsigned y, unsigned z, unsigned threads, std::size_t shared_bytes,
         const std::function<void()>& body);
unsigned char* dynamic_shared();
void block_barrier();
void warp_barrier();
/// The value that lane `from` of this warp brings to the same call.
std::uint64_t exchange(std::uint64_t value, unsigned from);
/// As mma.m16n8k16 with bf16 inputs; products summed in f32, K ascending.
void mma_bf16(float (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1);
/// As ldmatrix.x4, `turned` with .trans. Throws std::logic_error for a row that does not begin at 16 bytes.
void load_matrices(std::uint32_t (&out)[4], const void* row, bool turned);
/// As cp.async and its wait_all. Throws std::logic_error for addresses that are not multiples of `bytes`.
void copy_async(void* to, const void* from, unsigned bytes, bool inside);
void wait_for_copies();

/// Launches, and tensor-core products of a warp, so far, of all threads of the process.
std::uint64_t launches();
std::uint64_t products();

template <class T>
T exchanged(T value, unsigned from) {
  static_assert(sizeof(T) <= 8);
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = exchange(bits, from);
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace emulated

// ---- the words of the language
// --------------------------------------------------------------------------------------
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __shared__ static thread_local
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define threadIdx (emulated::place.thread)
#define blockIdx (emulated::place.block)
#define blockDim (emulated::place.block_size)
#define gridDim (emulated::place.grid_size)

inline void __syncthreads() { emulated::block_barrier(); }
inline void __syncwarp() { emulated::warp_barrier(); }
template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return emulated::exchanged(value, (threadIdx.x % 32) ^ static_cast<unsigned>(mask));
}
template <class T>
T __shfl_sync(unsigned, T value, int lane) {
  return emulated::exchanged(value, static_cast<unsigned>(lane) % 32);
}
