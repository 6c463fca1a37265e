// Elementwise ops of the CPU backend against the C library's doubles: accuracy, special values, layouts,
// broadcasting.
#include <limits>

#include "cpu_device.h"

using namespace danceflux;
using namespace danceflux::test;

namespace {

constexpr double kPi = 3.14159265358979323846;
constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }
double normal_cdf(double x) { return 0.5 * std::erfc(-x / std::sqrt(2.0)); }
double gelu_argument(double x) { return 2 * std::sqrt(2 / kPi) * (x + 0.044715 * x * x * x); }
double gelu_slope(double x) { return 2 * std::sqrt(2 / kPi) * (1 + 3 * 0.044715 * x * x); }
double gate_slope(double x, double z, double dz) { return sigmoid(z) + x * dz * sigmoid(z) * sigmoid(-z); }

struct UnaryCase {
  UnaryOp op;
  const char* name;
  double (*f)(double x, double a, double b);
  double (*df)(double x, double a, double b);
  float low, high;    // where it is tested
  double ulps;        // of the result, in f32
  double slope_ulps;  // of the derivative, relative to the larger of it and 1 (it passes through zero)
};

#define F(expression) \
  [](double x, [[maybe_unused]] double a, [[maybe_unused]] double b) -> double { return expression; }
const UnaryCase kUnary[] = {
    {UnaryOp::affine, "affine", F(a* x + b), F(a + 0 * x), -9, 9, 40, 1},  // cancellation in a * x + b
    {UnaryOp::clamp, "clamp", F(std::min(std::max(x, a), b)), F(x >= a && x <= b ? 1.0 : 0.0), -3, 3, 0, 0},
    {UnaryOp::exp, "exp", F(std::exp(x)), F(std::exp(x)), -104, 89, 2, 2},
    {UnaryOp::log, "log", F(std::log(x)), F(1 / x), 1e-3f, 9, 2, 2},
    {UnaryOp::sqrt, "sqrt", F(std::sqrt(x)), F(0.5 / std::sqrt(x)), 1e-3f, 99, 0.5, 2},
    {UnaryOp::rsqrt, "rsqrt", F(1 / std::sqrt(x)), F(-0.5 / (x * std::sqrt(x))), 1e-2f, 99, 1.5, 3},
    {UnaryOp::square, "square", F(x* x), F(2 * x), -9, 9, 0.5, 0.5},
    {UnaryOp::reciprocal, "reciprocal", F(1 / x), F(-1 / (x * x)), 0.1f, 9, 0.5, 2},
    {UnaryOp::tanh, "tanh", F(std::tanh(x)), F(1 / (std::cosh(x) * std::cosh(x))), -12, 12, 2, 3},
    {UnaryOp::sigmoid, "sigmoid", F(sigmoid(x)), F(sigmoid(x) * sigmoid(-x)), -87, 87, 2, 3},
    {UnaryOp::silu, "silu", F(x* sigmoid(x)), F(gate_slope(x, x, 1)), -80, 80, 4, 4},
    {UnaryOp::gelu_tanh, "gelu_tanh", F(x* sigmoid(gelu_argument(x))),
     F(gate_slope(x, gelu_argument(x), gelu_slope(x))), -9, 12, 4, 6},
    {UnaryOp::gelu_erf, "gelu_erf", F(x* normal_cdf(x)),
     F(normal_cdf(x) + x * std::exp(-x * x / 2) / std::sqrt(2 * kPi)), -12.5f, 12, 4, 6},
    {UnaryOp::quick_gelu, "quick_gelu", F(x* sigmoid(1.702 * x)), F(gate_slope(x, 1.702 * x, 1.702)), -50, 50,
     4, 6},
};
#undef F

double ulp_at(double value) {
  const double magnitude = std::max(std::abs(value), 0x1p-126);
  return std::ldexp(1.0, std::ilogb(magnitude) - 23);
}
double ulps_between(double got, double wanted) {
  if (std::isnan(got) && std::isnan(wanted)) return 0;
  if (got == wanted) return 0;
  if (std::isinf(got) && static_cast<double>(static_cast<float>(wanted)) == got) return 0;
  return std::abs(got - wanted) / ulp_at(wanted);
}

constexpr float kA = 0.75f, kB = 1.5f;

// Dense sampling of the range, and of the same range on a logarithmic scale around zero.
std::vector<float> samples(const UnaryCase& test, std::int64_t count) {
  std::vector<float> x;
  Numbers numbers(7);
  for (std::int64_t i = 0; i < count; ++i) {
    x.push_back(numbers.between(test.low, test.high));
    const float tiny = std::ldexp(numbers.between(0.5f, 1), -static_cast<int>(numbers.bits() % 40));
    const float sign = test.low < 0 && numbers.bits() % 2 ? -1.0f : 1.0f;
    if (sign * tiny >= test.low && sign * tiny <= test.high) x.push_back(sign * tiny);
  }
  return x;
}

Tensor vector_of(Backend& device, const std::vector<float>& values) {
  const Tensor x = device.empty({static_cast<std::int64_t>(values.size())});
  device.upload(x, values.data());
  return x;
}

double slope_error(const UnaryCase& test, double got, double x) {
  const double wanted = test.df(x, kA, kB);
  if (std::isinf(got) && static_cast<double>(static_cast<float>(wanted)) == got) return 0;
  return std::abs(got - wanted) / ulp_at(std::max(std::abs(wanted), 1.0));
}

}  // namespace

TEST("cpu unary: within a few units of the last place of double") {
  on_every_isa([](Backend& device) {
    for (const UnaryCase& test : kUnary) {
      const std::vector<float> values = samples(test, 40000);
      const Tensor x = vector_of(device, values), y = device.empty(x.shape()), dx = device.empty(x.shape()),
                   one = device.empty(x.shape());
      device.fill(one, 1);
      device.unary(test.op, y, x, kA, kB);
      device.unary_backward(test.op, dx, x, one, kA, kB);
      double worst = 0, worst_slope = 0;
      float at = 0, slope_at = 0;
      for (std::size_t i = 0; i < values.size(); ++i) {
        const double error = ulps_between(static_cast<double>(y.data<float>()[i]),
                                          test.f(static_cast<double>(values[i]), kA, kB));
        if (error > worst) worst = error, at = values[i];
        const double slope =
            slope_error(test, static_cast<double>(dx.data<float>()[i]), static_cast<double>(values[i]));
        if (slope > worst_slope) worst_slope = slope, slope_at = values[i];
      }
      if (!(worst <= test.ulps)) fail_at(__FILE__, __LINE__, test.name, ": ", worst, " ulp at ", at);
      if (!(worst_slope <= test.slope_ulps))
        fail_at(__FILE__, __LINE__, test.name, " backward: ", worst_slope, " ulp at ", slope_at);
    }
  });
}

TEST("cpu unary: infinities, NaN, zeros and overflow") {
  struct Special {
    UnaryOp op;
    float x, wanted;
  };
  const Special cases[] = {
      {UnaryOp::exp, kInf, kInf},
      {UnaryOp::exp, -kInf, 0},
      {UnaryOp::exp, 88.73f, kInf},
      {UnaryOp::exp, 1e30f, kInf},
      {UnaryOp::exp, -1e30f, 0},
      {UnaryOp::exp, 0, 1},
      {UnaryOp::log, 0, -kInf},
      {UnaryOp::log, -0.0f, -kInf},
      {UnaryOp::log, -1, kNan},
      {UnaryOp::log, kInf, kInf},
      {UnaryOp::log, -kInf, kNan},
      {UnaryOp::log, 1, 0},
      {UnaryOp::log, 0x1p-149f, -103.278929f},
      {UnaryOp::tanh, kInf, 1},
      {UnaryOp::tanh, -kInf, -1},
      {UnaryOp::tanh, 1e30f, 1},
      {UnaryOp::tanh, 0, 0},
      {UnaryOp::sigmoid, kInf, 1},
      {UnaryOp::sigmoid, -kInf, 0},
      {UnaryOp::sigmoid, 0, 0.5f},
      {UnaryOp::silu, 1e30f, 1e30f},
      {UnaryOp::gelu_tanh, 1e30f, 1e30f},
      {UnaryOp::gelu_erf, 1e30f, 1e30f},
      {UnaryOp::gelu_erf, -1e30f, -0.0f},
      {UnaryOp::quick_gelu, 1e30f, 1e30f},
      {UnaryOp::sqrt, -1, kNan},
      {UnaryOp::rsqrt, 0, kInf},
      {UnaryOp::reciprocal, 0, kInf},
      {UnaryOp::reciprocal, -kInf, -0.0f},
      {UnaryOp::square, 1e30f, kInf},
  };
  on_every_isa([&](Backend& device) {
    for (const Special& test : cases) {
      const Tensor x = vector_of(device, {test.x}), y = device.empty({1});
      device.unary(test.op, y, x, 1, 0);
      const float got = *y.data<float>();
      if (!(std::isnan(test.wanted) ? std::isnan(got) : got == test.wanted))
        fail_at(__FILE__, __LINE__, "op ", static_cast<int>(test.op), " of ", test.x, ": expected ",
                test.wanted, ", got ", got);
    }
    for (const UnaryCase& test : kUnary) {
      const Tensor x = vector_of(device, {kNan}), y = device.empty({1});
      device.unary(test.op, y, x, 1, 2);
      if (!std::isnan(*y.data<float>()))
        fail_at(__FILE__, __LINE__, test.name, " of NaN: got ", *y.data<float>());
    }
  });
}

TEST("cpu unary: gated ops far below zero are as good as zero, and never positive") {
  on_every_isa([](Backend& device) {
    for (UnaryOp op : {UnaryOp::silu, UnaryOp::gelu_tanh, UnaryOp::gelu_erf, UnaryOp::quick_gelu}) {
      const Tensor x = vector_of(device, {-kInf, -1e30f, -1000, -90}), y = device.empty({4}),
                   dx = device.empty({4});
      device.unary(op, y, x, 0, 0);
      device.unary_backward(op, dx, x, x, 0, 0);
      for (int i = 0; i < 4; ++i) CHECK(y.data<float>()[i] <= 0 && y.data<float>()[i] > -5e-36f);
      for (int i = 1; i < 4; ++i) CHECK_NEAR(static_cast<double>(dx.data<float>()[i]), 0, 1e-4);
    }
  });
}

TEST("cpu unary: subnormal results of exp and sigmoid") {
  on_every_isa([](Backend& device) {
    for (float value : {-88.0f, -90.5f, -95.0f, -100.25f, -103.0f}) {
      const Tensor x = vector_of(device, {value}), y = device.empty({1});
      device.unary(UnaryOp::exp, y, x, 1, 0);
      CHECK_NEAR(static_cast<double>(*y.data<float>()), std::exp(static_cast<double>(value)), 0x1p-149);
      device.unary(UnaryOp::sigmoid, y, x, 1, 0);
      CHECK_NEAR(static_cast<double>(*y.data<float>()), sigmoid(static_cast<double>(value)), 0x1p-148);
    }
  });
}

TEST("cpu unary: a value's bits do not depend on its position") {
  on_every_isa([](Backend& device) {
    for (const UnaryCase& test : kUnary) {
      Numbers numbers(3);
      for (std::int64_t n : {1, 2, 3, 5, 7, 8, 15, 16, 17, 31, 33, 67}) {
        const float value = numbers.between(test.low, test.high);
        const Tensor x = device.empty({n}), y = device.empty({n}), dx = device.empty({n}),
                     dy = device.empty({n});
        device.fill(x, value);
        device.fill(dy, 0.3f);
        device.unary(test.op, y, x, kA, kB);
        device.unary_backward(test.op, dx, x, dy, kA, kB);
        for (std::int64_t i = 1; i < n; ++i) {
          CHECK_EQ(y.data<std::uint32_t>()[i], y.data<std::uint32_t>()[0]);
          CHECK_EQ(dx.data<std::uint32_t>()[i], dx.data<std::uint32_t>()[0]);
        }
      }
    }
  });
}

TEST("cpu unary: every layout of output and input, and in place") {
  on_every_isa([](Backend& device) {
    for (const Shape& shape : {Shape{}, Shape{0}, Shape{1}, Shape{7}, Shape{3, 5}, Shape{2, 3, 17},
                               Shape{3, 0, 2}, Shape{2, 300}}) {
      for (Layout out_layout : kOutputLayouts) {
        for (Layout x_layout : kInputLayouts) {
          const Tensor x = normal_input(device, shape, 1, x_layout),
                       dy = normal_input(device, shape, 2, x_layout);
          const Placed y = place(device, shape, out_layout), dx = place(device, shape, out_layout);
          device.unary(UnaryOp::silu, y.view, x, 0, 0);
          device.unary_backward(UnaryOp::silu, dx.view, x, dy, 0, 0);
          std::vector<double> wanted = values_of(x), wanted_dx = values_of(dy);
          for (std::size_t i = 0; i < wanted.size(); ++i) {
            wanted_dx[i] *= gate_slope(wanted[i], wanted[i], 1);
            wanted[i] *= sigmoid(wanted[i]);
          }
          check_close(y.view, wanted, 1e-6, 0, "silu");
          check_close(dx.view, wanted_dx, 1e-6, 1e-6, "silu backward");
          check_margins(y);
          check_margins(dx);
        }
      }
      const Tensor x = normal_input(device, shape, 1), y = device.empty(shape);
      device.unary(UnaryOp::tanh, y, x, 0, 0);
      device.unary(UnaryOp::tanh, x, x, 0, 0);
      CHECK(same_bits(x, y));
    }
  });
}

namespace {

struct BinaryCase {
  BinaryOp op;
  const char* name;
  double (*f)(double a, double b);
};
const BinaryCase kBinary[] = {
    {BinaryOp::add, "add", [](double a, double b) { return a + 0.5 * b; }},  // with b_scale 0.5
    {BinaryOp::sub, "sub", [](double a, double b) { return a - b; }},
    {BinaryOp::mul, "mul", [](double a, double b) { return a * b; }},
    {BinaryOp::div, "div", [](double a, double b) { return a / b; }},
    {BinaryOp::max, "max", [](double a, double b) { return std::max(a, b); }},
    {BinaryOp::min, "min", [](double a, double b) { return std::min(a, b); }},
};

void check_binary(Backend& device, const BinaryCase& test, const Placed& out, const Tensor& a,
                  const Tensor& b) {
  device.binary(test.op, out.view, a, b, 0.5f);
  const std::vector<double> x = values_of(a), y = values_of(b);
  std::vector<double> wanted(x.size());
  for (std::size_t i = 0; i < x.size(); ++i)
    wanted[i] = static_cast<double>(static_cast<float>(test.f(x[i], y[i])));
  check_close(out.view, wanted, 0, 0, test.name);  // one rounding: the double rounded to f32 is exact
  check_margins(out);
}

}  // namespace

TEST("cpu binary: every op, layout and kind of broadcast, exactly rounded") {
  on_every_isa([](Backend& device) {
    for (const BinaryCase& test : kBinary) {
      for (Layout out_layout : kOutputLayouts) {
        for (Layout a_layout : kInputLayouts) {
          const Shape shape{2, 3, 19};
          check_binary(device, test, place(device, shape, out_layout),
                       normal_input(device, shape, 1, a_layout),
                       normal_input(device, shape, 2, Layout::strided));
        }
        for (const Shape& small :
             {Shape{19}, Shape{3, 1}, Shape{2, 1, 19}, Shape{1}, Shape{2, 1, 1}, Shape{2, 3, 1}}) {
          const Shape shape{2, 3, 19};
          const Tensor whole = normal_input(device, shape, 3),
                       part = normal_input(device, small, 4).expand(shape);
          check_binary(device, test, place(device, shape, out_layout), whole, part);
          check_binary(device, test, place(device, shape, out_layout), part, whole);
          check_binary(device, test, place(device, shape, out_layout), part, part);
        }
      }
      for (const Shape& shape : {Shape{}, Shape{0}, Shape{4, 0}, Shape{1}, Shape{3, 1000}}) {
        check_binary(device, test, place(device, shape, Layout::dense), normal_input(device, shape, 5),
                     normal_input(device, shape, 6));
      }
    }
  });
}

TEST("cpu binary: in place, and NaN survives max and min") {
  on_every_isa([](Backend& device) {
    const Tensor a = normal_input(device, {5, 37}, 1), b = normal_input(device, {5, 37}, 2),
                 out = device.empty({5, 37});
    device.binary(BinaryOp::sub, out, a, b, 1);
    const Tensor a_copy = device.empty({5, 37});
    device.copy(a_copy, a);
    device.binary(BinaryOp::sub, a, a, b, 1);
    CHECK(same_bits(a, out));
    device.binary(BinaryOp::sub, b, a_copy, b, 1);
    CHECK(same_bits(b, out));
    for (BinaryOp op : {BinaryOp::max, BinaryOp::min}) {
      const Tensor left = vector_of(device, {kNan, 1, kNan}), right = vector_of(device, {1, kNan, kNan}),
                   got = device.empty({3});
      device.binary(op, got, left, right, 1);
      for (int i = 0; i < 3; ++i) CHECK(std::isnan(got.data<float>()[i]));
    }
  });
}

TEST("cpu elementwise: the same bits on any number of threads") {
  check_thread_counts([](Backend& device) {
    const Shape shape{7, 91, 129};
    const Tensor x = normal_input(device, shape, 1), dy = normal_input(device, shape, 2, Layout::swapped);
    const Tensor row = normal_input(device, {129}, 3).expand(shape);
    std::vector<Tensor> results;
    for (int i = 0; i < 4; ++i) results.push_back(device.empty(shape));
    device.unary(UnaryOp::gelu_tanh, results[0], x, 0, 0);
    device.unary_backward(UnaryOp::gelu_tanh, results[1], x, dy, 0, 0);
    device.binary(BinaryOp::mul, results[2], x, row, 1);
    device.binary(BinaryOp::add, results[3], dy, x, 0.1f);
    return results;
  });
}
