// A slow device that is right: plain loops, every number a double, no shortcuts. The oracle for devices, and
// what finite differences run on.
#pragma once
#include <memory>
#include <vector>

#include "backend/backend.h"

namespace danceflux::test {

/// Memory here is one double per element whatever the dtype says: bf16 and f16 tensors hold rounded values,
/// f32 tensors hold doubles, rounded only on their way to the host. That nobody notices shows that device
/// memory is opaque. Fresh memory is NaN, so that reading it shows.
class ReferenceBackend final : public Backend {
 public:
  /// The elements in row-major order, at full precision.
  static std::vector<double> read(const Tensor& x);
  /// Rounds to bf16 or f16 where that is the dtype.
  static void write(const Tensor& x, const std::vector<double>& values);

  std::string name() const override { return "reference"; }
  std::string description() const override { return "plain loops in double"; }
  DType activation_dtype(DType) const override { return DType::f32; }
  void* allocate(std::size_t bytes) override;
  void release(void* address, std::size_t bytes) noexcept override;
  MemoryStats memory() const override { return stats_; }
  void reset_peak() override { stats_.peak = stats_.used; }
  void trim() override {}
  void upload(const Tensor& tensor, const void* host) override;
  void download(void* host, const Tensor& tensor) override;
  void synchronize() override {}
  Event record() override { return {}; }
  void wait(const Event&) override {}

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

 private:
  MemoryStats stats_;
};

}  // namespace danceflux::test
