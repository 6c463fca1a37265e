#include "backend/cuda/dnn.h"

#include <array>
#include <atomic>
#include <map>

#include "backend/cuda/dnn_attention.h"
#include "core/error.h"

namespace danceflux::cuda {
namespace {

constexpr std::int64_t kMaxWidth = 128;

/// Which ways attention has gone, for people: "unified + own kernels". Read by any thread.
class WaysTaken {
 public:
  enum Way : std::uint8_t { unified, composite, own };
  void note(Way way) { seen_[way].store(true, std::memory_order_relaxed); }
  std::string words() const {
    static constexpr const char* kNames[] = {"unified", "composite", "own kernels"};
    std::string text;
    for (std::size_t i = 0; i < seen_.size(); ++i)
      if (seen_[i].load(std::memory_order_relaxed))
        text += (text.empty() ? "" : " + ") + std::string(kNames[i]);
    return text;
  }

 private:
  std::array<std::atomic<bool>, 3> seen_{};
};

int capability_of(int index) {
  cudaDeviceProp properties{};
  check(cudaGetDeviceProperties(&properties, index), "open");
  return properties.major;
}

class DnnLibrary final : public Dnn {
 public:
  DnnLibrary(CudaBackend& device, const DnnFunctions& functions)
      : device_(device),
        f_(functions),
        version_(functions.cudnnGetVersion()),
        capability_(capability_of(device.index())) {
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
  std::string description() const override;

 private:
  DnnWishes wishes(DType dtype) const {
    const Options& options = device_.options();
    return {options.determinism != Determinism::off, dtype == DType::f32 && !options.tf32};
  }
  const DnnPlan* plan_for(const DnnGraph& graph, DType dtype);
  /// The first way that this cuDNN has a plan for, taken. False: none.
  bool attend(AttentionPass pass, const AttentionTensors& tensors, float scale);
  void run_images(const DnnPlan& plan, const AttentionGraph& way, const AttentionTensors& tensors,
                  std::int64_t images, float scale);
  void run(const DnnPlan& plan, const std::vector<void*>& pointers);
  /// Images that one call is given.
  std::int64_t images_at_once(std::int64_t images) const {
    return device_.options().determinism == Determinism::strict ? 1 : images;
  }

  CudaBackend& device_;
  const DnnFunctions f_;
  const std::size_t version_;
  const int capability_;
  std::array<WaysTaken, 2> taken_;  // forward, backward
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

bool DnnLibrary::attend(AttentionPass pass, const AttentionTensors& tensors, float scale) {
  const std::int64_t images = images_at_once(tensors.q.dim(0));
  const bool repeatable = device_.options().determinism != Determinism::off;
  const AttentionOffer offer{version_, capability_, repeatable, tensors.q.dim(1), tensors.k.dim(1)};
  WaysTaken& taken = taken_[static_cast<std::size_t>(pass)];
  for (const AttentionWay way : {AttentionWay::unified, AttentionWay::composite}) {
    if (device_.options().own_attention || !has_way(way, pass, offer)) continue;
    const AttentionGraph told = attention_graph(way, pass, tensors, images, repeatable);
    const DnnPlan* plan = plan_for(told.graph, tensors.q.dtype());
    if (!plan) continue;
    run_images(*plan, told, tensors, images, scale);
    taken.note(way == AttentionWay::unified ? WaysTaken::unified : WaysTaken::composite);
    return true;
  }
  taken.note(WaysTaken::own);
  return false;
}

void DnnLibrary::run_images(const DnnPlan& plan, const AttentionGraph& way, const AttentionTensors& t,
                            std::int64_t images, float scale) {
  float one = 1;
  const Shape rows = {images, t.lse.dim(1), t.lse.dim(2)};
  Tensor row_sums, dq_sums;  // one after the other, the images use the same
  if (way.needs_row_sums) row_sums = device_.empty(rows);
  if (way.needs_dq_sums) dq_sums = device_.empty({rows[0], rows[1], rows[2], t.q.dim(3)});
  for (std::int64_t b = 0; b < t.q.dim(0); b += images) {
    std::vector<void*> pointers = {image_of(t.q, b),   image_of(t.k, b),   image_of(t.v, b),
                                   image_of(t.out, b), image_of(t.lse, b), &scale};
    if (t.dout)
      for (const Tensor* each : {t.dout, t.dq, t.dk, t.dv}) pointers.push_back(image_of(*each, b));
    if (row_sums) {
      pointers.push_back(&one);
      pointers.push_back(row_sums.address());
    }
    if (dq_sums) {
      device_.fill(dq_sums, 0);  // cuDNN before 9.6 adds to what is there
      device_.enter("attention_backward");
      pointers.push_back(dq_sums.address());
    }
    run(plan, pointers);
  }
}

bool DnnLibrary::attention(const Tensor& out, const Tensor& lse, const Tensor& q, const Tensor& k,
                           const Tensor& v, const Tensor& bias, const AttentionArgs& args) {
  return aligned(lse) && fits_attention({&out, &q, &k, &v}, bias, args) &&
         attend(AttentionPass::forward, {q, k, v, out, lse}, args.scale);
}

bool DnnLibrary::attention_backward(const Tensor& dq, const Tensor& dk, const Tensor& dv, const Tensor& dout,
                                    const Tensor& out, const Tensor& lse, const Tensor& q, const Tensor& k,
                                    const Tensor& v, const Tensor& bias, const AttentionArgs& args) {
  return aligned(lse) && fits_attention({&dq, &dk, &dv, &dout, &out, &q, &k, &v}, bias, args) &&
         attend(AttentionPass::backward, {q, k, v, out, lse, &dout, &dq, &dk, &dv}, args.scale);
}

std::string DnnLibrary::description() const {
  std::string text = "cuDNN " + std::to_string(version_ / 10000) + '.' +
                     std::to_string(version_ / 100 % 100) + '.' + std::to_string(version_ % 100);
  static constexpr const char* kPasses[] = {"; attention ", "; its gradient "};
  for (std::size_t i = 0; i < taken_.size(); ++i)
    if (const std::string ways = taken_[i].words(); !ways.empty()) text += kPasses[i] + ways;
  return text;
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
