// Products and attention at the sizes of FLUX.1-dev in bf16, timed on a device: one JSON object per line,
// {"name", "ours", "unit", "checked"}. Whole results are too large for a slow reference; rows chosen at
// random are made again in double on the host, and a bench that is wrong there is not timed and makes the
// program fail.
//
//   danceflux_flux_shapes_bench [--device cuda] [--tokens 1536,2537,4608]
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "backend/registry.h"
#include "op_cases.h"
#include "ops/ops.h"

namespace danceflux::test {
namespace {

using Clock = std::chrono::steady_clock;
constexpr std::int64_t kWidth = 3072, kHeads = 24, kHead = 128;
constexpr double kTolerance = 0x1p-6;  // of one product of bf16 activations (op_cases.cpp)

/// Normal numbers: zeros would let the clock run higher than work does. Repeated, for they are only timed.
Tensor normal(Backend& device, const Shape& shape, float scale) {
  constexpr std::int64_t kBlock = 1 << 16;
  const std::vector<float> block = normal_stream(shape.string(), std::min(kBlock, shape.numel()));
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

bool bench_product(Backend& device, std::int64_t rows, std::int64_t in, std::int64_t out) {
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
      "linear " + std::to_string(rows) + " x " + std::to_string(in) + " to " + std::to_string(out);
  return print(name, 2.0 * static_cast<double>(rows) * static_cast<double>(in) * static_cast<double>(out),
               good, [&] { return shortest(device, [&] { work(); }); });
}

bool bench_attention(Backend& device, std::int64_t tokens) {
  const Shape shape{1, tokens, kHeads, kHead};
  const Tensor q = normal(device, shape, 1), k = normal(device, shape, 1.01f),
               v = normal(device, shape, 0.99f);
  const AttentionArgs args{.scale = 1 / std::sqrt(static_cast<float>(kHead))};
  const auto work = [&] { return ops::attention(q, k, v, {}, args); };
  const Tensor y = work();
  const auto head = [](const Tensor& x, std::int64_t h) { return ops::to_host(x.narrow(2, h, 1)); };
  bool good = true;
  for (const std::int64_t h : {std::int64_t{0}, kHeads - 1}) {
    const std::vector<float> queries = head(q, h), keys = head(k, h), values = head(v, h),
                             results = head(y, h);
    const std::int64_t i = tokens / 3;
    std::vector<double> p(static_cast<std::size_t>(tokens)), wanted(kHead), got(kHead);
    double sum = 0;
    for (std::int64_t j = 0; j < tokens; ++j) {
      double dot = 0;
      for (std::int64_t d = 0; d < kHead; ++d)
        dot += static_cast<double>(queries[static_cast<std::size_t>(i * kHead + d)]) *
               static_cast<double>(keys[static_cast<std::size_t>(j * kHead + d)]);
      sum += p[static_cast<std::size_t>(j)] = std::exp(dot * static_cast<double>(args.scale));
    }
    for (std::int64_t d = 0; d < kHead; ++d) {
      for (std::int64_t j = 0; j < tokens; ++j)
        wanted[static_cast<std::size_t>(d)] +=
            p[static_cast<std::size_t>(j)] / sum *
            static_cast<double>(values[static_cast<std::size_t>(j * kHead + d)]);
      got[static_cast<std::size_t>(d)] =
          static_cast<double>(results[static_cast<std::size_t>(i * kHead + d)]);
    }
    good = good && error_of(got, wanted) <= kTolerance;
  }
  const double flops = 4.0 * static_cast<double>(tokens * tokens) * static_cast<double>(kHeads * kHead);
  const std::string name = "attention " + std::to_string(tokens);
  if (!print(name + ", forward", flops, good, [&] { return shortest(device, [&] { work(); }); }))
    return false;
  const auto both = [&] {
    Tape tape;
    for (const Tensor& each : {q, k, v}) tape.watch(each);
    const std::vector<Tensor> results{ops::attention(q, k, v, {}, args)}, seeds{v};
    tape.backward(results, seeds);
  };
  return print(name + ", forward and backward", 3.5 * flops, good, [&] { return shortest(device, both); });
}

int run(const std::string& device_name, const std::string& tokens) {
  const auto device = open_backend(device_name, 0, "{}");
  bool good = true;
  for (std::size_t at = 0; at < tokens.size();) {
    std::size_t length = 0;
    const std::int64_t count = std::stoll(tokens.substr(at), &length);
    at += length + 1;
    // qkv, out and the two of the MLP, of both streams together; the single block's pair
    for (const auto& [in, out] : {std::pair{kWidth, 3 * kWidth},
                                  {kWidth, kWidth},
                                  {kWidth, 4 * kWidth},
                                  {4 * kWidth, kWidth},
                                  {5 * kWidth, kWidth}})
      good = bench_product(*device, count, in, out) && good;
    good = bench_attention(*device, count) && good;
  }
  std::fprintf(stderr, "%s\n", device->description().c_str());  // which way attention took, where that is told
  return good ? 0 : 1;
}

}  // namespace
}  // namespace danceflux::test

int main(int argc, char** argv) {
  std::string device = "cuda", tokens = "1536,2537,4608";
  for (int i = 1; i + 1 < argc; i += 2) {
    if (!std::strcmp(argv[i], "--device")) device = argv[i + 1];
    if (!std::strcmp(argv[i], "--tokens")) tokens = argv[i + 1];
  }
  try {
    return danceflux::test::run(device, tokens);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
