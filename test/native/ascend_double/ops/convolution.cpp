// Two-dimensional convolution as im2col and a product; C channels in, O out, h by w and oh by ow pixels.
#include "ascend_double/ops/gemm.h"
#include "ascend_double/ops/precision.h"

namespace ascend_double {
namespace {

struct Convolution {
  std::int64_t batch, channels, h, w, out_channels, kh, kw, oh, ow, groups;
  std::int64_t stride_h, stride_w, top, bottom, left, right, dilation_h, dilation_w;
  Precision precision;
};

std::int64_t two(Plan& plan, const Dims& values, const char* name, std::size_t index) {
  plan.require(values.size() == 2 || values.size() == 1, "%s: expected 1 or 2 numbers", name);
  return values[values.size() == 1 ? 0 : index];
}

Convolution geometry(Plan& plan, const Operand& x, const Operand& weight, Ints stride, Ints padding,
                     Ints dilation, bool transposed, Ints output_padding, std::int64_t groups, int cube) {
  for (const Operand* one : std::initializer_list<const Operand*>{&x, &weight}) {
    plan.require(one->rank() == 4, "the double has two-dimensional convolutions only");
    plan.require_image(*one, "input and weight");
    plan.require(one->format == ACL_FORMAT_NCHW, "the double has NCHW only");
  }
  plan.require_type(weight, "weight", x.dtype);
  plan.require(!transposed, "the double has no transposed convolution");
  const Dims &strides = plan.ints(stride, "stride"), &pads = plan.ints(padding, "padding");
  const Dims &dilations = plan.ints(dilation, "dilation"), &more = plan.ints(output_padding, "outputPadding");
  for (const std::int64_t value : more) plan.require(value == 0, "outputPadding: expected zeros");
  plan.require(pads.size() == 2 || pads.size() == 4, "padding: expected 2 or 4 numbers, got %zu",
               pads.size());
  Convolution c;
  const bool four = pads.size() == 4;
  c.top = pads[0];
  c.bottom = four ? pads[1] : pads[0];
  c.left = four ? pads[2] : pads[1];
  c.right = four ? pads[3] : pads[1];
  c.stride_h = two(plan, strides, "stride", 0);
  c.stride_w = two(plan, strides, "stride", 1);
  c.dilation_h = two(plan, dilations, "dilation", 0);
  c.dilation_w = two(plan, dilations, "dilation", 1);
  plan.require(c.stride_h > 0 && c.stride_w > 0 && c.dilation_h > 0 && c.dilation_w > 0,
               "stride and dilation above 0");
  c.batch = x.size(0);
  c.channels = x.size(1);
  c.h = x.size(2);
  c.w = x.size(3);
  c.out_channels = weight.size(0);
  c.kh = weight.size(2);
  c.kw = weight.size(3);
  c.groups = groups;
  plan.require(groups > 0 && c.channels % groups == 0 && c.out_channels % groups == 0 &&
                   weight.size(1) == c.channels / groups,
               "weight %s for %s in %lld groups", text_of(weight.shape).c_str(), text_of(x.shape).c_str(),
               static_cast<long long>(groups));
  c.oh = (c.h + c.top + c.bottom - c.dilation_h * (c.kh - 1) - 1) / c.stride_h + 1;
  c.ow = (c.w + c.left + c.right - c.dilation_w * (c.kw - 1) - 1) / c.stride_w + 1;
  plan.require(c.oh > 0 && c.ow > 0, "the kernel is larger than the padded image");
  c.precision = precision_of(plan, cube, x.dtype);
  return c;
}

/// Calls visit(row of the columns, pixel of the image or -1 in the padding, pixel of the result) for one
/// channel.
template <class Visit>
void each_tap(const Convolution& c, Visit&& visit) {
  for (std::int64_t ky = 0; ky < c.kh; ++ky)
    for (std::int64_t kx = 0; kx < c.kw; ++kx)
      for (std::int64_t y = 0; y < c.oh; ++y) {
        const std::int64_t from_y = y * c.stride_h - c.top + ky * c.dilation_h;
        for (std::int64_t x = 0; x < c.ow; ++x) {
          const std::int64_t from_x = x * c.stride_w - c.left + kx * c.dilation_w;
          const bool inside = from_y >= 0 && from_y < c.h && from_x >= 0 && from_x < c.w;
          visit(ky * c.kw + kx, inside ? from_y * c.w + from_x : -1, y * c.ow + x);
        }
      }
}

/// columns [channels * kh * kw, oh * ow] of some channels of one image.
void gather_columns(const Convolution& c, const float* image, std::int64_t channels, float* columns) {
  const std::int64_t taps = c.kh * c.kw, pixels = c.oh * c.ow;
  for (std::int64_t channel = 0; channel < channels; ++channel) {
    const float* plane = image + channel * c.h * c.w;
    float* to = columns + channel * taps * pixels;
    each_tap(c, [&](std::int64_t tap, std::int64_t from, std::int64_t pixel) {
      to[tap * pixels + pixel] = from < 0 ? 0 : plane[from];
    });
  }
}

struct ConvolutionBackward {
  Convolution c;
  Operand dy, x, weight, dx, dweight, dbias;
  bool fixed;
};

void run_convolution_backward(const Launch& launch, const ConvolutionBackward& b) {
  const Convolution& c = b.c;
  const Dense<float> dy = narrowed(load<float>(launch, b.dy), c.precision),
                     x = narrowed(load<float>(launch, b.x), c.precision);
  const Dense<float> weight = narrowed(load<float>(launch, b.weight), c.precision);
  const std::int64_t in = c.channels / c.groups, out = c.out_channels / c.groups, taps = c.kh * c.kw,
                     pixels = c.oh * c.ow;
  Dense<float> columns(in * taps * pixels), dx(x.count()), dweight(weight.count()), dbias(c.out_channels);
  std::fill(dx.data(), dx.data() + dx.count(), 0.0f);
  std::fill(dweight.data(), dweight.data() + dweight.count(), 0.0f);
  std::fill(dbias.data(), dbias.data() + dbias.count(), 0.0f);
  const KOrder order{false, b.fixed ? 0 : launch.chance | 1};
  for (std::int64_t turn = 0; turn < c.batch; ++turn) {
    const std::int64_t image =
        b.fixed ? turn : (turn + static_cast<std::int64_t>(launch.chance % 1021)) % c.batch;
    for (std::int64_t group = 0; group < c.groups; ++group) {
      const float* slopes = dy.data() + (image * c.out_channels + group * out) * pixels;
      const std::int64_t at = (image * c.channels + group * in) * c.h * c.w;
      const float* kernel = weight.data() + group * out * in * taps;
      if (b.dweight) {
        gather_columns(c, x.data() + at, in, columns.data());
        gemm(out, in * taps, pixels, {slopes, pixels, 1}, {columns.data(), 1, pixels},
             dweight.data() + group * out * in * taps, true, order);
      }
      if (b.dx) {
        gemm(in * taps, pixels, out, {kernel, 1, in * taps}, {slopes, pixels, 1}, columns.data(), false,
             order);
        for (std::int64_t channel = 0; channel < in; ++channel)
          each_tap(c, [&](std::int64_t tap, std::int64_t to, std::int64_t pixel) {
            if (to >= 0)
              dx[at + channel * c.h * c.w + to] += columns[(channel * taps + tap) * pixels + pixel];
          });
      }
      for (std::int64_t channel = 0; channel < out; ++channel)
        dbias[group * out + channel] += sum(slopes + channel * pixels, pixels,
                                            b.fixed ? 0 : static_cast<std::int64_t>(launch.chance % 4093));
    }
  }
  store(launch, b.dx, dx);
  store(launch, b.dweight, dweight);
  store(launch, b.dbias, dbias);
}

}  // namespace

OP(nn, Convolution, Tensor input, Tensor kernel, Tensor bias, Ints stride, Ints padding, Ints dilation,
   bool transposed, Ints output_padding, std::int64_t groups, Out output, std::int8_t cube) {
  const Operand x = plan.in(input, "input", kFloats, 3, 5), weight = plan.in(kernel, "weight", kFloats, 3, 5);
  const Operand b = plan.optional(bias, "bias", kFloats, 1, 1);
  const Convolution c =
      geometry(plan, x, weight, stride, padding, dilation, transposed, output_padding, groups, cube);
  if (b) {
    plan.require_type(b, "bias", x.dtype);
    plan.require_shape(b, "bias", {c.out_channels});
    plan.require(b.format == ACL_FORMAT_ND, "bias: expected a tensor tagged ND");
  }
  const Operand y = plan.out(output, "output", kFloats);
  plan.require_image(y, "output");
  plan.require_type(y, "output", x.dtype);
  plan.require_shape(y, "output", {c.batch, c.out_channels, c.oh, c.ow});
  plan.workspace = 32 * 1024;
  plan.compute = [=](const Launch& launch) {
    const Dense<float> values = narrowed(load<float>(launch, x), c.precision);
    const Dense<float> weights = narrowed(load<float>(launch, weight), c.precision),
                       biases = load_optional(launch, b);
    const std::int64_t in = c.channels / c.groups, out = c.out_channels / c.groups;
    const std::int64_t depth = in * c.kh * c.kw, pixels = c.oh * c.ow;
    Dense<float> columns(depth * pixels), result(y.count());
    for (std::int64_t at = 0; at < c.batch * c.groups; ++at) {
      gather_columns(c, values.data() + at * in * c.h * c.w, in, columns.data());
      gemm(out, pixels, depth, {weights.data() + at % c.groups * out * depth, depth, 1},
           {columns.data(), pixels, 1}, result.data() + at * out * pixels, false);
      if (!b) continue;
      for (std::int64_t i = 0; i < out * pixels; ++i)
        result[at * out * pixels + i] += biases[at % c.groups * out + i / pixels];
    }
    store(launch, y, result);
  };
}

OP(nn, ConvolutionBackward, Tensor gradient, Tensor input, Tensor kernel, Ints bias_sizes, Ints stride,
   Ints padding, Ints dilation, bool transposed, Ints output_padding, int groups, Bools wanted,
   std::int8_t cube, Out dinput, Out dkernel, Out dbias) {
  ConvolutionBackward b;
  b.dy = plan.in(gradient, "gradOutput", kFloats, 3, 5);
  b.x = plan.in(input, "input", kFloats, 3, 5);
  b.weight = plan.in(kernel, "weight", kFloats, 3, 5);
  b.c = geometry(plan, b.x, b.weight, stride, padding, dilation, transposed, output_padding, groups, cube);
  const Convolution& c = b.c;
  plan.require_type(b.dy, "gradOutput", b.x.dtype);
  plan.require_image(b.dy, "gradOutput");
  plan.require_shape(b.dy, "gradOutput", {c.batch, c.out_channels, c.oh, c.ow});
  const std::vector<bool> mask = plan.bools(wanted, "outputMask", 3);
  if (mask[0]) {
    b.dx = plan.out(dinput, "gradInput", kFloats);
    plan.require_image(b.dx, "gradInput");
    plan.require_shape(b.dx, "gradInput", b.x.shape);
  }
  if (mask[1]) {
    b.dweight = plan.out(dkernel, "gradWeight", kFloats);
    plan.require_image(b.dweight, "gradWeight");
    plan.require_shape(b.dweight, "gradWeight", b.weight.shape);
  }
  if (mask[2]) {
    plan.require(plan.ints(bias_sizes, "biasSizes") == Dims{c.out_channels},
                 "biasSizes: expected the output channels");
    b.dbias = plan.out(dbias, "gradBias", kFloats);
    plan.require_shape(b.dbias, "gradBias", {c.out_channels});
  }
  b.fixed = plan.deterministic;
  plan.workspace = 32 * 1024;
  plan.compute = [=](const Launch& launch) { run_convolution_backward(launch, b); };
}

}  // namespace ascend_double
