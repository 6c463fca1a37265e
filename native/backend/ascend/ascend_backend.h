// An Ascend NPU as a device: operators of CANN's aclnn, launched in order on one stream.
//
// Rules that hold for every file beside this one
// - Results that are rounded to bf16 are rounded once where an operator makes them whole; where several
//   operators make one, they work in f32.
// - An output that is not dense is made in a dense stand-in and copied over; inputs may be views, except
//   where an operator asks for more.
// - Nothing is launched for tensors without elements.
#pragma once
#include <memory>
#include <string>

#include "backend/ascend/launcher.h"
#include "backend/ascend/npu.h"
#include "backend/ascend/settings.h"
#include "backend/backend.h"
#include "backend/pool.h"

namespace danceflux::ascend {

/// Throws ERR_DEVICE, ERR_OPTION.
std::unique_ptr<Backend> open_ascend(int index, const Settings& settings);

class AscendBackend final : public Backend {
 public:
  AscendBackend(std::shared_ptr<Npu> npu, const Settings& settings);
  ~AscendBackend() override;

  std::string name() const override { return "ascend:" + std::to_string(npu_->index()); }
  std::string description() const override;
  /// bf16 for bf16 on chips that know it, unless parity is asked for; otherwise f32. f16 weights are computed
  /// with in f32: T5's do not fit the range of f16 activations, and training would lose small gradients.
  DType activation_dtype(DType weights) const override;

  void* allocate(std::size_t bytes) override;
  void release(void* address, std::size_t bytes) noexcept override;
  MemoryStats memory() const override;
  std::optional<std::size_t> free_memory() const override;
  void reset_peak() override;
  void trim() override;
  void upload(const Tensor& tensor, const void* host) override;
  void download(void* host, const Tensor& tensor) override;
  void synchronize() override;
  Event record() override;
  void wait(const Event& event) override;

  void copy(const Tensor& out, const Tensor& x) override;
  void fill(const Tensor& out, float value) override;
  void unary(UnaryOp op, const Tensor& out, const Tensor& x, float a, float b) override;
  void unary_backward(UnaryOp op, const Tensor& dx, const Tensor& x, const Tensor& dy, float a,
                      float b) override;
  void binary(BinaryOp op, const Tensor& out, const Tensor& a, const Tensor& b, float b_scale) override;
  void reduce(ReduceOp op, const Tensor& out, const Tensor& x) override;
  void softmax(const Tensor& out, const Tensor& x) override;
  void softmax_backward(const Tensor& dx, const Tensor& y, const Tensor& dy) override;
  void matmul(const Tensor& out, const Tensor& a, const Tensor& b, const Tensor& bias,
              const MatmulArgs& args) override;
  void norm(const Tensor& out, const Tensor& mean, const Tensor& rstd, const Tensor& x, const Tensor& weight,
            const Tensor& bias, const NormArgs& args) override;
  void norm_backward(const Tensor& dx, const Tensor& dweight, const Tensor& dbias, const Tensor& dy,
                     const Tensor& x, const Tensor& mean, const Tensor& rstd, const Tensor& weight,
                     const NormArgs& args) override;
  void rope(const Tensor& out, const Tensor& x, const Tensor& cos, const Tensor& sin, bool inverse) override;
  void gather_rows(const Tensor& out, const Tensor& table, const Tensor& ids) override;
  void scatter_add_rows(const Tensor& table, const Tensor& rows, const Tensor& ids) override;
  void conv2d(const Tensor& out, const Tensor& x, const Tensor& weight, const Tensor& bias,
              const ConvArgs& args) override;
  void conv2d_backward_data(const Tensor& dx, const Tensor& dy, const Tensor& weight,
                            const ConvArgs& args) override;
  void conv2d_backward_weight(const Tensor& dweight, const Tensor& dbias, const Tensor& dy, const Tensor& x,
                              const ConvArgs& args) override;
  void adamw(const Tensor& parameter, const Tensor& master, const Tensor& m, const Tensor& v,
             const Tensor& gradient, const AdamWArgs& args) override;

  Declined attention(const Tensor& out, const Tensor& lse, const Tensor& q, const Tensor& k, const Tensor& v,
                     const Tensor& bias, const AttentionArgs& args) override;
  Declined attention_backward(const Tensor& dq, const Tensor& dk, const Tensor& dv, const Tensor& dout,
                              const Tensor& out, const Tensor& lse, const Tensor& q, const Tensor& k,
                              const Tensor& v, const Tensor& bias, const AttentionArgs& args) override;
  Declined linear_activation(UnaryOp op, const Tensor& out, const Tensor& pre, const Tensor& x,
                             const Tensor& weight, const Tensor& bias) override;
  Declined modulated_norm(const Tensor& out, const Tensor& mean, const Tensor& rstd, const Tensor& x,
                          const Tensor& scale, const Tensor& shift, float eps) override;
  Declined modulated_norm_backward(const Tensor& dx, const Tensor& dscale, const Tensor& dshift,
                                   const Tensor& dy, const Tensor& x, const Tensor& mean, const Tensor& rstd,
                                   const Tensor& scale) override;
  Declined gated_residual(const Tensor& out, const Tensor& x, const Tensor& gate, const Tensor& y) override;
  Declined gated_residual_backward(const Tensor& dgate, const Tensor& dy, const Tensor& dout,
                                   const Tensor& gate, const Tensor& y) override;
  Declined qk_norm_rope(const Tensor& out, const Tensor& rstd, const Tensor& x, const Tensor& weight,
                        const Tensor& cos, const Tensor& sin, float eps) override;
  Declined qk_norm_rope_backward(const Tensor& dx, const Tensor& dweight, const Tensor& dout, const Tensor& x,
                                 const Tensor& rstd, const Tensor& weight, const Tensor& cos,
                                 const Tensor& sin) override;
  Declined group_norm_silu(const Tensor& out, const Tensor& mean, const Tensor& rstd, const Tensor& x,
                           const Tensor& weight, const Tensor& bias, const NormArgs& args) override;

  const std::shared_ptr<Npu>& npu() const { return npu_; }
  Launcher& launcher() { return launch_; }

 private:
  class Result;

  void wait_for_stream(const char* op);
  const Operators& ops() const { return npu_->cann().operators; }
  /// How f32 products are made of factors that are `exact` (bf16 numbers, which HF32 keeps) or not.
  std::int8_t cube(bool exact) const {
    return exact && !settings_.parity ? std::int8_t{kUseHf32} : std::int8_t{kKeepDtype};
  }
  /// x itself when it is of that dtype, else a dense copy that is. Undefined stays undefined.
  Tensor as(const Tensor& x, DType dtype);
  /// The same, dense in any case.
  Tensor dense(const Tensor& x, DType dtype);
  Tensor dense(const Tensor& x) { return x ? dense(x, x.dtype()) : x; }
  Tensor filled(const Shape& shape, float value, DType dtype = DType::f32);

  void unary_wide(UnaryOp op, const Tensor& dx, const Tensor& x, const Tensor& dy, float a, float b);
  void product(const Tensor& out, const Tensor& a, const Tensor& b, const Tensor& bias, float alpha,
               std::int8_t cube);
  void norm_rows(const Tensor& out, const Tensor& mean, const Tensor& rstd, const Tensor& x,
                 const Tensor& weight, const Tensor& bias, const NormArgs& args);
  void norm_groups(const Tensor& out, const Tensor& mean, const Tensor& rstd, const Tensor& x,
                   const Tensor& weight, const Tensor& bias, const NormArgs& args, bool silu);
  void norm_rows_backward(const Tensor& dx, const Tensor& dweight, const Tensor& dbias, const Tensor& dy,
                          const Tensor& x, const Tensor& mean, const Tensor& rstd, const Tensor& weight,
                          const NormArgs& args);
  void norm_groups_backward(const Tensor& dx, const Tensor& dweight, const Tensor& dbias, const Tensor& dy,
                            const Tensor& x, const Tensor& mean, const Tensor& rstd, const Tensor& weight,
                            const NormArgs& args);
  /// Why the rotary kernel is not for this shape.
  Declined no_rotary(const Tensor& x) const;
  void rotate(const Tensor& out, const Tensor& x, const Tensor& cos, const Tensor& sin, bool inverse);
  void rotate_composed(const Tensor& out, const Tensor& x, const Tensor& cos, const Tensor& sin,
                       bool inverse);
  Declined no_attention(const Tensor& q, const OperatorSymbols& call) const;
  Tensor attention_bias(const Tensor& bias, const AttentionArgs& args);
  Tensor causal_mask(std::int64_t queries, std::int64_t keys);
  void attend(const Tensor& out, const Tensor& lse, const Tensor& q, const Tensor& k, const Tensor& v,
              const Tensor& bias, const Tensor& mask, const AttentionArgs& args);
  void attend_backward(const Tensor& dq, const Tensor& dk, const Tensor& dv, const Tensor& dout,
                       const Tensor& out, const Tensor& lse, const Tensor& q, const Tensor& k,
                       const Tensor& v, const Tensor& bias, const Tensor& mask, const AttentionArgs& args);
  Tensor padded(const Tensor& x, const ConvArgs& args);
  Tensor image_of(const Tensor& x, std::int64_t b) const;

  const std::shared_ptr<Npu> npu_;
  const Settings settings_;
  Pool pool_;
  Launcher launch_;
};

/// Where an op may write: the output itself when it is dense and of the wanted dtype, else a stand-in that
/// finish() copies over.
class AscendBackend::Result {
 public:
  Result(AscendBackend& backend, const Tensor& out) : Result(backend, out, out.dtype()) {}
  Result(AscendBackend& backend, const Tensor& out, DType dtype)
      : backend_(backend),
        out_(out),
        made_(out.is_contiguous() && out.dtype() == dtype ? out : backend.empty(out.shape(), dtype)) {}
  const Tensor& tensor() const { return made_; }
  void finish() const {
    if (made_.id() != out_.id()) backend_.copy(out_, made_);
  }

 private:
  AscendBackend& backend_;
  const Tensor& out_;
  const Tensor made_;
};

/// A dtype that an operator may compute in for both: theirs if it is one, else f32.
inline DType common(DType a, DType b) { return a == b ? a : DType::f32; }

}  // namespace danceflux::ascend
