// A device around another one: counts its calls, declines shortcuts by name, and puts guards around all
// memory.
#pragma once
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "backend/backend.h"

namespace danceflux::test {

/// Tensors made here belong to this device; the inner one sees their addresses only. Guards need memory that
/// the host can read, so they are for the CPU.
class WrappedBackend : public Backend {
 public:
  explicit WrappedBackend(std::shared_ptr<Backend> inner, bool guarded = false)
      : inner_(std::move(inner)), guard_(guarded ? 64 : 0) {}

  /// Calls of each primitive and shortcut by name.
  std::map<std::string, int> calls;
  /// Shortcuts that are declined with "not today", whatever the inner device can.
  std::set<std::string> refused;
  /// Blocks that came back with a damaged guard.
  int overruns = 0;
  /// For events that the inner device does not know.
  std::function<void(const Event& event)> on_wait;

  std::string name() const override { return inner_->name(); }
  std::string description() const override { return inner_->description(); }
  DType activation_dtype(DType weights) const override { return inner_->activation_dtype(weights); }
  void* allocate(std::size_t bytes) override;
  void release(void* address, std::size_t bytes) noexcept override;
  MemoryStats memory() const override { return inner_->memory(); }
  std::optional<std::size_t> free_memory() const override { return inner_->free_memory(); }
  void reset_peak() override { inner_->reset_peak(); }
  void trim() override { inner_->trim(); }
  void upload(const Tensor& tensor, const void* host) override { inner_->upload(tensor, host); }
  void download(void* host, const Tensor& tensor) override { inner_->download(host, tensor); }
  void synchronize() override { inner_->synchronize(); }
  Event record() override { return inner_->record(); }
  void wait(const Event& event) override { on_wait ? on_wait(event) : inner_->wait(event); }

#define DF_PASS(name, parameters, arguments) \
  void name parameters override {            \
    ++calls[#name];                          \
    inner_->name arguments;                  \
  }
  using T = const Tensor&;
  DF_PASS(copy, (T out, T x), (out, x))
  DF_PASS(fill, (T out, float value), (out, value))
  DF_PASS(unary, (UnaryOp op, T out, T x, float a, float b), (op, out, x, a, b))
  DF_PASS(unary_backward, (UnaryOp op, T dx, T x, T dy, float a, float b), (op, dx, x, dy, a, b))
  DF_PASS(binary, (BinaryOp op, T out, T a, T b, float b_scale), (op, out, a, b, b_scale))
  DF_PASS(reduce, (ReduceOp op, T out, T x), (op, out, x))
  DF_PASS(softmax, (T out, T x), (out, x))
  DF_PASS(softmax_backward, (T dx, T y, T dy), (dx, y, dy))
  DF_PASS(matmul, (T out, T a, T b, T bias, const MatmulArgs& args), (out, a, b, bias, args))
  DF_PASS(norm, (T out, T mean, T rstd, T x, T weight, T bias, const NormArgs& args),
          (out, mean, rstd, x, weight, bias, args))
  DF_PASS(norm_backward,
          (T dx, T dweight, T dbias, T dy, T x, T mean, T rstd, T weight, const NormArgs& args),
          (dx, dweight, dbias, dy, x, mean, rstd, weight, args))
  DF_PASS(rope, (T out, T x, T cos, T sin, bool inverse), (out, x, cos, sin, inverse))
  DF_PASS(gather_rows, (T out, T table, T ids), (out, table, ids))
  DF_PASS(scatter_add_rows, (T table, T rows, T ids), (table, rows, ids))
  DF_PASS(conv2d, (T out, T x, T weight, T bias, const ConvArgs& args), (out, x, weight, bias, args))
  DF_PASS(conv2d_backward_data, (T dx, T dy, T weight, const ConvArgs& args), (dx, dy, weight, args))
  DF_PASS(conv2d_backward_weight, (T dweight, T dbias, T dy, T x, const ConvArgs& args),
          (dweight, dbias, dy, x, args))
  DF_PASS(adamw, (T parameter, T master, T m, T v, T gradient, const AdamWArgs& args),
          (parameter, master, m, v, gradient, args))
#undef DF_PASS

#define DF_TRY(name, parameters, arguments)          \
  Declined name parameters override {                \
    ++calls[#name];                                  \
    if (refused.contains(#name)) return "not today"; \
    return inner_->name arguments;                   \
  }
  DF_TRY(attention, (T out, T lse, T q, T k, T v, T bias, const AttentionArgs& args),
         (out, lse, q, k, v, bias, args))
  DF_TRY(attention_backward,
         (T dq, T dk, T dv, T dout, T out, T lse, T q, T k, T v, T bias, const AttentionArgs& args),
         (dq, dk, dv, dout, out, lse, q, k, v, bias, args))
  DF_TRY(linear_activation, (UnaryOp op, T out, T pre, T x, T weight, T bias),
         (op, out, pre, x, weight, bias))
  DF_TRY(modulated_norm, (T out, T mean, T rstd, T x, T scale, T shift, float eps),
         (out, mean, rstd, x, scale, shift, eps))
  DF_TRY(modulated_norm_backward, (T dx, T dscale, T dshift, T dy, T x, T mean, T rstd, T scale),
         (dx, dscale, dshift, dy, x, mean, rstd, scale))
  DF_TRY(gated_residual, (T out, T x, T gate, T y), (out, x, gate, y))
  DF_TRY(gated_residual_backward, (T dgate, T dy, T dout, T gate, T y), (dgate, dy, dout, gate, y))
  DF_TRY(qk_norm_rope, (T out, T rstd, T x, T weight, T cos, T sin, float eps),
         (out, rstd, x, weight, cos, sin, eps))
  DF_TRY(qk_norm_rope_backward, (T dx, T dweight, T dout, T x, T rstd, T weight, T cos, T sin),
         (dx, dweight, dout, x, rstd, weight, cos, sin))
  DF_TRY(group_norm_silu, (T out, T mean, T rstd, T x, T weight, T bias, const NormArgs& args),
         (out, mean, rstd, x, weight, bias, args))
  DF_TRY(flow_step, (T next, T log_prob, T x, T v, T noise, T coefficients),
         (next, log_prob, x, v, noise, coefficients))
  DF_TRY(flow_log_prob, (T log_prob, T x, T v, T next, T coefficients), (log_prob, x, v, next, coefficients))
  DF_TRY(flow_log_prob_backward, (T dx, T dv, T dlog_prob, T x, T v, T next, T coefficients),
         (dx, dv, dlog_prob, x, v, next, coefficients))
#undef DF_TRY

 private:
  static constexpr unsigned char kGuard =
      0xff;  // as a float: not a number, so that reading fresh memory shows
  std::shared_ptr<Backend> inner_;
  std::size_t guard_;
};

/// All shortcuts by name.
inline const std::set<std::string>& shortcut_names() {
  static const std::set<std::string> names = {"attention",
                                              "attention_backward",
                                              "linear_activation",
                                              "modulated_norm",
                                              "modulated_norm_backward",
                                              "gated_residual",
                                              "gated_residual_backward",
                                              "qk_norm_rope",
                                              "qk_norm_rope_backward",
                                              "group_norm_silu",
                                              "flow_step",
                                              "flow_log_prob",
                                              "flow_log_prob_backward"};
  return names;
}

// The tensor's own memory lies between two guards, and the rounding up to a size class is guarded too: the
// end guard begins at the last byte that was asked for.
inline void* WrappedBackend::allocate(std::size_t bytes) {
  if (!guard_) return inner_->allocate(bytes);
  auto* block = static_cast<unsigned char*>(inner_->allocate(bytes + 2 * guard_));
  std::memset(block, kGuard, bytes + 2 * guard_);
  return block + guard_;
}

inline void WrappedBackend::release(void* address, std::size_t bytes) noexcept {
  if (!guard_) return inner_->release(address, bytes);
  auto* block = static_cast<unsigned char*>(address) - guard_;
  const std::vector<unsigned char> intact(guard_, kGuard);
  const bool damaged = std::memcmp(block, intact.data(), guard_) != 0 ||
                       std::memcmp(block + guard_ + bytes, intact.data(), guard_) != 0;
  overruns += damaged;
  inner_->release(block, bytes + 2 * guard_);
}

}  // namespace danceflux::test
