// Convolutions and their gradients against plain loops in double.
#include "cpu_test_tools.h"

namespace danceflux::test {
namespace {

struct ConvCase {
  std::int64_t batch, channels, outputs, height, width, kernel_rows, kernel_columns;
  ConvArgs args;
};

const ConvCase kCases[] = {
    {2, 3, 5, 7, 9, 3, 3, {1, 1, 1, 1, 1}},
    {1, 4, 3, 8, 8, 1, 1, {}},
    {2, 3, 70, 28, 28, 14, 14, {.stride = 14}},
    {1, 2, 3, 9, 7, 3, 3, {2, 0, 0, 1, 1}},
    {3, 8, 6, 12, 10, 3, 3, {2, 1, 1, 1, 1}},
    {1, 3, 4, 5, 6, 2, 3, {3, 2, 0, 1, 3}},
    {2, 40, 50, 20, 33, 3, 3, {1, 1, 1, 1, 1}},
    {1, 5, 4, 16, 16, 1, 1, {.stride = 2}},
    {1, 1, 1, 1, 1, 3, 3, {1, 1, 1, 1, 1}},
    {2, 70, 13, 6, 50, 3, 5, {1, 0, 4, 2, 0}},
    {2, 20, 14, 9, 16, 3, 3, {1, 1, 1, 1, 1}},
    {1, 33, 30, 5, 300, 3, 3, {1, 1, 1, 1, 1}},
    {1, 130, 20, 13, 8, 3, 3, {1, 1, 1, 1, 1}},
    {1, 3, 2, 30, 40, 5, 4, {1, 4, 0, 0, 3}},
    {1, 4, 5, 20, 30, 3, 3, {}},
    {1, 3, 4, 9, 8, 3, 3, {}},
    {1, 2, 3, 7, 200, 3, 3, {1, 0, 2, 1, 0}},
    {0, 3, 2, 4, 4, 3, 3, {1, 1, 1, 1, 1}},
    {1, 2, 2, 11, 11, 3, 3, {.stride = 5}},
};

std::int64_t out_size(std::int64_t size, std::int64_t before, std::int64_t after, std::int64_t kernel,
                      std::int64_t stride) {
  return (size + before + after - kernel) / stride + 1;
}

// visit(pixel y, pixel x, tap r, tap s, image y, image x) for every tap that lies on the image.
template <class Visit>
void each_tap(const ConvCase& c, std::int64_t rows, std::int64_t columns, const Visit& visit) {
  for (std::int64_t y = 0; y < rows; ++y)
    for (std::int64_t x = 0; x < columns; ++x)
      for (std::int64_t r = 0; r < c.kernel_rows; ++r)
        for (std::int64_t s = 0; s < c.kernel_columns; ++s) {
          const std::int64_t iy = y * c.args.stride - c.args.pad_top + r,
                             ix = x * c.args.stride - c.args.pad_left + s;
          if (iy >= 0 && iy < c.height && ix >= 0 && ix < c.width) visit(y, x, r, s, iy, ix);
        }
}

struct Expected {
  std::vector<double> values, sizes;  // sums and sums of absolute values: the scale of their rounding error
  explicit Expected(const Tensor& like)
      : values(static_cast<std::size_t>(like.numel())), sizes(values.size()) {}
  void add(std::int64_t at, double product) {
    values[static_cast<std::size_t>(at)] += product;
    sizes[static_cast<std::size_t>(at)] += std::abs(product);
  }
  void check(Backend& backend, const Tensor& got, const std::string& what) const {
    const std::vector<float> found = values_of(backend, got);
    for (std::size_t i = 0; i < values.size(); ++i)
      if (!(std::abs(found[i] - values[i]) <= 3e-7 * sizes[i] + 1e-7))
        fail_at(__FILE__, __LINE__, what, " at ", i, ": expected ", values[i], ", got ", found[i]);
  }
};

struct Problem {
  Tensor x, weight, bias, dy;
  Problem(Backend& backend, const ConvCase& c, DType type)
      : x(random_tensor(backend, {c.batch, c.channels, c.height, c.width}, 1)),
        weight(random_tensor(backend, {c.outputs, c.channels, c.kernel_rows, c.kernel_columns}, 2, type)),
        bias(random_tensor(backend, {c.outputs}, 3)),
        dy(random_tensor(
            backend,
            {c.batch, c.outputs,
             out_size(c.height, c.args.pad_top, c.args.pad_bottom, c.kernel_rows, c.args.stride),
             out_size(c.width, c.args.pad_left, c.args.pad_right, c.kernel_columns, c.args.stride)},
            4)) {}
};

void check_conv(Backend& backend, const ConvCase& c, DType type, const std::string& what) {
  const Problem p(backend, c, type);
  const Tensor out = backend.empty(p.dy.shape()), dx = backend.empty(p.x.shape());
  const Tensor dweight = backend.empty(p.weight.shape()), dbias = backend.empty(p.bias.shape());
  backend.conv2d(out, p.x, p.weight, p.bias, c.args);
  backend.conv2d_backward_data(dx, p.dy, p.weight, c.args);
  backend.conv2d_backward_weight(dweight, dbias, p.dy, p.x, c.args);
  Expected want_out(out), want_dx(dx), want_dweight(dweight), want_dbias(dbias);
  const std::int64_t rows = out.dim(2), columns = out.dim(3);
  const std::vector<double> weights = widened(p.weight.view({1, -1}));
  const float *x_values = p.x.data<float>(), *dy_values = p.dy.data<float>();
  for (std::int64_t b = 0; b < c.batch; ++b)
    for (std::int64_t o = 0; o < c.outputs; ++o) {
      const std::int64_t dy_plane = (b * c.outputs + o) * rows * columns;
      for (std::int64_t at = dy_plane; at < dy_plane + rows * columns; ++at) {
        want_out.add(at, element(p.bias, {o}));
        want_dbias.add(o, dy_values[at]);
      }
      for (std::int64_t i = 0; i < c.channels; ++i)
        each_tap(c, rows, columns, [&](auto y, auto x, auto r, auto s, auto iy, auto ix) {
          const std::int64_t x_at = ((b * c.channels + i) * c.height + iy) * c.width + ix,
                             dy_at = dy_plane + y * columns + x;
          const std::int64_t w_at = ((o * c.channels + i) * c.kernel_rows + r) * c.kernel_columns + s;
          const double value = x_values[x_at], weight = weights[static_cast<std::size_t>(w_at)],
                       slope = dy_values[dy_at];
          want_out.add(dy_at, value * weight);
          want_dx.add(x_at, slope * weight);
          want_dweight.add(w_at, slope * value);
        });
    }
  want_out.check(backend, out, what + " out");
  want_dx.check(backend, dx, what + " dx");
  want_dweight.check(backend, dweight, what + " dweight");
  want_dbias.check(backend, dbias, what + " dbias");
}

}  // namespace

TEST("conv2d: forward and both gradients, odd sizes, strides and paddings") {
  for (const std::string& isa : isas()) {
    const auto backend = cpu_backend(isa);
    int number = 0;
    for (const ConvCase& c : kCases)
      check_conv(*backend, c, DType::f32, isa + " case " + std::to_string(number++));
  }
}

TEST("conv2d: stored weights") {
  for (const std::string& isa : isas()) {
    const auto backend = cpu_backend(isa);
    for (DType type : {DType::bf16, DType::f16})
      for (int number : {0, 1, 2, 4})
        check_conv(*backend, kCases[number], type, isa + " stored case " + std::to_string(number));
  }
}

TEST("conv2d: the same bits for every thread count and batch size") {
  const ConvCase c{4, 40, 50, 24, 20, 3, 3, {1, 1, 1, 1, 1}};
  for (const std::string& isa : isas()) {
    std::vector<std::vector<float>> first;
    for (int threads : {1, 2, 3, 4}) {
      const auto backend = cpu_backend(isa, threads);
      const Problem p(*backend, c, DType::f32);
      const Tensor out = backend->empty(p.dy.shape()), dx = backend->empty(p.x.shape()),
                   dweight = backend->empty(p.weight.shape());
      backend->conv2d(out, p.x, p.weight, p.bias, c.args);
      backend->conv2d_backward_data(dx, p.dy, p.weight, c.args);
      backend->conv2d_backward_weight(dweight, {}, p.dy, p.x, c.args);
      std::vector<std::vector<float>> all = {values_of(*backend, out), values_of(*backend, dx),
                                             values_of(*backend, dweight)};
      if (threads == 1) first = all;
      for (std::size_t i = 0; i < all.size(); ++i) CHECK(same_bits(all[i], first[i]));
      const Tensor one = backend->empty({1, c.outputs, out.dim(2), out.dim(3)});
      for (std::int64_t b = 0; b < c.batch; ++b) {
        backend->conv2d(one, p.x.narrow(0, b, 1), p.weight, p.bias, c.args);
        CHECK(same_bits(one.data<float>(), out.data<float>() + b * one.numel(), one.numel()));
      }
    }
  }
}

}  // namespace danceflux::test
