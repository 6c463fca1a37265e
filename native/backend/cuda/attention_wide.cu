// Attention of heads too wide for the kernels that keep no scores, as the autoencoder has them: products by
// cuBLASLt, a softmax between them, some queries at a time. How queries are cut does not depend on the batch.
#include "backend/cuda/attention.h"
#include "backend/cuda/layout.h"

namespace danceflux::cuda {
namespace {

constexpr std::int64_t kWide = 128;
/// Scores of so many queries exist at once: 64 MiB of them beside 16384 keys.
constexpr std::int64_t kQueriesAtOnce = 1024;

/// weights = softmax(scores), a block for each row [keys] of `step`; they may be one piece of memory.
template <class T>
__global__ void weigh_scores(T* weights, float* lse, const float* scores, std::int64_t keys,
                             std::int64_t step) {
  __shared__ float parts[kWarp];
  using Team = RowTeam<kRowBlock>;
  const std::int64_t row = blockIdx.x;
  const float* from = scores + row * step;
  T* to = weights + row * step;
  float highest = -INFINITY, sum = 0;
  for (std::int64_t i = Team::lane(); i < keys; i += kRowBlock) highest = fmaxf(highest, from[i]);
  highest = Team::fold<Max>(highest, parts);
  for (std::int64_t i = Team::lane(); i < keys; i += kRowBlock) sum += expf(from[i] - highest);
  sum = Team::fold<Sum>(sum, parts);
  for (std::int64_t i = Team::lane(); i < keys; i += kRowBlock)
    to[i] = narrow_to<T>(expf(from[i] - highest) / sum);
  if (Team::lane() == 0) lse[row] = highest + logf(sum);
}

/// Tokens first .. first+count-1 of one head [count, K].
Tensor head_of(const Tensor& x, std::int64_t b, std::int64_t h, std::int64_t first, std::int64_t count) {
  return x.narrow(0, b, 1).narrow(2, h, 1).narrow(1, first, count).view({count, x.dim(3)});
}

}  // namespace

bool attention_by_products(CudaBackend& device, const Tensor& out, const Tensor& lse, const Tensor& q,
                           const Tensor& k, const Tensor& v, const Tensor& bias, const AttentionArgs& args) {
  const AttentionShape s = attention_shape(q, k, args);
  if (s.width <= kWide || s.causal || bias.defined() || s.keys == 0) return false;
  const std::int64_t most = s.queries < kQueriesAtOnce ? s.queries : kQueriesAtOnce;
  const std::int64_t step = (s.keys + 7) / 8 * 8;  // rows at multiples of 16 bytes, which products want
  const Tensor scores = device.empty({most, step});
  const Tensor weights = q.dtype() == DType::f32 ? scores : device.empty(scores.shape(), q.dtype());
  MatmulArgs scaled;
  scaled.alpha = s.scale;
  for (std::int64_t head = 0; head < s.batch * s.heads; ++head) {
    const std::int64_t b = head / s.heads, h = head % s.heads;
    const Tensor keys = head_of(k, b, h, 0, s.keys), values = head_of(v, b, h, 0, s.keys);
    for (std::int64_t first = 0; first < s.queries; first += most) {
      const std::int64_t count = s.queries - first < most ? s.queries - first : most;
      const auto rows = [&](const Tensor& x) { return x.narrow(0, 0, count).narrow(1, 0, s.keys); };
      const Tensor some = rows(scores), weighed = rows(weights);
      device.matmul(some, head_of(q, b, h, first, count), keys.transpose(0, 1), {}, scaled);
      with_activation("attention", q.dtype(), [&](auto type) {
        using T = decltype(type);
        device.launch({.x = static_cast<unsigned>(count), .threads = kRowBlock}, weigh_scores<T>,
                      weighed.data<T>(), lse.data<float>() + head * s.queries + first, some.data<float>(),
                      s.keys, step);
      });
      device.matmul(head_of(out, b, h, first, count), weighed, values, {}, {});
    }
  }
  return true;
}

}  // namespace danceflux::cuda
