// Tensors with known contents on every CPU kernel set, and plain loops in double to compare with.
#pragma once
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/isa_select.h"
#include "harness.h"

namespace danceflux::test {

/// The kernel sets that this machine can run.
inline std::vector<std::string> isas() {
  std::vector<std::string> names;
  for (const cpu::IsaKernels& isa : cpu::available_isas()) names.push_back(isa.name);
  return names;
}

inline std::shared_ptr<Backend> cpu_backend(const std::string& isa = "", int threads = 2) {
  return cpu::open_cpu({.threads = threads, .isa = isa});
}

/// A small reproducible stream of numbers in (-1, 1).
class Numbers {
 public:
  explicit Numbers(std::uint64_t seed) : state_(seed * 2654435761u + 88172645463325252u) {}
  float next() {
    state_ ^= state_ << 13, state_ ^= state_ >> 7, state_ ^= state_ << 17;
    return static_cast<float>(static_cast<std::int64_t>(state_ >> 11)) * 0x1p-52f - 1.0f;
  }
  std::vector<float> take(std::int64_t count) {
    std::vector<float> values(static_cast<std::size_t>(count));
    for (float& value : values) value = next();
    return values;
  }

 private:
  std::uint64_t state_;
};

inline Tensor upload(Backend& backend, const Shape& shape, const std::vector<float>& values,
                     DType dtype = DType::f32) {
  Tensor tensor = backend.empty(shape, dtype);
  std::vector<unsigned char> raw(tensor.bytes() + 1);
  convert_elements(raw.data(), dtype, values.data(), DType::f32, values.size());
  backend.upload(tensor, raw.data());
  return tensor;
}

inline Tensor random_tensor(Backend& backend, const Shape& shape, std::uint64_t seed,
                            DType dtype = DType::f32) {
  return upload(backend, shape, Numbers(seed).take(shape.numel()), dtype);
}

inline std::int64_t offset_of(const Tensor& tensor, std::initializer_list<std::int64_t> index) {
  std::int64_t offset = 0;
  int axis = 0;
  for (std::int64_t i : index) offset += i * tensor.strides()[axis++];
  return offset;
}

/// One element, widened. The CPU's device memory is ours to read.
inline double element(const Tensor& tensor, std::initializer_list<std::int64_t> index) {
  const std::int64_t at = offset_of(tensor, index);
  if (tensor.dtype() == DType::f32) return tensor.data<float>()[at];
  float value = 0;
  convert_elements(
      &value, DType::f32,
      static_cast<const char*>(tensor.address()) + at * static_cast<std::int64_t>(size_of(tensor.dtype())),
      tensor.dtype(), 1);
  return value;
}

/// A matrix in row-major order.
inline std::vector<double> widened(const Tensor& matrix) {
  std::vector<double> values;
  values.reserve(static_cast<std::size_t>(matrix.numel()));
  const std::int64_t row = matrix.strides()[0], column = matrix.strides()[1];
  const auto read = [&](std::int64_t at) -> double {
    if (matrix.dtype() == DType::f32) return matrix.data<float>()[at];
    const std::uint16_t bits = matrix.data<std::uint16_t>()[at];
    return matrix.dtype() == DType::bf16 ? bf16_to_f32(bits) : f16_to_f32(bits);
  };
  for (std::int64_t i = 0; i < matrix.dim(0); ++i)
    for (std::int64_t j = 0; j < matrix.dim(1); ++j) values.push_back(read(i * row + j * column));
  return values;
}

inline std::vector<float> values_of(Backend& backend, const Tensor& tensor) {
  std::vector<float> values(static_cast<std::size_t>(tensor.numel()) + 1);
  backend.download(values.data(), tensor);
  values.pop_back();
  return values;
}

inline bool same_bits(const float* a, const float* b, std::int64_t count) {
  return count == 0 || std::memcmp(a, b, static_cast<std::size_t>(count) * sizeof(float)) == 0;
}
inline bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && same_bits(a.data(), b.data(), static_cast<std::int64_t>(a.size()));
}

}  // namespace danceflux::test
