// The Backend contract: what a device is. Read this page and you can write one.
//
// Legend: B batch, L tokens, D width, H heads, K head width, M/N/K matrix sizes, C channels, G groups, V
// vocabulary.
//
// Rules for every op below
// - Shapes, dtypes and devices were checked by ops/; a backend may trust them. `out` is written through its
//   handle.
// - Work is asynchronous on the device's one stream and in order. The host waits only in download() and
//   synchronize().
// - Activations have the device's activation dtype (f32 on the CPU). Matrices of weights may be stored in
//   f32, bf16 or f16 and are widened as they are read; what is multiplied with bf16 activations may be
//   rounded to bf16 instead, as matrix units take both factors in one dtype. Vectors of weights (bias, norm
//   weight), statistics, tables and gradients are f32.
// - Arithmetic is f32 (or wider); reductions have one fixed order. A row's result never depends on how many
//   other rows there are, nor on the number of threads.
// - Tensors may be strided views (zero strides where broadcast) unless an op says "contiguous".
// - Primitives are pure virtual: every backend owes them. Shortcuts may be declined, with a reason, before
//   `out` is touched; what a shortcut computes is defined by its composition of primitives (ops/fused.cpp), a
//   kernel is permission to go faster.
#pragma once
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/tensor.h"

namespace danceflux {

enum class UnaryOp : std::uint8_t {
  affine,  // a * x + b
  clamp,   // min(max(x, a), b)
  exp,
  log,
  sqrt,
  rsqrt,
  square,
  reciprocal,
  tanh,
  sigmoid,
  silu,
  gelu_tanh,   // 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))
  gelu_erf,    // 0.5 x (1 + erf(x / sqrt 2))
  quick_gelu,  // x sigmoid(1.702 x)
};
enum class BinaryOp : std::uint8_t { add, sub, mul, div, max, min };
enum class ReduceOp : std::uint8_t { sum, mean, max, sum_of_squares };
enum class NormKind : std::uint8_t { layer, rms, group };

struct MatmulArgs {
  float alpha = 1;          // scales a @ b, not the bias
  bool accumulate = false;  // out += instead of out =
};
struct NormArgs {
  NormKind kind = NormKind::layer;
  float eps = 1e-6f;
  int groups = 1;  // group norm only
};
struct ConvArgs {
  int stride = 1;
  int pad_top = 0, pad_left = 0, pad_bottom = 0, pad_right = 0;
};
struct AttentionArgs {
  float scale = 1;
  bool causal = false;  // query i sees keys 0..i
};
struct AdamWArgs {
  double lr = 0, beta1 = 0.9, beta2 = 0.999, eps = 1e-8,
         weight_decay = 0;   // doubles: 1 - 0.999f is off by 1e-5
  std::int64_t step = 1;     // 1 at the first update
  float gradient_scale = 1;  // multiplies the gradient before use (global-norm clipping)
};

/// Empty: done. Otherwise why not, in words ("head width 80 is not a multiple of 32").
using Declined = std::optional<std::string>;

struct MemoryStats {
  std::size_t used = 0;                  // bytes in live tensors
  std::size_t peak = 0;                  // highest `used` since reset_peak
  std::size_t held = 0;                  // bytes taken from the system, used or cached
  std::uint64_t allocations = 0;         // requests served
  std::uint64_t system_allocations = 0;  // requests that had to go to the system
};

/// A point of a device's stream. Opaque.
struct Event {
  std::shared_ptr<void> handle;
};

class Backend : public Device, public std::enable_shared_from_this<Backend> {
 public:
  // ---- who it is
  // -----------------------------------------------------------------------------------------------------
  /// "cpu", "cuda:0", "ascend:3"
  virtual std::string name() const = 0;
  /// What a person wants to know: "AMD EPYC, avx512, 2 threads".
  virtual std::string description() const = 0;
  /// The dtype in which activations are kept for weights of that dtype.
  virtual DType activation_dtype(DType weights) const = 0;

  // ---- memory and the stream
  // -------------------------------------------------------------------------------------------
  /// Uninitialised. Throws ERR_MEMORY telling what was asked, held and free.
  virtual void* allocate(std::size_t bytes) = 0;
  virtual MemoryStats memory() const = 0;
  /// Bytes of the device's own memory that nobody has taken; empty where it computes in the host's, or cannot
  /// tell. From any thread.
  virtual std::optional<std::size_t> free_memory() const { return {}; }
  virtual void reset_peak() = 0;
  /// Gives cached memory back to the system.
  virtual void trim() = 0;
  /// `tensor` contiguous; the host memory may be reused when the call returns.
  virtual void upload(const Tensor& tensor, const void* host) = 0;
  virtual void download(void* host, const Tensor& tensor) = 0;
  virtual void synchronize() = 0;
  virtual Event record() = 0;
  virtual void wait(const Event& event) = 0;

  /// A new contiguous tensor, uninitialised.
  Tensor empty(const Shape& shape, DType dtype = DType::f32);

  // ---- primitives
  // ----------------------------------------------------------------------------------------------------
  /// Same shape; any strides; any pair of float dtypes, or the same integer dtype.
  virtual void copy(const Tensor& out, const Tensor& x) = 0;
  virtual void fill(const Tensor& out, float value) = 0;
  /// out = f(x); out may be x. a and b are read by affine and clamp only.
  virtual void unary(UnaryOp op, const Tensor& out, const Tensor& x, float a, float b) = 0;
  /// dx = dy * f'(x); dx may be dy.
  virtual void unary_backward(UnaryOp op, const Tensor& dx, const Tensor& x, const Tensor& dy, float a,
                              float b) = 0;
  /// All of one shape (broadcast by zero strides); out may be a or b. out = a OP (b_scale * b), b_scale for
  /// add only.
  virtual void binary(BinaryOp op, const Tensor& out, const Tensor& a, const Tensor& b, float b_scale) = 0;
  /// out has the rank of x, with 1 where reduced. f32 out.
  virtual void reduce(ReduceOp op, const Tensor& out, const Tensor& x) = 0;
  /// Over the last axis; a row of -inf only gives zeros.
  virtual void softmax(const Tensor& out, const Tensor& x) = 0;
  virtual void softmax_backward(const Tensor& dx, const Tensor& y, const Tensor& dy) = 0;
  /// out [..., M, N] = alpha * a [..., M, K] @ b [..., K, N] + bias [N]; up to two leading batch axes, equal
  /// or broadcast by zero strides; any strides (transposed views are free). a or b may be stored weights
  /// (bf16, f16). bias may be undefined.
  virtual void matmul(const Tensor& out, const Tensor& a, const Tensor& b, const Tensor& bias,
                      const MatmulArgs& args) = 0;
  /// layer, rms: x [..., D], weight/bias [D] or undefined, mean and rstd [rows] (mean undefined for rms).
  /// group: x [B, C, ...] contiguous, weight/bias [C], mean and rstd [B * groups].
  virtual void norm(const Tensor& out, const Tensor& mean, const Tensor& rstd, const Tensor& x,
                    const Tensor& weight, const Tensor& bias, const NormArgs& args) = 0;
  /// dweight and dbias (f32, overwritten) may be undefined: not wanted.
  virtual void norm_backward(const Tensor& dx, const Tensor& dweight, const Tensor& dbias, const Tensor& dy,
                             const Tensor& x, const Tensor& mean, const Tensor& rstd, const Tensor& weight,
                             const NormArgs& args) = 0;
  /// Adjacent pairs: (x0 cos - x1 sin, x1 cos + x0 sin). x [B, L, H, K], cos and sin [L, K/2]. `inverse`
  /// turns the other way, which is the gradient.
  virtual void rope(const Tensor& out, const Tensor& x, const Tensor& cos, const Tensor& sin,
                    bool inverse) = 0;
  /// out [N, D] = table [V, D] (any float storage) at ids [N] (i32, checked on the host).
  virtual void gather_rows(const Tensor& out, const Tensor& table, const Tensor& ids) = 0;
  /// table [V, D] += rows [N, D] at ids, in the order of the rows.
  virtual void scatter_add_rows(const Tensor& table, const Tensor& rows, const Tensor& ids) = 0;
  /// x [B, C, h, w], weight [O, C, kh, kw] (may be stored bf16/f16), bias [O] or undefined, out [B, O, oh,
  /// ow]; contiguous.
  virtual void conv2d(const Tensor& out, const Tensor& x, const Tensor& weight, const Tensor& bias,
                      const ConvArgs& args) = 0;
  virtual void conv2d_backward_data(const Tensor& dx, const Tensor& dy, const Tensor& weight,
                                    const ConvArgs& args) = 0;
  /// dbias may be undefined.
  virtual void conv2d_backward_weight(const Tensor& dweight, const Tensor& dbias, const Tensor& dy,
                                      const Tensor& x, const ConvArgs& args) = 0;
  /// One AdamW step (decoupled weight decay, PyTorch's order of operations): m, v, master f32; `parameter` is
  /// written from master (rounded to its dtype) and may be master itself. All contiguous, one size.
  virtual void adamw(const Tensor& parameter, const Tensor& master, const Tensor& m, const Tensor& v,
                     const Tensor& gradient, const AdamWArgs& args) = 0;

  // ---- shortcuts
  // -----------------------------------------------------------------------------------------------------
  /// q [B, Lq, H, K], k and v [B, Lk, H, K], bias [1 or B, H, Lq, Lk] or undefined, out [B, Lq, H, K], lse
  /// [B, H, Lq] (log of the sum of exponentials, kept for backward). The score matrix need not exist.
  virtual Declined attention(const Tensor& out, const Tensor& lse, const Tensor& q, const Tensor& k,
                             const Tensor& v, const Tensor& bias, const AttentionArgs& args);
  virtual Declined attention_backward(const Tensor& dq, const Tensor& dk, const Tensor& dv,
                                      const Tensor& dout, const Tensor& out, const Tensor& lse,
                                      const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& bias,
                                      const AttentionArgs& args);
  /// pre = x @ weight^T + bias, out = f(pre); x [..., Din], weight [Dout, Din]. pre is undefined when nothing
  /// is recorded.
  virtual Declined linear_activation(UnaryOp op, const Tensor& out, const Tensor& pre, const Tensor& x,
                                     const Tensor& weight, const Tensor& bias);
  /// out = layer_norm(x) * (1 + scale) + shift; x [B, L, D], scale and shift [B, D]; mean and rstd [B * L].
  virtual Declined modulated_norm(const Tensor& out, const Tensor& mean, const Tensor& rstd, const Tensor& x,
                                  const Tensor& scale, const Tensor& shift, float eps);
  virtual Declined modulated_norm_backward(const Tensor& dx, const Tensor& dscale, const Tensor& dshift,
                                           const Tensor& dy, const Tensor& x, const Tensor& mean,
                                           const Tensor& rstd, const Tensor& scale);
  /// out = x + gate * y; x and y [B, L, D], gate [B, D].
  virtual Declined gated_residual(const Tensor& out, const Tensor& x, const Tensor& gate, const Tensor& y);
  /// dy = gate * dout, dgate [B, D] = sum over L of dout * y. (dx is dout.)
  virtual Declined gated_residual_backward(const Tensor& dgate, const Tensor& dy, const Tensor& dout,
                                           const Tensor& gate, const Tensor& y);
  /// out = rope(rms_norm(x) * weight); x [B, L, H, K], weight [K], cos and sin [L, K/2], rstd [B * L * H].
  virtual Declined qk_norm_rope(const Tensor& out, const Tensor& rstd, const Tensor& x, const Tensor& weight,
                                const Tensor& cos, const Tensor& sin, float eps);
  /// dweight may be undefined.
  virtual Declined qk_norm_rope_backward(const Tensor& dx, const Tensor& dweight, const Tensor& dout,
                                         const Tensor& x, const Tensor& rstd, const Tensor& weight,
                                         const Tensor& cos, const Tensor& sin);
  /// out = silu(group_norm(x)); as norm with kind group.
  virtual Declined group_norm_silu(const Tensor& out, const Tensor& mean, const Tensor& rstd, const Tensor& x,
                                   const Tensor& weight, const Tensor& bias, const NormArgs& args);

  /// A step along a flow: mean = cx x + cv v, next = mean + std noise, log_prob [B] = -weight * mean over a
  /// row of (next - mean)^2 - constant. x, v, noise and next [B, ...] f32, at least one element to a row,
  /// next contiguous; coefficients [B, 5] f32: cx, cv, std, weight, constant. noise and log_prob may both be
  /// undefined: next is the mean.
  virtual Declined flow_step(const Tensor& next, const Tensor& log_prob, const Tensor& x, const Tensor& v,
                             const Tensor& noise, const Tensor& coefficients);
  /// The same log_prob, bit for bit, of a next that is given.
  virtual Declined flow_log_prob(const Tensor& log_prob, const Tensor& x, const Tensor& v, const Tensor& next,
                                 const Tensor& coefficients);
  /// dx and dv contiguous; either may be undefined.
  virtual Declined flow_log_prob_backward(const Tensor& dx, const Tensor& dv, const Tensor& dlog_prob,
                                          const Tensor& x, const Tensor& v, const Tensor& next,
                                          const Tensor& coefficients);

  // ---- work that comes again
  // ---------------------------------------------------------------------------------------
  using Recurring = std::function<std::vector<Tensor>(std::span<const Tensor>)>;
  /// work(inputs), for work that will be asked for again with other numbers of the same shapes: a device may
  /// keep what it did and do that again, without asking. So `key` must tell all that decides what is done but
  /// the numbers in `inputs`: shapes, dtypes, the addresses of everything else that is read. The work neither
  /// uploads nor downloads, and keeps no tensor.
  virtual std::vector<Tensor> recurring(const std::string& key, std::span<const Tensor> inputs,
                                        const Recurring& work);

  // ---- what was declined
  // ---------------------------------------------------------------------------------------------
  /// Strict: a declined shortcut is an error with its reason (tests, benches).
  bool strict_shortcuts = false;
  /// Notes a refusal and says whether the shortcut was taken. Throws ERR_DECLINED when strict.
  bool taken(const char* shortcut, const Declined& declined);
  /// Shortcut and reason -> how often.
  const std::map<std::string, std::uint64_t>& declined() const { return declined_; }

 private:
  std::map<std::string, std::uint64_t> declined_;
};

/// The backend that `tensor` lives on. Every Device is a Backend: nothing else hands out storage.
inline Backend& backend_of(const Tensor& tensor) { return static_cast<Backend&>(tensor.device()); }

}  // namespace danceflux
