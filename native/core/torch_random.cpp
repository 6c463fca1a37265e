#include "core/torch_random.h"

#include <bit>
#include <cmath>
#include <numbers>
#include <utility>

#include "core/error.h"

namespace danceflux {
namespace {

constexpr std::size_t kGroup = 16, kHalf = 8, kMiddle = 397;

float uniform24(std::uint32_t word) { return static_cast<float>(word & 0xffffffu) * 0x1p-24f; }
double uniform53(std::uint64_t word) {
  return static_cast<double>(word & ((std::uint64_t{1} << 53) - 1)) * 0x1p-53;
}

// The vectorised logarithm and sine that PyTorch's AVX2 kernel uses are the cephes polynomials in f32; its
// compiler contracts them into fused multiply-adds, spelled out here, because every bit counts.
float cephes_log(float x) {
  constexpr float p[] = {7.0376836292e-2f,  -1.1514610310e-1f, 1.1676998740e-1f,
                         -1.2420140846e-1f, 1.4249322787e-1f,  -1.6668057665e-1f,
                         2.0000714765e-1f,  -2.4999993993e-1f, 3.3333331174e-1f};
  const auto bits = std::bit_cast<std::uint32_t>(x);
  float e = static_cast<float>(static_cast<int>(bits >> 23) - 126);
  const float m = std::bit_cast<float>((bits & 0x007fffffu) | 0x3f000000u);
  if (m < 0.70710678f) {
    e -= 1;
    x = (m - 1) + m;
  } else {
    x = m - 1;
  }
  const float z = x * x;
  float y = p[0];
  for (int k = 1; k < 9; ++k) y = std::fma(y, x, p[k]);
  y = y * x;
  y = std::fma(y, z, e * -2.12194440e-4f);
  y = std::fma(z, -0.5f, y);
  x = x + y;
  return std::fma(e, 0.693359375f, x);
}

float with_flipped_sign(float value, std::uint32_t flip) {
  return std::bit_cast<float>(std::bit_cast<std::uint32_t>(value) ^ (flip ? 0x80000000u : 0u));
}

std::pair<float, float> cephes_sin_cos(float x) {
  const int octant = (static_cast<int>(x * 1.27323954473516f) + 1) & ~1;
  const auto y = static_cast<float>(octant);
  x = std::fma(y, -0.78515625f, x);
  x = std::fma(y, -2.4187564849853515625e-4f, x);
  x = std::fma(y, -3.77489497744594108e-8f, x);
  const float z = x * x;
  float c = 2.443315711809948e-5f;
  c = std::fma(c, z, -1.388731625493765e-3f);
  c = std::fma(c, z, 4.166664568298827e-2f);
  c = c * z;
  c = std::fma(c, z, -(z * 0.5f));
  c = c + 1;
  float s = -1.9515295891e-4f;
  s = std::fma(s, z, 8.3321608736e-3f);
  s = std::fma(s, z, -1.6666654611e-1f);
  s = s * z;
  s = std::fma(s, x, x);
  const bool swapped = (octant & 2) != 0;
  const float sine = with_flipped_sign(swapped ? c : s, static_cast<std::uint32_t>(octant) & 4u);
  const float cosine = with_flipped_sign(swapped ? s : c, ~static_cast<std::uint32_t>(octant - 2) & 4u);
  return {sine, cosine};
}

void transform_group(float* group) {
  for (std::size_t j = 0; j < kHalf; ++j) {
    const float radius = std::sqrt(-2.0f * cephes_log(1 - group[j]));
    const auto [sine, cosine] = cephes_sin_cos(6.2831855f * group[j + kHalf]);
    group[j] = radius * cosine;
    group[j + kHalf] = radius * sine;
  }
}

void transform_group(double* group) {
  for (std::size_t j = 0; j < kHalf; ++j) {
    const double radius = std::sqrt(-2 * std::log(1 - group[j]));
    const double angle = 2 * std::numbers::pi * group[j + kHalf];
    group[j] = radius * std::cos(angle);
    group[j + kHalf] = radius * std::sin(angle);
  }
}

// All uniforms first, then group by group; a remainder redraws the last 16 places.
template <class T, class Uniform>
void fill_groups(std::span<T> out, Uniform uniform) {
  for (T& value : out) value = uniform();
  for (std::size_t i = 0; i + kGroup <= out.size(); i += kGroup) transform_group(&out[i]);
  if (out.size() % kGroup == 0) return;
  T* tail = &out[out.size() - kGroup];
  for (std::size_t j = 0; j < kGroup; ++j) tail[j] = uniform();
  transform_group(tail);
}

}  // namespace

TorchGenerator::TorchGenerator(std::uint64_t seed) {
  state_[0] = static_cast<std::uint32_t>(seed);
  for (std::uint32_t i = 1; i < state_.size(); ++i) {
    state_[i] = 1812433253u * (state_[i - 1] ^ (state_[i - 1] >> 30)) + i;
  }
}

std::uint32_t TorchGenerator::random() {
  constexpr std::size_t n = 624;
  if (position_ == n) {
    for (std::size_t i = 0; i < n; ++i) {
      const std::uint32_t mixed = (state_[i] & 0x80000000u) | (state_[(i + 1) % n] & 0x7fffffffu);
      state_[i] = state_[(i + kMiddle) % n] ^ (mixed >> 1) ^ (mixed & 1u ? 0x9908b0dfu : 0u);
    }
    position_ = 0;
  }
  std::uint32_t word = state_[position_++];
  word ^= word >> 11;
  word ^= (word << 7) & 0x9d2c5680u;
  word ^= (word << 15) & 0xefc60000u;
  return word ^ (word >> 18);
}

std::uint64_t TorchGenerator::random64() {
  const std::uint64_t high = random();
  return high << 32 | random();
}

double TorchGenerator::serial_normal() {
  if (cached_normal_) return *std::exchange(cached_normal_, std::nullopt);
  const double u1 = uniform53(random64()), u2 = uniform53(random64());
  const double radius = std::sqrt(-2 * std::log1p(-u2)), angle = 2 * std::numbers::pi * u1;
  cached_normal_ = radius * std::sin(angle);
  return radius * std::cos(angle);
}

void TorchGenerator::randn(std::span<float> out) {
  if (out.size() >= kGroup) return fill_groups(out, [this] { return uniform24(random()); });
  for (float& value : out) value = static_cast<float>(serial_normal());
}

void TorchGenerator::randn(std::span<double> out) {
  if (out.size() >= kGroup) return fill_groups(out, [this] { return uniform53(random64()); });
  for (double& value : out) value = serial_normal();
}

std::vector<std::int32_t> TorchGenerator::randperm(std::int32_t n) {
  require(n >= 0, "ERR_ARGUMENT", "randperm: expected 0 or more, got ", n);
  std::vector<std::int32_t> order(static_cast<std::size_t>(n));
  for (std::int32_t i = 0; i < n; ++i) order[static_cast<std::size_t>(i)] = i;
  for (std::int32_t i = 0; i + 1 < n; ++i) {
    const auto swap = static_cast<std::size_t>(i) + random() % static_cast<std::uint32_t>(n - i);
    std::swap(order[static_cast<std::size_t>(i)], order[swap]);
  }
  return order;
}

}  // namespace danceflux
