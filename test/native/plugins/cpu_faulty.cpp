// The CPU with one fault planted in it, for tests of what finds faults. Options: "fault" names it; "after":
// it acts from that call of the op on, counted from 0 (so that different places are hit); "truth": a file
// that is told, when it first acts, which op it was.
#include <algorithm>
#include <cstdio>
#include <fstream>

#include "autograd/observer.h"
#include "backend/cpu/cpu_backend.h"
#include "backend/options.h"
#include "backend/plugin.h"
#include "core/error.h"
#include "wrapped_backend.h"

namespace {
using namespace danceflux;
using T = const Tensor&;

class FaultyBackend final : public test::WrappedBackend {
 public:
  FaultyBackend(std::string fault, std::int64_t after, std::string truth, std::string inside)
      : WrappedBackend(cpu::open_cpu({})),
        fault_(std::move(fault)),
        truth_(std::move(truth)),
        inside_(std::move(inside)),
        after_(after) {}

  // Half-mode rope: pairs (i, i + K/2) where FLUX has (2i, 2i + 1).
  Declined qk_norm_rope(T out, T rstd, T x, T weight, T cos, T sin, float eps) override {
    if (fault_ == "strided-read" && !x.is_contiguous() && acts("qk_norm_rope")) {
      const Tensor wrong(x.storage(), x.dtype(), x.shape(),
                         Tensor(x.storage(), x.dtype(), x.shape()).strides(), offset_of(x));
      return WrappedBackend::qk_norm_rope(out, rstd, wrong, weight, cos, sin, eps);
    }
    // Words stand at position 0: nothing turns there, in either mode.
    if (fault_ == "rope-half" && turns(sin) && acts("qk_norm_rope")) {
      const Tensor normed = empty(x.shape(), x.dtype());
      norm(normed, {}, rstd, x, weight, {}, NormArgs{.kind = NormKind::rms, .eps = eps});
      half_rope(out, normed, cos, sin);
      return {};
    }
    return WrappedBackend::qk_norm_rope(out, rstd, x, weight, cos, sin, eps);
  }

  Declined modulated_norm(T out, T mean, T rstd, T x, T scale, T shift, float eps) override {
    const bool swapped = fault_ == "scale-shift" && acts("modulated_norm");
    return WrappedBackend::modulated_norm(out, mean, rstd, x, swapped ? shift : scale,
                                          swapped ? scale : shift, eps);
  }

  Declined attention(T out, T lse, T q, T k, T v, T bias, const AttentionArgs& args) override {
    Declined declined = WrappedBackend::attention(out, lse, q, k, v, bias, args);
    if (declined) return declined;
    if (fault_ == "head-zero" && acts("attention")) fill(out.narrow(2, after_ % out.dim(2), 1), 0);
    return declined;
  }

  // Through f16 without a scale that fits: what is too large becomes infinite.
  Declined linear_activation(UnaryOp op, T out, T pre, T x, T weight, T bias) override {
    const Declined declined = WrappedBackend::linear_activation(op, out, pre, x, weight, bias);
    if (!declined && fault_ == "f16-overflow" && acts("linear_activation")) through_f16(out);
    return declined;
  }

  // The derivative of the other gelu: the forward pass is right.
  void unary_backward(UnaryOp op, T dx, T x, T dy, float a, float b) override {
    const bool other = fault_ == "gelu-backward" && op == UnaryOp::gelu_tanh && acts("gelu_backward");
    WrappedBackend::unary_backward(other ? UnaryOp::quick_gelu : op, dx, x, dy, a, b);
  }

  // Harmless: the same sum in two halves.
  void matmul(T out, T a, T b, T bias, const MatmulArgs& args) override {
    const std::int64_t K = a.dim(-1), half = K / 2;
    if (fault_ != "reduction-order" || half == 0 || a.rank() != 2 || b.rank() != 2 || args.accumulate ||
        !acts("linear"))
      return WrappedBackend::matmul(out, a, b, bias, args);
    WrappedBackend::matmul(out, a.narrow(1, half, K - half), b.narrow(0, half, K - half), bias, args);
    MatmulArgs more = args;
    more.accumulate = true;
    WrappedBackend::matmul(out, a.narrow(1, 0, half), b.narrow(0, 0, half), {}, more);
  }

 private:
  static std::int64_t offset_of(T x) {
    return (static_cast<const char*>(x.address()) - static_cast<const char*>(x.storage()->address())) /
           static_cast<std::ptrdiff_t>(size_of(x.dtype()));
  }

  static bool backward(const char* op) { return std::string(op) == "gelu_backward"; }

  bool acts(const char* op) {
    if (!inside_.empty() && !backward(op)) {
      const Observer* observer = Observer::current();
      if (!observer || observer->model() != inside_) return false;
    }
    if (calls_++ < after_) return false;
    if (!told_ && !truth_.empty()) std::ofstream(truth_) << where(op) << "\n";
    told_ = true;
    return true;
  }

  // The op that is under way is the next one that the observer will see.
  static std::string where(const char* op) {
    const Observer* observer = Observer::current();
    return observer ? observer->upcoming(op) : "";
  }

  bool turns(T sin) {
    std::vector<float> s(static_cast<std::size_t>(sin.numel()));
    download(s.data(), sin);
    return std::any_of(s.begin(), s.end(), [](float value) { return value != 0; });
  }

  void half_rope(T out, T x, T cos, T sin) {
    const std::int64_t B = x.dim(0), L = x.dim(1), H = x.dim(2), K = x.dim(3), half = K / 2;
    std::vector<float> values(static_cast<std::size_t>(x.numel())), turned(values.size());
    std::vector<float> c(static_cast<std::size_t>(L * half)), s(c.size());
    download(values.data(), x);
    download(c.data(), cos);
    download(s.data(), sin);
    for (std::int64_t row = 0; row < B * L * H; ++row) {
      const std::int64_t token = row / H % L;
      for (std::int64_t i = 0; i < half; ++i) {
        const auto at = static_cast<std::size_t>(row * K + i),
                   angle = static_cast<std::size_t>(token * half + i);
        const float low = values[at], high = values[at + static_cast<std::size_t>(half)];
        turned[at] = low * c[angle] - high * s[angle];
        turned[at + static_cast<std::size_t>(half)] = high * c[angle] + low * s[angle];
      }
    }
    upload(out, turned.data());
  }

  void through_f16(T out) {
    constexpr float kScale = 32768;
    std::vector<float> values(static_cast<std::size_t>(out.numel()));
    download(values.data(), out);
    for (float& value : values) value = f16_to_f32(f32_to_f16(value * kScale)) / kScale;
    upload(out, values.data());
  }

  const std::string fault_, truth_, inside_;
  const std::int64_t after_;
  std::int64_t calls_ = 0;
  bool told_ = false;
};

void probe(PluginProbe* found) {
  found->state = ProbeState::ready;
  found->devices = 1;
  std::snprintf(found->message, sizeof found->message, "the cpu with a fault");
}

Backend* create(std::int32_t, const char* options_json) {
  const DeviceOptions options = DeviceOptions::parse(options_json);
  options.allow_only("cpu_faulty", {"fault", "after", "truth", "inside"});
  return new FaultyBackend(options.text("fault", ""), options.integer("after", 0), options.text("truth", ""),
                           options.text("inside", ""));
}
const PluginInfo info{DANCEFLUX_PLUGIN_ABI, "cpu_faulty", probe, create};
}  // namespace

extern "C" const danceflux::PluginInfo* danceflux_plugin() { return &info; }
