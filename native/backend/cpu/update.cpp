// The optimizer's update.
#include <cmath>

#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/row_kernels.h"
#include "backend/cpu/strided.h"

namespace danceflux::cpu {
namespace {

AdamWStep step_numbers(const AdamWArgs& args) {
  const double lr = args.lr, beta1 = args.beta1, beta2 = args.beta2, steps = static_cast<double>(args.step);
  AdamWStep step;
  step.gradient_scale = args.gradient_scale;
  step.decay = static_cast<float>(1 - lr * args.weight_decay);
  step.beta2 = static_cast<float>(beta2);
  step.one_minus_beta1 = static_cast<float>(1 - beta1);
  step.one_minus_beta2 = static_cast<float>(1 - beta2);
  step.root_correction2 = static_cast<float>(std::sqrt(1 - std::pow(beta2, steps)));
  step.eps = static_cast<float>(args.eps);
  step.step_size = static_cast<float>(lr / (1 - std::pow(beta1, steps)));
  return step;
}

}  // namespace

void CpuBackend::adamw(const Tensor& parameter, const Tensor& master, const Tensor& m, const Tensor& v,
                       const Tensor& gradient, const AdamWArgs& args) {
  const AdamWStep step = step_numbers(args);
  const auto kernel = rows_.convert->adamw[static_cast<std::size_t>(parameter.dtype())];
  const auto element = static_cast<std::int64_t>(size_of(parameter.dtype()));
  char* const to = parameter.data<char>();
  float *const masters = master.data<float>(), *const first = m.data<float>(),
               *const second = v.data<float>();
  const float* const g = gradient.data<float>();
  for_ranges(threads_, master.numel(), 1, [&](std::int64_t begin, std::int64_t end, int) {
    kernel(to + begin * element, masters + begin, first + begin, second + begin, g + begin, end - begin,
           step);
  });
}

}  // namespace danceflux::cpu
