// The one noun of the house: a shape, strides and a piece of device memory.
#pragma once
#include <cstdint>
#include <memory>

#include "core/dtype.h"
#include "core/shape.h"

namespace danceflux {

/// What storage must know of the device that it came from: where it goes back to. Backend derives from it.
class Device {
 public:
  virtual ~Device() = default;
  /// Takes back memory that this device handed out. Called from any thread.
  virtual void release(void* address, std::size_t bytes) noexcept = 0;
};

/// A piece of device memory with one owner. The address is opaque: only the device's own backend dereferences
/// it.
class Storage {
 public:
  Storage(std::shared_ptr<Device> device, void* address, std::size_t bytes)
      : device_(std::move(device)), address_(address), bytes_(bytes) {}
  ~Storage() { device_->release(address_, bytes_); }
  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;

  void* address() const { return address_; }
  std::size_t bytes() const { return bytes_; }
  Device& device() const { return *device_; }
  const std::shared_ptr<Device>& shared_device() const { return device_; }

 private:
  std::shared_ptr<Device> device_;
  void* address_;
  std::size_t bytes_;
};

/// A handle: copying it shares the storage and keeps the identity. Views (narrow, permute, ...) share the
/// storage and have an identity of their own; the tape tells tensors apart by it. The view functions here
/// only move numbers about; their recorded twins, which have gradients, live in ops/shape.
class Tensor {
 public:
  Tensor() = default;
  Tensor(std::shared_ptr<Storage> storage, DType dtype, const Shape& shape);
  Tensor(std::shared_ptr<Storage> storage, DType dtype, const Shape& shape, const Shape& strides,
         std::int64_t offset);

  bool defined() const { return storage_ != nullptr; }
  explicit operator bool() const { return defined(); }
  const Shape& shape() const { return shape_; }
  /// In elements. Zero along a broadcast axis.
  const Shape& strides() const { return strides_; }
  int rank() const { return shape_.rank(); }
  std::int64_t dim(int axis) const { return shape_[axis]; }
  std::int64_t numel() const { return numel_; }
  std::size_t bytes() const { return static_cast<std::size_t>(numel_) * size_of(dtype_); }
  DType dtype() const { return dtype_; }
  std::uint64_t id() const { return id_; }
  bool is_contiguous() const;
  const std::shared_ptr<Storage>& storage() const { return storage_; }
  Device& device() const { return storage_->device(); }
  /// Opaque device address of the first element.
  void* address() const;
  template <class T>
  T* data() const {
    return static_cast<T*>(address());
  }

  /// Same elements in row-major order under another shape; one dimension may be -1. The strides must allow it
  /// without a copy (can_view); throws ERR_SHAPE otherwise.
  Tensor view(const Shape& shape) const;
  bool can_view(const Shape& shape) const;
  Tensor permute(const Shape& order) const;
  Tensor transpose(int axis_a, int axis_b) const;
  /// Elements start .. start+length-1 along `axis`.
  Tensor narrow(int axis, std::int64_t start, std::int64_t length) const;
  /// Broadcasts to `shape` by zero strides.
  Tensor expand(const Shape& shape) const;
  /// The same memory under a new identity: what the tape cuts a graph with.
  Tensor detach() const;

 private:
  std::shared_ptr<Storage> storage_;
  Shape shape_, strides_;
  std::int64_t offset_ = 0, numel_ = 0;
  std::uint64_t id_ = 0;
  DType dtype_ = DType::f32;
};

}  // namespace danceflux
