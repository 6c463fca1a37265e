// libcudnn.so.9 for tests: keeps what the descriptors are told and does it on the host (fake_cudnn_large.cpp,
// fake_cudnn_small.cpp). It names three engines for a graph: one whose bits differ from run to run, one that
// rounds f32 inputs, and a good one. Where gradients of attention are added in memory there is one that
// differs from run to run and, as the real ones, has no note that says so.
#include "fake_cudnn.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <set>

#include "emulated_stream.h"

struct cudnnContext {
  cudaStream_t stream = nullptr;
};

using fake::Descriptor;
using fake::Memory;

namespace {

constexpr std::int64_t kWorkspace = 1000;
enum Engine : std::int64_t { kUnsteady, kRounding, kGood, kSilent };

Descriptor& real(cudnnBackendDescriptor_t descriptor) { return *static_cast<Descriptor*>(descriptor); }
bool refused(unsigned what) { return (fake_cudnn()->refused & what) != 0; }

std::size_t size_of(cudnnBackendAttributeType_t type) {
  switch (type) {
    case CUDNN_TYPE_BOOLEAN:
      return 1;
    case CUDNN_TYPE_DATA_TYPE:
    case CUDNN_TYPE_FLOAT:
    case CUDNN_TYPE_CONVOLUTION_MODE:
    case CUDNN_TYPE_HEUR_MODE:
    case CUDNN_TYPE_POINTWISE_MODE:
    case CUDNN_TYPE_REDUCTION_OPERATOR_TYPE:
      return 4;
    default:
      return 8;
  }
}

std::vector<const Descriptor*> operations_of(const Descriptor& graph) {
  return graph.list<const Descriptor*>(CUDNN_ATTR_OPERATIONGRAPH_OPS);
}

bool is_attention(const Descriptor& operation) {
  return operation.type == CUDNN_BACKEND_OPERATION_SDPA_FWD_DESCRIPTOR ||
         operation.type == CUDNN_BACKEND_OPERATION_SDPA_BWD_DESCRIPTOR;
}

std::vector<Engine> engines_of(const Descriptor& graph) {
  const auto operations = operations_of(graph);
  int products = 0;
  bool sums_in_memory = false;
  for (const Descriptor* operation : operations) {
    if (operation->type != CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR) continue;
    const Descriptor& to = *operation->of(CUDNN_ATTR_OPERATION_MATMUL_CDESC);
    sums_in_memory = sums_in_memory || (!to.between() && to.dtype() == CUDNN_DATA_FLOAT);
    ++products;
  }
  const bool many = operations.size() > 1;
  const bool backward = operations[0]->type == CUDNN_BACKEND_OPERATION_SDPA_BWD_DESCRIPTOR ||
                        products > 2;  // as attention has it
  if (many ? refused(FakeCudnn::composite) || products == 0 : !fake::large_operation(operations[0]->type))
    return {};
  if (is_attention(*operations[0]) && refused(FakeCudnn::unified)) return {};
  if (backward && refused(FakeCudnn::backward)) return {};
  if ((many || is_attention(*operations[0])) && refused(FakeCudnn::repeatable)) return {kUnsteady};
  if (sums_in_memory || operations[0]->type == CUDNN_BACKEND_OPERATION_SDPA_BWD_DESCRIPTOR) return {kSilent};
  return {kUnsteady, kRounding, kGood};
}

/// Every tensor in memory or by value, of a graph of small operations.
std::map<std::int64_t, const Descriptor*> outside(const Descriptor& graph) {
  std::map<std::int64_t, const Descriptor*> found;
  for (const Descriptor* operation : operations_of(graph)) {
    const fake::Traffic traffic = fake::traffic_of(*operation);
    for (const auto* list : {&traffic.reads, &traffic.writes})
      for (const Descriptor* tensor : *list)
        if (!tensor->between()) found[tensor->id()] = tensor;
  }
  return found;
}

/// The numbers that the pack points at are read when a plan is started, and no later.
std::map<std::int64_t, float> numbers_of(const Descriptor& graph, const Memory& memory) {
  auto tensors = outside(graph);
  for (const Descriptor* operation : operations_of(graph))
    for (const int scale : {CUDNN_ATTR_OPERATION_SDPA_FWD_SCALEDESC, CUDNN_ATTR_OPERATION_SDPA_BWD_SCALEDESC})
      if (const Descriptor* tensor = operation->of(scale)) tensors[tensor->id()] = tensor;
  std::map<std::int64_t, float> numbers;
  for (const auto& [id, tensor] : tensors)
    if (tensor->by_value()) numbers[id] = *static_cast<const float*>(memory.pointers.at(id));
  return numbers;
}

/// Whether the pack has what the graph wants, where it may be.
bool fits(const Descriptor& graph, const Memory& memory) {
  for (const auto& [id, tensor] : outside(graph)) {
    const auto given = memory.pointers.find(id);
    if (given == memory.pointers.end() || !given->second) return false;
    const auto alignment =
        static_cast<std::uintptr_t>(tensor->one<std::int64_t>(CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT));
    if (!tensor->by_value() && reinterpret_cast<std::uintptr_t>(given->second) % alignment != 0) return false;
  }
  return true;
}

}  // namespace

fake::View Memory::view(const Descriptor& tensor) {
  View v{tensor.dims(), tensor.list<std::int64_t>(CUDNN_ATTR_TENSOR_STRIDES), tensor.dtype()};
  if (!tensor.between()) {
    v.base = pointers.at(tensor.id());
    v.factor = factor;
    return v;
  }
  std::int64_t last = 0;
  for (std::size_t axis = 0; axis < 4; ++axis) last += (v.dims[axis] - 1) * v.strides[axis];
  std::vector<char>& memory = between[tensor.id()];
  memory.resize(static_cast<std::size_t>((last + 1) * fake::bytes_of(v.type)));
  v.base = memory.data();
  return v;
}

extern "C" {

FakeCudnn* fake_cudnn() {
  static FakeCudnn& one = *[] {
    auto* made = new FakeCudnn;
    std::size_t version = made->version;
    unsigned refused = 0;
    if (const char* told = std::getenv("DANCEFLUX_FAKE_CUDNN"))
      std::sscanf(told, "%zu:%u", &version, &refused);
    made->version = version;
    made->refused = refused;
    return made;
  }();
  return &one;
}

std::size_t cudnnGetVersion() { return fake_cudnn()->version; }
const char* cudnnGetErrorString(cudnnStatus_t) { return "refused by the fake"; }
cudnnStatus_t cudnnCreate(cudnnHandle_t* handle) { return *handle = new cudnnContext, CUDNN_STATUS_SUCCESS; }
cudnnStatus_t cudnnDestroy(cudnnHandle_t handle) {
  delete handle;
  return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnSetStream(cudnnHandle_t handle, cudaStream_t stream) {
  return handle->stream = stream, CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnBackendCreateDescriptor(cudnnBackendDescriptorType_t type,
                                           cudnnBackendDescriptor_t* made) {
  const std::size_t version = fake_cudnn()->version;
  if (type == CUDNN_BACKEND_OPERATION_SDPA_FWD_DESCRIPTOR && version < 91300)
    return CUDNN_STATUS_NOT_SUPPORTED;
  if (type == CUDNN_BACKEND_OPERATION_SDPA_BWD_DESCRIPTOR && version < 91700)
    return CUDNN_STATUS_NOT_SUPPORTED;
  return *made = new Descriptor{type}, CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnBackendDestroyDescriptor(cudnnBackendDescriptor_t descriptor) {
  delete static_cast<Descriptor*>(descriptor);
  return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnBackendSetAttribute(cudnnBackendDescriptor_t descriptor, cudnnBackendAttributeName_t name,
                                       cudnnBackendAttributeType_t type, std::int64_t count,
                                       const void* values) {
  if (real(descriptor).final) return CUDNN_STATUS_BAD_PARAM;
  const auto* bytes = static_cast<const char*>(values);
  if (type == CUDNN_TYPE_BACKEND_DESCRIPTOR)
    for (std::int64_t i = 0; i < count; ++i)
      if (!static_cast<Descriptor* const*>(values)[i]->final) return CUDNN_STATUS_BAD_PARAM;
  if ((name == CUDNN_ATTR_POINTWISE_MODE) != (type == CUDNN_TYPE_POINTWISE_MODE) ||
      (name == CUDNN_ATTR_REDUCTION_OPERATOR) != (type == CUDNN_TYPE_REDUCTION_OPERATOR_TYPE))
    return CUDNN_STATUS_BAD_PARAM;
  real(descriptor).values[name].assign(bytes, bytes + static_cast<std::size_t>(count) * size_of(type));
  return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnBackendFinalize(cudnnBackendDescriptor_t descriptor) {
  Descriptor& d = real(descriptor);
  const cudnnStatus_t status = fake::check(d);
  if (status != CUDNN_STATUS_SUCCESS) return status;
  if (d.type == CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR) {
    const Descriptor* config = d.of(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG);
    d.graph = config->graph;
    d.engine = config->engine;
  }
  d.final = true;
  return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnBackendGetAttribute(cudnnBackendDescriptor_t descriptor, cudnnBackendAttributeName_t name,
                                       cudnnBackendAttributeType_t, std::int64_t asked, std::int64_t* got,
                                       void* values) {
  Descriptor& d = real(descriptor);
  switch (name) {
    case CUDNN_ATTR_ENGINEHEUR_RESULTS: {
      const Descriptor* graph = d.of(CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH);
      const std::vector<Engine> engines = engines_of(*graph);  // none: an empty list, not an error
      *got = std::min(asked, static_cast<std::int64_t>(engines.size()));
      for (std::int64_t i = 0; i < *got; ++i) {
        Descriptor& config = *static_cast<Descriptor**>(values)[i];
        config.graph = graph;
        config.engine = engines[static_cast<std::size_t>(i)];
        config.final = true;
      }
      return CUDNN_STATUS_SUCCESS;
    }
    case CUDNN_ATTR_ENGINECFG_ENGINE:
      (*static_cast<Descriptor**>(values))->engine = d.engine;
      return *got = 1, CUDNN_STATUS_SUCCESS;
    case CUDNN_ATTR_ENGINE_NUMERICAL_NOTE: {
      const auto note = d.engine == kUnsteady ? CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC
                                              : CUDNN_NUMERICAL_NOTE_DOWN_CONVERT_INPUTS;
      *got = d.engine == kGood || d.engine == kSilent ? 0 : 1;
      if (*got) *static_cast<cudnnBackendNumericalNote_t*>(values) = note;
      return CUDNN_STATUS_SUCCESS;
    }
    case CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE:
      *static_cast<std::int64_t*>(values) = kWorkspace;
      return *got = 1, CUDNN_STATUS_SUCCESS;
    default:
      return CUDNN_STATUS_BAD_PARAM;
  }
}
cudnnStatus_t cudnnBackendExecute(cudnnHandle_t handle, cudnnBackendDescriptor_t plan,
                                  cudnnBackendDescriptor_t pack) {
  const Descriptor &p = real(plan), &v = real(pack);
  if (!p.final || !v.final) return CUDNN_STATUS_BAD_PARAM;
  auto* workspace = static_cast<char*>(v.one<void*>(CUDNN_ATTR_VARIANT_PACK_WORKSPACE));
  if (!workspace) return CUDNN_STATUS_BAD_PARAM;
  const auto ids = v.list<std::int64_t>(CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS);
  const auto pointers = v.list<void*>(CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS);
  if (ids.size() != pointers.size() || std::set<std::int64_t>(ids.begin(), ids.end()).size() != ids.size())
    return CUDNN_STATUS_BAD_PARAM;
  Memory memory;
  for (std::size_t i = 0; i < ids.size(); ++i) memory.pointers[ids[i]] = pointers[i];
  if (!fits(*p.graph, memory)) return CUDNN_STATUS_BAD_PARAM;
  FakeCudnn& controls = *fake_cudnn();
  if (p.engine == kUnsteady || p.engine == kSilent)
    memory.factor = 1 + 0x1p-9f * static_cast<float>(1 + controls.unsteady_runs++ % 3);
  const auto operations = operations_of(*p.graph);
  if (operations.size() > 1) ++controls.composite_runs;
  if (is_attention(*operations[0])) ++controls.unified_runs;
  emulated::put(handle->stream, [=, numbers = numbers_of(*p.graph, memory)]() mutable {
    std::memset(workspace, 0x5a, kWorkspace);
    Memory now = memory;
    for (auto& [id, number] : numbers) now.pointers[id] = &number;
    for (const Descriptor* operation : operations) {
      const auto large = fake::large_operation(operation->type);
      (large ? large : fake::small_operation(operation->type))({*operation, now});
    }
  });
  return CUDNN_STATUS_SUCCESS;
}
}
