// Rows of tables, and the optimizer's step.
#include "backend/ascend/ascend_backend.h"

namespace danceflux::ascend {

// An id beyond the table would give garbage without a word: ops/ checks ids on the host.
void AscendBackend::gather_rows(const Tensor& out, const Tensor& table, const Tensor& ids) {
  if (out.numel() == 0) return;
  const Result result(*this, out, table.dtype());
  launch_("gather_rows", ops().aclnnEmbedding, dense(table), dense(ids), result.tensor());
  result.finish();
}

void AscendBackend::scatter_add_rows(const Tensor& table, const Tensor& rows, const Tensor& ids) {
  if (rows.numel() == 0) return;
  const Result result(*this, table, DType::f32);
  if (result.tensor().id() != table.id()) copy(result.tensor(), table);
  launch_("scatter_add_rows", ops().aclnnIndexAdd, result.tensor(), 0, dense(ids), dense(rows, DType::f32),
          F32{1}, result.tensor());
  result.finish();
}

void AscendBackend::adamw(const Tensor& parameter, const Tensor& master, const Tensor& m, const Tensor& v,
                          const Tensor& gradient, const AdamWArgs& args) {
  if (master.numel() == 0) return;
  Tensor scaled = gradient;
  if (args.gradient_scale != 1) {
    scaled = empty(gradient.shape());
    launch_("adamw", ops().aclnnMuls, gradient, F32{args.gradient_scale}, scaled);
  }
  // The operator adds 1 to the step that it is given.
  const Tensor step = filled({1}, static_cast<float>(args.step - 1));
  const auto f = [](double value) { return static_cast<float>(value); };
  launch_("adamw", ops().aclnnApplyAdamWV2, master, m, v, nullptr, scaled, step, f(args.lr), f(args.beta1),
          f(args.beta2), f(args.weight_decay), f(args.eps), false, false);
  if (parameter.address() != master.address()) copy(parameter, master);
}

}  // namespace danceflux::ascend
