#include <cmath>

#include "tools.h"

using namespace double_test;

namespace {

struct Unary {
  const char* name;
  std::function<double(double)> formula;
  double low, high;
};

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }
double gelu_tanh(double x) {
  return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
}

const Unary kUnary[] = {
    {"Exp", [](double x) { return std::exp(x); }, -3, 3},
    {"Log", [](double x) { return std::log(x); }, 0.1, 3},
    {"Sqrt", [](double x) { return std::sqrt(x); }, 0, 3},
    {"Rsqrt", [](double x) { return 1 / std::sqrt(x); }, 0.1, 3},
    {"Cos", [](double x) { return std::cos(x); }, -3, 3},
    {"Sin", [](double x) { return std::sin(x); }, -3, 3},
    {"Reciprocal", [](double x) { return 1 / x; }, 0.5, 3},
    {"Erf", [](double x) { return std::erf(x); }, -3, 3},
    {"Tanh", [](double x) { return std::tanh(x); }, -3, 3},
    {"Sigmoid", sigmoid, -3, 3},
    {"Neg", [](double x) { return -x; }, -3, 3},
    {"Abs", [](double x) { return std::abs(x); }, -3, 3},
    {"Relu", [](double x) { return x > 0 ? x : 0; }, -3, 3},
    {"Silu", [](double x) { return x * sigmoid(x); }, -3, 3},
    {"Gelu", gelu_tanh, -3, 3},
};

}  // namespace

TEST("elementwise ops of one tensor, in f32 and rounded to bf16") {
  Session session;
  for (const Unary& op : kUnary)
    for (const int dtype : {ACL_FLOAT, ACL_BF16, ACL_FLOAT16}) {
      const std::vector<double> x = rounded(numbers(77, 3, op.low, op.high), dtype);
      Array a({7, 11}, x, dtype), y({7, 11}, dtype);
      run(session, op.name, in(a), out(y));
      std::vector<double> wanted;
      for (const double value : x) wanted.push_back(rounded(op.formula(value), dtype));
      const double tolerance = dtype == ACL_FLOAT ? 1e-6 : dtype == ACL_BF16 ? 0x1p-8 : 0x1p-10;
      if (!(worst(y.values(), wanted) <= tolerance))
        danceflux::test::fail_at(__FILE__, __LINE__, op.name, " differs by ", worst(y.values(), wanted));
    }
}

TEST("add and its kin, broadcast, strided, scaled, in place") {
  Session session;
  const std::vector<double> x = numbers(12, 1), y = numbers(4, 2);
  Array a({3, 4}, x), b({4}, y), c({3, 4});
  run(session, "Add", in(a), in(b), static_cast<const aclScalar*>(scalar(2)), out(c));
  std::vector<double> wanted;
  for (int i = 0; i < 12; ++i) wanted.push_back(x[i] + 2 * y[i % 4]);
  CHECK(worst(c.values(), wanted) <= 1e-6);
  run(session, "Mul", a.view({3, 4}, {1, 3}), in(b), out(c));
  for (int i = 0; i < 12; ++i) wanted[i] = x[i % 4 * 3 + i / 4] * y[i % 4];
  CHECK(worst(c.values(), wanted) <= 1e-6);
  run(session, "InplaceMuls", out(c), static_cast<const aclScalar*>(scalar(-3)));
  for (double& value : wanted) value *= -3;
  CHECK(worst(c.values(), wanted) <= 1e-6);
  run(session, "InplaceAdds", out(c), static_cast<const aclScalar*>(scalar(5)),
      static_cast<const aclScalar*>(scalar(2)));
  for (double& value : wanted) value += 10;
  CHECK(worst(c.values(), wanted) <= 1e-6);
  CHECK(violations().empty());
}

TEST("matmul reads transposed views and rounds once") {
  Session session;
  const std::int64_t m = 37, n = 19, k = 300;
  for (const int dtype : {ACL_FLOAT, ACL_BF16}) {
    const std::vector<double> x = rounded(numbers(m * k, 1), dtype), w = rounded(numbers(n * k, 2), dtype);
    Array a({m, k}, x, dtype), b({n, k}, w, dtype), c({m, n}, dtype);
    run(session, "Matmul", in(a), b.transposed(), out(c), std::int8_t{0});
    std::vector<double> wanted;
    for (int i = 0; i < m; ++i)
      for (int j = 0; j < n; ++j) {
        double total = 0;
        for (int l = 0; l < k; ++l) total += x[i * k + l] * w[j * k + l];
        wanted.push_back(rounded(total, dtype));
      }
    // f32: k roundings of half a last place at most; bf16: a sum near a tie may go to the other neighbour
    CHECK(worst(c.values(), wanted) <= (dtype == ACL_FLOAT ? static_cast<double>(k) * 0x1p-24 : 0x1p-7));
  }
}
