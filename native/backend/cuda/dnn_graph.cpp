#include "backend/cuda/dnn_graph.h"

#include <algorithm>
#include <map>

#include "core/error.h"

namespace danceflux::cuda {
namespace {

constexpr std::int64_t kCandidates = 16, kNotes = 32;

cudnnDataType_t type_of(DType dtype) {
  return dtype == DType::bf16  ? CUDNN_DATA_BFLOAT16
         : dtype == DType::f16 ? CUDNN_DATA_HALF
                               : CUDNN_DATA_FLOAT;
}

DnnDescriptor describe(const DnnFunctions& functions, const DnnTensor& tensor) {
  DnnDescriptor made(functions, CUDNN_BACKEND_TENSOR_DESCRIPTOR);
  made.set(CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, type_of(tensor.dtype));
  made.set(CUDNN_ATTR_TENSOR_DIMENSIONS, tensor.dims);
  made.set(CUDNN_ATTR_TENSOR_STRIDES, tensor.strides);
  made.set(CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, tensor.id);
  made.set(CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, tensor.alignment);
  if (tensor.place == DnnPlace::number) made.set(CUDNN_ATTR_TENSOR_IS_BY_VALUE, CUDNN_TYPE_BOOLEAN, true);
  if (tensor.place == DnnPlace::between) made.set(CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, true);
  made.finalize();
  return made;
}

DnnDescriptor describe(const DnnFunctions& functions, const DnnManner& manner) {
  DnnDescriptor made(functions, manner.type);
  for (const DnnAttribute& each : manner.attributes) made.set(each);
  made.finalize();
  return made;
}

}  // namespace

void DnnDescriptor::set(const DnnAttribute& attribute) {
  const std::int64_t first = attribute.values.front();
  switch (attribute.type) {
    case CUDNN_TYPE_INT64:
      return set(attribute.name, attribute.values);
    case CUDNN_TYPE_FLOAT:
      return set(attribute.name, attribute.type, static_cast<float>(first));
    default:  // an enumeration
      return set(attribute.name, attribute.type, static_cast<std::int32_t>(first));
  }
}

std::int64_t DnnGraph::add(DnnTensor tensor) {
  tensor.id = static_cast<std::int64_t>(tensors.size()) + 1;
  tensors.push_back(std::move(tensor));
  return tensors.back().id;
}

DnnGraph one_operation(cudnnBackendDescriptorType_t type,
                       std::vector<std::pair<cudnnBackendAttributeName_t, DnnTensor>> tensors) {
  DnnGraph graph;
  DnnOperation& operation = graph.operations.emplace_back(DnnOperation{type});
  for (auto& [role, tensor] : tensors) operation.tensors.emplace_back(role, graph.add(std::move(tensor)));
  return graph;
}

std::string DnnGraph::key() const {
  std::string bytes;  // of numbers, each list after its length: this is made at every call
  const auto put = [&](std::int64_t number) {
    bytes.append(reinterpret_cast<const char*>(&number), sizeof number);
  };
  const auto put_list = [&](const std::vector<std::int64_t>& list) {
    put(static_cast<std::int64_t>(list.size()));
    for (const std::int64_t each : list) put(each);
  };
  const auto put_attributes = [&](const std::vector<DnnAttribute>& attributes) {
    put(static_cast<std::int64_t>(attributes.size()));
    for (const DnnAttribute& each : attributes) {
      put(each.name);
      put_list(each.values);
    }
  };
  put(static_cast<std::int64_t>(tensors.size()));
  for (const DnnTensor& tensor : tensors) {
    for (const std::int64_t each : {tensor.id, static_cast<std::int64_t>(tensor.dtype),
                                    static_cast<std::int64_t>(tensor.place), tensor.alignment})
      put(each);
    put_list(tensor.dims);
    put_list(tensor.strides);
  }
  for (const DnnOperation& operation : operations) {
    put(operation.type);
    put(static_cast<std::int64_t>(operation.tensors.size()));
    for (const auto& [role, id] : operation.tensors) {
      put(role);
      put(id);
    }
    put(operation.manner ? operation.manner->type : -1);
    if (operation.manner) put_attributes(operation.manner->attributes);
    put_attributes(operation.attributes);
  }
  return bytes;
}

bool DnnPlan::describe(const DnnGraph& graph, std::vector<cudnnBackendDescriptor_t>& operations) {
  std::map<std::int64_t, cudnnBackendDescriptor_t> by_id;
  const auto keep = [&](DnnDescriptor part) {
    parts_.push_back(std::move(part));
    return parts_.back().ok();
  };
  for (const DnnTensor& tensor : graph.tensors) {
    if (!keep(cuda::describe(f_, tensor))) return false;
    by_id[tensor.id] = parts_.back().raw();
    if (tensor.place != DnnPlace::between) ids_.push_back(tensor.id);
  }
  for (const DnnOperation& operation : graph.operations) {
    DnnDescriptor made(f_, operation.type);
    for (const auto& [role, id] : operation.tensors)
      made.set(role, CUDNN_TYPE_BACKEND_DESCRIPTOR, by_id.at(id));
    if (operation.manner) {
      if (!keep(cuda::describe(f_, *operation.manner))) return false;
      made.set(operation.manner->role, CUDNN_TYPE_BACKEND_DESCRIPTOR, parts_.back().raw());
    }
    for (const DnnAttribute& each : operation.attributes) made.set(each);
    made.finalize();
    if (!keep(std::move(made))) return false;
    operations.push_back(parts_.back().raw());
  }
  return true;
}

std::unique_ptr<DnnPlan> DnnPlan::make(const DnnFunctions& functions, cudnnHandle_t handle,
                                       const DnnGraph& graph, const DnnWishes& wishes) {
  std::unique_ptr<DnnPlan> plan(new DnnPlan(functions));
  std::vector<cudnnBackendDescriptor_t> operations;
  if (!plan->describe(graph, operations)) return nullptr;
  DnnDescriptor whole(functions, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
  whole.set(CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, handle);
  whole.set(CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR, operations.data(),
            static_cast<std::int64_t>(operations.size()));
  if (!whole.finalize()) return nullptr;
  const bool found = plan->choose(handle, whole, CUDNN_HEUR_MODE_A, wishes) ||
                     plan->choose(handle, whole, CUDNN_HEUR_MODE_FALLBACK, wishes);
  plan->parts_.push_back(std::move(whole));
  return found ? std::move(plan) : nullptr;
}

/// The first engine that the heuristics name, that fits and that can be planned.
bool DnnPlan::choose(cudnnHandle_t handle, const DnnDescriptor& graph, cudnnBackendHeurMode_t mode,
                     const DnnWishes& wishes) {
  DnnDescriptor heuristics(f_, CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
  heuristics.set(CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, graph);
  heuristics.set(CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, mode);
  if (!heuristics.finalize()) return false;
  std::vector<DnnDescriptor> configs;
  std::vector<cudnnBackendDescriptor_t> raw;
  for (std::int64_t i = 0; i < kCandidates; ++i) {
    configs.emplace_back(f_, CUDNN_BACKEND_ENGINECFG_DESCRIPTOR);
    raw.push_back(configs.back().raw());
  }
  std::int64_t count = 0;
  if (f_.cudnnBackendGetAttribute(heuristics.raw(), CUDNN_ATTR_ENGINEHEUR_RESULTS,
                                  CUDNN_TYPE_BACKEND_DESCRIPTOR, kCandidates, &count,
                                  raw.data()) != CUDNN_STATUS_SUCCESS)
    return false;
  for (std::int64_t i = 0; i < std::min(count, kCandidates); ++i) {
    DnnDescriptor& config = configs[static_cast<std::size_t>(i)];
    if (!fits(config, wishes)) continue;
    auto plan = std::make_unique<DnnDescriptor>(f_, CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
    plan->set(CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, handle);
    plan->set(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, config);
    if (!plan->finalize()) continue;
    std::int64_t bytes = 0, got = 0;
    if (f_.cudnnBackendGetAttribute(plan->raw(), CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, CUDNN_TYPE_INT64,
                                    1, &got, &bytes) != CUDNN_STATUS_SUCCESS)
      continue;
    workspace_ = static_cast<std::size_t>(bytes);
    plan_ = std::move(plan);
    parts_.push_back(std::move(config));
    return true;
  }
  return false;
}

bool DnnPlan::fits(const DnnDescriptor& config, const DnnWishes& wishes) const {
  DnnDescriptor engine(f_, CUDNN_BACKEND_ENGINE_DESCRIPTOR);
  cudnnBackendDescriptor_t raw = engine.raw();
  std::int64_t count = 0;
  if (f_.cudnnBackendGetAttribute(config.raw(), CUDNN_ATTR_ENGINECFG_ENGINE, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1,
                                  &count, &raw) != CUDNN_STATUS_SUCCESS)
    return false;
  cudnnBackendNumericalNote_t notes[kNotes];
  if (f_.cudnnBackendGetAttribute(raw, CUDNN_ATTR_ENGINE_NUMERICAL_NOTE, CUDNN_TYPE_NUMERICAL_NOTE, kNotes,
                                  &count, notes) != CUDNN_STATUS_SUCCESS)
    return false;
  return std::none_of(notes, notes + std::min(count, kNotes), [&](cudnnBackendNumericalNote_t note) {
    if (note == CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC) return wishes.repeatable;
    if (note == CUDNN_NUMERICAL_NOTE_REDUCED_PRECISION_REDUCTION) return true;
    if (note == CUDNN_NUMERICAL_NOTE_TENSOR_CORE || note == CUDNN_NUMERICAL_NOTE_DOWN_CONVERT_INPUTS)
      return wishes.full_inputs;
    return false;
  });
}

void DnnPlan::run(cudnnHandle_t handle, const std::vector<void*>& pointers, void* workspace) const {
  DnnDescriptor pack(f_, CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR);
  pack.set(CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, ids_);
  pack.set(CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, pointers.data(),
           static_cast<std::int64_t>(pointers.size()));
  pack.set(CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, workspace);
  require(pack.finalize(), "ERR_CUDA", "cudnn: expected to be told its tensors, got a refusal");
  const cudnnStatus_t status = f_.cudnnBackendExecute(handle, plan_->raw(), pack.raw());
  require(status == CUDNN_STATUS_SUCCESS, "ERR_CUDA", "cudnn: expected a plan to run, got ",
          f_.cudnnGetErrorString(status));
}

}  // namespace danceflux::cuda
