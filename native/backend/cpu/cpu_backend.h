// The CPU as a device: synchronous, f32 activations, kernels chosen once for the instruction set at hand.
#pragma once
#include <memory>
#include <string>

#include "backend/backend.h"
#include "backend/cpu/parallel.h"
#include "backend/host_event.h"
#include "backend/pool.h"

namespace danceflux::cpu {

struct RowKernels;  // row_kernels.h

struct CpuOptions {
  int threads = 0;  // 0: what the affinity mask allows
  std::string
      isa;  // "": the best; else "portable", "avx2", "avx512", "neon" (ERR_DEVICE when the machine lacks it)
};

/// Never throws for reasons of hardware unless `isa` asks for what is not there.
std::shared_ptr<Backend> open_cpu(const CpuOptions& options);

class CpuBackend final : public Backend {
 public:
  explicit CpuBackend(const CpuOptions& options);
  ~CpuBackend() override;

  std::string name() const override { return "cpu"; }
  std::string description() const override;
  DType activation_dtype(DType) const override { return DType::f32; }

  void* allocate(std::size_t bytes) override;
  void release(void* address, std::size_t bytes) noexcept override;
  MemoryStats memory() const override;
  void reset_peak() override;
  void trim() override;
  void upload(const Tensor& tensor, const void* host) override;
  void download(void* host, const Tensor& tensor) override;
  void synchronize() override {}
  Event record() override { return {}; }
  /// Of what other threads do for this device; blocks.
  void wait(const Event& event) override { wait_for_host(event); }

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
  Declined flow_step(const Tensor& next, const Tensor& log_prob, const Tensor& x, const Tensor& v,
                     const Tensor& noise, const Tensor& coefficients) override;
  Declined flow_log_prob(const Tensor& log_prob, const Tensor& x, const Tensor& v, const Tensor& next,
                         const Tensor& coefficients) override;
  Declined flow_log_prob_backward(const Tensor& dx, const Tensor& dv, const Tensor& dlog_prob,
                                  const Tensor& x, const Tensor& v, const Tensor& next,
                                  const Tensor& coefficients) override;

 private:
  class DenseOutput;
  // x itself when its last axis (all of it; a vector) is dense, else a packed copy. An undefined vector stays
  // undefined.
  Tensor dense_rows(const Tensor& x);
  Tensor dense(const Tensor& x);
  Tensor dense_vector(const Tensor& x) { return x.defined() ? dense_rows(x) : x; }

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
  // out = the rows of parts [blocks, width] added in order; nothing when out is undefined.
  void sum_blocks(const Tensor& out, const Tensor& parts, std::int64_t blocks, std::int64_t width);
  // The same for each batch entry: out [B, D], parts [B * blocks, D].
  void sum_token_blocks(const Tensor& out, const Tensor& parts, std::int64_t blocks);
  Tensor one_plus(const Tensor& scale);

  Pool pool_;
  ThreadPool threads_;
  struct Scratch;  // the kernels chosen, and packing buffers kept between calls
  std::unique_ptr<Scratch> scratch_;
  const RowKernels& rows_;
  std::string isa_;
};

/// Where an op may write rows: the output itself when its last axis is dense, else a stand-in that finish()
/// copies over.
class CpuBackend::DenseOutput {
 public:
  enum Use { kOverwrite, kUpdate };  // kUpdate: the old contents matter
  DenseOutput(CpuBackend& backend, const Tensor& out, Use use = kOverwrite);
  const Tensor& tensor() const { return dense_; }
  void finish();

 private:
  CpuBackend& backend_;
  const Tensor& out_;
  Tensor dense_;
};

}  // namespace danceflux::cpu
