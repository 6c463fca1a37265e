// Graphs of operations as cuDNN's backend interface is told of them, and plans made of them.
#pragma once
#include <cudnn.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/libraries.h"

namespace danceflux::cuda {

// clang-format off
#define DANCEFLUX_DNN_FUNCTIONS(X) \
  X(cudnnGetVersion) X(cudnnGetErrorString) X(cudnnCreate) X(cudnnDestroy) X(cudnnSetStream) \
  X(cudnnBackendCreateDescriptor) X(cudnnBackendDestroyDescriptor) X(cudnnBackendSetAttribute) \
  X(cudnnBackendGetAttribute) X(cudnnBackendFinalize) X(cudnnBackendExecute)
// clang-format on

struct DnnFunctions {
#define DF_MEMBER(name) decltype(&::name) name = nullptr;
  DANCEFLUX_DNN_FUNCTIONS(DF_MEMBER)
#undef DF_MEMBER
};

/// Where a tensor of a graph is.
enum class DnnPlace : std::uint8_t {
  memory,
  number,   // one float of the host, read when the plan is started
  between,  // nowhere: what one operation hands to the next
};

struct DnnTensor {
  std::int64_t id;
  DType dtype;
  std::vector<std::int64_t> dims, strides;
  DnnPlace place = DnnPlace::memory;
  std::int64_t alignment = 16;  // bytes
};

/// What an attribute is set to; enumerations, flags and the few floats in use are whole numbers too.
struct DnnAttribute {
  cudnnBackendAttributeName_t name;
  cudnnBackendAttributeType_t type;
  std::vector<std::int64_t> values;
};

/// The descriptor beside an operation that says how: of a convolution, a product, a reduction, ...
struct DnnManner {
  cudnnBackendDescriptorType_t type;
  cudnnBackendAttributeName_t role;  // the operation's attribute that it is
  std::vector<DnnAttribute> attributes;
};

struct DnnOperation {
  cudnnBackendDescriptorType_t type;
  std::vector<std::pair<cudnnBackendAttributeName_t, std::int64_t>> tensors;  // role and id
  std::optional<DnnManner> manner = {};
  std::vector<DnnAttribute> attributes = {};
};

/// Operations in an order in which they can be done; they share tensors by id.
struct DnnGraph {
  std::vector<DnnTensor> tensors;
  std::vector<DnnOperation> operations;

  /// The id that it is given.
  std::int64_t add(DnnTensor tensor);
  /// Equal for equal graphs only.
  std::string key() const;
};

/// A graph of one operation that has these tensors in these roles.
DnnGraph one_operation(cudnnBackendDescriptorType_t type,
                       std::vector<std::pair<cudnnBackendAttributeName_t, DnnTensor>> tensors);

/// What a step of planning says: not every engine takes every graph, so a refusal is an answer and not an
/// error.
class DnnDescriptor {
 public:
  DnnDescriptor(const DnnFunctions& functions, cudnnBackendDescriptorType_t type) : f_(functions) {
    ok_ = f_.cudnnBackendCreateDescriptor(type, &raw_) == CUDNN_STATUS_SUCCESS;
  }
  ~DnnDescriptor() {
    if (raw_) f_.cudnnBackendDestroyDescriptor(raw_);
  }
  DnnDescriptor(DnnDescriptor&& other) noexcept : f_(other.f_), raw_(other.raw_), ok_(other.ok_) {
    other.raw_ = nullptr;
  }
  DnnDescriptor(const DnnDescriptor&) = delete;
  DnnDescriptor& operator=(const DnnDescriptor&) = delete;

  template <class Value>
  void set(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, const Value* values,
           std::int64_t count) {
    ok_ = ok_ && f_.cudnnBackendSetAttribute(raw_, name, type, count, values) == CUDNN_STATUS_SUCCESS;
  }
  template <class Value>
  void set(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, Value value) {
    set(name, type, &value, 1);
  }
  void set(cudnnBackendAttributeName_t name, const std::vector<std::int64_t>& values) {
    set(name, CUDNN_TYPE_INT64, values.data(), static_cast<std::int64_t>(values.size()));
  }
  void set(cudnnBackendAttributeName_t name, const DnnDescriptor& other) {
    set(name, CUDNN_TYPE_BACKEND_DESCRIPTOR, other.raw_);
  }
  void set(const DnnAttribute& attribute);
  bool finalize() { return ok_ = ok_ && f_.cudnnBackendFinalize(raw_) == CUDNN_STATUS_SUCCESS; }
  bool ok() const { return ok_; }
  cudnnBackendDescriptor_t raw() const { return raw_; }

 private:
  const DnnFunctions& f_;
  cudnnBackendDescriptor_t raw_ = nullptr;
  bool ok_ = false;
};

/// Which engines will do.
struct DnnWishes {
  bool repeatable = true;   // the same bits again
  bool full_inputs = true;  // f32 is not multiplied in fewer bits
};

class DnnPlan {
 public:
  /// Null when no engine takes the graph.
  static std::unique_ptr<DnnPlan> make(const DnnFunctions& functions, cudnnHandle_t handle,
                                       const DnnGraph& graph, const DnnWishes& wishes);
  std::size_t workspace() const { return workspace_; }
  /// Pointers in the order of the graph's tensors, but of those between operations. Throws ERR_CUDA.
  void run(cudnnHandle_t handle, const std::vector<void*>& pointers, void* workspace) const;

 private:
  explicit DnnPlan(const DnnFunctions& functions) : f_(functions) {}
  /// Whether cuDNN takes every part; `operations` gets those parts.
  bool describe(const DnnGraph& graph, std::vector<cudnnBackendDescriptor_t>& operations);
  bool choose(cudnnHandle_t handle, const DnnDescriptor& graph, cudnnBackendHeurMode_t mode,
              const DnnWishes& wishes);
  bool fits(const DnnDescriptor& config, const DnnWishes& wishes) const;

  const DnnFunctions& f_;
  std::vector<std::int64_t> ids_;
  std::vector<DnnDescriptor> parts_;  // what the plan was made of
  std::unique_ptr<DnnDescriptor> plan_;
  std::size_t workspace_ = 0;
};

}  // namespace danceflux::cuda
