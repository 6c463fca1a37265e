// The insides of the stand-in for libcudnn.so.9: descriptors, tensors in memory, and what does an operation.
#pragma once
#include <cstdint>
#include <cstring>
#include <map>
#include <vector>

#include "backend/cuda/formulas.h"
#include "fake_cudnn_controls.h"
#include "stand_in/cudnn.h"

namespace fake {

struct Descriptor {
  cudnnBackendDescriptorType_t type;
  std::map<int, std::vector<char>> values;
  bool final = false;
  std::int64_t engine = -1;  // of configurations and engines
  const Descriptor* graph = nullptr;

  bool has(int name) const { return values.count(name) != 0; }
  template <class T>
  std::vector<T> list(int name) const {
    const auto found = values.find(name);
    if (found == values.end()) return {};
    std::vector<T> result(found->second.size() / sizeof(T));
    std::memcpy(result.data(), found->second.data(), result.size() * sizeof(T));
    return result;
  }
  template <class T>
  T one(int name) const {
    const auto all = list<T>(name);
    return all.empty() ? T{} : all[0];
  }
  const Descriptor* of(int name) const { return one<const Descriptor*>(name); }
  // of tensors
  std::int64_t id() const { return one<std::int64_t>(CUDNN_ATTR_TENSOR_UNIQUE_ID); }
  std::vector<std::int64_t> dims() const { return list<std::int64_t>(CUDNN_ATTR_TENSOR_DIMENSIONS); }
  cudnnDataType_t dtype() const { return one<cudnnDataType_t>(CUDNN_ATTR_TENSOR_DATA_TYPE); }
  bool between() const { return one<char>(CUDNN_ATTR_TENSOR_IS_VIRTUAL) != 0; }
  bool by_value() const { return one<char>(CUDNN_ATTR_TENSOR_IS_BY_VALUE) != 0; }
};

inline std::int64_t bytes_of(cudnnDataType_t type) { return type == CUDNN_DATA_FLOAT ? 4 : 2; }

/// A tensor with its memory.
struct View {
  std::vector<std::int64_t> dims, strides;
  cudnnDataType_t type = CUDNN_DATA_FLOAT;
  void* base = nullptr;
  float factor = 1;  // of what is written

  std::int64_t at(std::int64_t a, std::int64_t b, std::int64_t c, std::int64_t d) const {
    return a * strides[0] + b * strides[1] + c * strides[2] + d * strides[3];
  }
  float read(std::int64_t i) const {
    if (type == CUDNN_DATA_FLOAT) return static_cast<const float*>(base)[i];
    if (type == CUDNN_DATA_HALF)
      return danceflux::cuda::widen(static_cast<const danceflux::cuda::F16*>(base)[i]);
    return danceflux::cuda::widen(static_cast<const danceflux::cuda::Bf16*>(base)[i]);
  }
  void write(std::int64_t i, float value) const {
    value *= factor;
    if (type == CUDNN_DATA_FLOAT) {
      static_cast<float*>(base)[i] = value;
    } else if (type == CUDNN_DATA_HALF) {
      static_cast<danceflux::cuda::F16*>(base)[i] = danceflux::cuda::narrow_to<danceflux::cuda::F16>(value);
    } else {
      static_cast<danceflux::cuda::Bf16*>(base)[i] = danceflux::cuda::narrow_to<danceflux::cuda::Bf16>(value);
    }
  }
  float get(std::int64_t a, std::int64_t b, std::int64_t c, std::int64_t d) const {
    return read(at(a, b, c, d));
  }
  void put(std::int64_t a, std::int64_t b, std::int64_t c, std::int64_t d, float value) const {
    write(at(a, b, c, d), value);
  }
  /// body(a, b, c, d) for every element.
  template <class Body>
  void each(const Body& body) const {
    for (std::int64_t a = 0; a < dims[0]; ++a)
      for (std::int64_t b = 0; b < dims[1]; ++b)
        for (std::int64_t c = 0; c < dims[2]; ++c)
          for (std::int64_t d = 0; d < dims[3]; ++d) body(a, b, c, d);
  }
};

/// Where the tensors of a graph are while it runs; those between operations get memory here.
struct Memory {
  std::map<std::int64_t, void*> pointers;
  std::map<std::int64_t, std::vector<char>> between;
  float factor = 1;

  View view(const Descriptor& tensor);
};

struct Run {
  const Descriptor& operation;
  Memory& memory;

  bool bound(int role) const { return operation.of(role) != nullptr; }
  View view(int role) const { return memory.view(*operation.of(role)); }
  float scalar(int role) const { return bound(role) ? view(role).read(0) : 1.0f; }
};

using Operation = void (*)(const Run&);
/// What does an operation of this type alone; null: none.
Operation large_operation(cudnnBackendDescriptorType_t type);
/// What does one that graphs are made of.
Operation small_operation(cudnnBackendDescriptorType_t type);
/// The tensors that an operation reads and writes.
struct Traffic {
  std::vector<const Descriptor*> reads, writes;
};
Traffic traffic_of(const Descriptor& operation);
/// What is wrong with a descriptor as it is, or that nothing is.
cudnnStatus_t check(const Descriptor& descriptor);

}  // namespace fake
