#include "backend/cuda/dnn.h"

#include <map>

#include "backend/cuda/dnn_graph.h"
#include "core/error.h"

namespace danceflux::cuda {
namespace {

/// The first cuDNN that has attention as one operation, forward and backward.
constexpr std::size_t kForwardSince = 91301, kBackwardSince = 91700;
constexpr std::int64_t kMaxWidth = 128;

class DnnLibrary final : public Dnn {
 public:
  DnnLibrary(CudaBackend& device, const DnnFunctions& functions)
      : device_(device), f_(functions), version_(functions.cudnnGetVersion()) {
    require(f_.cudnnCreate(&handle_) == CUDNN_STATUS_SUCCESS, "ERR_CUDA",
            "cudnn: expected a handle, got none");
    require(f_.cudnnSetStream(handle_, device.stream()) == CUDNN_STATUS_SUCCESS, "ERR_CUDA",
            "cudnn: expected to take a stream, got a refusal");
  }
  ~DnnLibrary() override {
    plans_.clear();
    if (workspace_) device_.release(workspace_, workspace_bytes_);
    f_.cudnnDestroy(handle_);
  }

  bool attention(const Tensor& out, const Tensor& lse, const Tensor& q, const Tensor& k, const Tensor& v,
                 const Tensor& bias, const AttentionArgs& args) override;
  bool attention_backward(const Tensor& dq, const Tensor& dk, const Tensor& dv, const Tensor& dout,
                          const Tensor& out, const Tensor& lse, const Tensor& q, const Tensor& k,
                          const Tensor& v, const Tensor& bias, const AttentionArgs& args) override;
  bool conv(ConvPass pass, const Tensor& x, const Tensor& weight, const Tensor& y,
            const ConvArgs& args) override;
  std::size_t plans() const override { return plans_.size(); }

 private:
  DnnWishes wishes(DType dtype) const {
    const Options& options = device_.options();
    return {options.determinism != Determinism::off, dtype == DType::f32 && !options.tf32};
  }
  const DnnPlan* plan_for(const DnnGraph& graph, DType dtype);
  void run(const DnnPlan& plan, const std::vector<void*>& pointers);
  /// Images that one call is given.
  std::int64_t images_at_once(std::int64_t images) const {
    return device_.options().determinism == Determinism::strict ? 1 : images;
  }

  CudaBackend& device_;
  const DnnFunctions f_;
  const std::size_t version_;
  cudnnHandle_t handle_ = nullptr;
  std::map<std::string, std::unique_ptr<DnnPlan>> plans_;
  void* workspace_ = nullptr;  // not a tensor: those keep their device alive
  std::size_t workspace_bytes_ = 0;
};

const DnnPlan* DnnLibrary::plan_for(const DnnGraph& graph, DType dtype) {
  const auto [entry, fresh] = plans_.try_emplace(graph.key());
  if (fresh) entry->second = DnnPlan::make(f_, handle_, graph, wishes(dtype));
  return entry->second.get();
}

void DnnLibrary::run(const DnnPlan& plan, const std::vector<void*>& pointers) {
  if (plan.workspace() > workspace_bytes_) {
    device_.workspace_changes();
    if (workspace_) device_.release(workspace_, workspace_bytes_);
    workspace_ = nullptr;
    workspace_bytes_ = 0;
    workspace_ = device_.allocate(plan.workspace());
    workspace_bytes_ = plan.workspace();
  }
  plan.run(handle_, pointers, workspace_);
  device_.launched();
}

bool aligned(const Tensor& x) { return reinterpret_cast<std::uintptr_t>(x.address()) % 16 == 0; }

/// [B, L, H, K] as [images, H, L, K], which is how cuDNN names the axes of attention.
DnnTensor by_head(const Tensor& x, std::int64_t images) {
  return {.dtype = x.dtype(),
          .dims = {images, x.dim(2), x.dim(1), x.dim(3)},
          .strides = {x.strides()[0], x.strides()[2], x.strides()[1], x.strides()[3]}};
}
DnnTensor statistics(const Tensor& lse, std::int64_t images) {
  const std::int64_t heads = lse.dim(1), queries = lse.dim(2);
  return {.dtype = DType::f32,
          .dims = {images, heads, queries, 1},
          .strides = {heads * queries, queries, 1, 1},
          .alignment = 4};
}
DnnTensor number() {
  return {.dtype = DType::f32,
          .dims = {1, 1, 1, 1},
          .strides = {1, 1, 1, 1},
          .place = DnnPlace::number,
          .alignment = 4};
}

bool fits_attention(std::initializer_list<const Tensor*> tensors, const Tensor& bias,
                    const AttentionArgs& args) {
  if (bias.defined() || args.causal) return false;
  for (const Tensor* x : tensors) {
    if (x->dtype() != DType::bf16 || x->dim(3) % 8 != 0 || x->dim(3) > kMaxWidth || x->strides()[3] != 1 ||
        !aligned(*x))
      return false;
    for (int axis = 0; axis < 3; ++axis)  // also of one image: it must take the way that many take
      if (x->strides()[axis] % 8 != 0) return false;
  }
  return true;
}

void* image_of(const Tensor& x, std::int64_t b) {
  return static_cast<char*>(x.address()) + b * x.strides()[0] * static_cast<std::int64_t>(size_of(x.dtype()));
}

bool DnnLibrary::attention(const Tensor& out, const Tensor& lse, const Tensor& q, const Tensor& k,
                           const Tensor& v, const Tensor& bias, const AttentionArgs& args) {
  if (version_ < kForwardSince || !fits_attention({&out, &q, &k, &v}, bias, args)) return false;
  const std::int64_t images = images_at_once(q.dim(0));
  const DnnGraph graph = one_operation(CUDNN_BACKEND_OPERATION_SDPA_FWD_DESCRIPTOR,
                                       {{CUDNN_ATTR_OPERATION_SDPA_FWD_QDESC, by_head(q, images)},
                                        {CUDNN_ATTR_OPERATION_SDPA_FWD_KDESC, by_head(k, images)},
                                        {CUDNN_ATTR_OPERATION_SDPA_FWD_VDESC, by_head(v, images)},
                                        {CUDNN_ATTR_OPERATION_SDPA_FWD_ODESC, by_head(out, images)},
                                        {CUDNN_ATTR_OPERATION_SDPA_FWD_STATSDESC, statistics(lse, images)},
                                        {CUDNN_ATTR_OPERATION_SDPA_FWD_SCALEDESC, number()}});
  const DnnPlan* plan = plan_for(graph, q.dtype());
  if (!plan) return false;
  float scale = args.scale;
  for (std::int64_t b = 0; b < q.dim(0); b += images)
    run(*plan, {image_of(q, b), image_of(k, b), image_of(v, b), image_of(out, b), image_of(lse, b), &scale});
  return true;
}

bool DnnLibrary::attention_backward(const Tensor& dq, const Tensor& dk, const Tensor& dv, const Tensor& dout,
                                    const Tensor& out, const Tensor& lse, const Tensor& q, const Tensor& k,
                                    const Tensor& v, const Tensor& bias, const AttentionArgs& args) {
  if (version_ < kBackwardSince || !fits_attention({&dq, &dk, &dv, &dout, &out, &q, &k, &v}, bias, args))
    return false;
  const std::int64_t images = images_at_once(q.dim(0));
  const DnnGraph graph = one_operation(CUDNN_BACKEND_OPERATION_SDPA_BWD_DESCRIPTOR,
                                       {{CUDNN_ATTR_OPERATION_SDPA_BWD_QDESC, by_head(q, images)},
                                        {CUDNN_ATTR_OPERATION_SDPA_BWD_KDESC, by_head(k, images)},
                                        {CUDNN_ATTR_OPERATION_SDPA_BWD_VDESC, by_head(v, images)},
                                        {CUDNN_ATTR_OPERATION_SDPA_BWD_ODESC, by_head(out, images)},
                                        {CUDNN_ATTR_OPERATION_SDPA_BWD_STATSDESC, statistics(lse, images)},
                                        {CUDNN_ATTR_OPERATION_SDPA_BWD_SCALEDESC, number()},
                                        {CUDNN_ATTR_OPERATION_SDPA_BWD_DODDESC, by_head(dout, images)},
                                        {CUDNN_ATTR_OPERATION_SDPA_BWD_DQDESC, by_head(dq, images)},
                                        {CUDNN_ATTR_OPERATION_SDPA_BWD_DKDESC, by_head(dk, images)},
                                        {CUDNN_ATTR_OPERATION_SDPA_BWD_DVDESC, by_head(dv, images)}});
  const DnnPlan* plan = plan_for(graph, q.dtype());
  if (!plan) return false;
  float scale = args.scale;
  for (std::int64_t b = 0; b < q.dim(0); b += images)
    run(*plan, {image_of(q, b), image_of(k, b), image_of(v, b), image_of(out, b), image_of(lse, b), &scale,
                image_of(dout, b), image_of(dq, b), image_of(dk, b), image_of(dv, b)});
  return true;
}

// ---- convolution ------------------------------------------------------------------------------------------

struct ConvRoles {
  cudnnBackendDescriptorType_t type;
  cudnnBackendAttributeName_t x, weight, y, convolution, alpha, beta;
};
constexpr ConvRoles kConvRoles[] = {
    {CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X,
     CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y,
     CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA,
     CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA},
    {CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR,
     CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DX, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_W,
     CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DY, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_CONV_DESC,
     CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_ALPHA, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_BETA},
    {CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_FILTER_DESCRIPTOR,
     CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_X, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DW,
     CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DY, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_CONV_DESC,
     CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_ALPHA, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_BETA}};

DnnTensor dense_tensor(const Tensor& x, std::int64_t images) {
  const Shape strides = contiguous_strides(x.shape());
  DnnTensor tensor{.dtype = x.dtype(),
                   .dims = {x.shape().begin(), x.shape().end()},
                   .strides = {strides.begin(), strides.end()}};
  tensor.dims[0] = images;
  return tensor;
}

DnnManner manner_of(const ConvRoles& roles, const ConvArgs& args) {
  return {CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR,
          roles.convolution,
          {{CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS, CUDNN_TYPE_INT64, {2}},
           {CUDNN_ATTR_CONVOLUTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, {CUDNN_DATA_FLOAT}},
           {CUDNN_ATTR_CONVOLUTION_CONV_MODE, CUDNN_TYPE_CONVOLUTION_MODE, {CUDNN_CROSS_CORRELATION}},
           {CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, CUDNN_TYPE_INT64, {args.stride, args.stride}},
           {CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, CUDNN_TYPE_INT64, {args.pad_top, args.pad_left}},
           {CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, CUDNN_TYPE_INT64, {args.pad_bottom, args.pad_right}},
           {CUDNN_ATTR_CONVOLUTION_DILATIONS, CUDNN_TYPE_INT64, {1, 1}}}};
}

bool DnnLibrary::conv(ConvPass pass, const Tensor& x, const Tensor& weight, const Tensor& y,
                      const ConvArgs& args) {
  if (!aligned(x) || !aligned(weight) || !aligned(y)) return false;
  const ConvRoles& roles = kConvRoles[static_cast<std::size_t>(pass)];
  // A gradient of weights is a sum over images anyway.
  const std::int64_t images = pass == ConvPass::weight ? x.dim(0) : images_at_once(x.dim(0));
  // Alone or in a batch, an image takes the same way: so its size decides, not where this one happens to lie.
  for (const Tensor* each : {&x, &y})
    if (pass != ConvPass::weight &&
        each->strides()[0] * static_cast<std::int64_t>(size_of(each->dtype())) % 16 != 0)
      return false;
  DnnGraph graph = one_operation(roles.type, {{roles.x, dense_tensor(x, images)},
                                              {roles.weight, dense_tensor(weight, weight.dim(0))},
                                              {roles.y, dense_tensor(y, images)}});
  graph.operations[0].manner = manner_of(roles, args);
  graph.operations[0].attributes = {{roles.alpha, CUDNN_TYPE_FLOAT, {1}},
                                    {roles.beta, CUDNN_TYPE_FLOAT, {0}}};
  const DnnPlan* plan = plan_for(graph, x.dtype());
  if (!plan) return false;
  for (std::int64_t b = 0; b < x.dim(0); b += images)
    run(*plan, {image_of(x, b), weight.address(), image_of(y, b)});
  return true;
}

}  // namespace

std::unique_ptr<Dnn> Dnn::open(CudaBackend& device) {
  void* handle = open_library(dnn_library(), nullptr);
  if (!handle) return nullptr;
  DnnFunctions functions;
#define DF_FIND(name) \
  functions.name = reinterpret_cast<decltype(functions.name)>(find_symbol(handle, dnn_library(), #name));
  DANCEFLUX_DNN_FUNCTIONS(DF_FIND)
#undef DF_FIND
  if (functions.cudnnGetVersion() < 90000) return nullptr;
  return std::make_unique<DnnLibrary>(device, functions);
}

}  // namespace danceflux::cuda
