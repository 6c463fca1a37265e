// A CUDA device: one stream, a caching pool, kernels of our own for what is bound by memory, cuBLASLt for
// products and cuDNN, where it is there, for attention and convolution.
//
// Activations are bf16 for weights in bf16 and f32 for all others. What is multiplied with bf16 activations
// is rounded to bf16, what is multiplied with f32 activations is widened to f32.
#pragma once
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "backend/cuda/device_code.h"
#include "backend/cuda/errors.h"
#include "backend/cuda/options.h"
#include "backend/pool.h"
#include "core/error.h"

namespace danceflux::cuda {

class Blas;
class Dnn;
class Recordings;
class Staging;

class CudaBackend final : public Backend {
 public:
  CudaBackend(int index, const Options& options);
  ~CudaBackend() override;

  std::string name() const override { return "cuda:" + std::to_string(index_); }
  std::string description() const override;
  DType activation_dtype(DType weights) const override {
    return weights == DType::bf16 ? DType::bf16 : DType::f32;
  }

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

  std::vector<Tensor> recurring(const std::string& key, std::span<const Tensor> inputs,
                                const Recurring& work) override;

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
  Declined flow_step(const Tensor& next, const Tensor& log_prob, const Tensor& x, const Tensor& v,
                     const Tensor& noise, const Tensor& coefficients) override;
  Declined flow_log_prob(const Tensor& log_prob, const Tensor& x, const Tensor& v, const Tensor& next,
                         const Tensor& coefficients) override;
  Declined flow_log_prob_backward(const Tensor& dx, const Tensor& dv, const Tensor& dlog_prob,
                                  const Tensor& x, const Tensor& v, const Tensor& next,
                                  const Tensor& coefficients) override;

  // ---- for the rooms of this house
  // ----------------------------------------------------------------------------------
  const Options& options() const { return options_; }
  int index() const { return index_; }
  cudaStream_t stream() const { return stream_; }
  /// First line of everything that touches the device: makes it current for this thread, and the op known to
  /// errors.
  void enter(const char* op);
  /// Last line of whatever was put on the stream without launch().
  void launched();
  template <class... P, class... A>
  void launch(const Grid& grid, void (*kernel)(P...), const A&... arguments) {
    start_kernel(stream_, grid, kernel, arguments...);
    launched();
  }
  /// `x` itself when it is contiguous (or undefined), else a packed copy.
  Tensor dense(const Tensor& x);
  /// Memory that a library keeps for its calls is about to be another: nothing that was recorded holds.
  void workspace_changes();
  /// Told after every host wait: `alive` throws when work that the stream waited for has failed. Kept until
  /// it is gone.
  void watch(std::weak_ptr<const std::function<void()>> alive);

 private:
  void norm_rows(const Tensor& out, const Tensor& mean, const Tensor& rstd, const Tensor& x,
                 const Tensor& weight, const Tensor& bias, const NormArgs& args);
  void norm_groups(const Tensor& out, const Tensor& mean, const Tensor& rstd, const Tensor& x,
                   const Tensor& weight, const Tensor& bias, const NormArgs& args, bool silu);
  void norm_rows_backward(const Tensor& dx, const Tensor& dweight, const Tensor& dbias, const Tensor& dy,
                          const Tensor& x, const Tensor& mean, const Tensor& rstd, const Tensor& weight);
  void norm_groups_backward(const Tensor& dx, const Tensor& dweight, const Tensor& dbias, const Tensor& dy,
                            const Tensor& x, const Tensor& mean, const Tensor& rstd, const Tensor& weight,
                            const NormArgs& args);
  Tensor as_operand(const Tensor& x, DType dtype);
  Tensor as_operand_vector(const Tensor& vector, const Tensor& out);
  void wait_and_tell();

  const int index_;
  const Options options_;
  std::string description_;
  cudaStream_t stream_ = nullptr;
  std::unique_ptr<Pool> pool_;
  std::unique_ptr<Staging> staging_;
  std::unique_ptr<Blas> blas_;
  std::unique_ptr<Dnn> dnn_;
  std::unique_ptr<Recordings> recordings_;
  const char* op_ = "";
  std::vector<std::weak_ptr<const std::function<void()>>> watched_;
};

/// body(T()) with the storage type of an activation. Throws ERR_DTYPE.
template <class Body>
void with_activation(const char* op, DType dtype, const Body& body) {
  if (dtype == DType::f32) return body(float());
  if (dtype == DType::bf16) return body(Bf16());
  throw Error("ERR_DTYPE",
              std::string(op) + ": expected activations in f32 or bf16, got " + std::string(name_of(dtype)));
}
/// The same for everything a weight may be stored in.
template <class Body>
void with_stored(const char* op, DType dtype, const Body& body) {
  if (dtype == DType::f16) return body(F16());
  with_activation(op, dtype, body);
}

inline unsigned blocks_for(std::int64_t items, std::int64_t per_block) {
  return static_cast<unsigned>((items + per_block - 1) / per_block);
}

}  // namespace danceflux::cuda
