// Speed of the heavy CPU kernels beside the machine's own limit, each result checked against loops in double
// before it is timed.
//
//   danceflux_gemm_bench [--threads N] [--isa NAME] [--seconds S] [--json] [--cpu-time] [part of a name ...]
//
// GFLOP/s are those of the formula (2 M N K and so on); nothing is counted for packing or widening. min /
// median / max of several runs: on a machine with neighbours the maximum is the best estimate of the quiet
// one. --cpu-time divides by the processor time of all threads instead, as if none of them had ever waited
// for its turn.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "backend/cpu/cpu_backend.h"
#include "fma_peak.h"

namespace danceflux::bench {
namespace {

double wall_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}
double cpu_seconds() { return static_cast<double>(std::clock()) / CLOCKS_PER_SEC; }

struct Options {
  int threads = 1;
  std::string isa;
  double seconds = 0.4;
  bool json = false, cpu_time = false;
  std::vector<std::string> names;
  bool wants(const std::string& name) const {
    return names.empty() || std::any_of(names.begin(), names.end(), [&](const auto& part) {
             return name.find(part) != std::string::npos;
           });
  }
};

struct Speed {
  double least, median, most;  // GFLOP/s
};

// Repeats for about `seconds`, at least five times; calls shorter than 2 ms are timed in bundles.
Speed time_it(double flops, double seconds, double (*now)(), const std::function<void()>& body) {
  const auto timed = [&](int times) {
    const double start = now();
    for (int i = 0; i < times; ++i) body();
    return (now() - start) / times;
  };
  const int bundle = std::max(1, static_cast<int>(0.002 / std::max(timed(1), 1e-9)));
  std::vector<double> speeds;
  for (double spent = 0; (spent < seconds && speeds.size() < 200) || speeds.size() < 5;) {
    const double each = timed(bundle);
    spent += each * bundle;
    speeds.push_back(flops / each * 1e-9);
  }
  std::sort(speeds.begin(), speeds.end());
  return {speeds.front(), speeds[speeds.size() / 2], speeds.back()};
}

Tensor random_tensor(Backend& backend, const Shape& shape, DType dtype = DType::f32) {
  static std::mt19937 generator(1);
  std::uniform_real_distribution<float> spread(-1, 1);
  std::vector<float> values(static_cast<std::size_t>(shape.numel()));
  for (float& value : values) value = spread(generator);
  std::vector<unsigned char> stored(values.size() * size_of(dtype));
  convert_elements(stored.data(), dtype, values.data(), DType::f32, values.size());
  const Tensor tensor = backend.empty(shape, dtype);
  backend.upload(tensor, stored.data());
  return tensor;
}

double at(const Tensor& x, std::int64_t offset) {
  if (x.dtype() == DType::f32) return x.data<float>()[offset];
  const std::uint16_t bits = x.data<std::uint16_t>()[offset];
  return x.dtype() == DType::bf16 ? bf16_to_f32(bits) : f16_to_f32(bits);
}

[[noreturn]] void wrong(const std::string& name, double got, double wanted) {
  std::fprintf(stderr, "%s: expected %.9g, got %.9g\n", name.c_str(), wanted, got);
  std::exit(1);
}

class Bench {
 public:
  explicit Bench(const Options& options)
      : options_(options), backend_(cpu::open_cpu({.threads = options.threads, .isa = options.isa})) {
    backend_->strict_shortcuts = true;
    peak_ = fma_peak(options.threads, options.isa);
    print({"fma peak", peak_});
  }

  void matmul(std::int64_t m, std::int64_t n, std::int64_t k, const std::string& layout, DType weights) {
    const std::string name = "matmul " + layout + " " + std::to_string(m) + "x" + std::to_string(n) + "x" +
                             std::to_string(k) + " " + std::string(name_of(weights));
    if (!options_.wants(name)) return;
    const auto matrix = [&](std::int64_t rows, std::int64_t columns, bool turned, DType type) {
      return turned ? random_tensor(*backend_, {columns, rows}, type).transpose(0, 1)
                    : random_tensor(*backend_, {rows, columns}, type);
    };
    const Tensor a = matrix(m, k, layout[0] == 'T', DType::f32), b = matrix(k, n, layout[1] == 'T', weights);
    const Tensor out = backend_->empty({m, n});
    const auto body = [&] { backend_->matmul(out, a, b, {}, {}); };
    body();
    for (std::int64_t sample = 0; sample < 50; ++sample) {
      const std::int64_t i = sample * 7919 % m, j = sample * 104729 % n;
      double wanted = 0;
      for (std::int64_t d = 0; d < k; ++d)
        wanted +=
            at(a, i * a.strides()[0] + d * a.strides()[1]) * at(b, d * b.strides()[0] + j * b.strides()[1]);
      const double got = out.data<float>()[i * n + j];
      if (!(std::abs(got - wanted) <= 6e-8 * static_cast<double>(k + 4))) wrong(name, got, wanted);
    }
    report(name, 2.0 * static_cast<double>(m * n * k), body);
  }

  void attention(std::int64_t batch, std::int64_t tokens, std::int64_t heads, std::int64_t width) {
    const std::string name = "attention " + std::to_string(batch) + "x" + std::to_string(tokens) + "x" +
                             std::to_string(heads) + "x" + std::to_string(width);
    if (!options_.wants(name + " forward") && !options_.wants(name + " backward")) return;
    const Shape shape{batch, tokens, heads, width};
    const Tensor q = random_tensor(*backend_, shape), k = random_tensor(*backend_, shape),
                 v = random_tensor(*backend_, shape);
    const Tensor dout = random_tensor(*backend_, shape), out = backend_->empty(shape),
                 lse = backend_->empty({batch, heads, tokens});
    const Tensor dq = backend_->empty(shape), dk = backend_->empty(shape), dv = backend_->empty(shape);
    const AttentionArgs args{1 / std::sqrt(static_cast<float>(width)), false};
    const auto forward = [&] { (void)backend_->attention(out, lse, q, k, v, {}, args); };
    const auto backward = [&] {
      (void)backend_->attention_backward(dq, dk, dv, dout, out, lse, q, k, v, {}, args);
    };
    forward();
    backward();
    check_attention(name, out, lse, q, k, v, args);
    check_attention_slopes(name, dv, dout, lse, q, k, args);
    const double flops = static_cast<double>(batch * heads * tokens * tokens * width);
    report(name + " forward", 4 * flops, forward);
    report(name + " backward", 10 * flops, backward);
  }

  void conv(std::int64_t images, std::int64_t channels, std::int64_t outputs, std::int64_t size,
            std::int64_t kernel, int stride, bool gradients) {
    const std::string name = "conv " + std::to_string(images) + "x" + std::to_string(channels) + "to" +
                             std::to_string(outputs) + " " + std::to_string(size) + "^2 " +
                             std::to_string(kernel) + "x" + std::to_string(kernel) + "/" +
                             std::to_string(stride);
    if (!options_.wants(name + " backward data") && !options_.wants(name + " backward weight")) return;
    const int pad = stride == 1 ? static_cast<int>(kernel / 2) : 0;
    const ConvArgs args{stride, pad, pad, pad, pad};
    const std::int64_t out_size = (size + 2 * pad - kernel) / stride + 1;
    const Tensor x = random_tensor(*backend_, {images, channels, size, size}),
                 weight = random_tensor(*backend_, {outputs, channels, kernel, kernel});
    const Tensor out = backend_->empty({images, outputs, out_size, out_size}),
                 dx = backend_->empty(x.shape()), dweight = backend_->empty(weight.shape());
    const auto body = [&] { backend_->conv2d(out, x, weight, {}, args); };
    body();
    check_conv(name, out, x, weight, args);
    const double flops = 2.0 * static_cast<double>(out.numel() * channels * kernel * kernel);
    report(name, flops, body);
    if (!gradients) return;
    report(name + " backward data", flops, [&] { backend_->conv2d_backward_data(dx, out, weight, args); });
    report(name + " backward weight", flops,
           [&] { backend_->conv2d_backward_weight(dweight, {}, out, x, args); });
  }

 private:
  static double dot(const float* a, const float* b, std::int64_t n) {
    double sum = 0;
    for (std::int64_t i = 0; i < n; ++i) sum += double{a[i]} * double{b[i]};
    return sum;
  }
  static const float* head_row(const Tensor& x, std::int64_t batch, std::int64_t token, std::int64_t head) {
    return x.data<float>() + batch * x.strides()[0] + token * x.strides()[1] + head * x.strides()[2];
  }

  static void check_attention(const std::string& name, const Tensor& out, const Tensor& lse, const Tensor& q,
                              const Tensor& k, const Tensor& v, const AttentionArgs& args) {
    const std::int64_t batches = q.dim(0), tokens = q.dim(1), heads = q.dim(2), width = q.dim(3);
    for (std::int64_t sample = 0; sample < 10; ++sample) {
      const std::int64_t b = sample % batches, i = sample * 7919 % tokens, head = sample * 13 % heads;
      std::vector<double> wanted(static_cast<std::size_t>(width));
      double total = 0;
      for (std::int64_t j = 0; j < tokens; ++j) {
        const double weight =
            std::exp(args.scale * dot(head_row(q, b, i, head), head_row(k, b, j, head), width));
        total += weight;
        for (std::int64_t n = 0; n < width; ++n)
          wanted[static_cast<std::size_t>(n)] += weight * head_row(v, b, j, head)[n];
      }
      for (std::int64_t n = 0; n < width; ++n)
        if (!(std::abs(head_row(out, b, i, head)[n] - wanted[static_cast<std::size_t>(n)] / total) <= 1e-5))
          wrong(name, head_row(out, b, i, head)[n], wanted[static_cast<std::size_t>(n)] / total);
      const double got = lse.data<float>()[(b * heads + head) * tokens + i];
      if (!(std::abs(got - std::log(total)) <= 1e-5)) wrong(name, got, std::log(total));
    }
  }

  static void check_attention_slopes(const std::string& name, const Tensor& dv, const Tensor& dout,
                                     const Tensor& lse, const Tensor& q, const Tensor& k,
                                     const AttentionArgs& args) {
    const std::int64_t tokens = q.dim(1), heads = q.dim(2), width = q.dim(3);
    for (std::int64_t sample = 0; sample < 10; ++sample) {
      const std::int64_t b = sample % q.dim(0), j = sample * 7919 % tokens, head = sample * 13 % heads,
                         n = sample * 31 % width;
      double wanted = 0;
      for (std::int64_t i = 0; i < tokens; ++i)
        wanted += std::exp(args.scale * dot(head_row(q, b, i, head), head_row(k, b, j, head), width) -
                           lse.data<float>()[(b * heads + head) * tokens + i]) *
                  head_row(dout, b, i, head)[n];
      if (!(std::abs(head_row(dv, b, j, head)[n] - wanted) <= 1e-5))
        wrong(name + " dv", head_row(dv, b, j, head)[n], wanted);
    }
  }

  static void check_conv(const std::string& name, const Tensor& out, const Tensor& x, const Tensor& weight,
                         const ConvArgs& args) {
    const std::int64_t height = x.dim(2), width = x.dim(3), kernel = weight.dim(2);
    for (std::int64_t sample = 0; sample < 50; ++sample) {
      const std::int64_t b = sample % out.dim(0), o = sample * 31 % out.dim(1),
                         i = sample * 7919 % out.dim(2), j = sample * 104729 % out.dim(3);
      double wanted = 0;
      for (std::int64_t c = 0; c < x.dim(1); ++c)
        for (std::int64_t r = 0; r < kernel; ++r)
          for (std::int64_t s = 0; s < kernel; ++s) {
            const std::int64_t y = i * args.stride - args.pad_top + r,
                               column = j * args.stride - args.pad_left + s;
            if (y < 0 || y >= height || column < 0 || column >= width) continue;
            wanted += at(x, ((b * x.dim(1) + c) * height + y) * width + column) *
                      at(weight, ((o * x.dim(1) + c) * kernel + r) * kernel + s);
          }
      const double got = out.data<float>()[((b * out.dim(1) + o) * out.dim(2) + i) * out.dim(3) + j];
      if (!(std::abs(got - wanted) <= 6e-8 * static_cast<double>(x.dim(1) * kernel * kernel + 4)))
        wrong(name, got, wanted);
    }
  }

  struct Line {
    std::string name;
    double least, median, most;
    Line(std::string text, double value) : name(std::move(text)), least(value), median(value), most(value) {}
    Line(std::string text, const Speed& s)
        : name(std::move(text)), least(s.least), median(s.median), most(s.most) {}
  };
  void print(const Line& line) const {
    const char* format = options_.json ? "{\"name\": \"%s\", \"threads\": %d, \"min\": %.1f, \"median\": "
                                         "%.1f, \"max\": %.1f, \"of_peak\": %.3f}\n"
                                       : "%-46s %d thr  %6.1f / %6.1f / %6.1f GFLOP/s  %4.2f of peak\n";
    std::printf(format, line.name.c_str(), options_.threads, line.least, line.median, line.most,
                line.most / peak_);
    std::fflush(stdout);
  }
  void report(const std::string& name, double flops, const std::function<void()>& body) {
    if (!options_.wants(name)) return;
    // processor time is that of all threads together
    const double share = options_.cpu_time ? options_.threads : 1;
    print({name,
           time_it(share * flops, options_.seconds, options_.cpu_time ? cpu_seconds : wall_seconds, body)});
  }

  Options options_;
  std::shared_ptr<Backend> backend_;
  double peak_ = 1;
};

struct MatmulShape {
  std::int64_t m, n, k;
  std::vector<DType> weights;
};

void run(const Options& options) {
  Bench bench(options);
  const std::vector<DType> f32 = {DType::f32}, both = {DType::f32, DType::bf16};
  const MatmulShape shapes[] = {{1536, 3072, 3072, both}, {1536, 12288, 3072, both}, {1536, 3072, 12288, f32},
                                {1024, 3072, 3072, f32},  {1, 3072, 3072, both},     {4, 18432, 3072, both},
                                {12288, 3072, 1536, f32}, {3072, 12288, 1536, f32},  {3072, 3072, 1536, f32},
                                {28, 128, 128, f32},      {64, 128, 128, both},      {256, 128, 128, f32},
                                {336, 128, 128, f32},     {336, 384, 128, f32},      {336, 512, 128, f32},
                                {336, 128, 512, f32},     {64, 256, 256, f32},       {256, 256, 256, f32},
                                {512, 256, 256, f32},     {64, 512, 512, f32},       {512, 512, 512, f32}};
  for (const MatmulShape& shape : shapes)
    for (const char* layout : {"NN", "NT", "TN"})
      for (DType weights : shape.weights) bench.matmul(shape.m, shape.n, shape.k, layout, weights);
  bench.attention(1, 1536, 24, 128);
  bench.attention(1, 768, 24, 128);
  bench.attention(12, 28, 4, 32);
  bench.attention(4, 77, 12, 64);
  bench.attention(1, 4096, 1, 512);
  bench.conv(1, 512, 512, 64, 3, 1, true);
  bench.conv(1, 256, 256, 256, 3, 1, false);
  bench.conv(1, 128, 128, 512, 3, 1, false);
  bench.conv(12, 64, 64, 16, 3, 1, true);
  bench.conv(12, 32, 32, 64, 3, 1, false);
  bench.conv(12, 16, 16, 64, 3, 1, false);
  bench.conv(12, 16, 3, 64, 3, 1, false);
  bench.conv(12, 48, 48, 8, 3, 1, false);
  bench.conv(12, 32, 32, 64, 3, 2, false);
  bench.conv(4, 512, 512, 32, 1, 1, false);
  bench.conv(8, 3, 1280, 224, 14, 14, false);
}

Options parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    const auto value = [&]() -> const char* {
      if (++i < argc) return argv[i];
      std::fprintf(stderr, "%s: expected a value\n", word.c_str());
      std::exit(2);
    };
    if (word == "--threads")
      options.threads = std::max(1, std::atoi(value()));
    else if (word == "--isa")
      options.isa = value();
    else if (word == "--seconds")
      options.seconds = std::atof(value());
    else if (word == "--json")
      options.json = true;
    else if (word == "--cpu-time")
      options.cpu_time = true;
    else
      options.names.push_back(word);
  }
  return options;
}

}  // namespace
}  // namespace danceflux::bench

int main(int argc, char** argv) {
  try {
    danceflux::bench::run(danceflux::bench::parse(argc, argv));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
