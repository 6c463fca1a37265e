// Convolution of images. B batch, C input channels, O output channels, h x w pixels, kh x kw window.
#include "ops/check.h"
#include "ops/ops.h"

namespace danceflux::ops {
namespace {

Shape check_conv2d(const Tensor& x, const Tensor& weight, const Tensor& bias, const ConvArgs& args) {
  check_activation("conv2d", x);
  check_same_device("conv2d", x, weight);
  check_stored("conv2d", "weight", weight);
  require(x.rank() == 4 && weight.rank() == 4 && x.dim(1) == weight.dim(1), "ERR_SHAPE",
          "conv2d: expected x [B, C, h, w] and weight [O, C, kh, kw], got ", x.shape(), " and ",
          weight.shape());
  check_vector("conv2d", "bias", x, bias, weight.dim(0));
  require(args.stride > 0 && args.pad_top >= 0 && args.pad_left >= 0 && args.pad_bottom >= 0 &&
              args.pad_right >= 0,
          "ERR_SHAPE", "conv2d: expected a positive stride and no negative padding, got stride ",
          args.stride);
  const std::int64_t height = x.dim(2) + args.pad_top + args.pad_bottom - weight.dim(2);
  const std::int64_t width = x.dim(3) + args.pad_left + args.pad_right - weight.dim(3);
  require(height >= 0 && width >= 0, "ERR_SHAPE",
          "conv2d: expected a padded image no smaller than the window, got ", x.shape(), " and ",
          weight.shape());
  return {x.dim(0), weight.dim(0), height / args.stride + 1, width / args.stride + 1};
}

struct ConvSaved {
  Tensor x, weight;
  ConvArgs args;
  Shape x_shape;
};

void conv2d_gradient(const ConvSaved& saved, Gradients& gradients) {
  const Tensor dy = packed(gradients.output());
  Backend& device = backend_of(dy);
  if (gradients.wanted(0)) {
    Tensor dx = device.empty(saved.x_shape, dy.dtype());
    device.conv2d_backward_data(dx, dy, saved.weight, saved.args);
    gradients.add(0, std::move(dx));
  }
  if (gradients.wanted(1)) {
    Tensor dweight = device.empty(saved.weight.shape());
    Tensor dbias = gradients.wanted(2) ? device.empty({dy.dim(1)}) : Tensor();
    device.conv2d_backward_weight(dweight, dbias, dy, saved.x, saved.args);
    gradients.add(1, std::move(dweight));
    if (dbias) gradients.add(2, std::move(dbias));
  } else if (gradients.wanted(2)) {
    gradients.add(2, sum(dy, {0, 2, 3}));
  }
}

}  // namespace

Tensor conv2d(const Tensor& x, const Tensor& weight, const Tensor& bias, const ConvArgs& args) {
  Backend& device = enter("conv2d", x);
  const Tensor out = device.empty(check_conv2d(x, weight, bias, args), x.dtype());
  const Tensor image = packed(x), kernel = packed(weight);
  device.conv2d(out, image, kernel, bias, args);
  observed("conv2d", out, x);
  if (!tracked(x, weight, bias)) return out;
  const ConvSaved saved{tracked(weight) ? image : Tensor(), kernel, args, x.shape()};
  return recorded("conv2d", out, {x, weight, bias},
                  [saved](Gradients& gradients) { conv2d_gradient(saved, gradients); });
}

}  // namespace danceflux::ops
