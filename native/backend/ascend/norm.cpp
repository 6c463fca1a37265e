// Norms over rows (layer, rms) and over groups of channels, with their gradients.
#include "backend/ascend/ascend_backend.h"

namespace danceflux::ascend {
namespace {

struct Groups {
  std::int64_t N, C, HxW, groups;
};
Groups groups_of(const Tensor& x, const NormArgs& args) {
  const std::int64_t N = x.dim(0), C = x.dim(1);
  return {N, C, x.numel() / N / C, args.groups};
}

/// x [..., D] as [rows, D]; x dense.
Tensor as_rows(const Tensor& x) { return x.view({x.numel() / x.dim(-1), x.dim(-1)}); }

}  // namespace

void AscendBackend::norm(const Tensor& out, const Tensor& mean, const Tensor& rstd, const Tensor& x,
                         const Tensor& weight, const Tensor& bias, const NormArgs& args) {
  if (out.numel() == 0) return;
  if (args.kind == NormKind::group) return norm_groups(out, mean, rstd, x, weight, bias, args, false);
  norm_rows(out, mean, rstd, x, weight, bias, args);
}

void AscendBackend::norm_backward(const Tensor& dx, const Tensor& dweight, const Tensor& dbias,
                                  const Tensor& dy, const Tensor& x, const Tensor& mean, const Tensor& rstd,
                                  const Tensor& weight, const NormArgs& args) {
  if (dx.numel() == 0) {
    if (dweight) fill(dweight, 0);
    if (dbias) fill(dbias, 0);
    return;
  }
  if (args.kind == NormKind::group)
    return norm_groups_backward(dx, dweight, dbias, dy, x, mean, rstd, weight, args);
  norm_rows_backward(dx, dweight, dbias, dy, x, mean, rstd, weight, args);
}

// The weights of a layer norm have x's dtype in CANN, and f32 here: with weights it is made in f32. An rms
// norm takes f32 weights beside bf16, and wants some in any case. Statistics are f32 in both.
void AscendBackend::norm_rows(const Tensor& out, const Tensor& mean, const Tensor& rstd, const Tensor& x,
                              const Tensor& weight, const Tensor& bias, const NormArgs& args) {
  const std::int64_t D = x.dim(-1);
  const bool layer = args.kind == NormKind::layer, weighted = weight.defined() || bias.defined();
  const DType dtype = layer && weighted ? DType::f32 : common(x.dtype(), out.dtype());
  const Result result(*this, out, dtype);
  const Tensor rows = as_rows(dense(x, dtype)), y = as_rows(result.tensor());
  const Shape statistics{rows.dim(0), 1};
  if (layer) {
    // Where one of the two is given, the other is.
    const Tensor gain = weighted && !weight ? filled({D}, 1) : dense(weight);
    const Tensor shift = weighted && !bias ? filled({D}, 0) : dense(bias);
    launch_("layer_norm", ops().aclnnLayerNorm, rows, IntList{D}, gain, shift, f64{args.eps}, y,
            mean.view(statistics), rstd.view(statistics));
  } else {
    const Tensor gain = weight ? dense(weight) : filled({D}, 1);
    launch_("rms_norm", ops().aclnnRmsNorm, rows, gain, f64{args.eps}, y, rstd.view(statistics));
  }
  result.finish();
}

void AscendBackend::norm_rows_backward(const Tensor& dx, const Tensor& dweight, const Tensor& dbias,
                                       const Tensor& dy, const Tensor& x, const Tensor& mean,
                                       const Tensor& rstd, const Tensor& weight, const NormArgs& args) {
  const std::int64_t D = x.dim(-1);
  const bool layer = args.kind == NormKind::layer;
  const bool weighted = weight.defined() || dweight.defined() || dbias.defined();
  const DType dtype = layer && weighted ? DType::f32 : common(common(x.dtype(), dy.dtype()), dx.dtype());
  const Result result(*this, dx, dtype);
  const Tensor rows = as_rows(dense(x, dtype)), slope = as_rows(dense(dy, dtype)),
               out = as_rows(result.tensor());
  const Shape statistics{rows.dim(0), 1};
  if (layer) {
    const Tensor gain = weighted && !weight ? filled({D}, 1) : dense(weight);
    // The bias itself is not read: of it, the operator wants to see the shape.
    launch_("layer_norm_backward", ops().aclnnLayerNormBackward, slope, rows, IntList{D},
            mean.view(statistics), rstd.view(statistics), gain, gain,
            BoolList{true, dweight.defined(), dbias.defined()}, out, dweight, dbias);
  } else {
    const Tensor gain = weight ? dense(weight) : filled({D}, 1);
    const Tensor dgain = dweight ? dweight : empty({D});
    launch_("rms_norm_backward", ops().aclnnRmsNormGrad, slope, rows, rstd.view(statistics), gain, out,
            dgain);
  }
  result.finish();
}

// In f32 whatever x is: the autoencoder's eps of 1e-6 is below what the operator keeps apart in 16 bits.
void AscendBackend::norm_groups(const Tensor& out, const Tensor& mean, const Tensor& rstd, const Tensor& x,
                                const Tensor& weight, const Tensor& bias, const NormArgs& args, bool silu) {
  const Groups g = groups_of(x, args);
  const Result result(*this, out, DType::f32);
  const Shape flat{g.N, g.C, g.HxW}, statistics{g.N, g.groups};
  const Tensor image = dense(x, DType::f32).view(flat), y = result.tensor().view(flat);
  const Tensor gain = weight ? dense(weight) : filled({g.C}, 1),
               shift = bias ? dense(bias) : filled({g.C}, 0);
  launch_("group_norm", ops().aclnnGroupNorm, image, gain, shift, g.N, g.C, g.HxW, g.groups, f64{args.eps}, y,
          mean.view(statistics), rstd.view(statistics));
  if (silu) launch_("group_norm_silu", ops().aclnnSilu, y, y);
  result.finish();
}

void AscendBackend::norm_groups_backward(const Tensor& dx, const Tensor& dweight, const Tensor& dbias,
                                         const Tensor& dy, const Tensor& x, const Tensor& mean,
                                         const Tensor& rstd, const Tensor& weight, const NormArgs& args) {
  const Groups g = groups_of(x, args);
  const Result result(*this, dx, DType::f32);
  const Shape flat{g.N, g.C, g.HxW}, statistics{g.N, g.groups};
  const Tensor image = dense(x, DType::f32).view(flat), slope = dense(dy, DType::f32).view(flat);
  const Tensor gain = weight ? dense(weight) : filled({g.C}, 1);
  launch_("group_norm_backward", ops().aclnnGroupNormBackward, slope, image, mean.view(statistics),
          rstd.view(statistics), gain, g.N, g.C, g.HxW, g.groups,
          BoolList{true, dweight.defined(), dbias.defined()}, result.tensor().view(flat), dweight, dbias);
  result.finish();
}

Declined AscendBackend::group_norm_silu(const Tensor& out, const Tensor& mean, const Tensor& rstd,
                                        const Tensor& x, const Tensor& weight, const Tensor& bias,
                                        const NormArgs& args) {
  if (out.numel() == 0) return {};
  const OperatorSymbols& fused = ops().aclnnGroupNormSilu;
  // CANN does not say of the fused operator that it is deterministic.
  if (!fused.found() || settings_.determinism != Determinism::off) {
    norm_groups(out, mean, rstd, x, weight, bias, args, true);
    return {};
  }
  const Groups g = groups_of(x, args);
  const Result result(*this, out, DType::f32);
  const Shape flat{g.N, g.C, g.HxW}, statistics{g.N, g.groups};
  const Tensor image = dense(x, DType::f32).view(flat);
  const Tensor gain = weight ? dense(weight) : filled({g.C}, 1),
               shift = bias ? dense(bias) : filled({g.C}, 0);
  launch_("group_norm_silu", ops().aclnnGroupNormSilu, image, gain, shift, g.groups, f64{args.eps},
          result.tensor().view(flat), mean.view(statistics), rstd.view(statistics));
  result.finish();
  return {};
}

}  // namespace danceflux::ascend
