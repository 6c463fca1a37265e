// The optimizer's update.
#include <cmath>

#include "backend/cuda/cuda_backend.h"
#include "core/error.h"

namespace danceflux::cuda {
namespace {

constexpr int kThreads = 256;

AdamWStep step_numbers(const AdamWArgs& args) {
  const double steps = static_cast<double>(args.step);
  AdamWStep step;
  step.gradient_scale = args.gradient_scale;
  step.decay = static_cast<float>(1 - args.lr * args.weight_decay);
  step.beta2 = static_cast<float>(args.beta2);
  step.one_minus_beta1 = static_cast<float>(1 - args.beta1);
  step.one_minus_beta2 = static_cast<float>(1 - args.beta2);
  step.root_correction2 = static_cast<float>(std::sqrt(1 - std::pow(args.beta2, steps)));
  step.eps = static_cast<float>(args.eps);
  step.step_size = static_cast<float>(args.lr / (1 - std::pow(args.beta1, steps)));
  return step;
}

template <class T>
__global__ void adamw_kernel(T* parameter, float* master, float* m, float* v, const float* gradient,
                             std::int64_t count, AdamWStep step) {
  const std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= count) return;
  float first = m[i], second = v[i];
  const float weight = adamw_update(master[i], first, second, gradient[i], step);
  m[i] = first;
  v[i] = second;
  master[i] = weight;
  parameter[i] = narrow_to<T>(weight);
}

}  // namespace

void CudaBackend::adamw(const Tensor& parameter, const Tensor& master, const Tensor& m, const Tensor& v,
                        const Tensor& gradient, const AdamWArgs& args) {
  enter("adamw");
  if (master.numel() == 0) return;
  with_stored("adamw", parameter.dtype(), [&](auto type) {
    using T = decltype(type);
    launch({.x = blocks_for(master.numel(), kThreads), .threads = kThreads}, adamw_kernel<T>,
           parameter.data<T>(), master.data<float>(), m.data<float>(), v.data<float>(),
           gradient.data<float>(), master.numel(), step_numbers(args));
  });
}

}  // namespace danceflux::cuda
