// The emulated device itself: that it runs what kernels say, and that it catches what a GPU would not tell.
#include <stdexcept>
#include <vector>

#include "backend/cuda/formulas.h"
#include "core/dtype.h"
#include "cuda/emulated_device.h"
#include "harness.h"

namespace danceflux::test {
namespace {

using cuda::Bf16;
using cuda::F16;

std::string message_of_run(const std::function<void()>& body, unsigned threads = 64) {
  try {
    emulated::run(1, 1, 1, threads, 0, body);
  } catch (const std::logic_error& error) {
    return error.what();
  }
  return "";
}

}  // namespace

TEST("emulated device: every thread of every block runs once, shuffles and barriers meet") {
  std::vector<int> seen(2 * 3 * 96), sums(2 * 3 * 96);
  emulated::run(2, 3, 1, 96, 0, [&] {
    const unsigned i = (blockIdx.y * gridDim.x + blockIdx.x) * blockDim.x + threadIdx.x;
    ++seen[i];
    int value = static_cast<int>(threadIdx.x);
    for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(~0u, value, step);
    __syncthreads();
    sums[i] = value;
  });
  for (std::size_t i = 0; i < seen.size(); ++i) {
    CHECK_EQ(seen[i], 1);
    const int warp = static_cast<int>(i % 96 / 32);
    CHECK_EQ(sums[i], 32 * 32 * warp + 31 * 16);
  }
}

TEST("emulated device: a missing barrier shows") {
  std::vector<int> results[3];
  for (std::vector<int>& result : results) {
    result.resize(64);
    std::vector<int> shared(64, -1);
    emulated::run(1, 1, 1, 64, 0, [&] {
      shared[threadIdx.x] = static_cast<int>(threadIdx.x);
      result[threadIdx.x] = shared[(threadIdx.x + 7) % 64];
    });
  }
  CHECK(results[0] != results[1] || results[1] != results[2]);
}

TEST("emulated device: a warp runs ahead of the others where no barrier of the block holds it") {
  for (int launch = 0; launch < 2; ++launch) {
    std::vector<int> shared(64, -1), seen(64);
    emulated::run(1, 1, 1, 64, 0, [&] {
      shared[threadIdx.x] = 1;
      __syncwarp();  // which both warps reach, and which is not enough
      seen[threadIdx.x] = shared[(threadIdx.x + 32) % 64];
    });
    CHECK(seen[0] != seen[32]);
  }
}

TEST("emulated device: barriers that do not meet are an error") {
  CHECK(message_of_run([] {
          if (threadIdx.x < 32) __syncthreads();
        }).find("a barrier that only some threads reach: 32 of 64") != std::string::npos);
  CHECK(!message_of_run([] {
           if (threadIdx.x % 2) __shfl_sync(~0u, 1, 0);
         }).empty());
  CHECK(!message_of_run([] {}, 2048).empty());
  CHECK(message_of_run([] { __syncthreads(); }).empty());
}

TEST("emulated device: more shared memory than the smallest card has is an error") {
  emulated::run(1, 1, 1, 1, 99 * 1024, [] {});
  bool refused = false;
  try {
    emulated::run(1, 1, 1, 1, 99 * 1024 + 1, [] {});
  } catch (const std::logic_error&) {
    refused = true;
  }
  CHECK(refused);
}

TEST("emulated device: the tensor-core product has the layout that device_code.h tells") {
  float a[16][16], b[16][8], wanted[16][8] = {}, got[16][8];
  for (int i = 0; i < 16; ++i)
    for (int k = 0; k < 16; ++k) a[i][k] = static_cast<float>((i * 5 + k * 3) % 11 - 5);
  for (int k = 0; k < 16; ++k)
    for (int j = 0; j < 8; ++j) b[k][j] = static_cast<float>((k * 7 + j * 2) % 13 - 6);
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 8; ++j)
      for (int k = 0; k < 16; ++k) wanted[i][j] += a[i][k] * b[k][j];
  const auto two = [](float low, float high) {
    return std::uint32_t{f32_to_bf16(low)} | std::uint32_t{f32_to_bf16(high)} << 16;
  };
  emulated::run(1, 1, 1, 32, 0, [&] {
    const unsigned group = threadIdx.x / 4, pair = threadIdx.x % 4 * 2;
    const std::uint32_t left[4] = {
        two(a[group][pair], a[group][pair + 1]), two(a[group + 8][pair], a[group + 8][pair + 1]),
        two(a[group][pair + 8], a[group][pair + 9]), two(a[group + 8][pair + 8], a[group + 8][pair + 9])};
    float d[4] = {};
    emulated::mma_bf16(d, left, two(b[pair][group], b[pair + 1][group]),
                       two(b[pair + 8][group], b[pair + 9][group]));
    for (unsigned i = 0; i < 4; ++i) got[group + i / 2 * 8][pair + i % 2] = d[i];
  });
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 8; ++j) CHECK_EQ(got[i][j], wanted[i][j]);
}

TEST("emulated device: matrices come as device_code.h tells, as they lie and turned") {
  alignas(16) std::uint16_t memory[32][24];  // the sixteen bytes between two rows are no part of a matrix
  for (unsigned row = 0; row < 32; ++row)
    for (unsigned column = 0; column < 24; ++column)
      memory[row][column] = static_cast<std::uint16_t>(row * 100 + column);
  std::uint32_t lying[32][4], turned[32][4];
  emulated::run(1, 1, 1, 32, 0, [&] {
    emulated::load_matrices(lying[threadIdx.x], &memory[threadIdx.x][8], false);
    emulated::load_matrices(turned[threadIdx.x], &memory[threadIdx.x][8], true);
  });
  for (unsigned lane = 0; lane < 32; ++lane)
    for (unsigned m = 0; m < 4; ++m)
      for (unsigned i = 0; i < 2; ++i) {
        const unsigned group = lane / 4, pair = lane % 4 * 2 + i;
        CHECK_EQ(lying[lane][m] >> 16 * i & 0xffffu, (m * 8 + group) * 100 + 8 + pair);
        CHECK_EQ(turned[lane][m] >> 16 * i & 0xffffu, (m * 8 + pair) * 100 + 8 + group);
      }
  CHECK(!message_of_run([&] {
           std::uint32_t out[4];
           emulated::load_matrices(out, &memory[threadIdx.x % 32][4], false);
         }).empty());
}

TEST("emulated device: a copy in the background arrives when it is waited for") {
  alignas(16) const float from[4] = {1, 2, 3, 4};
  alignas(16) float to[8] = {-1, -1, -1, -1, -1, -1, -1, -1};
  emulated::run(1, 1, 1, 1, 0, [&] {
    emulated::copy_async(to, from, 16, true);
    emulated::copy_async(to + 4, from, 4, false);
    CHECK_EQ(to[0], -1.0f);
    emulated::wait_for_copies();
    CHECK_EQ(to[3], 4.0f);
    CHECK_EQ(to[4], 0.0f);
    CHECK_EQ(to[5], -1.0f);
  });
  CHECK(!message_of_run([&] { emulated::copy_async(to + 1, from, 16, true); }).empty());
}

TEST("cuda: conversions of storage types are the engine's, bit for bit") {
  for (std::uint32_t bits = 0; bits < 65536; ++bits) {
    const auto half = static_cast<std::uint16_t>(bits);
    const float from_bf16 = cuda::widen(Bf16{half}), from_f16 = cuda::widen(F16{half});
    CHECK_EQ(cuda::bits_of_float(from_bf16), cuda::bits_of_float(bf16_to_f32(half)));
    if (!std::isnan(from_f16))
      CHECK_EQ(cuda::bits_of_float(from_f16), cuda::bits_of_float(f16_to_f32(half)));
    else
      CHECK(std::isnan(f16_to_f32(half)));
  }
  // Every exponent, and mantissas around each rounding boundary.
  for (std::uint32_t high = 0; high < 65536; high += 7) {
    for (const std::uint32_t low : {0u, 1u, 0x0fffu, 0x1000u, 0x1001u, 0x7fffu, 0x8000u, 0x8001u, 0xffffu}) {
      const float value = cuda::float_of_bits(high << 16 | low);
      CHECK_EQ(cuda::narrow_to<Bf16>(value).bits, f32_to_bf16(value));
      if (!std::isnan(value)) CHECK_EQ(cuda::narrow_to<F16>(value).bits, f32_to_f16(value));
    }
  }
}

}  // namespace danceflux::test
