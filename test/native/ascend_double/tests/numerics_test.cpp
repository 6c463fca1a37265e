// Arithmetic of the larger ops, against plain loops in double.
#include <algorithm>
#include <cmath>

#include "tools.h"

using namespace double_test;

namespace {

using Values = std::vector<double>;
constexpr aclScalar* kNoScalar = nullptr;
constexpr const aclTensor* kNone = nullptr;

/// Roundings that a result in a dtype may be away from the exact one: of the inputs' sums in f32, and of the
/// end.
double tolerance(int dtype) { return dtype == ACL_FLOAT ? 1e-5 : dtype == ACL_BF16 ? 0x1p-7 : 0x1p-9; }

void check_close(const Values& got, const Values& wanted, double most, const char* what) {
  if (!(worst(got, wanted) <= most))
    danceflux::test::fail_at(__FILE__, __LINE__, what, " differs by ", worst(got, wanted));
}

struct Normal {
  Values y, mean, rstd;
};
Normal normalized(const Values& x, std::int64_t width, double eps, bool centered) {
  Normal n;
  for (std::size_t row = 0; row < x.size() / width; ++row) {
    double mean = 0, square = 0;
    for (int i = 0; i < width; ++i) mean += x[row * width + i] / width;
    if (!centered) mean = 0;
    for (int i = 0; i < width; ++i) square += std::pow(x[row * width + i] - mean, 2) / width;
    n.mean.push_back(mean);
    n.rstd.push_back(1 / std::sqrt(square + eps));
    for (int i = 0; i < width; ++i) n.y.push_back((x[row * width + i] - mean) * n.rstd.back());
  }
  return n;
}

/// The derivative of sum(dy * f(x)) by each of x, by differences.
Values slope_by_differences(const Values& x, const std::function<double(const Values&)>& loss) {
  Values slopes;
  for (std::size_t i = 0; i < x.size(); ++i) {
    Values up = x, down = x;
    up[i] += 1e-5;
    down[i] -= 1e-5;
    slopes.push_back((loss(up) - loss(down)) / 2e-5);
  }
  return slopes;
}

double dot(const Values& a, const Values& b) {
  double total = 0;
  for (std::size_t i = 0; i < a.size(); ++i) total += a[i] * b[i];
  return total;
}

}  // namespace

TEST("layer norm, forward and backward, with f32 statistics") {
  Session session;
  const std::int64_t rows = 5, width = 16;
  for (const int dtype : {ACL_FLOAT, ACL_BF16}) {
    const Values x = rounded(numbers(rows * width, 1), dtype), w = rounded(numbers(width, 2), dtype);
    const Values b = rounded(numbers(width, 3), dtype), g = rounded(numbers(rows * width, 4), dtype);
    Array tx({rows, width}, x, dtype), tw({width}, w, dtype), tb({width}, b, dtype), ty({rows, width}, dtype);
    Array mean({rows, 1}), rstd({rows, 1}), tg({rows, width}, g, dtype), dx({rows, width}, dtype),
        dw({width}), db({width});
    const auto shape = ints({width});
    run(session, "LayerNorm", in(tx), static_cast<const aclIntArray*>(shape), in(tw), in(tb), 1e-5, out(ty),
        out(mean), out(rstd));
    const Normal n = normalized(x, width, 1e-5, true);
    Values wanted = n.y;
    for (std::size_t i = 0; i < wanted.size(); ++i)
      wanted[i] = rounded(wanted[i] * w[i % width] + b[i % width], dtype);
    check_close(ty.values(), wanted, tolerance(dtype), "LayerNorm");
    check_close(mean.values(), n.mean, 1e-5, "mean");
    check_close(rstd.values(), n.rstd, 1e-5, "rstd");
    const auto mask = bools({true, true, true});
    run(session, "LayerNormBackward", in(tg), in(tx), static_cast<const aclIntArray*>(shape), in(mean),
        in(rstd), in(tw), in(tb), static_cast<const aclBoolArray*>(mask), out(dx), out(dw), out(db));
    const auto loss = [&](const Values& at) {
      Values y = normalized(at, width, 1e-5, true).y;
      for (std::size_t i = 0; i < y.size(); ++i) y[i] *= w[i % width];
      return dot(y, g);
    };
    check_close(dx.values(), slope_by_differences(x, loss), dtype == ACL_FLOAT ? 1e-4 : 2e-2, "dx");
    Values sums(width), biases(width);
    for (std::size_t i = 0; i < g.size(); ++i) sums[i % width] += g[i] * n.y[i], biases[i % width] += g[i];
    check_close(dw.values(), sums, 1e-5, "dw");
    check_close(db.values(), biases, 1e-5, "db");
    CHECK_EQ(refusal("LayerNormBackward", in(tg), in(tx), static_cast<const aclIntArray*>(shape), in(mean),
                     in(rstd), in(tw), in(tb), static_cast<const aclBoolArray*>(bools({true, true})), out(dx),
                     out(dw), out(db)),
             161002);
  }
}

TEST("rms norm, forward and backward, and its dtype table") {
  Session session;
  const std::int64_t rows = 6, width = 8;
  const Values x = numbers(rows * width, 1), w = numbers(width, 2), g = numbers(rows * width, 3);
  Array tx({rows, width}, x), tw({width}, w), ty({rows, width}), rstd({rows, 1}), tg({rows, width}, g);
  run(session, "RmsNorm", in(tx), in(tw), 1e-6, in(ty), in(rstd));
  Normal n = normalized(x, width, 1e-6, false);
  Values wanted = n.y;
  for (std::size_t i = 0; i < wanted.size(); ++i) wanted[i] *= w[i % width];
  check_close(ty.values(), wanted, 1e-5, "RmsNorm");
  check_close(rstd.values(), n.rstd, 1e-5, "rstd");
  Array dx({rows, width}), dw({width});
  run(session, "RmsNormGrad", in(tg), in(tx), in(rstd), in(tw), in(dx), in(dw));
  const auto loss = [&](const Values& at) {
    Values y = normalized(at, width, 1e-6, false).y;
    for (std::size_t i = 0; i < y.size(); ++i) y[i] *= w[i % width];
    return dot(y, g);
  };
  check_close(dx.values(), slope_by_differences(x, loss), 1e-4, "dx");
  Values sums(width);
  for (std::size_t i = 0; i < g.size(); ++i) sums[i % width] += g[i] * n.y[i];
  check_close(dw.values(), sums, 1e-5, "dgamma");
  Array half({rows, width}, ACL_FLOAT16), brain({width}, ACL_BF16), y16({rows, width}, ACL_FLOAT16);
  CHECK_EQ(refusal("RmsNorm", in(half), in(brain), 1e-6, in(y16), in(rstd)), 161002);
  CHECK_EQ(refusal("RmsNorm", in(half), in(tw), 1e-6, in(y16), in(rstd)), 0);
  Array half_rstd({rows, 1}, ACL_FLOAT16);
  CHECK_EQ(refusal("RmsNorm", in(tx), in(tw), 1e-6, in(ty), in(half_rstd)), 161002);
}

TEST("group norm, forward and backward, and with SiLU") {
  Session session;
  const std::int64_t batch = 2, channels = 6, pixels = 4, groups = 3;
  const Values x = numbers(batch * channels * pixels, 1), w = numbers(channels, 2), b = numbers(channels, 3);
  const Values g = numbers(batch * channels * pixels, 4);
  Array tx({batch, channels, 2, 2}, x), tw({channels}, w), tb({channels}, b), ty({batch, channels, 2, 2});
  Array mean({batch, groups}), rstd({batch, groups}), tg({batch, channels, 2, 2}, g),
      dx({batch, channels, 2, 2});
  run(session, "GroupNorm", in(tx), in(tw), in(tb), batch, channels, pixels, groups, 1e-6, out(ty), out(mean),
      out(rstd));
  const auto forward = [&](const Values& at) {
    Values y = normalized(at, channels / groups * pixels, 1e-6, true).y;
    for (std::size_t i = 0; i < y.size(); ++i)
      y[i] = y[i] * w[i / pixels % channels] + b[i / pixels % channels];
    return y;
  };
  Values wanted = forward(x);
  check_close(ty.values(), wanted, 1e-5, "GroupNorm");
  Array dw({channels}), db({channels});
  run(session, "GroupNormBackward", in(tg), in(tx), in(mean), in(rstd), in(tw), batch, channels, pixels,
      groups, static_cast<const aclBoolArray*>(bools({true, true, true})), out(dx), out(dw), out(db));
  check_close(dx.values(), slope_by_differences(x, [&](const Values& at) { return dot(forward(at), g); }),
              1e-4, "dx");
  Values sums(channels);
  for (std::size_t i = 0; i < g.size(); ++i) sums[i / pixels % channels] += g[i];
  check_close(db.values(), sums, 1e-5, "dbeta");
  run(session, "GroupNormSiluV2", in(tx), in(tw), in(tb), groups, 1e-6, true, out(ty), out(mean), out(rstd));
  for (double& value : wanted) value /= 1 + std::exp(-value);
  check_close(ty.values(), wanted, 1e-5, "GroupNormSiluV2");
  Array half({channels}, ACL_FLOAT16);
  CHECK_EQ(refusal("GroupNorm", in(tx), in(half), in(tb), batch, channels, pixels, groups, 1e-6, out(ty),
                   out(mean), out(rstd)),
           161002);
}

TEST("softmax along any axis and its gradient") {
  Session session;
  const Values x = numbers(2 * 3 * 5, 1, -4, 4), g = numbers(30, 2);
  Array tx({2, 3, 5}, x), ty({2, 3, 5}), tg({2, 3, 5}, g), dx({2, 3, 5});
  const auto softmax = [](const Values& at, int size, int inner) {
    Values y = at;
    for (std::size_t i = 0; i < at.size(); ++i) {
      const std::size_t start = i / (size * inner) * (size * inner) + i % inner;
      double total = 0;
      for (int k = 0; k < size; ++k) total += std::exp(at[start + k * inner]);
      y[i] = std::exp(at[i]) / total;
    }
    return y;
  };
  run(session, "Softmax", in(tx), std::int64_t{1}, out(ty));
  check_close(ty.values(), softmax(x, 3, 5), 1e-6, "Softmax");
  run(session, "SoftmaxBackward", in(tg), in(ty), std::int64_t{1}, out(dx));
  check_close(dx.values(),
              slope_by_differences(x, [&](const Values& at) { return dot(softmax(at, 3, 5), g); }), 1e-5,
              "SoftmaxBackward");
  run(session, "Softmax", in(tx), std::int64_t{-1}, out(ty));
  check_close(ty.values(), softmax(x, 5, 1), 1e-6, "Softmax");
}

TEST("reductions: sums that stay wide, means, maxima, norms") {
  Session session;
  const Values x = rounded(numbers(4 * 300, 1), ACL_BF16);
  Array tx({4, 300}, x, ACL_BF16), wide({4, 1}), narrow({4, 1}, ACL_BF16);
  const auto last = ints({1});
  const aclIntArray* axes = last;
  run(session, "ReduceSum", in(tx), axes, true, int{ACL_FLOAT}, out(wide));
  Values sums(4), squares(4), tops(4, -1e9);
  for (std::size_t i = 0; i < x.size(); ++i) {
    sums[i / 300] += x[i];
    squares[i / 300] += x[i] * x[i];
    tops[i / 300] = std::max(tops[i / 300], x[i]);
  }
  check_close(wide.values(), sums, 1e-5, "ReduceSum");
  run(session, "ReduceSum", in(tx), axes, true, int{ACL_BF16}, out(narrow));
  check_close(narrow.values(), rounded(sums, ACL_BF16), 0x1p-7, "ReduceSum");
  CHECK_EQ(refusal("ReduceSum", in(tx), axes, true, int{ACL_BF16}, out(wide)), 161002);
  CHECK_EQ(refusal("ReduceSum", in(tx), axes, false, int{ACL_FLOAT}, out(wide)), 161002);
  run(session, "Amax", in(tx), axes, true, out(narrow));
  check_close(narrow.values(), tops, 0, "Amax");
  run(session, "Mean", in(tx), axes, true, int{ACL_FLOAT}, out(wide));
  for (double& value : sums) value /= 300;
  check_close(wide.values(), sums, 1e-6, "Mean");
  run(session, "LinalgVectorNorm", in(tx), static_cast<const aclScalar*>(scalar(2)), axes, true,
      int{ACL_FLOAT}, out(wide));
  for (double& value : squares) value = std::sqrt(value);
  check_close(wide.values(), squares, 1e-6, "LinalgVectorNorm");
}

TEST("activations with their gradients") {
  Session session;
  const Values x = numbers(40, 1, -3, 3), g = numbers(40, 2);
  Array tx({40}, x), ty({40}), tg({40}, g), dx({40});
  const auto check = [&](const char* name, const std::function<double(double)>& f,
                         const std::function<void()>& forward, const std::function<void()>& backward) {
    Values wanted;
    for (const double value : x) wanted.push_back(f(value));
    forward();
    check_close(ty.values(), wanted, 1e-6, name);
    backward();
    for (std::size_t i = 0; i < x.size(); ++i) wanted[i] = g[i] * (f(x[i] + 1e-5) - f(x[i] - 1e-5)) / 2e-5;
    check_close(dx.values(), wanted, 1e-5, name);
  };
  const auto erf = [](double v) { return 0.5 * v * (1 + std::erf(v / std::sqrt(2))); };
  const auto tanh = [](double v) {
    return 0.5 * v * (1 + std::tanh(std::sqrt(2 / M_PI) * (v + 0.044715 * v * v * v)));
  };
  check(
      "GeluV2 none", erf, [&] { run(session, "GeluV2", in(tx), std::int64_t{0}, out(ty)); },
      [&] { run(session, "GeluBackwardV2", in(tg), in(tx), "none", out(dx)); });
  check(
      "GeluV2 tanh", tanh, [&] { run(session, "GeluV2", in(tx), std::int64_t{1}, out(ty)); },
      [&] { run(session, "GeluBackwardV2", in(tg), in(tx), "tanh", out(dx)); });
  check(
      "Silu", [](double v) { return v / (1 + std::exp(-v)); }, [&] { run(session, "Silu", in(tx), out(ty)); },
      [&] { run(session, "SiluBackward", in(tg), in(tx), out(dx)); });
  const auto beta = scalar(1.702f);
  const aclScalar* quick = beta;
  check(
      "Swish", [](double v) { return v / (1 + std::exp(-1.702f * v)); },
      [&] { run(session, "Swish", in(tx), quick, out(ty)); },
      [&] { run(session, "SwishBackward", in(tg), in(tx), quick, out(dx)); });
  check(
      "Sigmoid", [](double v) { return 1 / (1 + std::exp(-v)); },
      [&] { run(session, "Sigmoid", in(tx), out(ty)); },
      [&] { run(session, "SigmoidBackward", in(tg), in(ty), out(dx)); });
  CHECK_EQ(refusal("GeluV2", in(tx), std::int64_t{2}, out(ty)), 161002);
  CHECK_EQ(refusal("GeluBackwardV2", in(tg), in(tx), "erf", out(dx)), 161002);
  CHECK_EQ(refusal("GeluBackwardV2", in(tg), in(tx), static_cast<const char*>(nullptr), out(dx)), 161001);
}

TEST("linear with bias: Addmm, Baddbmm, batches that broadcast") {
  Session session;
  const Values x = numbers(6, 1), w = numbers(12, 2), b = numbers(4, 3);
  Array tx({2, 3}, x), tw({4, 3}, w), tb({4}, b), ty({2, 4});
  const auto one = scalar(1), two = scalar(2);
  run(session, "Addmm", in(tb), in(tx), tw.transposed(), static_cast<const aclScalar*>(one),
      static_cast<const aclScalar*>(two), out(ty), std::int8_t{0});
  Values wanted;
  for (int i = 0; i < 2; ++i)
    for (int j = 0; j < 4; ++j) {
      wanted.push_back(b[j]);
      for (int k = 0; k < 3; ++k) wanted.back() += 2 * x[i * 3 + k] * w[j * 3 + k];
    }
  check_close(ty.values(), wanted, 1e-6, "Addmm");
  const Values left = numbers(2 * 3 * 4 * 5, 4), right = numbers(3 * 5 * 6, 5);
  Array ta({2, 3, 4, 5}, left), tc({3, 5, 6}, right), to({2, 3, 4, 6});
  run(session, "Matmul", in(ta), in(tc), out(to), std::int8_t{0});
  wanted.clear();
  for (int i = 0; i < 6; ++i)
    for (int m = 0; m < 4; ++m)
      for (int n = 0; n < 6; ++n) {
        wanted.push_back(0);
        for (int k = 0; k < 5; ++k)
          wanted.back() += left[(i * 4 + m) * 5 + k] * right[(i % 3 * 5 + k) * 6 + n];
      }
  check_close(to.values(), wanted, 1e-6, "Matmul");
  CHECK_EQ(refusal("Mm", in(ta), in(tc), out(to), std::int8_t{0}), 161002);
  CHECK_EQ(refusal("BatchMatMul", in(tx), in(tx), out(ty), std::int8_t{0}), 161002);
}

TEST("AdamW counts steps from 0") {
  Session session;
  const Values p = numbers(10, 1), g = numbers(10, 2);
  Array tp({10}, p), m({10}, Values(10)), v({10}, Values(10)), tg({10}, g),
      step({1}, std::vector<double>{0}, ACL_INT64);
  const auto update = [&] {
    run(session, "ApplyAdamWV2", out(tp), out(m), out(v), static_cast<aclTensor*>(nullptr), in(tg), in(step),
        1e-2f, 0.9f, 0.999f, 0.1f, 1e-8f, false, false);
  };
  update();
  step.set({1});
  update();
  Values wanted = p, first(10), second(10);
  for (int t = 1; t <= 2; ++t)
    for (int i = 0; i < 10; ++i) {
      first[i] = 0.9 * first[i] + 0.1 * g[i];
      second[i] = 0.999 * second[i] + 0.001 * g[i] * g[i];
      wanted[i] *= 1 - 1e-2 * 0.1;
      wanted[i] -=
          1e-2 * first[i] / (1 - std::pow(0.9, t)) / (std::sqrt(second[i] / (1 - std::pow(0.999, t))) + 1e-8);
    }
  // 1 - 0.999f is off by 1e-5, in the moment and in its correction
  check_close(tp.values(), wanted, 1e-5, "parameter");
  check_close(m.values(), first, 1e-6, "m");
  Array many({2}, Values{0, 0}, ACL_INT64), wrong({1}, std::vector<double>{0}, ACL_INT32);
  for (const Array* bad : {&many, &wrong})
    CHECK_EQ(refusal("ApplyAdamWV2", out(tp), out(m), out(v), static_cast<aclTensor*>(nullptr), in(tg),
                     in(*bad), 1e-2f, 0.9f, 0.999f, 0.1f, 1e-8f, false, false),
             161002);
}

TEST("tables by index: forward, gradient, and indices that are wrong") {
  Session session;
  const Values table = numbers(5 * 3, 1), g = numbers(4 * 3, 2);
  Array tt({5, 3}, table), ids({4}, Values{1, 4, 1, 0}, ACL_INT32), rows({4, 3}), tg({4, 3}, g), dt({5, 3});
  run(session, "Embedding", in(tt), in(ids), in(rows));
  Values wanted;
  for (const int id : {1, 4, 1, 0})
    for (int i = 0; i < 3; ++i) wanted.push_back(table[id * 3 + i]);
  check_close(rows.values(), wanted, 0, "Embedding");
  run(session, "EmbeddingDenseBackward", in(tg), in(ids), std::uint64_t{5}, std::uint64_t(-1), false, in(dt));
  wanted.assign(15, 0);
  for (int n = 0; n < 4; ++n)
    for (int i = 0; i < 3; ++i) wanted[(n == 1 ? 4 : n == 3 ? 0 : 1) * 3 + i] += g[n * 3 + i];
  check_close(dt.values(), wanted, 1e-6, "EmbeddingDenseBackward");
  run(session, "IndexAdd", in(tt), std::int64_t{0}, in(ids), in(tg), static_cast<const aclScalar*>(scalar(2)),
      out(dt));
  for (std::size_t i = 0; i < wanted.size(); ++i) wanted[i] = table[i] + 2 * wanted[i];
  check_close(dt.values(), wanted, 1e-6, "IndexAdd");
  ids.set({0, 5, 0, 0});
  run(session, "Embedding", in(tt), in(ids), in(rows));
  CHECK_EQ(violations().size(), 1u);
  CHECK_EQ(rows.values()[3], 1.5e9);
  ids.set({0, -1, 0, 0});
  std::uint64_t size = 0;
  aclOpExecutor* executor = nullptr;
  OK(size_of("Embedding", &size, &executor, in(tt), in(ids), in(rows)));
  OK(launch("Embedding", nullptr, 0, executor, session.stream));
  CHECK_EQ(call("aclrtSynchronizeStream", session.stream), 507015);
}

TEST("copies: permuted, sliced, repeated, cast") {
  Session session;
  const Values x = numbers(24, 1);
  Array tx({2, 3, 4}, x), ty({4, 2, 3}), half({2, 3, 4}, ACL_FLOAT16), wide({2, 6, 4});
  const auto order = ints({2, 0, 1});
  run(session, "Permute", in(tx), static_cast<const aclIntArray*>(order), out(ty));
  Values wanted;
  for (int c = 0; c < 4; ++c)
    for (int ab = 0; ab < 6; ++ab) wanted.push_back(x[ab * 4 + c]);
  check_close(ty.values(), wanted, 0, "Permute");
  run(session, "Cast", in(tx), int{ACL_FLOAT16}, out(half));
  check_close(half.values(), rounded(x, ACL_FLOAT16), 0, "Cast");
  CHECK_EQ(refusal("Cast", in(tx), int{ACL_BF16}, out(half)), 161002);
  run(session, "InplaceCopy", out(ty), tx.view({4, 2, 3}, {1, 12, 4}));
  check_close(ty.values(), wanted, 0, "InplaceCopy");
  run(session, "RepeatInterleaveIntWithDim", in(tx), std::int64_t{2}, std::int64_t{1}, std::int64_t{6},
      out(wide));
  wanted.clear();
  for (int a = 0; a < 2; ++a)
    for (int b = 0; b < 6; ++b)
      for (int c = 0; c < 4; ++c) wanted.push_back(x[(a * 3 + b / 2) * 4 + c]);
  check_close(wide.values(), wanted, 0, "RepeatInterleaveIntWithDim");
  CHECK_EQ(refusal("RepeatInterleaveIntWithDim", in(tx), std::int64_t{2}, std::int64_t{1}, std::int64_t{3},
                   out(wide)),
           161002);
  Array doubles({2}, Values{1, 2}, ACL_DOUBLE), more({4}, ACL_DOUBLE);
  CHECK_EQ(refusal("RepeatInterleaveIntWithDim", in(doubles), std::int64_t{2}, std::int64_t{0},
                   std::int64_t{4}, out(more)),
           161002);
}
