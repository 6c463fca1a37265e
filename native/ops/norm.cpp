// Norms, and the rotation of queries and keys. B batch, L tokens, D width, H heads, K head width, C channels.
#include "ops/check.h"
#include "ops/norm_checks.h"
#include "ops/ops.h"

namespace danceflux::ops {
namespace {

/// The forward and the gradient that the three norms share; `count` statistics, a mean only where the kind
/// has one.
Tensor normalize(const char* name, const Tensor& x, const Tensor& weight, const Tensor& bias,
                 std::int64_t count, const NormArgs& args) {
  Backend& device = backend_of(x);
  const Tensor out = like(x), rstd = device.empty({count});
  const Tensor mean = args.kind == NormKind::rms ? Tensor() : device.empty({count});
  device.norm(out, mean, rstd, x, weight, bias, args);
  observed(name, out, x);
  if (!tracked(x, weight, bias)) return out;
  return recorded(name, out, {x, weight, bias}, [x, mean, rstd, weight, args](Gradients& gradients) {
    Backend& device = backend_of(x);
    const Tensor dy = args.kind == NormKind::group ? packed(gradients.output()) : gradients.output();
    const Shape vector{args.kind == NormKind::group ? x.dim(1) : x.dim(-1)};
    Tensor dx = args.kind == NormKind::group ? like(x) : gradients.place(0, x);
    Tensor dweight = gradients.wanted(1) ? device.empty(vector) : Tensor();
    Tensor dbias = gradients.wanted(2) ? device.empty(vector) : Tensor();
    device.norm_backward(dx, dweight, dbias, dy, x, mean, rstd, weight, args);
    gradients.add(0, std::move(dx));
    if (dweight) gradients.add(1, std::move(dweight));
    if (dbias) gradients.add(2, std::move(dbias));
  });
}

/// Rows of x [..., D].
std::int64_t check_rows(const char* op, const Tensor& x, const Tensor& weight, const Tensor& bias) {
  check_activation(op, x);
  require(x.rank() >= 1 && x.dim(-1) > 0, "ERR_SHAPE", op, ": expected x [..., D], got ", x.shape());
  check_vector(op, "weight", x, weight, x.dim(-1));
  check_vector(op, "bias", x, bias, x.dim(-1));
  return x.numel() / x.dim(-1);
}

}  // namespace

Tensor layer_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, float eps) {
  enter("layer_norm", x);
  const std::int64_t rows = check_rows("layer_norm", x, weight, bias);
  return normalize("layer_norm", x, weight, bias, rows, {.kind = NormKind::layer, .eps = eps});
}

Tensor rms_norm(const Tensor& x, const Tensor& weight, float eps) {
  enter("rms_norm", x);
  const std::int64_t rows = check_rows("rms_norm", x, weight, {});
  return normalize("rms_norm", x, weight, {}, rows, {.kind = NormKind::rms, .eps = eps});
}

void check_group_norm(const char* op, const Tensor& x, int groups, const Tensor& weight, const Tensor& bias) {
  check_activation(op, x);
  require(x.rank() >= 2 && groups > 0 && x.dim(1) > 0 && x.dim(1) % groups == 0, "ERR_SHAPE", op,
          ": expected x [B, C, ...] with C a multiple of ", groups, " groups, got ", x.shape());
  check_vector(op, "weight", x, weight, x.dim(1));
  check_vector(op, "bias", x, bias, x.dim(1));
}

Tensor group_norm(const Tensor& x, int groups, const Tensor& weight, const Tensor& bias, float eps) {
  enter("group_norm", x);
  check_group_norm("group_norm", x, groups, weight, bias);
  return normalize("group_norm", contiguous(x), weight, bias, x.dim(0) * groups,
                   {.kind = NormKind::group, .eps = eps, .groups = groups});
}

void check_rope(const char* op, const Tensor& x, const Tensor& cos, const Tensor& sin) {
  check_activation(op, x);
  check_rank(op, "x [B, L, H, K]", x, 4);
  require(x.dim(3) % 2 == 0, "ERR_SHAPE", op, ": expected an even head width, got ", x.shape());
  for (const Tensor* table : {&cos, &sin}) {
    check_same_device(op, x, *table);
    check_shape(op, "cos and sin", *table, {x.dim(1), x.dim(3) / 2});
    require(table->dtype() == DType::f32, "ERR_DTYPE", op, ": expected cos and sin in f32, got ",
            name_of(table->dtype()));
  }
}

Tensor rope(const Tensor& x, const Tensor& cos, const Tensor& sin) {
  Backend& device = enter("rope", x);
  check_rope("rope", x, cos, sin);
  const Tensor out = like(x);
  device.rope(out, x, cos, sin, false);
  observed("rope", out, x);
  if (!tracked(x)) return out;
  return recorded("rope", out, {x}, [cos, sin](Gradients& gradients) {
    const Tensor dy = gradients.output();
    Tensor dx = like(dy);
    backend_of(dy).rope(dx, dy, cos, sin, true);
    gradients.add(0, std::move(dx));
  });
}

}  // namespace danceflux::ops
