// PyTorch's CPU generator, bit for bit (AVX2 builds of 2.13), for comparing with PyTorch runs.
#pragma once
#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace danceflux {

/// torch.Generator("cpu"): mt19937 seeded by the low 32 bits.
class TorchGenerator {
 public:
  explicit TorchGenerator(std::uint64_t seed);
  /// torch.randn(out.size()): below 16 elements serial double precision with a cached second value, from 16
  /// on in groups.
  void randn(std::span<float> out);
  void randn(std::span<double> out);
  /// torch.randperm(n), n < 2^31.
  std::vector<std::int32_t> randperm(std::int32_t n);

 private:
  std::uint32_t random();
  std::uint64_t random64();
  double serial_normal();

  std::array<std::uint32_t, 624> state_{};
  std::size_t position_ = 624;
  std::optional<double> cached_normal_;
};

}  // namespace danceflux
