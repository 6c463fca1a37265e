// Convolutions as matrix products whose one operand is gathered from the image in the pack.
//
// B images, C channels in, O channels out, h x w and oh x ow pixels, kh x kw taps.
#include <algorithm>
#include <cmath>

#include "backend/cpu/conv_direct.h"
#include "backend/cpu/gemm.h"
#include "backend/cpu/gemm_kernels.h"
#include "backend/cpu/operand.h"
#include "backend/cpu/row_kernels.h"
#include "core/error.h"

namespace danceflux::cpu {
namespace {

// One Patches for each image of a batch.
struct PatchBatch {
  const GemmKernels& kernels;
  Patches patches;  // of the first image
  std::int64_t image_stride;

  Patches of(std::int64_t batch) const {
    Patches one = patches;
    one.image += batch * image_stride;
    return one;
  }
  static void pixels(const void* self, float* to, int, std::int64_t sliver, std::int64_t batch,
                     std::int64_t first_line, std::int64_t lines, std::int64_t first_k, std::int64_t depth) {
    const auto& it = *static_cast<const PatchBatch*>(self);
    it.kernels.pack_pixels(to, sliver, it.of(batch), first_line, lines, first_k, depth);
  }
  static void taps(const void* self, float* to, int, std::int64_t sliver, std::int64_t batch,
                   std::int64_t first_line, std::int64_t lines, std::int64_t first_k, std::int64_t depth) {
    const auto& it = *static_cast<const PatchBatch*>(self);
    it.kernels.pack_taps(to, sliver, it.of(batch), first_line, lines, first_k, depth);
  }
};

// A 1x1 kernel that touches every pixel once needs no gathering.
bool is_pointwise(const Tensor& weight, const ConvArgs& args) {
  return weight.dim(2) == 1 && weight.dim(3) == 1 && args.stride == 1 && args.pad_top == 0 &&
         args.pad_left == 0 && args.pad_bottom == 0 && args.pad_right == 0;
}

Patches patches_of(const Tensor& x, const Tensor& like_weight, std::int64_t pixel_columns,
                   const ConvArgs& args) {
  return {x.data<float>(), x.dim(2),       x.dim(3),           pixel_columns,      args.stride,
          -args.pad_top,   -args.pad_left, like_weight.dim(2), like_weight.dim(3), 1};
}

// Data gradients fall into stride x stride phases: pixels (stride i + y, stride j + x) meet every stride-th
// tap only, and among themselves they are a convolution of stride 1 over dy.
struct Phase {
  std::int64_t y, x;           // first pixel
  std::int64_t rows, columns;  // pixels
  std::int64_t first_tap_row, first_tap_column, tap_rows, tap_columns;

  static std::int64_t count(std::int64_t all, std::int64_t first, std::int64_t stride) {
    return first < all ? (all - first + stride - 1) / stride : 0;
  }
  Phase(const Tensor& dx, const Tensor& weight, const ConvArgs& args, std::int64_t number)
      : y(number / args.stride),
        x(number % args.stride),
        rows(count(dx.dim(2), y, args.stride)),
        columns(count(dx.dim(3), x, args.stride)),
        first_tap_row((y + args.pad_top) % args.stride),
        first_tap_column((x + args.pad_left) % args.stride),
        tap_rows(count(weight.dim(2), first_tap_row, args.stride)),
        tap_columns(count(weight.dim(3), first_tap_column, args.stride)) {}
};

// The taps of a phase as the left operand: line c, depth (o, r, s).
struct PhaseWeights {
  const void* data;
  Store store;
  std::int64_t channels, kernel_rows, kernel_columns, stride;
  const Phase& phase;

  static void pack(const void* self, float* to, int width, std::int64_t sliver, std::int64_t,
                   std::int64_t first_line, std::int64_t lines, std::int64_t first_k, std::int64_t depth) {
    const auto& it = *static_cast<const PhaseWeights*>(self);
    for (std::int64_t line = 0; line < lines; line += width, to += sliver) {
      const std::int64_t count = std::min<std::int64_t>(width, lines - line);
      switch (it.store) {
        case Store::f32:
          it.pack_sliver<float>(to, width, first_line + line, count, first_k, depth,
                                [](float x) { return x; });
          break;
        case Store::bf16:
          it.pack_sliver<std::uint16_t>(to, width, first_line + line, count, first_k, depth, bf16_to_f32);
          break;
        case Store::f16:
          it.pack_sliver<std::uint16_t>(to, width, first_line + line, count, first_k, depth, f16_to_f32);
          break;
      }
    }
  }

 private:
  template <class Stored, class Widen>
  void pack_sliver(float* to, int width, std::int64_t first_line, std::int64_t lines, std::int64_t first_k,
                   std::int64_t depth, const Widen& widen) const {
    const std::int64_t kernel = kernel_rows * kernel_columns, taps = phase.tap_rows * phase.tap_columns;
    std::int64_t o = first_k / taps, r = first_k % taps / phase.tap_columns, s = first_k % phase.tap_columns;
    for (std::int64_t k = 0; k < depth; ++k, to += width) {
      const std::int64_t tap =
          (phase.first_tap_row + r * stride) * kernel_columns + phase.first_tap_column + s * stride;
      const Stored* from = static_cast<const Stored*>(data) + (o * channels + first_line) * kernel + tap;
      for (std::int64_t line = 0; line < lines; ++line) to[line] = widen(from[line * kernel]);
      if (++s < phase.tap_columns) continue;
      s = 0;
      if (++r < phase.tap_rows) continue;
      r = 0, ++o;
    }
  }
};

// Spreads the pixels of a phase over dx.
struct PhaseOutput {
  float* dx;
  std::int64_t channels, height, width, stride;
  const Phase& phase;

  static void put(const void* self, float* c, std::int64_t c_row, std::int64_t batch, std::int64_t first_row,
                  std::int64_t rows, std::int64_t first_column, std::int64_t columns) {
    const auto& it = *static_cast<const PhaseOutput*>(self);
    for (std::int64_t i = 0; i < rows; ++i) {
      float* channel = it.dx + (batch * it.channels + first_row + i) * it.height * it.width;
      for (std::int64_t j = 0; j < columns; ++j) {
        const std::int64_t y = it.phase.y + (first_column + j) / it.phase.columns * it.stride;
        const std::int64_t x = it.phase.x + (first_column + j) % it.phase.columns * it.stride;
        channel[y * it.width + x] = c[i * c_row + j];
      }
    }
  }
};

}  // namespace

void CpuBackend::conv2d(const Tensor& out, const Tensor& x, const Tensor& weight, const Tensor& bias,
                        const ConvArgs& args) {
  const std::int64_t pixels = out.dim(2) * out.dim(3), taps = weight.dim(1) * weight.dim(2) * weight.dim(3);
  const std::int64_t image = x.dim(1) * x.dim(2) * x.dim(3);
  const Panel weights{weight.address(), store_of("conv2d", weight.dtype()), taps, 1};
  const Patches patches = patches_of(x, weight, out.dim(3), args);
  const float* bias_data = bias.defined() ? bias.data<float>() : nullptr;
  if (goes_direct(patches, weight.dim(1)))
    return convolve({x.dim(0), x.dim(1), weight.dim(0), out.dim(2), patches, image, weights, nullptr,
                     out.data<float>(), bias_data},
                    threads_, *scratch_);
  Product p;
  p.rows = weight.dim(0), p.columns = pixels, p.depth = taps;
  p.batch[1] = x.dim(0);
  p.a.panel = weights;
  const PatchBatch batch{*scratch_->kernels.gemm, patches, image};
  const Gather gather{PatchBatch::pixels, &batch};
  if (is_pointwise(weight, args)) {
    p.b.panel = {x.address(), Store::f32, 1, pixels};
    p.b.batch_stride[1] = image;
  } else {
    p.b.gather = &gather;
  }
  p.c = out.data<float>();
  p.c_row = pixels, p.c_batch[1] = p.rows * pixels;
  p.row_bias = bias_data;
  multiply(p, threads_, *scratch_);
}

void CpuBackend::conv2d_backward_data(const Tensor& dx, const Tensor& dy, const Tensor& weight,
                                      const ConvArgs& args) {
  const std::int64_t outputs = weight.dim(0), channels = weight.dim(1), image = dx.dim(2) * dx.dim(3);
  const Store store = store_of("conv2d_backward_data", weight.dtype());
  for (std::int64_t number = 0; number < std::int64_t{args.stride} * args.stride; ++number) {
    const Phase phase(dx, weight, args, number);
    const std::int64_t phase_taps = phase.tap_rows * phase.tap_columns;
    const Patches patches{dy.data<float>(),
                          dy.dim(2),
                          dy.dim(3),
                          phase.columns,
                          1,
                          (phase.y + args.pad_top) / args.stride,
                          (phase.x + args.pad_left) / args.stride,
                          phase.tap_rows,
                          phase.tap_columns,
                          -1};
    const PatchBatch batch{*scratch_->kernels.gemm, patches, outputs * dy.dim(2) * dy.dim(3)};
    const PhaseWeights weights{weight.address(), store,       channels, weight.dim(2),
                               weight.dim(3),    args.stride, phase};
    const PhaseOutput output{dx.data<float>(), channels, dx.dim(2), dx.dim(3), args.stride, phase};
    const Gather left{PhaseWeights::pack, &weights}, right{PatchBatch::pixels, &batch};
    const Finish put{PhaseOutput::put, &output};
    if (args.stride == 1 && goes_direct(patches, outputs)) {
      convolve({dx.dim(0),
                outputs,
                channels,
                dx.dim(2),
                patches,
                batch.image_stride,
                {},
                &left,
                dx.data<float>(),
                nullptr},
               threads_, *scratch_);
      continue;
    }
    Product p;
    p.rows = channels, p.columns = phase.rows * phase.columns, p.depth = outputs * phase_taps;
    p.batch[1] = dx.dim(0);
    p.a.gather = &left, p.b.gather = &right;
    if (args.stride == 1) {
      p.c = dx.data<float>();
      p.c_row = image, p.c_batch[1] = channels * image;
    } else {
      p.finish = &put;
    }
    if (is_pointwise(weight, args)) {
      p.a = {{weight.address(), store, 1, channels}, {0, 0}, nullptr};
      p.b = {{dy.address(), Store::f32, 1, image}, {0, outputs * image}, nullptr};
    }
    multiply(p, threads_, *scratch_);
  }
}

void CpuBackend::conv2d_backward_weight(const Tensor& dweight, const Tensor& dbias, const Tensor& dy,
                                        const Tensor& x, const ConvArgs& args) {
  const std::int64_t images = x.dim(0), outputs = dy.dim(1), pixels = dy.dim(2) * dy.dim(3);
  const std::int64_t image = x.dim(1) * x.dim(2) * x.dim(3);
  if (images == 0) fill(dweight, 0);
  const Patches patches = patches_of(x, dweight, dy.dim(3), args);
  for (std::int64_t number = 0; number < images; ++number) {
    const PatchBatch batch{*scratch_->kernels.gemm,
                           PatchBatch{*scratch_->kernels.gemm, patches, image}.of(number), 0};
    const Gather gather{PatchBatch::taps, &batch};
    Product p;
    p.rows = outputs, p.columns = dweight.dim(1) * dweight.dim(2) * dweight.dim(3), p.depth = pixels;
    p.a.panel = {dy.data<float>() + number * outputs * pixels, Store::f32, pixels, 1};
    p.b.gather = &gather;
    if (is_pointwise(dweight, args))
      p.b = {{x.data<float>() + number * image, Store::f32, pixels, 1}, {0, 0}, nullptr};
    p.c = dweight.data<float>();
    p.c_row = p.columns;
    p.accumulate = number > 0;
    multiply(p, threads_, *scratch_);
  }
  if (!dbias.defined()) return;
  const auto sum = scratch_->kernels.rows->reduce->row[kFoldSum];
  threads_.run(outputs, [&](std::int64_t channel, int) {
    double total = 0;
    for (std::int64_t number = 0; number < images; ++number)
      total += sum(dy.data<float>() + (number * outputs + channel) * pixels, pixels);
    dbias.data<float>()[channel] = static_cast<float>(total);
  });
}

}  // namespace danceflux::cpu
