// Layer and RMS norm over rows, group norm over groups of channels, and their backwards.
//
// Legend: B batch, C channels, G groups, S pixels of a channel, D width, rows everything before D.
#include <cmath>
#include <memory>

#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/row_blocks.h"
#include "backend/cpu/row_kernels.h"

namespace danceflux::cpu {
namespace {

constexpr std::int64_t kStretch =
    4096;  // of a group whose moments are one piece, of a channel whose sums are one piece

const float* dense_data(const Tensor& vector) { return vector.defined() ? vector.data<float>() : nullptr; }

/// B * G groups of C / G channels of S elements, all dense.
struct Groups {
  std::int64_t batch, channels, pixels, per_group, count, length;
  Groups(const Tensor& x, int groups)
      : batch(x.dim(0)), channels(x.dim(1)), pixels(1), per_group(channels / groups), count(batch * groups) {
    for (int axis = 2; axis < x.rank(); ++axis) pixels *= x.dim(axis);
    length = per_group * pixels;
  }
};

Moments join(const Moments& a, double a_count, const Moments& b, double b_count) {
  const double delta = b.mean - a.mean, share = b_count / (a_count + b_count);
  return {a.mean + delta * share, a.squares + b.squares + delta * delta * share * a_count};
}

void group_statistics(ThreadPool& threads, const NormRows& kernels, const Groups& g, const float* x,
                      float* mean, float* rstd, float eps) {
  const std::int64_t pieces = (g.length + kStretch - 1) / kStretch;
  const auto parts = std::make_unique_for_overwrite<Moments[]>(static_cast<std::size_t>(g.count * pieces));
  const auto piece_length = [&](std::int64_t piece) {
    return std::min(kStretch, g.length - piece * kStretch);
  };
  for_ranges(threads, g.count * pieces, std::min(kStretch, g.length),
             [&](std::int64_t begin, std::int64_t end, int) {
               for (std::int64_t i = begin; i < end; ++i) {
                 const std::int64_t piece = i % pieces;
                 parts[static_cast<std::size_t>(i)] =
                     kernels.moments(x + i / pieces * g.length + piece * kStretch, piece_length(piece));
               }
             });
  for (std::int64_t group = 0; group < g.count; ++group) {
    Moments all = parts[static_cast<std::size_t>(group * pieces)];
    for (std::int64_t piece = 1; piece < pieces; ++piece) {
      all = join(all, static_cast<double>(piece * kStretch),
                 parts[static_cast<std::size_t>(group * pieces + piece)],
                 static_cast<double>(piece_length(piece)));
    }
    const double variance = std::max(all.squares, 0.0) / static_cast<double>(g.length);
    mean[group] = static_cast<float>(all.mean);
    rstd[group] = static_cast<float>(1.0 / std::sqrt(variance + static_cast<double>(eps)));
  }
}

/// body(channel of all B * C, start within the channel, length, group)
template <class Body>
void for_stretches(ThreadPool& threads, const Groups& g, const Body& body) {
  const std::int64_t pieces = (g.pixels + kStretch - 1) / kStretch;
  for_ranges(threads, g.batch * g.channels * pieces, std::min(kStretch, g.pixels),
             [&](std::int64_t begin, std::int64_t end, int) {
               for (std::int64_t i = begin; i < end; ++i) {
                 const std::int64_t channel = i / pieces, start = i % pieces * kStretch;
                 body(channel, start, std::min(kStretch, g.pixels - start), channel / g.per_group);
               }
             });
}

struct ChannelSums {
  double dy = 0, dy_x = 0;
};

/// Sums over each channel of each picture, [B * C].
std::unique_ptr<ChannelSums[]> channel_sums(ThreadPool& threads, const NormRows& kernels, const Groups& g,
                                            const float* dy, const float* x, const float* mean,
                                            const float* rstd) {
  const std::int64_t pieces = (g.pixels + kStretch - 1) / kStretch, channels = g.batch * g.channels;
  const auto parts = std::make_unique<ChannelSums[]>(static_cast<std::size_t>(channels * pieces));
  for_stretches(threads, g,
                [&](std::int64_t channel, std::int64_t start, std::int64_t n, std::int64_t group) {
                  ChannelSums& part = parts[static_cast<std::size_t>(channel * pieces + start / kStretch)];
                  const std::int64_t at = channel * g.pixels + start;
                  kernels.channel_sums(&part.dy, &part.dy_x, dy + at, x + at, n, mean[group], rstd[group]);
                });
  auto sums = std::make_unique<ChannelSums[]>(static_cast<std::size_t>(channels));
  for (std::int64_t i = 0; i < channels * pieces; ++i) {
    ChannelSums& sum = sums[static_cast<std::size_t>(i / pieces)];
    sum.dy += parts[static_cast<std::size_t>(i)].dy;
    sum.dy_x += parts[static_cast<std::size_t>(i)].dy_x;
  }
  return sums;
}

void sum_over_batch(const Groups& g, const ChannelSums* sums, float* dweight, float* dbias) {
  for (std::int64_t channel = 0; channel < g.channels; ++channel) {
    ChannelSums all;
    for (std::int64_t image = 0; image < g.batch; ++image) {
      all.dy += sums[image * g.channels + channel].dy;
      all.dy_x += sums[image * g.channels + channel].dy_x;
    }
    if (dweight) dweight[channel] = static_cast<float>(all.dy_x);
    if (dbias) dbias[channel] = static_cast<float>(all.dy);
  }
}

}  // namespace

void CpuBackend::norm_rows(const Tensor& out, const Tensor& mean, const Tensor& rstd, const Tensor& x,
                           const Tensor& weight, const Tensor& bias, const NormArgs& args) {
  const Tensor from = dense_rows(x), w = dense_vector(weight), b = dense_vector(bias);
  DenseOutput to(*this, out);
  const std::int64_t n = x.dim(-1);
  const auto walk = walk_rows<2>({&to.tensor(), &from});
  float *const y = to.tensor().data<float>(), *const means = mean.defined() ? mean.data<float>() : nullptr;
  float* const rstds = rstd.data<float>();
  const float* const base = from.data<float>();
  for_ranges(threads_, walk.total, n * 2, [&](std::int64_t begin, std::int64_t end, int) {
    std::int64_t row = begin;
    for_runs(walk, begin, end, [&](const std::array<std::int64_t, 2>& at, std::int64_t rows) {
      const Rows target{y + at[0], walk.inner_stride(0)};
      const ConstRows source{base + at[1], walk.inner_stride(1)};
      if (args.kind == NormKind::rms) {
        rows_.norm->rms(target, rstds + row, source, rows, n, dense_data(w), dense_data(b), args.eps);
      } else {
        rows_.norm->layer(target, means + row, rstds + row, source, rows, n, dense_data(w), dense_data(b),
                          args.eps);
      }
      row += rows;
    });
  });
  to.finish();
}

void CpuBackend::norm_groups(const Tensor& out, const Tensor& mean, const Tensor& rstd, const Tensor& x,
                             const Tensor& weight, const Tensor& bias, const NormArgs& args, bool silu) {
  const Groups g(x, args.groups);
  const Tensor w = dense_vector(weight), b = dense_vector(bias);
  const float *const from = x.data<float>(), *const weights = dense_data(w), *const biases = dense_data(b);
  float *const to = out.data<float>(), *const means = mean.data<float>(), *const rstds = rstd.data<float>();
  group_statistics(threads_, *rows_.norm, g, from, means, rstds, args.eps);
  for_stretches(threads_, g,
                [&](std::int64_t channel, std::int64_t start, std::int64_t n, std::int64_t group) {
                  const std::int64_t at = channel * g.pixels + start, c = channel % g.channels;
                  rows_.norm->channel(to + at, from + at, n, means[group], rstds[group],
                                      weights ? weights[c] : 1.0f, biases ? biases[c] : 0.0f, silu);
                });
}

void CpuBackend::norm(const Tensor& out, const Tensor& mean, const Tensor& rstd, const Tensor& x,
                      const Tensor& weight, const Tensor& bias, const NormArgs& args) {
  if (x.numel() == 0) return;
  if (args.kind == NormKind::group) {
    norm_groups(out, mean, rstd, x, weight, bias, args, false);
  } else {
    norm_rows(out, mean, rstd, x, weight, bias, args);
  }
}

Declined CpuBackend::group_norm_silu(const Tensor& out, const Tensor& mean, const Tensor& rstd,
                                     const Tensor& x, const Tensor& weight, const Tensor& bias,
                                     const NormArgs& args) {
  if (x.numel() > 0) norm_groups(out, mean, rstd, x, weight, bias, args, true);
  return {};
}

void CpuBackend::norm_rows_backward(const Tensor& dx, const Tensor& dweight, const Tensor& dbias,
                                    const Tensor& dy, const Tensor& x, const Tensor& mean, const Tensor& rstd,
                                    const Tensor& weight, const NormArgs& args) {
  const Tensor from = dense_rows(x), gradient = dense_rows(dy), w = dense_vector(weight);
  DenseOutput to(*this, dx);
  const std::int64_t n = x.dim(-1);
  const auto walk = walk_rows<3>({&to.tensor(), &gradient, &from});
  const std::int64_t blocks = block_count(walk.total);
  const Tensor weight_parts = dweight.defined() ? empty({blocks, n}) : Tensor();
  const Tensor bias_parts = dbias.defined() ? empty({blocks, n}) : Tensor();
  const auto block_row = [n](const Tensor& parts, std::int64_t block) {
    float* row = parts.defined() ? parts.data<float>() + block * n : nullptr;
    if (row) std::fill_n(row, n, 0.0f);
    return row;
  };
  const bool rms = args.kind == NormKind::rms;
  const float *const means = dense_data(mean), *const rstds = rstd.data<float>();
  for_tasks(threads_, blocks, walk.total * n * 2, [&](std::int64_t block, int) {
    float *const dw = block_row(weight_parts, block), *const db = block_row(bias_parts, block);
    std::int64_t row = block * kRowsPerBlock;
    for_runs(walk, row, std::min(row + kRowsPerBlock, walk.total),
             [&](const std::array<std::int64_t, 3>& at, std::int64_t rows) {
               rows_.norm->backward({to.tensor().data<float>() + at[0], walk.inner_stride(0)}, dw, db,
                                    {gradient.data<float>() + at[1], walk.inner_stride(1)},
                                    {from.data<float>() + at[2], walk.inner_stride(2)}, rows, n,
                                    rms ? nullptr : means + row, rstds + row, dense_data(w));
               row += rows;
             });
  });
  to.finish();
  sum_blocks(dweight, weight_parts, blocks, n);
  sum_blocks(dbias, bias_parts, blocks, n);
}

void CpuBackend::norm_groups_backward(const Tensor& dx, const Tensor& dweight, const Tensor& dbias,
                                      const Tensor& dy, const Tensor& x, const Tensor& mean,
                                      const Tensor& rstd, const Tensor& weight, const NormArgs& args) {
  const Groups g(x, args.groups);
  const Tensor gradient = dense(dy), w = dense_vector(weight);
  const float *const from = x.data<float>(), *const d = gradient.data<float>(),
                     *const weights = dense_data(w);
  const float *const means = mean.data<float>(), *const rstds = rstd.data<float>();
  const auto sums = channel_sums(threads_, *rows_.norm, g, d, from, means, rstds);
  sum_over_batch(g, sums.get(), dweight.defined() ? dweight.data<float>() : nullptr,
                 dbias.defined() ? dbias.data<float>() : nullptr);
  const auto group_means = std::make_unique<ChannelSums[]>(static_cast<std::size_t>(g.count));
  for (std::int64_t i = 0; i < g.batch * g.channels; ++i) {
    ChannelSums& group = group_means[static_cast<std::size_t>(i / g.per_group)];
    const double scale =
        (weights ? static_cast<double>(weights[i % g.channels]) : 1.0) / static_cast<double>(g.length);
    group.dy += sums[static_cast<std::size_t>(i)].dy * scale;
    group.dy_x += sums[static_cast<std::size_t>(i)].dy_x * scale;
  }
  for_stretches(threads_, g,
                [&](std::int64_t channel, std::int64_t start, std::int64_t n, std::int64_t group) {
                  const std::int64_t at = channel * g.pixels + start;
                  const ChannelSums& own = group_means[static_cast<std::size_t>(group)];
                  rows_.norm->channel_backward(dx.data<float>() + at, d + at, from + at, n, means[group],
                                               rstds[group], weights ? weights[channel % g.channels] : 1.0f,
                                               static_cast<float>(own.dy), static_cast<float>(own.dy_x));
                });
}

void CpuBackend::norm_backward(const Tensor& dx, const Tensor& dweight, const Tensor& dbias, const Tensor& dy,
                               const Tensor& x, const Tensor& mean, const Tensor& rstd, const Tensor& weight,
                               const NormArgs& args) {
  if (x.numel() == 0) {
    if (dweight.defined()) fill(dweight, 0);
    if (dbias.defined()) fill(dbias, 0);
  } else if (args.kind == NormKind::group) {
    norm_groups_backward(dx, dweight, dbias, dy, x, mean, rstd, weight, args);
  } else {
    norm_rows_backward(dx, dweight, dbias, dy, x, mean, rstd, weight, args);
  }
}

void CpuBackend::sum_blocks(const Tensor& out, const Tensor& parts, std::int64_t blocks, std::int64_t width) {
  if (!out.defined()) return;
  DenseOutput to(*this, out);
  for_ranges(threads_, width, blocks, [&](std::int64_t begin, std::int64_t end, int) {
    combine_blocks(to.tensor().data<float>() + begin, parts.data<float>() + begin, width, blocks,
                   end - begin);
  });
  to.finish();
}

}  // namespace danceflux::cpu
