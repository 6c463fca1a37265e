#include "backend/cuda/dnn_attention.h"

#include <utility>

namespace danceflux::cuda {
namespace {

constexpr std::size_t kUnifiedForwardSince = 91301, kUnifiedBackwardSince = 91700;
/// Known to be wrong: NVIDIA's own frontend passes these two over.
constexpr std::size_t kFaulty[] = {91000, 91001};
/// Up to here that frontend masks a last tile of keys that is not full in backward, which is not done here.
constexpr std::size_t kFullTilesUntil = 91500;
constexpr std::int64_t kTile = 128;

using Dims = std::vector<std::int64_t>;

Dims packed(const Dims& dims) { return {dims[1] * dims[2] * dims[3], dims[2] * dims[3], dims[3], 1}; }
Dims turned(Dims dims) {
  std::swap(dims[2], dims[3]);
  return dims;
}

/// [B, L, H, K] as [images, H, L, K], which is how cuDNN names the axes of attention.
DnnTensor by_head(const Tensor& x, std::int64_t images) {
  return {.dtype = x.dtype(),
          .dims = {images, x.dim(2), x.dim(1), x.dim(3)},
          .strides = {x.strides()[0], x.strides()[2], x.strides()[1], x.strides()[3]}};
}
/// The same with its last two axes turned: [images, H, K, L].
DnnTensor by_head_turned(const Tensor& x, std::int64_t images) {
  DnnTensor tensor = by_head(x, images);
  tensor.dims = turned(tensor.dims);
  tensor.strides = turned(tensor.strides);
  return tensor;
}
/// f32, one for each query; an image after the first may begin between two boundaries of 16 bytes.
DnnTensor by_query(const Tensor& lse, std::int64_t images) {
  const Dims dims = {images, lse.dim(1), lse.dim(2), 1};
  return {.dtype = DType::f32,
          .dims = dims,
          .strides = packed(dims),
          .alignment = dims[1] * dims[2] % 4 == 0 ? 16 : 4};
}
DnnTensor number() {
  return {.dtype = DType::f32, .dims = {1, 1, 1, 1}, .strides = {1, 1, 1, 1}, .place = DnnPlace::number};
}

/// Writes a composite graph down, operation by operation; tensors are their ids.
class Composer {
 public:
  explicit Composer(DnnGraph& graph) : graph_(graph) {}

  std::int64_t between(const Dims& dims, DType dtype = DType::f32) {
    return between(dims, packed(dims), dtype);
  }
  std::int64_t between(const Dims& dims, const Dims& strides, DType dtype) {
    return graph_.add({.dtype = dtype, .dims = dims, .strides = strides, .place = DnnPlace::between});
  }

  std::int64_t matmul(std::int64_t a, std::int64_t b, std::int64_t c) {
    graph_.operations.push_back({CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR,
                                 {{CUDNN_ATTR_OPERATION_MATMUL_ADESC, a},
                                  {CUDNN_ATTR_OPERATION_MATMUL_BDESC, b},
                                  {CUDNN_ATTR_OPERATION_MATMUL_CDESC, c}},
                                 DnnManner{CUDNN_BACKEND_MATMUL_DESCRIPTOR,
                                           CUDNN_ATTR_OPERATION_MATMUL_DESC,
                                           {in_f32(CUDNN_ATTR_MATMUL_COMP_TYPE)}}});
    return c;
  }
  /// y = f(x)
  std::int64_t map(cudnnPointwiseMode_t f, std::int64_t x, std::int64_t y) {
    return pointwise(
        f, {{CUDNN_ATTR_OPERATION_POINTWISE_XDESC, x}, {CUDNN_ATTR_OPERATION_POINTWISE_YDESC, y}}, y);
  }
  /// y = f(x, b); b may have ones among its dims
  std::int64_t map(cudnnPointwiseMode_t f, std::int64_t x, std::int64_t b, std::int64_t y) {
    return pointwise(f,
                     {{CUDNN_ATTR_OPERATION_POINTWISE_XDESC, x},
                      {CUDNN_ATTR_OPERATION_POINTWISE_BDESC, b},
                      {CUDNN_ATTR_OPERATION_POINTWISE_YDESC, y}},
                     y);
  }
  std::int64_t reduce(cudnnReduceTensorOp_t op, std::int64_t x, std::int64_t y) {
    graph_.operations.push_back(
        {CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR,
         {{CUDNN_ATTR_OPERATION_REDUCTION_XDESC, x}, {CUDNN_ATTR_OPERATION_REDUCTION_YDESC, y}},
         DnnManner{CUDNN_BACKEND_REDUCTION_DESCRIPTOR,
                   CUDNN_ATTR_OPERATION_REDUCTION_DESC,
                   {{CUDNN_ATTR_REDUCTION_OPERATOR, CUDNN_TYPE_REDUCTION_OPERATOR_TYPE, {op}},
                    in_f32(CUDNN_ATTR_REDUCTION_COMP_TYPE)}}});
    return y;
  }
  /// The same elements under y's dims and strides.
  std::int64_t view(std::int64_t x, std::int64_t y) {
    graph_.operations.push_back(
        {CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR,
         {{CUDNN_ATTR_OPERATION_RESHAPE_XDESC, x}, {CUDNN_ATTR_OPERATION_RESHAPE_YDESC, y}}});
    return y;
  }

 private:
  using Roles = std::vector<std::pair<cudnnBackendAttributeName_t, std::int64_t>>;
  static DnnAttribute in_f32(cudnnBackendAttributeName_t name) {
    return {name, CUDNN_TYPE_DATA_TYPE, {CUDNN_DATA_FLOAT}};
  }
  std::int64_t pointwise(cudnnPointwiseMode_t f, Roles roles, std::int64_t y) {
    graph_.operations.push_back({CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR, std::move(roles),
                                 DnnManner{CUDNN_BACKEND_POINTWISE_DESCRIPTOR,
                                           CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR,
                                           {{CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, {f}},
                                            in_f32(CUDNN_ATTR_POINTWISE_MATH_PREC)}}});
    return y;
  }

  DnnGraph& graph_;
};

DnnGraph unified(AttentionPass pass, const AttentionTensors& t, std::int64_t images) {
  const auto heads = [&](const Tensor& x) { return by_head(x, images); };
  if (pass == AttentionPass::forward)
    return one_operation(CUDNN_BACKEND_OPERATION_SDPA_FWD_DESCRIPTOR,
                         {{CUDNN_ATTR_OPERATION_SDPA_FWD_QDESC, heads(t.q)},
                          {CUDNN_ATTR_OPERATION_SDPA_FWD_KDESC, heads(t.k)},
                          {CUDNN_ATTR_OPERATION_SDPA_FWD_VDESC, heads(t.v)},
                          {CUDNN_ATTR_OPERATION_SDPA_FWD_ODESC, heads(t.out)},
                          {CUDNN_ATTR_OPERATION_SDPA_FWD_STATSDESC, by_query(t.lse, images)},
                          {CUDNN_ATTR_OPERATION_SDPA_FWD_SCALEDESC, number()}});
  return one_operation(CUDNN_BACKEND_OPERATION_SDPA_BWD_DESCRIPTOR,
                       {{CUDNN_ATTR_OPERATION_SDPA_BWD_QDESC, heads(t.q)},
                        {CUDNN_ATTR_OPERATION_SDPA_BWD_KDESC, heads(t.k)},
                        {CUDNN_ATTR_OPERATION_SDPA_BWD_VDESC, heads(t.v)},
                        {CUDNN_ATTR_OPERATION_SDPA_BWD_ODESC, heads(t.out)},
                        {CUDNN_ATTR_OPERATION_SDPA_BWD_STATSDESC, by_query(t.lse, images)},
                        {CUDNN_ATTR_OPERATION_SDPA_BWD_SCALEDESC, number()},
                        {CUDNN_ATTR_OPERATION_SDPA_BWD_DODDESC, heads(*t.dout)},
                        {CUDNN_ATTR_OPERATION_SDPA_BWD_DQDESC, heads(*t.dq)},
                        {CUDNN_ATTR_OPERATION_SDPA_BWD_DKDESC, heads(*t.dk)},
                        {CUDNN_ATTR_OPERATION_SDPA_BWD_DVDESC, heads(*t.dv)}});
}

/// out = softmax(scale q k^T) v and lse, the softmax in the steps that keep it from overflowing.
AttentionGraph composite_forward(const AttentionTensors& t, std::int64_t images) {
  AttentionGraph made;
  DnnGraph& g = made.graph;
  const std::int64_t q = g.add(by_head(t.q, images)), k = g.add(by_head_turned(t.k, images)),
                     v = g.add(by_head(t.v, images)), out = g.add(by_head(t.out, images)),
                     lse = g.add(by_query(t.lse, images)), scale = g.add(number());
  const Dims row = g.tensors[static_cast<std::size_t>(lse) - 1].dims,
             scores = {row[0], row[1], row[2], t.k.dim(1)};
  Composer c(g);
  const auto product = c.matmul(q, k, c.between(scores));
  const auto scaled = c.map(CUDNN_POINTWISE_MUL, product, scale, c.between(scores));
  const auto highest = c.reduce(CUDNN_REDUCE_TENSOR_MAX, scaled, c.between(row));
  const auto below = c.map(CUDNN_POINTWISE_SUB, scaled, highest, c.between(scores));
  const auto power = c.map(CUDNN_POINTWISE_EXP, below, c.between(scores));
  const auto sum = c.reduce(CUDNN_REDUCE_TENSOR_ADD, power, c.between(row));
  const auto log_sum = c.map(CUDNN_POINTWISE_LOG, sum, c.between(row));
  c.map(CUDNN_POINTWISE_ADD, highest, log_sum, lse);
  // The second product is of bf16, so what goes into it is said to be.
  const auto weights = c.map(CUDNN_POINTWISE_DIV, power, sum, c.between(scores, t.q.dtype()));
  c.matmul(weights, v, out);
  return made;
}

/// p = exp(scale q k^T - lse), ds = scale p (dout v^T - sum over a row of dout out); dv = p^T dout, dk = ds^T
/// q, dq = ds k.
AttentionGraph composite_backward(const AttentionTensors& t, std::int64_t images, bool repeatable) {
  AttentionGraph made{.needs_row_sums = true, .needs_dq_sums = !repeatable};
  DnnGraph& g = made.graph;
  const DType dtype = t.q.dtype();
  const DnnTensor keys = by_head_turned(t.k, images);
  const std::int64_t q = g.add(by_head(t.q, images)), k = g.add(keys), v = g.add(by_head_turned(t.v, images)),
                     out = g.add(by_head(t.out, images)), lse = g.add(by_query(t.lse, images)),
                     scale = g.add(number()), dout = g.add(by_head(*t.dout, images)),
                     dq = g.add(by_head(*t.dq, images)), dk = g.add(by_head(*t.dk, images)),
                     dv = g.add(by_head(*t.dv, images)), one = g.add(number());
  DnnTensor sums = by_query(t.lse, images);
  sums.alignment = 16;
  const std::int64_t row_sums = g.add(sums);
  const Dims row = sums.dims, scores = {row[0], row[1], row[2], t.k.dim(1)},
             head = {row[0], row[1], row[2], t.q.dim(3)};
  Composer c(g);
  // With a product with one, as the engines know it; the row sums go through memory of ours.
  const auto each = c.map(CUDNN_POINTWISE_MUL, dout, out, c.between(head));
  const auto sum = c.reduce(CUDNN_REDUCE_TENSOR_ADD, each, c.between(row));
  c.map(CUDNN_POINTWISE_MUL, sum, one, row_sums);

  const auto product = c.matmul(q, k, c.between(scores));
  const auto scaled = c.map(CUDNN_POINTWISE_MUL, product, scale, c.between(scores));
  const auto below = c.map(CUDNN_POINTWISE_SUB, scaled, lse, c.between(scores));
  const auto p = c.map(CUDNN_POINTWISE_EXP, below, c.between(scores));
  const auto p_turned = c.view(p, c.between(turned(scores), turned(packed(scores)), dtype));
  c.matmul(p_turned, dout, dv);

  const auto dp = c.matmul(dout, v, c.between(scores));
  const auto less = c.map(CUDNN_POINTWISE_SUB, dp, row_sums, c.between(scores));
  const auto share = c.map(CUDNN_POINTWISE_MUL, less, p, c.between(scores));
  const auto ds = c.map(CUDNN_POINTWISE_MUL, share, scale, c.between(scores));
  const auto ds_turned = c.view(ds, c.between(turned(scores), turned(packed(scores)), dtype));
  c.matmul(ds_turned, q, dk);

  const auto upright = c.view(k, c.between(turned(keys.dims), turned(keys.strides), dtype));
  if (repeatable) {  // dq straight from its product: the engines add its parts in one order then
    c.matmul(ds, upright, dq);
  } else {  // parts of dq are added in f32 as they come
    const auto dq_sums = g.add({.dtype = DType::f32, .dims = head, .strides = packed(head)});
    c.matmul(ds, upright, dq_sums);
    c.map(CUDNN_POINTWISE_IDENTITY, dq_sums, dq);
  }
  return made;
}

}  // namespace

bool has_way(AttentionWay way, AttentionPass pass, const AttentionOffer& offer) {
  for (const std::size_t faulty : kFaulty)
    if (offer.version == faulty) return false;
  const bool forward = pass == AttentionPass::forward;
  // No note of an engine tells that it adds the parts of dq as they come, so the graph has to be one that
  // leaves it no choice; the one operation has nothing to say so with.
  if (way == AttentionWay::unified)
    return forward ? offer.version >= kUnifiedForwardSince
                   : offer.version >= kUnifiedBackwardSince && !offer.repeatable;
  if (forward) return true;
  if (offer.queries == 1 && offer.keys == 1) return false;
  if (offer.keys % kTile != 0 && offer.version <= kFullTilesUntil) return false;
  // On Blackwell that frontend picks an engine and its knobs by hand for the same bits, which is not done
  // here.
  return !offer.repeatable || (offer.capability != 10 && offer.capability != 11);
}

AttentionGraph attention_graph(AttentionWay way, AttentionPass pass, const AttentionTensors& tensors,
                               std::int64_t images, bool repeatable) {
  if (way == AttentionWay::unified) return {unified(pass, tensors, images)};
  return pass == AttentionPass::forward ? composite_forward(tensors, images)
                                        : composite_backward(tensors, images, repeatable);
}

}  // namespace danceflux::cuda
