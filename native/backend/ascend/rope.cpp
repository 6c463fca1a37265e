// The rotation of queries and keys. B batch, L tokens, H heads, K head width.
#include "backend/ascend/ascend_backend.h"

namespace danceflux::ascend {
namespace {

constexpr std::int64_t kMostWidth = 896;   // less than this
constexpr std::int64_t kMostPairs = 1000;  // of batch and head, in interleave mode; less than this

}  // namespace

Declined AscendBackend::no_rotary(const Tensor& x) const {
  if (!ops().aclnnRotaryPositionEmbedding.found()) return "this CANN has no aclnnRotaryPositionEmbedding";
  if (!knows_bf16(npu_->cann().chip)) return "aclnnRotaryPositionEmbedding is for A2 and later chips";
  if (x.dim(3) >= kMostWidth)
    return "head width " + std::to_string(x.dim(3)) + " is not below " + std::to_string(kMostWidth);
  if (x.dim(0) * x.dim(2) >= kMostPairs)
    return "batch times heads, " + std::to_string(x.dim(0) * x.dim(2)) + ", is not below " +
           std::to_string(kMostPairs);
  return {};
}

// FLUX turns adjacent channels, which is mode 1, with each angle's cosine at both of its channels. Tables and
// products are f32 for activations of any dtype: bf16 angles are off by a tenth of a radian at the far end of
// a picture. The tables come from the host, once per resolution; that they are spread to two channels here is
// one copy of a repeating view, and no repeat_interleave.
void AscendBackend::rotate(const Tensor& out, const Tensor& x, const Tensor& cos, const Tensor& sin,
                           bool inverse) {
  const std::int64_t L = x.dim(1), K = x.dim(3);
  const auto spread = [&](const Tensor& table) {
    const Tensor wide = empty({1, L, 1, K});
    copy(wide.view({L, K / 2, 2}), dense(table).view({L, K / 2, 1}).expand({L, K / 2, 2}));
    return wide;
  };
  const Tensor c = spread(cos), s = spread(sin);
  if (inverse) launch_("rope", ops().aclnnMuls, s, F32{-1}, s);
  launch_("rope", ops().aclnnRotaryPositionEmbedding, x, c, s, kRotaryInterleave, out);
}

void AscendBackend::rotate_composed(const Tensor& out, const Tensor& x, const Tensor& cos, const Tensor& sin,
                                    bool inverse) {
  const std::int64_t B = x.dim(0), L = x.dim(1), H = x.dim(2), half = x.dim(3) / 2;
  const auto channel = [&](const Tensor& pairs, int which) {
    return pairs.view({B, L, H, half, 2}).narrow(4, which, 1);
  };
  const Shape table{1, L, 1, half, 1};
  const Tensor c = dense(cos).view(table), s = dense(sin).view(table);
  const Tensor first = empty({B, L, H, half, 1}), second = empty(first.shape());
  for (const int which : {0, 1}) {
    launch_("rope", ops().aclnnMul, channel(x, which), c, first);
    launch_("rope", ops().aclnnMul, channel(x, 1 - which), s, second);
    const bool minus = (which == 0) != inverse;
    launch_("rope", ops().aclnnAdd, first, second, F32{minus ? -1.0 : 1.0}, first);
    copy(channel(out, which), first);
  }
}

void AscendBackend::rope(const Tensor& out, const Tensor& x, const Tensor& cos, const Tensor& sin,
                         bool inverse) {
  if (out.numel() == 0) return;
  const Result result(*this, out, DType::f32);
  Tensor input = dense(x, DType::f32);
  if (no_rotary(x)) {
    if (result.tensor().address() == input.address()) {  // its halves are read after they are written
      input = empty(x.shape());
      copy(input, x);
    }
    rotate_composed(result.tensor(), input, cos, sin, inverse);
  } else {
    rotate(result.tensor(), input, cos, sin, inverse);
  }
  result.finish();
}

Declined AscendBackend::qk_norm_rope(const Tensor& out, const Tensor& rstd, const Tensor& x,
                                     const Tensor& weight, const Tensor& cos, const Tensor& sin, float eps) {
  if (Declined declined = no_rotary(x)) return declined;
  if (out.numel() == 0) return {};
  const Result result(*this, out, DType::f32);
  const std::int64_t K = x.dim(3);
  const Shape rows{x.numel() / K, K}, statistics{x.numel() / K, 1};
  const Tensor normed = empty(x.shape());
  launch_("qk_norm_rope", ops().aclnnRmsNorm, dense(x, DType::f32).view(rows), dense(weight), f64{eps},
          normed.view(rows), rstd.view(statistics));
  rotate(result.tensor(), normed, cos, sin, false);
  result.finish();
  return {};
}

Declined AscendBackend::qk_norm_rope_backward(const Tensor& dx, const Tensor& dweight, const Tensor& dout,
                                              const Tensor& x, const Tensor& rstd, const Tensor& weight,
                                              const Tensor& cos, const Tensor& sin) {
  if (Declined declined = no_rotary(x)) return declined;
  if (dx.numel() == 0) {
    if (dweight) fill(dweight, 0);
    return {};
  }
  const Result result(*this, dx, DType::f32);
  const std::int64_t K = x.dim(3);
  const Shape rows{x.numel() / K, K}, statistics{x.numel() / K, 1};
  const Tensor turned = empty(x.shape());
  rotate(turned, dense(dout, DType::f32), cos, sin, true);
  launch_("qk_norm_rope_backward", ops().aclnnRmsNormGrad, turned.view(rows), dense(x, DType::f32).view(rows),
          rstd.view(statistics), dense(weight), result.tensor().view(rows), dweight ? dweight : empty({K}));
  result.finish();
  return {};
}

}  // namespace danceflux::ascend
