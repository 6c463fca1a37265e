#include "backend/cuda/dnn_graph.h"

#include <algorithm>
#include <sstream>

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
  if (tensor.by_value) made.set(CUDNN_ATTR_TENSOR_IS_BY_VALUE, CUDNN_TYPE_BOOLEAN, true);
  made.finalize();
  return made;
}

DnnDescriptor describe(const DnnFunctions& functions, const DnnConvolution& convolution) {
  DnnDescriptor made(functions, CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR);
  const auto axes = static_cast<std::int64_t>(convolution.strides.size());
  made.set(CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS, CUDNN_TYPE_INT64, axes);
  made.set(CUDNN_ATTR_CONVOLUTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, CUDNN_DATA_FLOAT);
  made.set(CUDNN_ATTR_CONVOLUTION_CONV_MODE, CUDNN_TYPE_CONVOLUTION_MODE, CUDNN_CROSS_CORRELATION);
  made.set(CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, convolution.strides);
  made.set(CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, convolution.before);
  made.set(CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, convolution.after);
  made.set(CUDNN_ATTR_CONVOLUTION_DILATIONS, std::vector<std::int64_t>(convolution.strides.size(), 1));
  made.finalize();
  return made;
}

}  // namespace

std::string DnnGraph::key() const {
  std::ostringstream text;
  text << static_cast<int>(type);
  for (const DnnTensor& tensor : tensors) {
    text << '|' << static_cast<int>(tensor.role) << ':' << name_of(tensor.dtype);
    for (const std::int64_t each : tensor.dims) text << ',' << each;
    for (const std::int64_t each : tensor.strides) text << ';' << each;
  }
  if (convolution) {
    for (const auto* list : {&convolution->strides, &convolution->before, &convolution->after})
      for (const std::int64_t each : *list) text << '/' << each;
  }
  return text.str();
}

std::unique_ptr<DnnPlan> DnnPlan::make(const DnnFunctions& functions, cudnnHandle_t handle,
                                       const DnnGraph& graph, const DnnWishes& wishes) {
  std::unique_ptr<DnnPlan> plan(new DnnPlan(functions));
  DnnDescriptor operation(functions, graph.type);
  for (const DnnTensor& tensor : graph.tensors) {
    plan->parts_.push_back(describe(functions, tensor));
    plan->ids_.push_back(tensor.id);
    if (!plan->parts_.back().ok()) return nullptr;
    operation.set(tensor.role, plan->parts_.back());
  }
  if (graph.convolution) {
    plan->parts_.push_back(describe(functions, *graph.convolution));
    if (!plan->parts_.back().ok()) return nullptr;
    operation.set(graph.convolution->role, plan->parts_.back());
    operation.set(graph.convolution->alpha, CUDNN_TYPE_FLOAT, 1.0f);
    operation.set(graph.convolution->beta, CUDNN_TYPE_FLOAT, 0.0f);
  }
  if (!operation.finalize()) return nullptr;
  DnnDescriptor whole(functions, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
  whole.set(CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, handle);
  whole.set(CUDNN_ATTR_OPERATIONGRAPH_OPS, operation);
  if (!whole.finalize()) return nullptr;
  const bool found = plan->choose(handle, whole, CUDNN_HEUR_MODE_A, wishes) ||
                     plan->choose(handle, whole, CUDNN_HEUR_MODE_FALLBACK, wishes);
  plan->parts_.push_back(std::move(operation));
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
