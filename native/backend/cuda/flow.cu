// Steps along a flow with their log probability. Rows are few and long, so that a row's sum is made of the
// sums of its chunks: how a row is cut depends on its length alone. B rows, n elements each.
#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/layout.h"

namespace danceflux::cuda {
namespace {

constexpr int kThreads = 256;
/// Elements of a row that one block takes.
constexpr std::int64_t kChunk = 2048;

struct Coefficients {  // [B, 5]
  const float* base;
  std::int64_t row_step, step;
  DF_DEVICE FlowRow row(std::int64_t i) const {
    const float* at = base + i * row_step;
    return {at[0], at[step], at[2 * step], at[3 * step], at[4 * step]};
  }
};

struct Flow {
  const float *x, *v;
  Coefficients coefficients;
  std::int64_t width, chunks;
};

/// next = mean + std noise where there is noise, else next is read; parts [B, chunks]: sums of (next -
/// mean)^2.
__global__ void flow_parts(float* parts, float* next, const float* noise, Flow flow) {
  __shared__ float shared[kWarp];
  const std::int64_t row = blockIdx.y, first = blockIdx.x * kChunk;
  const std::int64_t last = first + kChunk < flow.width ? first + kChunk : flow.width;
  const FlowRow numbers = flow.coefficients.row(row);
  float sum = 0;
  for (std::int64_t i = first + threadIdx.x; i < last; i += kThreads) {
    const std::int64_t at = row * flow.width + i;
    const float mean = flow_mean(flow.x[at], flow.v[at], numbers);
    if (noise) next[at] = flow_next(mean, noise[at], numbers);
    const float distance = next[at] - mean;
    sum += distance * distance;
  }
  sum = fold_block<Sum>(sum, shared);
  if (threadIdx.x == 0) parts[row * flow.chunks + blockIdx.x] = sum;
}

/// A warp for each row.
__global__ void flow_density(float* log_prob, std::int64_t step, const float* parts, Flow flow) {
  const std::int64_t row = blockIdx.x;
  float sum = 0;
  for (std::int64_t i = threadIdx.x; i < flow.chunks; i += kWarp) sum += parts[row * flow.chunks + i];
  sum = fold_warp<Sum>(sum);
  if (threadIdx.x == 0)
    log_prob[row * step] = flow_log_prob(sum / static_cast<float>(flow.width), flow.coefficients.row(row));
}

__global__ void flow_means(float* next, Flow flow) {
  const std::int64_t row = blockIdx.y, i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= flow.width) return;
  const std::int64_t at = row * flow.width + i;
  next[at] = flow_mean(flow.x[at], flow.v[at], flow.coefficients.row(row));
}

__global__ void flow_backward(float* dx, float* dv, const float* dlog_prob, std::int64_t step,
                              const float* next, Flow flow) {
  const std::int64_t row = blockIdx.y, i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= flow.width) return;
  const std::int64_t at = row * flow.width + i;
  const FlowRow numbers = flow.coefficients.row(row);
  const float slope = flow_slope(next[at], flow_mean(flow.x[at], flow.v[at], numbers), dlog_prob[row * step],
                                 static_cast<float>(flow.width), numbers);
  if (dx) dx[at] = slope * numbers.cx;
  if (dv) dv[at] = slope * numbers.cv;
}

/// `x` and `v` contiguous.
Flow flow_of(const Tensor& x, const Tensor& v, const Tensor& coefficients) {
  const std::int64_t width = x.numel() / x.dim(0);
  return {x.data<float>(),
          v.data<float>(),
          {coefficients.data<float>(), coefficients.strides()[0], coefficients.strides()[1]},
          width,
          (width + kChunk - 1) / kChunk};
}

Grid elements(const Flow& flow, const Tensor& x) {
  return {.x = blocks_for(flow.width, kThreads), .y = static_cast<unsigned>(x.dim(0)), .threads = kThreads};
}

/// `next` is written where there is noise.
void launch_density(CudaBackend& device, const Tensor& log_prob, float* next, const float* noise,
                    const Tensor& x, const Flow& flow) {
  const Tensor parts = device.empty({x.dim(0), flow.chunks});
  device.launch(
      {.x = static_cast<unsigned>(flow.chunks), .y = static_cast<unsigned>(x.dim(0)), .threads = kThreads},
      flow_parts, parts.data<float>(), next, noise, flow);
  device.launch({.x = static_cast<unsigned>(x.dim(0)), .threads = kWarp}, flow_density,
                log_prob.data<float>(), log_prob.strides()[0], parts.data<float>(), flow);
}

}  // namespace

Declined CudaBackend::flow_step(const Tensor& next, const Tensor& log_prob, const Tensor& x, const Tensor& v,
                                const Tensor& noise, const Tensor& coefficients) {
  enter("flow_step");
  if (x.numel() == 0) return {};
  const Tensor from = dense(x), velocity = dense(v), drawn = dense(noise);
  const Flow flow = flow_of(from, velocity, coefficients);
  if (drawn.defined())
    launch_density(*this, log_prob, next.data<float>(), drawn.data<float>(), x, flow);
  else
    launch(elements(flow, x), flow_means, next.data<float>(), flow);
  return {};
}

Declined CudaBackend::flow_log_prob(const Tensor& log_prob, const Tensor& x, const Tensor& v,
                                    const Tensor& next, const Tensor& coefficients) {
  enter("flow_log_prob");
  if (x.numel() == 0) return {};
  const Tensor from = dense(x), velocity = dense(v), to = dense(next);
  launch_density(*this, log_prob, to.data<float>(), nullptr, x, flow_of(from, velocity, coefficients));
  return {};
}

Declined CudaBackend::flow_log_prob_backward(const Tensor& dx, const Tensor& dv, const Tensor& dlog_prob,
                                             const Tensor& x, const Tensor& v, const Tensor& next,
                                             const Tensor& coefficients) {
  enter("flow_log_prob_backward");
  if (x.numel() == 0) return {};
  const Tensor from = dense(x), velocity = dense(v), to = dense(next);
  const Flow flow = flow_of(from, velocity, coefficients);
  launch(elements(flow, x), flow_backward, dx.defined() ? dx.data<float>() : nullptr,
         dv.defined() ? dv.data<float>() : nullptr, dlog_prob.data<float>(), dlog_prob.strides()[0],
         to.data<float>(), flow);
  return {};
}

}  // namespace danceflux::cuda
