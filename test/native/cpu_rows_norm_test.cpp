// Reductions, softmax, norms and their fusions on the CPU backend against straight loops in double.
//
// Legend: B batch, L tokens, D width, H heads, K head width.
#include <algorithm>

#include "cpu_device.h"

using namespace danceflux;
using namespace danceflux::test;

namespace {

constexpr double kRelative = 2e-6;  // norms and softmax, of the largest number in play
using Doubles = std::vector<double>;

// ---- reduce ----------------------------------------------------------------------------------------------
Shape reduced_shape(const Shape& shape, unsigned axes) {
  Shape out = shape;
  for (int axis = 0; axis < shape.rank(); ++axis) {
    if (axes >> axis & 1u) out[axis] = 1;
  }
  return out;
}

struct Folded {
  Doubles sum, magnitude, squares, max;
  double count = 1;
};

Folded fold(const Tensor& x, const Shape& out) {
  const auto cells = static_cast<std::size_t>(out.numel());
  Folded all{Doubles(cells), Doubles(cells), Doubles(cells), Doubles(cells, -INFINITY), 1};
  const Doubles values = values_of(x);
  const Shape strides = contiguous_strides(out);
  for (std::size_t i = 0; i < values.size(); ++i) {
    std::size_t rest = i, cell = 0;
    for (int axis = x.rank() - 1; axis >= 0; --axis) {
      const auto size = static_cast<std::size_t>(x.dim(axis));
      if (out[axis] != 1) cell += rest % size * static_cast<std::size_t>(strides[axis]);
      rest /= size;
    }
    all.sum[cell] += values[i];
    all.magnitude[cell] += std::abs(values[i]);
    all.squares[cell] += values[i] * values[i];
    all.max[cell] = std::max(all.max[cell], values[i]);
  }
  if (cells) all.count = static_cast<double>(x.numel()) / static_cast<double>(cells);
  return all;
}

void check_sums(const Tensor& got, const Doubles& wanted, const Doubles& magnitude, double scale,
                const char* what) {
  const Doubles values = values_of(got);
  CHECK_EQ(values.size(), wanted.size());
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (!(std::abs(values[i] - wanted[i] * scale) <= 1e-6 * magnitude[i] * scale))
      fail_at(__FILE__, __LINE__, what, " ", got.shape(), " at ", i, ": expected ", wanted[i] * scale,
              ", got ", values[i]);
  }
}

void check_reduce(Backend& device, const Shape& shape, unsigned axes, Layout x_layout, Layout out_layout) {
  const Tensor x = normal_input(device, shape, axes + 1, x_layout);
  const Shape out_shape = reduced_shape(shape, axes);
  const Folded wanted = fold(x, out_shape);
  const auto run = [&](ReduceOp op) {
    Placed out = place(device, out_shape, out_layout);
    device.reduce(op, out.view, x);
    check_margins(out);
    return out.view;
  };
  check_sums(run(ReduceOp::sum), wanted.sum, wanted.magnitude, 1, "sum");
  check_sums(run(ReduceOp::mean), wanted.sum, wanted.magnitude, 1 / wanted.count, "mean");
  check_sums(run(ReduceOp::sum_of_squares), wanted.squares, wanted.squares, 1, "sum_of_squares");
  check_close(run(ReduceOp::max), wanted.max, 0, 0, "max");
}

}  // namespace

TEST("cpu reduce: every set of axes, in every layout") {
  on_every_isa([](Backend& device) {
    for (const Shape& shape :
         {Shape{5}, Shape{3, 37}, Shape{4, 3, 21}, Shape{2, 3, 5, 19}, Shape{1, 7, 1, 4}}) {
      for (unsigned axes = 0; axes < 1u << shape.rank(); ++axes) {
        for (Layout x_layout : kInputLayouts) {
          for (Layout out_layout : {Layout::dense, Layout::swapped, Layout::strided})
            check_reduce(device, shape, axes, x_layout, out_layout);
        }
      }
    }
  });
}

TEST("cpu reduce: large ones, by rows and by columns") {
  on_every_isa([](Backend& device) {
    check_reduce(device, {200000}, 1, Layout::dense, Layout::dense);
    check_reduce(device, {200000}, 1, Layout::strided, Layout::dense);
    check_reduce(device, {3, 70001}, 2, Layout::dense, Layout::dense);
    check_reduce(device, {2, 3000, 70}, 2, Layout::dense, Layout::dense);
    check_reduce(device, {2, 3000, 70}, 3, Layout::narrowed, Layout::strided);
    check_reduce(device, {40, 30, 301}, 1, Layout::dense, Layout::dense);
    check_reduce(device, {40, 30, 301}, 2, Layout::dense, Layout::dense);
  });
}

TEST("cpu reduce: of nothing, and NaN survives max") {
  on_every_isa([](Backend& device) {
    const Tensor none = device.empty({2, 0}), out = device.empty({2, 1});
    device.reduce(ReduceOp::sum, out, none);
    check_close(out, {0, 0}, 0, 0, "sum");
    device.reduce(ReduceOp::max, out, none);
    check_close(out, {-INFINITY, -INFINITY}, 0, 0, "max");
    device.reduce(ReduceOp::mean, out, none);
    CHECK(std::isnan(*out.data<float>()));
    device.reduce(ReduceOp::sum, device.empty({1, 0}), device.empty({5, 0}));
    for (std::int64_t at : {0, 5, 40}) {
      for (Layout layout : {Layout::dense, Layout::swapped}) {
        const Tensor x = normal_input(device, {41, 41}, 1, layout);
        *x.narrow(0, at, 1).narrow(1, 2, 1).data<float>() = NAN;
        for (unsigned axes : {1u, 2u, 3u}) {
          const Shape shape = reduced_shape(x.shape(), axes);
          const Tensor most = device.empty(shape);
          device.reduce(ReduceOp::max, most, x);
          CHECK(std::isnan(most.data<float>()[axes == 1 ? 2 : axes == 2 ? at : 0]));
        }
      }
    }
  });
}

// ---- softmax ---------------------------------------------------------------------------------------------
TEST("cpu softmax and its backward") {
  on_every_isa([](Backend& device) {
    for (const Shape& shape : {Shape{1}, Shape{0}, Shape{3, 0}, Shape{4, 1}, Shape{3, 17}, Shape{2, 3, 64},
                               Shape{2, 5000}, Shape{300, 130}}) {
      for (Layout layout : {Layout::dense, Layout::swapped, Layout::narrowed, Layout::strided}) {
        const Tensor x = normal_input(device, shape, 1, layout), dy = normal_input(device, shape, 2, layout);
        const Placed y = place(device, shape, layout), dx = place(device, shape, layout);
        device.softmax(y.view, x);
        device.softmax_backward(dx.view, y.view, dy);
        const Doubles in = values_of(x), got = values_of(y.view), gradient = values_of(dy);
        Doubles wanted(in.size()), wanted_dx(in.size());
        const auto n = static_cast<std::size_t>(shape[-1]);
        for (std::size_t row = 0; row + n <= in.size() && n; row += n) {
          double sum = 0, dot = 0;
          for (std::size_t j = row; j < row + n; ++j) sum += std::exp(in[j]), dot += got[j] * gradient[j];
          for (std::size_t j = row; j < row + n; ++j) {
            wanted[j] = std::exp(in[j]) / sum;
            wanted_dx[j] = got[j] * (gradient[j] - dot);
          }
        }
        check_close(y.view, wanted, kRelative, 0, "softmax");
        check_close(dx.view, wanted_dx, kRelative, 1e-7, "softmax backward");
        check_margins(y);
        check_margins(dx);
      }
    }
  });
}

TEST("cpu softmax: masked rows, large numbers and NaN") {
  on_every_isa([](Backend& device) {
    const float inf = INFINITY, rows[] = {-inf, -inf, -inf, 1, -inf, 1, 1000, 999, -1000, NAN, 0, 0};
    const Tensor x = device.empty({4, 3}), y = device.empty({4, 3});
    device.upload(x, rows);
    device.softmax(y, x);
    const double e = 1 / (1 + std::exp(-1.0));
    check_close(y, {0, 0, 0, 0.5, 0, 0.5, e, 1 - e, 0, NAN, NAN, NAN}, kRelative, 0, "softmax");
  });
}

// ---- norms over rows -------------------------------------------------------------------------------------
namespace {

struct RowStatistics {
  double mean, rstd;
};
RowStatistics statistics(const double* x, std::size_t n, double eps, bool rms) {
  double mean = 0, squares = 0;
  for (std::size_t j = 0; j < n && !rms; ++j) mean += x[j] / static_cast<double>(n);
  for (std::size_t j = 0; j < n; ++j) squares += (x[j] - mean) * (x[j] - mean);
  return {mean, 1 / std::sqrt(squares / static_cast<double>(n) + eps)};
}

/// dx of a normalised stretch of n whose g = dy * weight is given.
void norm_gradient(double* dx, const double* g, const double* x, std::size_t n, RowStatistics s, bool rms) {
  double g_mean = 0, g_x_mean = 0;
  for (std::size_t j = 0; j < n; ++j) {
    g_mean += rms ? 0 : g[j] / static_cast<double>(n);
    g_x_mean += g[j] * (x[j] - s.mean) * s.rstd / static_cast<double>(n);
  }
  for (std::size_t j = 0; j < n; ++j) dx[j] = s.rstd * (g[j] - g_mean - (x[j] - s.mean) * s.rstd * g_x_mean);
}

struct NormCase {
  NormKind kind;
  bool weighted;
  float offset;  // added to x: the mean may be far from zero
};

void check_row_norm(Backend& device, const NormCase& test, const Shape& shape, Layout layout) {
  const auto n = static_cast<std::size_t>(shape[-1]),
             rows = n ? static_cast<std::size_t>(shape.numel()) / n : 0;
  const bool rms = test.kind == NormKind::rms;
  Numbers numbers(11);
  const Tensor x = input(device, shape, layout, [&] { return numbers.normal() + test.offset; });
  const Tensor dy = normal_input(device, shape, 12, layout);
  const Tensor weight = test.weighted ? normal_input(device, {shape[-1]}, 13, Layout::strided) : Tensor();
  const Tensor bias = test.weighted && !rms ? normal_input(device, {shape[-1]}, 14) : Tensor();
  const Tensor mean = rms ? Tensor() : device.empty({static_cast<std::int64_t>(rows)}),
               rstd = device.empty({static_cast<std::int64_t>(rows)});
  const Placed y = place(device, shape, layout), dx = place(device, shape, layout);
  const Placed dweight = place(device, {shape[-1]}, Layout::dense),
               dbias = place(device, {shape[-1]}, Layout::strided);
  NormArgs args;
  args.kind = test.kind;
  device.norm(y.view, mean, rstd, x, weight, bias, args);
  device.norm_backward(dx.view, test.weighted ? dweight.view : Tensor(), bias ? dbias.view : Tensor(), dy, x,
                       mean, rstd, weight, args);

  const Doubles in = values_of(x), d = values_of(dy);
  const Doubles w = weight ? values_of(weight) : Doubles(n, 1), b = bias ? values_of(bias) : Doubles(n);
  Doubles wanted(in.size()), wanted_dx(in.size()), wanted_dw(n), wanted_db(n), g(n), wanted_rstd;
  for (std::size_t row = 0; row < rows; ++row) {
    const RowStatistics s = statistics(&in[row * n], n, static_cast<double>(args.eps), rms);
    wanted_rstd.push_back(s.rstd);
    for (std::size_t j = 0; j < n; ++j) {
      const double normal = (in[row * n + j] - s.mean) * s.rstd;
      wanted[row * n + j] = normal * w[j] + b[j];
      g[j] = d[row * n + j] * w[j];
      wanted_dw[j] += d[row * n + j] * normal;
      wanted_db[j] += d[row * n + j];
    }
    norm_gradient(&wanted_dx[row * n], g.data(), &in[row * n], n, s, rms);
  }
  // an offset leaves fewer digits for what differs
  const double scale = kRelative * (1 + std::abs(static_cast<double>(test.offset))),
               sums = scale * (4 + std::sqrt(static_cast<double>(rows)));
  check_close(y.view, wanted, scale, scale, "norm");
  check_close(rstd, wanted_rstd, scale, 0, "rstd");
  check_close(dx.view, wanted_dx, scale, 4 * scale, "norm backward");
  if (weight) check_close(dweight.view, wanted_dw, 0, sums, "dweight");
  if (bias) check_close(dbias.view, wanted_db, 0, sums, "dbias");
  for (const Placed* placed : {&y, &dx, &dweight, &dbias}) check_margins(*placed);
}

}  // namespace

TEST("cpu norm: layer and rms, forward and backward") {
  on_every_isa([](Backend& device) {
    for (const NormCase& test : {NormCase{NormKind::layer, true, 0}, NormCase{NormKind::layer, false, 0},
                                 NormCase{NormKind::rms, true, 0}, NormCase{NormKind::rms, false, 0},
                                 NormCase{NormKind::layer, true, 30}}) {
      for (const Shape& shape :
           {Shape{8}, Shape{0, 5}, Shape{1, 3}, Shape{3, 5, 37}, Shape{70, 64}, Shape{2, 10000}}) {
        for (Layout layout : {Layout::dense, Layout::swapped, Layout::narrowed})
          check_row_norm(device, test, shape, layout);
      }
    }
  });
}

TEST("cpu norm: the variance is exact where the mean is no f32") {
  on_every_isa([](Backend& device) {
    float next = 1e6f;
    const Tensor x =
        input(device, {1, 38}, Layout::dense, [&] { return next = next == 1e6f ? 1e6f + 0.0625f : 1e6f; });
    const Tensor y = device.empty({1, 38}), mean = device.empty({1}), rstd = device.empty({1});
    device.norm(y, mean, rstd, x, {}, {}, {});
    check_close(rstd, {1 / std::sqrt(0.03125 * 0.03125 + 1e-6)}, 1e-6, 0, "rstd");
  });
}

TEST("cpu norm: constant rows have no variance and stay finite") {
  on_every_isa([](Backend& device) {
    const Tensor x = device.empty({2, 40}), y = device.empty({2, 40}), mean = device.empty({2}),
                 rstd = device.empty({2});
    device.fill(x, 1e6f);
    device.norm(y, mean, rstd, x, {}, {}, {});
    check_close(y, Doubles(80), 0, 0, "norm of a constant");
    check_close(rstd, {1e3, 1e3}, 1e-6, 0, "rstd");
  });
}

// ---- group norm ------------------------------------------------------------------------------------------
namespace {

void check_group_norm(Backend& device, const Shape& shape, int groups, bool weighted) {
  const std::int64_t batch = shape[0], channels = shape[1];
  const auto pixels = static_cast<std::size_t>(shape.numel() / std::max<std::int64_t>(batch * channels, 1));
  const std::size_t length = pixels * static_cast<std::size_t>(channels / groups);
  const Tensor x = normal_input(device, shape, 1), dy = normal_input(device, shape, 2);
  const Tensor weight = weighted ? normal_input(device, {channels}, 3) : Tensor(),
               bias = weighted ? normal_input(device, {channels}, 4) : Tensor();
  const Tensor mean = device.empty({batch * groups}), rstd = device.empty({batch * groups}),
               dweight = device.empty({channels}), dbias = device.empty({channels});
  const Placed y = place(device, shape, Layout::dense), dx = place(device, shape, Layout::dense),
               smooth = place(device, shape, Layout::dense);
  NormArgs args{NormKind::group, 1e-5f, groups};
  device.norm(y.view, mean, rstd, x, weight, bias, args);
  device.norm_backward(dx.view, weighted ? dweight : Tensor(), weighted ? dbias : Tensor(), dy, x, mean, rstd,
                       weight, args);
  CHECK(!device.group_norm_silu(smooth.view, mean, rstd, x, weight, bias, args));

  const Doubles in = values_of(x), d = values_of(dy);
  const auto c_count = static_cast<std::size_t>(channels);
  const Doubles w = weighted ? values_of(weight) : Doubles(c_count, 1),
                b = weighted ? values_of(bias) : Doubles(c_count);
  Doubles wanted(in.size()), wanted_silu(in.size()), wanted_dx(in.size()), wanted_dw(c_count),
      wanted_db(c_count), g(length);
  for (std::size_t start = 0; length && start < in.size(); start += length) {
    const RowStatistics s = statistics(&in[start], length, static_cast<double>(args.eps), false);
    for (std::size_t j = 0; j < length; ++j) {
      const std::size_t i = start + j, c = i / pixels % c_count;
      const double normal = (in[i] - s.mean) * s.rstd;
      wanted[i] = normal * w[c] + b[c];
      wanted_silu[i] = wanted[i] / (1 + std::exp(-wanted[i]));
      g[j] = d[i] * w[c];
      wanted_dw[c] += d[i] * normal;
      wanted_db[c] += d[i];
    }
    norm_gradient(&wanted_dx[start], g.data(), &in[start], length, s, false);
  }
  const double sums = kRelative * (4 + std::sqrt(static_cast<double>(pixels) * static_cast<double>(batch)));
  check_close(y.view, wanted, kRelative, kRelative, "group norm");
  check_close(smooth.view, wanted_silu, kRelative, kRelative, "group norm silu");
  check_close(dx.view, wanted_dx, kRelative, 2 * kRelative, "group norm backward");
  if (weighted) check_close(dweight, wanted_dw, 0, sums, "dweight");
  if (weighted) check_close(dbias, wanted_db, 0, sums, "dbias");
  for (const Placed* placed : {&y, &dx, &smooth}) check_margins(*placed);
}

}  // namespace

TEST("cpu group norm, alone and with silu, forward and backward") {
  on_every_isa([](Backend& device) {
    for (bool weighted : {true, false}) {
      check_group_norm(device, {1, 4, 3, 3}, 2, weighted);
      check_group_norm(device, {3, 6, 5, 7}, 3, weighted);
      check_group_norm(device, {2, 8, 33, 31}, 8, weighted);
      check_group_norm(device, {1, 4, 120, 130}, 1, weighted);
      check_group_norm(device, {2, 6}, 2, weighted);
      check_group_norm(device, {0, 4, 2, 2}, 2, weighted);
    }
  });
}
