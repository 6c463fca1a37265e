// Products and attention at the sizes of FLUX.1-dev in bf16, timed on a device: one JSON object per line,
// {"name", "ours", "unit", "checked"}. Whole results are too large for a slow reference; rows chosen at
// random are made again in double on the host, and a bench that is wrong there is not timed and makes the
// program fail. First come the ceilings that the others are a share of: a large square product, attention
// over many tokens.
//
//   danceflux_flux_shapes_bench [--device cuda] [--options JSON] [--tokens 1536,2537,4608] [--filter TEXT]
//                               [--ceilings 8192,16384|none]
//
// --filter attention --options '{"attention": "own"}': the CUDA plugin's own kernels, where cuDNN has some.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "backend/registry.h"
#include "core/error.h"
#include "op_cases.h"
#include "ops/ops.h"

namespace danceflux::test {
namespace {

using Clock = std::chrono::steady_clock;
constexpr std::int64_t kWidth = 3072, kHeads = 24, kHead = 128, kWords = 512;
constexpr std::int64_t kWideHead = 512;        // of the autoencoder
constexpr double kTolerance = 0x1p-6;          // of one product of bf16 activations (op_cases.cpp)
constexpr double kGradientTolerance = 0x1p-5;  // of attention

/// Normal numbers: zeros would let the clock run higher than work does. Repeated, for they are mostly only
/// timed; others for each scale, as queries that are keys would see themselves and nothing else.
Tensor normal(Backend& device, const Shape& shape, float scale) {
  constexpr std::int64_t kBlock = 1 << 16;
  const std::vector<float> block =
      normal_stream(shape.string() + std::to_string(scale), std::min(kBlock, shape.numel()));
  std::vector<float> values(static_cast<std::size_t>(shape.numel()));
  for (std::size_t i = 0; i < values.size(); ++i)
    values[i] = scale * block[(i * 31 + i / block.size()) % block.size()];
  return ops::from_host(device, shape, values, device.activation_dtype(DType::bf16));
}

double shortest(Backend& device, const std::function<void()>& work) {
  double best = 1e30, total = 0;
  for (int run = 0; run < 200 && (run < 5 || total < 0.5); ++run) {
    device.synchronize();
    const auto start = Clock::now();
    work();
    device.synchronize();
    const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
    if (run > 0) best = std::min(best, seconds);
    total += seconds;
  }
  return best;
}

bool print(const std::string& name, double flops, bool good, const std::function<double()>& seconds) {
  const double rate = good ? flops / seconds() * 1e-12 : 0;
  std::printf("{\"name\": \"%s\", \"ours\": %.5g, \"unit\": \"%s\", \"checked\": %s}\n", name.c_str(), rate,
              good ? "TFLOP/s" : "wrong", good ? "true" : "false");
  std::fflush(stdout);
  return good;
}

std::vector<double> row_of(const Tensor& x, std::int64_t row) {
  const std::vector<float> values = ops::to_host(x.narrow(0, row, 1));
  return {values.begin(), values.end()};
}

bool bench_product(Backend& device, const char* prefix, std::int64_t rows, std::int64_t in,
                   std::int64_t out) {
  const Tensor x = normal(device, {rows, in}, 1);
  const Tensor weight = normal(device, {out, in}, 1 / std::sqrt(static_cast<float>(in)));
  const Tensor bias = ops::full(device, {out}, 0.25f);
  const auto work = [&] { return ops::linear(x, weight, bias); };
  const Tensor y = work();
  const std::vector<float> weights = ops::to_host(weight);
  bool good = true;
  for (const std::int64_t row : {std::int64_t{0}, rows / 2, rows - 1}) {
    const std::vector<double> from = row_of(x, row), got = row_of(y, row);
    std::vector<double> wanted(got.size());
    for (std::size_t n = 0; n < wanted.size(); ++n) {
      wanted[n] = 0.25;
      for (std::size_t k = 0; k < from.size(); ++k)
        wanted[n] += from[k] * static_cast<double>(weights[n * from.size() + k]);
    }
    good = good && error_of(got, wanted) <= kTolerance;
  }
  const std::string name =
      prefix + std::to_string(rows) + " x " + std::to_string(in) + " to " + std::to_string(out);
  return print(name, 2.0 * static_cast<double>(rows) * static_cast<double>(in) * static_cast<double>(out),
               good, [&] { return shortest(device, [&] { work(); }); });
}

/// One head in double. L tokens, K head width.
struct Head {
  std::vector<double> q, k, v;  // [L, K]
  std::int64_t tokens, width;
  double scale;

  Head(const Tensor& queries, const Tensor& keys, const Tensor& values, std::int64_t h, double score_scale)
      : q(read(queries, h)),
        k(read(keys, h)),
        v(read(values, h)),
        tokens(queries.dim(1)),
        width(queries.dim(3)),
        scale(score_scale) {}
  static std::vector<double> read(const Tensor& x, std::int64_t h) {
    const std::vector<float> all = ops::to_host(x.narrow(2, h, 1));
    return {all.begin(), all.end()};
  }
  double dot(const std::vector<double>& a, std::int64_t i, const std::vector<double>& b,
             std::int64_t j) const {
    double sum = 0;
    for (std::int64_t d = 0; d < width; ++d)
      sum += a[static_cast<std::size_t>(i * width + d)] * b[static_cast<std::size_t>(j * width + d)];
    return sum;
  }
  /// What query i gives each key.
  std::vector<double> probabilities(std::int64_t i) const {
    std::vector<double> p(static_cast<std::size_t>(tokens));
    double sum = 0;
    for (std::int64_t j = 0; j < tokens; ++j)
      sum += p[static_cast<std::size_t>(j)] = std::exp(dot(q, i, k, j) * scale);
    for (double& each : p) each /= sum;
    return p;
  }
  std::vector<double> weighted(const std::vector<double>& weights, const std::vector<double>& rows) const {
    std::vector<double> sum(static_cast<std::size_t>(width));
    for (std::size_t j = 0; j < weights.size(); ++j)
      for (std::size_t d = 0; d < sum.size(); ++d) sum[d] += weights[j] * rows[j * sum.size() + d];
    return sum;
  }
  std::vector<double> output(std::int64_t i) const { return weighted(probabilities(i), v); }
  /// The gradient of query i where v flows into the output.
  std::vector<double> query_gradient(std::int64_t i) const {
    std::vector<double> p = probabilities(i), dp(p.size());
    double delta = 0;
    for (std::int64_t j = 0; j < tokens; ++j) {
      const auto at = static_cast<std::size_t>(j);
      dp[at] = dot(v, i, v, j);
      delta += p[at] * dp[at];
    }
    for (std::size_t j = 0; j < p.size(); ++j) p[j] *= (dp[j] - delta) * scale;
    return weighted(p, k);
  }
  std::vector<double> row(const std::vector<double>& rows, std::int64_t i) const {
    const auto first = rows.begin() + static_cast<std::ptrdiff_t>(i * width);
    return {first, first + width};
  }
};

bool bench_attention(Backend& device, const char* prefix, std::int64_t tokens) {
  const Shape shape{1, tokens, kHeads, kHead};
  const Tensor q = normal(device, shape, 1), k = normal(device, shape, 1.01f),
               v = normal(device, shape, 0.99f);
  const AttentionArgs args{.scale = 1 / std::sqrt(static_cast<float>(kHead))};
  const auto work = [&] { return ops::attention(q, k, v, {}, args); };
  Tensor dq, dv;
  const auto both = [&] {
    Tape tape;
    for (const Tensor& each : {q, k, v}) tape.watch(each);
    const std::vector<Tensor> results{work()}, seeds{v};
    tape.backward(results, seeds);
    dq = tape.gradient(q);
    dv = tape.gradient(v);
  };
  const Tensor y = work();
  both();
  bool good = true, slopes = true;
  for (const std::int64_t h : {std::int64_t{0}, kHeads - 1}) {
    const Head head(q, k, v, h, static_cast<double>(args.scale));
    const std::int64_t i = tokens / 3;
    good = good && error_of(head.row(Head::read(y, h), i), head.output(i)) <= kTolerance;
    slopes = slopes && error_of(head.row(Head::read(dq, h), i), head.query_gradient(i)) <= kGradientTolerance;
    // All that flows in arrives at some value: a query's probabilities sum up to one.
    const std::vector<double> ones(static_cast<std::size_t>(tokens), 1.0);
    slopes = slopes && error_of(head.weighted(ones, Head::read(dv, h)), head.weighted(ones, head.v)) <=
                           kGradientTolerance;
  }
  const double flops = 4.0 * static_cast<double>(tokens * tokens) * static_cast<double>(kHeads * kHead);
  const std::string name = prefix + std::to_string(tokens);
  good = print(name + ", forward", flops, good, [&] { return shortest(device, [&] { work(); }); });
  return print(name + ", forward and backward", 3.5 * flops, good && slopes,
               [&] { return shortest(device, both); });
}

/// As the autoencoder has it: one wide head, forward only.
bool bench_wide_attention(Backend& device, std::int64_t tokens) {
  const Shape shape{1, tokens, 1, kWideHead};
  const Tensor q = normal(device, shape, 1), k = normal(device, shape, 1.01f),
               v = normal(device, shape, 0.99f);
  const AttentionArgs args{.scale = 1 / std::sqrt(static_cast<float>(kWideHead))};
  const auto work = [&] { return ops::attention(q, k, v, {}, args); };
  const Head head(q, k, v, 0, static_cast<double>(args.scale));
  const std::vector<double> got = Head::read(work(), 0);
  bool good = true;
  for (const std::int64_t i : {std::int64_t{0}, tokens / 3, tokens - 1})
    good = good && error_of(head.row(got, i), head.output(i)) <= kTolerance;
  return print("attention of one head of " + std::to_string(kWideHead) + ", " + std::to_string(tokens),
               4.0 * static_cast<double>(tokens * tokens) * static_cast<double>(kWideHead), good,
               [&] { return shortest(device, [&] { work(); }); });
}

struct Arguments {
  std::string device = "cuda", options = "{}", tokens = "1536,2537,4608", ceilings = "8192,16384", filter;
  bool wants(const char* kind) const { return std::string(kind).find(filter) != std::string::npos; }
};

std::vector<std::int64_t> numbers(const std::string& text) {
  std::vector<std::int64_t> all;
  for (std::size_t at = 0; at < text.size();) {
    std::size_t length = 0;
    all.push_back(std::stoll(text.substr(at), &length));
    at += length + 1;
  }
  return all;
}

int run(const Arguments& arguments) {
  const auto device = open_backend(arguments.device, 0, arguments.options);
  bool good = true;
  if (arguments.ceilings != "none") {
    const std::vector<std::int64_t> sizes = numbers(arguments.ceilings);
    require(sizes.size() == 2, "ERR_OPTION", "--ceilings: expected a side and tokens, got ",
            arguments.ceilings);
    if (arguments.wants("linear"))
      good = bench_product(*device, "ceiling: linear ", sizes[0], sizes[0], sizes[0]);
    if (arguments.wants("attention"))
      good = bench_attention(*device, "ceiling: attention ", sizes[1]) && good;
  }
  for (const std::int64_t count : numbers(arguments.tokens)) {
    // qkv, out and the two of the MLP, of both streams together; the single block's pair
    for (const auto& [in, out] : {std::pair{kWidth, 3 * kWidth},
                                  {kWidth, kWidth},
                                  {kWidth, 4 * kWidth},
                                  {4 * kWidth, kWidth},
                                  {5 * kWidth, kWidth}})
      if (arguments.wants("linear")) good = bench_product(*device, "linear ", count, in, out) && good;
    if (arguments.wants("attention")) good = bench_attention(*device, "attention ", count) && good;
    // A picture token is four pixels of the latent.
    if (arguments.wants("attention") && count > kWords)
      good = bench_wide_attention(*device, 4 * (count - kWords)) && good;
  }
  // Which way attention took, where that is told.
  std::fprintf(stderr, "%s\n", device->description().c_str());
  return good ? 0 : 1;
}

}  // namespace
}  // namespace danceflux::test

int main(int argc, char** argv) {
  danceflux::test::Arguments arguments;
  for (int i = 1; i + 1 < argc; i += 2) {
    if (!std::strcmp(argv[i], "--device")) arguments.device = argv[i + 1];
    if (!std::strcmp(argv[i], "--options")) arguments.options = argv[i + 1];
    if (!std::strcmp(argv[i], "--tokens")) arguments.tokens = argv[i + 1];
    if (!std::strcmp(argv[i], "--ceilings")) arguments.ceilings = argv[i + 1];
    if (!std::strcmp(argv[i], "--filter")) arguments.filter = argv[i + 1];
  }
  try {
    return danceflux::test::run(arguments);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
