#include "backend/cpu/conv_direct.h"

#include <algorithm>
#include <cstring>

#include "backend/cpu/gemm_kernels.h"

namespace danceflux::cpu {
namespace {

// Pixels of a task, and of a row of it: enough to use packed weights well, few enough to stay in the second
// cache with their taps.
constexpr std::int64_t kPixels = 1024, kRowPixels = 128;
// Narrower images, if the output is as wide, are kept as planes, one for each tap column: then pixels run on
// from row to row, and no strip ends with a row.
constexpr std::int64_t kNarrowImage = 64, kPlanePixels = 512, kMostPlaneRows = 8;
// Narrower rows would leave most lanes empty.
constexpr std::int64_t kShortRow = 12;

bool in_planes(const Patches& p) {
  return p.width < kNarrowImage && p.pixel_columns == p.width && p.tap_rows <= kMostPlaneRows;
}
// Below these sizes of a task the copied border, and the copying itself, show.
constexpr std::int64_t kLeastPixels = 256, kLeastOutputs = 48;
constexpr double kTaskFlops = 5e5;

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }
std::int64_t round_up(std::int64_t a, std::int64_t b) { return ceil_div(a, b) * b; }

// How the output is cut into tasks.
struct Cut {
  std::int64_t rows, columns, outputs;  // of a task
  std::int64_t row_count, column_count, output_count;
  std::int64_t per_image() const { return row_count * column_count * output_count; }
};

Cut choose_cut(const DirectConv& conv, const GemmKernels& kernels, int threads) {
  const std::int64_t width = conv.patches.pixel_columns;
  const double flops = 2.0 * static_cast<double>(conv.images * conv.outputs * conv.pixel_rows * width) *
                       static_cast<double>(conv.channels * conv.patches.tap_rows * conv.patches.tap_columns);
  const auto wanted =
      threads == 1 ? 1
                   : std::clamp<std::int64_t>(static_cast<std::int64_t>(flops / kTaskFlops), 1, 4 * threads);
  const std::int64_t pieces = ceil_div(wanted, conv.images);
  Cut cut{};
  const bool planes = in_planes(conv.patches);
  cut.columns = planes ? width : std::min(width, kRowPixels / kernels.nr * kernels.nr);
  cut.column_count = ceil_div(width, cut.columns);
  cut.rows =
      std::min(conv.pixel_rows, std::max<std::int64_t>(1, (planes ? kPlanePixels : kPixels) / cut.columns));
  if (ceil_div(conv.pixel_rows, cut.rows) * cut.column_count < pieces)
    cut.rows =
        std::clamp<std::int64_t>(ceil_div(conv.pixel_rows * cut.column_count, pieces),
                                 std::min(conv.pixel_rows, ceil_div(kLeastPixels, cut.columns)), cut.rows);
  cut.row_count = ceil_div(conv.pixel_rows, cut.rows);
  cut.outputs = conv.outputs;
  const std::int64_t across = cut.row_count * cut.column_count;
  if (across < pieces)
    cut.outputs = std::max(round_up(ceil_div(conv.outputs, ceil_div(pieces, across)), kernels.mr),
                           round_up(kLeastOutputs, kernels.mr));
  cut.output_count = ceil_div(conv.outputs, cut.outputs);
  return cut;
}

// A part of the output on its way through K.
class Window {
 public:
  Window(const DirectConv& conv, const GemmKernels& kernels, const Cut& cut, float* memory)
      : conv_(conv),
        p_(conv.patches),
        kernels_(kernels),
        blocks_(conv.channels * p_.tap_rows * p_.tap_columns),
        left_(kernels, cut.outputs, blocks_.size),
        memory_(memory),
        planes_(in_planes(p_)) {
    // a block of K may begin and end within a channel
    const std::int64_t channels = std::min(conv.channels, blocks_.size / (p_.tap_rows * p_.tap_columns) + 2);
    row_room_ = cut.columns + (planes_ ? 0 : p_.tap_columns - 1);
    plane_room_ = round_up((cut.rows + p_.tap_rows - 1) * row_room_, 16);
    channel_room_ = plane_room_ * (planes_ ? p_.tap_columns : 1);
    image_at_ = round_up(left_.floats(), 16);
    size_ = image_at_ + round_up(channels * channel_room_ + kernels.nr, 16);
  }

  std::int64_t floats() const { return size_; }

  struct Part {
    std::int64_t image, row, rows, column, columns, output, outputs;
  };

  void run(const Part& part) {
    part_ = part;
    left_.bind(memory_, conv_.weights, conv_.gather, part.image, part.output, part.outputs, false);
    const std::int64_t plane = conv_.pixel_rows * p_.pixel_columns;
    float* out = conv_.out + (part.image * conv_.outputs + part.output) * plane +
                 part.row * p_.pixel_columns + part.column;
    StripArgs strip{};
    strip.c_row = plane;
    strip.alpha = 1;
    strip.b_offsets = offsets_;
    for (std::int64_t block = 0; block < blocks_.count; ++block) {
      const std::int64_t k = block * blocks_.size;
      strip.depth = std::min(blocks_.size, conv_.channels * p_.tap_rows * p_.tap_columns - k);
      strip.load_c = block > 0;
      left_.enter_block(k, strip.depth);
      copy_image(k, strip.depth);
      for (std::int64_t i = 0; i < part.outputs; i += left_.strip_rows()) {
        left_.take(strip, i);
        strip.row_bias = conv_.bias && block + 1 == blocks_.count ? conv_.bias + part.output + i : nullptr;
        all_pixels(strip, out + i * plane, i);
      }
    }
  }

 private:
  void all_pixels(StripArgs& strip, float* out, std::int64_t i) const {
    const std::int64_t rows = planes_ ? 1 : part_.rows,
                       columns = planes_ ? part_.rows * part_.columns : part_.columns;
    const std::int64_t slivers = ceil_div(columns, kernels_.nr);
    for (std::int64_t row = 0; row < rows; ++row)
      for (std::int64_t j = 0; j < slivers; ++j) {
        const std::int64_t column = j * kernels_.nr;
        strip.columns = std::min<std::int64_t>(kernels_.nr, columns - column);
        strip.b = memory_ + image_at_ + row * row_room_ + column;
        strip.c = out + row * p_.pixel_columns + column;
        left_.fetch_ahead(i, row * slivers + j, rows * slivers);
        kernels_.strip(strip);
      }
  }

  // The channels of a block of K with the pixels that its taps reach, and the offset of each tap.
  void copy_image(std::int64_t k, std::int64_t depth) {
    const std::int64_t taps = p_.tap_rows * p_.tap_columns, first = k / taps, last = (k + depth - 1) / taps;
    // the tap that lies up and left of all others
    const std::int64_t up = p_.tap_step < 0 ? p_.tap_rows - 1 : 0,
                       left = p_.tap_step < 0 ? p_.tap_columns - 1 : 0;
    const std::int64_t y = part_.row + p_.origin_y - up, rows = part_.rows + p_.tap_rows - 1;
    if (planes_) {
      Patches patches = p_;
      patches.image += part_.image * conv_.image_stride;
      kernels_.copy_planes(memory_ + image_at_, plane_room_, patches, first, last - first + 1, y, rows);
    } else {
      copy_rows(first, last, y, rows, part_.column + p_.origin_x - left, part_.columns + p_.tap_columns - 1);
    }
    for (std::int64_t i = 0; i < depth; ++i) {
      const std::int64_t channel = (k + i) / taps - first, r = (k + i) % taps / p_.tap_columns,
                         s = (k + i) % p_.tap_columns;
      const std::int64_t column = planes_ ? s * plane_room_ : left + s * p_.tap_step;
      offsets_[i] = channel * channel_room_ + (up + r * p_.tap_step) * row_room_ + column;
    }
  }

  void copy_rows(std::int64_t first, std::int64_t last, std::int64_t y, std::int64_t rows, std::int64_t x,
                 std::int64_t columns) {
    for (std::int64_t channel = first; channel <= last; ++channel) {
      const float* plane = p_.image + part_.image * conv_.image_stride + channel * p_.height * p_.width;
      for (std::int64_t row = 0; row < rows; ++row)
        copy_row(memory_ + image_at_ + (channel - first) * channel_room_ + row * row_room_, plane, y + row, x,
                 columns);
    }
  }

  void copy_row(float* to, const float* plane, std::int64_t y, std::int64_t x, std::int64_t count) const {
    std::int64_t first = std::clamp<std::int64_t>(-x, 0, count),
                 last = std::clamp<std::int64_t>(p_.width - x, first, count);
    if (y < 0 || y >= p_.height) first = last = 0;
    std::fill(to, to + first, 0.0f);
    if (last > first)
      std::memcpy(to + first, plane + y * p_.width + x + first,
                  static_cast<std::size_t>(last - first) * sizeof(float));
    std::fill(to + last, to + count, 0.0f);
  }

  const DirectConv& conv_;
  const Patches& p_;
  const GemmKernels& kernels_;
  const DepthBlocks blocks_;
  LeftStrips left_;
  float* memory_;
  const bool planes_;
  std::int64_t row_room_, plane_room_, channel_room_, image_at_, size_;
  Part part_{};
  std::int64_t offsets_[kMaxDepth];
};

}  // namespace

bool goes_direct(const Patches& patches, std::int64_t channels) {
  const std::int64_t taps = patches.tap_rows * patches.tap_columns;
  return patches.stride == 1 && taps > 1 && taps <= kMaxDepth && channels > 0 &&
         (patches.pixel_columns >= kShortRow || in_planes(patches));
}

void convolve(const DirectConv& conv, ThreadPool& threads, Workspace& workspace) {
  if (conv.images == 0 || conv.outputs == 0 || conv.pixel_rows == 0 || conv.patches.pixel_columns == 0)
    return;
  const GemmKernels& kernels = *workspace.kernels.gemm;
  const Cut cut = choose_cut(conv, kernels, threads.threads());
  workspace.reserve_workers(static_cast<std::size_t>(Window(conv, kernels, cut, nullptr).floats()) *
                            sizeof(float));
  threads.run(conv.images * cut.per_image(), [&](std::int64_t task, int worker) {
    Window window(conv, kernels, cut, workspace.worker(worker));
    const std::int64_t within = task % cut.per_image(), place = within / cut.output_count;
    Window::Part part{};
    part.image = task / cut.per_image();
    part.output = within % cut.output_count * cut.outputs,
    part.outputs = std::min(cut.outputs, conv.outputs - part.output);
    part.row = place / cut.column_count * cut.rows,
    part.rows = std::min(cut.rows, conv.pixel_rows - part.row);
    part.column = place % cut.column_count * cut.columns,
    part.columns = std::min(cut.columns, conv.patches.pixel_columns - part.column);
    window.run(part);
  });
}

}  // namespace danceflux::cpu
