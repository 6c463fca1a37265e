// What a kernel's source needs to be CUDA for nvcc and plain C++ for tests: with another compiler the same
// file is run by an emulation of blocks, warps and barriers on the host (test/native/cuda), under sanitizers
// and against the op table. So kernels keep to what stands here: thread and block numbers, shared memory,
// __syncthreads, shuffles of 32 lanes, copies in the background, and what feeds tensor cores.
#pragma once
#include <cstdint>

#include "backend/cuda/formulas.h"

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#define DF_DEVICE __device__ __forceinline__
#elif defined(DANCEFLUX_CUDA_EMULATED)
#include <emulated_device.h>
#include <emulated_stream.h>
#define DF_DEVICE inline
#else  // a source without kernels
#include <cuda_runtime_api.h>
#define DF_DEVICE inline
#define DF_NO_KERNELS
#endif

namespace danceflux::cuda {

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kWarp = 32;

/// How often a kernel runs: blocks of threads, with bytes of dynamic shared memory.
struct Grid {
  unsigned x = 1, y = 1, z = 1;
  unsigned threads = 256;
  std::size_t shared = 0;
};

#if defined(__CUDACC__)
/// Starts a kernel on `stream`; what goes wrong shows in cudaPeekAtLastError.
template <class... P, class... A>
void start_kernel(cudaStream_t stream, const Grid& grid, void (*kernel)(P...), const A&... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  if (grid.shared > 48 * 1024)
    cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                         static_cast<int>(grid.shared));
  kernel<<<dim3(grid.x, grid.y, grid.z), grid.threads, grid.shared, stream>>>(static_cast<P>(arguments)...);
}

DF_DEVICE unsigned char* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char danceflux_dynamic_shared[];
  return danceflux_dynamic_shared;
}

/// D += A B for one warp, A [16, 16] and B [16, 8] in bf16, D in f32, in the layout of mma.m16n8k16. With
/// group = lane / 4 and pair = lane % 4 a lane holds, two neighbours along K (or N, for D) to a register:
///   a[0]: row group, K 2 pair;  a[1]: row group + 8;  a[2], a[3]: the same rows, K 8 + 2 pair
///   b[0]: K 2 pair, column group;  b[1]: K 8 + 2 pair
///   d[0], d[1]: row group, columns 2 pair and 2 pair + 1;  d[2], d[3]: row group + 8
DF_DEVICE void mma_bf16(float (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

DF_DEVICE unsigned shared_address(const void* address) {
  return static_cast<unsigned>(__cvta_generic_to_shared(address));
}

/// Four matrices [8, 8] of 16 bits out of shared memory, for one warp: lane 8 m + r brings the address of row
/// r of matrix m, a multiple of 16 bytes, and out[m] holds row lane / 4, columns 2 pair and 2 pair + 1 of it.
DF_DEVICE void load_matrices(std::uint32_t (&out)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(shared_address(row))
               : "memory");
}
/// As load_matrices, each matrix transposed: out[m] holds rows 2 pair and 2 pair + 1, column lane / 4.
DF_DEVICE void load_matrices_turned(std::uint32_t (&out)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(shared_address(row))
               : "memory");
}

/// Begins to copy 4 or 16 bytes, aligned as long, into shared memory: zeros and no read where not `inside`.
/// They are there for this thread after wait_for_copies, for the block after a barrier then.
template <int kBytes>
DF_DEVICE void copy_async(void* to, const void* from, bool inside) {
  const unsigned read = inside ? kBytes : 0;
  if constexpr (kBytes == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared_address(to)), "l"(from),
                 "r"(read)
                 : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;\n" ::"r"(shared_address(to)), "l"(from),
                 "n"(kBytes), "r"(read)
                 : "memory");
}
DF_DEVICE void wait_for_copies() { asm volatile("cp.async.wait_all;\n" ::: "memory"); }
#elif !defined(DF_NO_KERNELS)
template <class... P, class... A>
void start_kernel(cudaStream_t stream, const Grid& grid, void (*kernel)(P...), const A&... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  emulated::put(stream, [=] {
    emulated::run(grid.x, grid.y, grid.z, grid.threads, grid.shared,
                  [&] { kernel(static_cast<P>(arguments)...); });
  });
}
inline unsigned char* dynamic_shared() { return emulated::dynamic_shared(); }
inline void mma_bf16(float (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
  emulated::mma_bf16(d, a, b0, b1);
}
inline void load_matrices(std::uint32_t (&out)[4], const void* row) {
  emulated::load_matrices(out, row, false);
}
inline void load_matrices_turned(std::uint32_t (&out)[4], const void* row) {
  emulated::load_matrices(out, row, true);
}
template <int kBytes>
void copy_async(void* to, const void* from, bool inside) {
  emulated::copy_async(to, from, kBytes, inside);
}
inline void wait_for_copies() { emulated::wait_for_copies(); }
#endif

#if !defined(DF_NO_KERNELS)
// ---- sums over a warp and a block, in one fixed order
// --------------------------------------------------------------
struct Sum {
  static DF_DEVICE float join(float a, float b) { return a + b; }
  static DF_DEVICE float none() { return 0.0f; }
};
struct Max {
  static DF_DEVICE float join(float a, float b) { return fmaxf(a, b); }
  static DF_DEVICE float none() { return -INFINITY; }
};

/// Every lane gets the whole.
template <class Fold>
DF_DEVICE float fold_warp(float value) {
  for (int step = kWarp / 2; step > 0; step /= 2)
    value = Fold::join(value, __shfl_xor_sync(kAllLanes, value, step));
  return value;
}

/// Every thread gets the whole; for blocks of a multiple of 32 threads, all of which must call. `parts` is
/// shared memory for 32 floats; it may be used again at once.
template <class Fold>
DF_DEVICE float fold_block(float value, float* parts) {
  const unsigned warps = blockDim.x / kWarp, warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  value = fold_warp<Fold>(value);
  if (warps == 1) return value;
  __syncthreads();
  if (lane == 0) parts[warp] = value;
  __syncthreads();
  value = lane < warps ? parts[lane] : Fold::none();
  return fold_warp<Fold>(value);
}
#endif

}  // namespace danceflux::cuda
