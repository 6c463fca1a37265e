// What tests of the CPU backend share: devices of every instruction set, tensors in awkward layouts, straight
// loops in double.
#pragma once
#include <cmath>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/isa_select.h"
#include "harness.h"

namespace danceflux::test {

inline std::vector<std::string> isa_names() {
  std::vector<std::string> names;
  for (const cpu::IsaKernels& isa : cpu::available_isas()) names.emplace_back(isa.name);
  return names;
}
inline std::shared_ptr<Backend> open_device(const std::string& isa, int threads = 2) {
  auto device = cpu::open_cpu({threads, isa});
  device->strict_shortcuts = true;
  return device;
}
/// body(device) on every instruction set of this machine; a failure names it.
inline void on_every_isa(const std::function<void(Backend&)>& body) {
  for (const std::string& isa : isa_names()) {
    try {
      body(*open_device(isa));
    } catch (const Failure& failure) {
      throw Failure(isa + ": " + failure.message);
    }
  }
}

/// Numbers that repeat from run to run.
class Numbers {
 public:
  explicit Numbers(std::uint64_t seed) : state_(seed * 2654435761u + 12345) {}
  std::uint32_t bits() {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<std::uint32_t>(state_ >> 32);
  }
  float between(float low, float high) {
    return low + (high - low) * static_cast<float>(bits() >> 8) * 0x1p-24f;
  }
  /// Roughly normal.
  float normal() { return between(-1, 1) + between(-1, 1) + between(-1, 1); }

 private:
  std::uint64_t state_;
};

// ---- layouts ---------------------------------------------------------------------------------------------
// How a tensor of some shape lies in memory. `repeated` has stride 0 along the first axis, so it is for
// inputs only.
enum class Layout { dense, swapped, strided, narrowed, repeated };
inline constexpr Layout kOutputLayouts[] = {Layout::dense, Layout::swapped, Layout::strided,
                                            Layout::narrowed};
inline constexpr Layout kInputLayouts[] = {Layout::dense, Layout::swapped, Layout::strided, Layout::narrowed,
                                           Layout::repeated};

/// A view within a larger piece of memory whose other elements must not change.
struct Placed {
  Tensor whole, view;
};

inline Placed place(Backend& device, const Shape& shape, Layout layout, DType dtype = DType::f32) {
  constexpr std::int64_t kMargin = 32;
  Shape order = shape;  // dimensions as they lie in memory
  const int rank = shape.rank();
  if (layout == Layout::swapped && rank >= 2) std::swap(order[-1], order[-2]);
  if (layout == Layout::repeated && rank >= 1 && order[0] > 0) order[0] = 1;
  Shape strides = contiguous_strides(order);
  std::int64_t extent = std::max<std::int64_t>(order.numel(), 1);
  if (layout == Layout::strided) {
    for (int axis = 0; axis < rank; ++axis) strides[axis] *= 2;
    extent *= 2;
  }
  if (layout == Layout::narrowed && rank >= 1) {
    for (int axis = 0; axis + 1 < rank; ++axis) strides[axis] = strides[axis] * 3;
    extent *= 3;
  }
  if (layout == Layout::swapped && rank >= 2) std::swap(strides[-1], strides[-2]);
  if (layout == Layout::repeated && rank >= 1) strides[0] = 0;
  Placed placed;
  placed.whole = device.empty({extent + 2 * kMargin}, dtype);
  std::memset(placed.whole.address(), 0x5a, placed.whole.bytes());
  placed.view = Tensor(placed.whole.storage(), dtype, shape, strides, kMargin);
  return placed;
}

/// body(offset from the view's first element) in row-major order.
template <class Body>
void for_offsets(const Tensor& x, const Body& body) {
  const int rank = x.rank();
  std::int64_t size[kMaxRank], stride[kMaxRank], index[kMaxRank] = {}, offset = 0;
  for (int axis = 0; axis < rank; ++axis) size[axis] = x.dim(axis), stride[axis] = x.strides()[axis];
  for (std::int64_t i = 0; i < x.numel(); ++i) {
    body(offset);
    for (int axis = rank - 1; axis >= 0; --axis) {
      offset += stride[axis];
      if (++index[axis] < size[axis]) break;
      offset -= size[axis] * stride[axis];
      index[axis] = 0;
    }
  }
}
inline std::vector<double> values_of(const Tensor& x) {
  std::vector<double> values;
  values.reserve(static_cast<std::size_t>(x.numel()));
  const float* base = x.data<float>();
  for_offsets(x, [&](std::int64_t offset) { values.push_back(static_cast<double>(base[offset])); });
  return values;
}
/// Nothing outside the view was written.
inline void check_margins(const Placed& placed) {
  const std::size_t size = size_of(placed.whole.dtype());
  std::vector<bool> inside(static_cast<std::size_t>(placed.whole.numel()));
  const auto first =
      (placed.view.data<char>() - placed.whole.data<char>()) / static_cast<std::ptrdiff_t>(size);
  for_offsets(placed.view,
              [&](std::int64_t offset) { inside[static_cast<std::size_t>(first + offset)] = true; });
  for (std::size_t i = 0; i < inside.size(); ++i) {
    if (inside[i]) continue;
    for (std::size_t byte = 0; byte < size; ++byte) {
      if (placed.whole.data<unsigned char>()[i * size + byte] != 0x5a)
        fail_at(__FILE__, __LINE__, "element ", i, " outside the output was written");
    }
  }
}
/// An f32 input of that layout, filled by next().
template <class Next>
Tensor input(Backend& device, const Shape& shape, Layout layout, Next next) {
  const Placed placed = place(device, shape, layout);
  float* base = placed.view.data<float>();
  for_offsets(placed.view, [&](std::int64_t offset) { base[offset] = next(); });
  return placed.view;
}
inline Tensor normal_input(Backend& device, const Shape& shape, std::uint64_t seed,
                           Layout layout = Layout::dense) {
  Numbers numbers(seed);
  return input(device, shape, layout, [&] { return numbers.normal(); });
}

/// |got - wanted| <= relative * |wanted| + absolute for each, NaN matching NaN.
inline void check_close(const Tensor& got, const std::vector<double>& wanted, double relative,
                        double absolute, const std::string& what) {
  const std::vector<double> values = values_of(got);
  if (values.size() != wanted.size())
    fail_at(__FILE__, __LINE__, what, ": ", values.size(), " elements for ", wanted.size());
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (std::isnan(wanted[i]) && std::isnan(values[i])) continue;
    if (values[i] == wanted[i]) continue;
    if (!(std::abs(values[i] - wanted[i]) <= relative * std::abs(wanted[i]) + absolute)) {
      fail_at(__FILE__, __LINE__, what, " ", got.shape(), " strides ", got.strides(), " at ", i,
              ": expected ", wanted[i], ", got ", values[i]);
    }
  }
}
inline bool same_bits(const Tensor& a, const Tensor& b) {
  if (!(a.shape() == b.shape())) return false;
  const auto bits = [](const Tensor& x) {
    std::vector<std::uint32_t> all;
    all.reserve(static_cast<std::size_t>(x.numel()));
    const auto* base = x.data<std::uint32_t>();
    for_offsets(x, [&](std::int64_t offset) { all.push_back(base[offset]); });
    return all;
  };
  return bits(a) == bits(b);
}

/// run(device) on 1, 2, 3 and 4 threads must leave the same bits in every tensor that it returns.
inline void check_thread_counts(const std::function<std::vector<Tensor>(Backend&)>& run) {
  for (const std::string& isa : isa_names()) {
    const auto one = open_device(isa, 1);
    const std::vector<Tensor> wanted = run(*one);
    for (int threads = 2; threads <= 4; ++threads) {
      const auto device = open_device(isa, threads);
      const std::vector<Tensor> got = run(*device);
      for (std::size_t i = 0; i < got.size(); ++i) {
        if (!same_bits(got[i], wanted[i]))
          fail_at(__FILE__, __LINE__, isa, ": result ", i, " differs between 1 and ", threads, " threads");
      }
    }
  }
}

}  // namespace danceflux::test
