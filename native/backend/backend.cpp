#include "backend/backend.h"

#include <algorithm>

#include "core/error.h"

namespace danceflux {
namespace {
const Declined kNotWritten = "not written";
}

Tensor Backend::empty(const Shape& shape, DType dtype) {
  const std::size_t bytes =
      std::max<std::size_t>(static_cast<std::size_t>(shape.numel()) * size_of(dtype), 1);
  void* address = allocate(bytes);
  return Tensor(std::make_shared<Storage>(shared_from_this(), address, bytes), dtype, shape);
}

std::vector<Tensor> Backend::recurring(const std::string&, std::span<const Tensor> inputs,
                                       const Recurring& work) {
  return work(inputs);
}

bool Backend::taken(const char* shortcut, const Declined& declined) {
  if (!declined) return true;
  require(!strict_shortcuts, "ERR_DECLINED", shortcut, ": ", name(), " declined: ", *declined);
  ++declined_[std::string(shortcut) + ": " + *declined];
  return false;
}

// The default of every shortcut: permission not used.
Declined Backend::attention(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                            const Tensor&, const AttentionArgs&) {
  return kNotWritten;
}
Declined Backend::attention_backward(const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                     const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                     const Tensor&, const Tensor&, const AttentionArgs&) {
  return kNotWritten;
}
Declined Backend::linear_activation(UnaryOp, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                    const Tensor&) {
  return kNotWritten;
}
Declined Backend::modulated_norm(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                 const Tensor&, float) {
  return kNotWritten;
}
Declined Backend::modulated_norm_backward(const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                          const Tensor&, const Tensor&, const Tensor&, const Tensor&) {
  return kNotWritten;
}
Declined Backend::gated_residual(const Tensor&, const Tensor&, const Tensor&, const Tensor&) {
  return kNotWritten;
}
Declined Backend::gated_residual_backward(const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                          const Tensor&) {
  return kNotWritten;
}
Declined Backend::qk_norm_rope(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                               const Tensor&, float) {
  return kNotWritten;
}
Declined Backend::qk_norm_rope_backward(const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                        const Tensor&, const Tensor&, const Tensor&, const Tensor&) {
  return kNotWritten;
}
Declined Backend::group_norm_silu(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                  const Tensor&, const NormArgs&) {
  return kNotWritten;
}
Declined Backend::flow_step(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                            const Tensor&) {
  return kNotWritten;
}
Declined Backend::flow_log_prob(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&) {
  return kNotWritten;
}
Declined Backend::flow_log_prob_backward(const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                         const Tensor&, const Tensor&, const Tensor&) {
  return kNotWritten;
}

}  // namespace danceflux
