#include "reference_backend.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>

#include "core/error.h"

namespace danceflux::test {
namespace {

using Values = std::vector<double>;

std::size_t at(std::int64_t i) { return static_cast<std::size_t>(i); }

/// body(position, offset in elements) for each element in row-major order.
template <class Body>
void each_offset(const Tensor& x, Body body) {
  if (x.numel() == 0) return;
  const int last = x.rank() - 1;
  const std::int64_t *dims = x.shape().begin(), *strides = x.strides().begin();
  std::int64_t index[kMaxRank] = {}, offset = 0;
  for (std::int64_t position = 0; position < x.numel(); ++position) {
    body(at(position), offset);
    int axis = last;
    for (; axis >= 0 && ++index[axis] == dims[axis]; --axis) {
      offset -= (dims[axis] - 1) * strides[axis];
      index[axis] = 0;
    }
    if (axis >= 0) offset += strides[axis];
  }
}

/// The double that stands for the first element of `x`.
double* first_element(const Tensor& x) {
  const auto* base = static_cast<const char*>(x.storage()->address());
  const auto bytes = static_cast<const char*>(x.address()) - base;
  return static_cast<double*>(x.storage()->address()) +
         bytes / static_cast<std::ptrdiff_t>(size_of(x.dtype()));
}

double rounded(double value, DType dtype) {
  if (dtype == DType::bf16) return bf16_to_f32(f32_to_bf16(static_cast<float>(value)));
  if (dtype == DType::f16) return f16_to_f32(f32_to_f16(static_cast<float>(value)));
  return value;
}

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }
double normal_cdf(double x) { return 0.5 * std::erfc(-x / std::numbers::sqrt2); }
double normal_pdf(double x) { return std::exp(-0.5 * x * x) / std::sqrt(2 * std::numbers::pi); }
const double kGeluScale = std::sqrt(2 / std::numbers::pi);
double gelu_inner(double x) { return kGeluScale * (x + 0.044715 * x * x * x); }

double unary_value(UnaryOp op, double x, double a, double b) {
  switch (op) {
    case UnaryOp::affine:
      return a * x + b;
    case UnaryOp::clamp:
      return std::min(std::max(x, a), b);
    case UnaryOp::exp:
      return std::exp(x);
    case UnaryOp::log:
      return std::log(x);
    case UnaryOp::sqrt:
      return std::sqrt(x);
    case UnaryOp::rsqrt:
      return 1 / std::sqrt(x);
    case UnaryOp::square:
      return x * x;
    case UnaryOp::reciprocal:
      return 1 / x;
    case UnaryOp::tanh:
      return std::tanh(x);
    case UnaryOp::sigmoid:
      return sigmoid(x);
    case UnaryOp::silu:
      return x * sigmoid(x);
    case UnaryOp::gelu_tanh:
      return 0.5 * x * (1 + std::tanh(gelu_inner(x)));
    case UnaryOp::gelu_erf:
      return x * normal_cdf(x);
    case UnaryOp::quick_gelu:
      return x * sigmoid(1.702 * x);
  }
  fail("ERR_DTYPE", "unary: unknown op");
}

double unary_slope(UnaryOp op, double x, double a, double b) {
  const double s = sigmoid(x), t = std::tanh(gelu_inner(x)), q = sigmoid(1.702 * x);
  switch (op) {
    case UnaryOp::affine:
      return a;
    case UnaryOp::clamp:
      return x >= a && x <= b ? 1 : 0;
    case UnaryOp::exp:
      return std::exp(x);
    case UnaryOp::log:
      return 1 / x;
    case UnaryOp::sqrt:
      return 0.5 / std::sqrt(x);
    case UnaryOp::rsqrt:
      return -0.5 / (x * std::sqrt(x));
    case UnaryOp::square:
      return 2 * x;
    case UnaryOp::reciprocal:
      return -1 / (x * x);
    case UnaryOp::tanh:
      return 1 - std::tanh(x) * std::tanh(x);
    case UnaryOp::sigmoid:
      return s * (1 - s);
    case UnaryOp::silu:
      return s * (1 + x * (1 - s));
    case UnaryOp::gelu_tanh:
      return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * kGeluScale * (1 + 3 * 0.044715 * x * x);
    case UnaryOp::gelu_erf:
      return normal_cdf(x) + x * normal_pdf(x);
    case UnaryOp::quick_gelu:
      return q * (1 + 1.702 * x * (1 - q));
  }
  fail("ERR_DTYPE", "unary: unknown op");
}

double binary_value(BinaryOp op, double a, double b, double b_scale) {
  switch (op) {
    case BinaryOp::add:
      return a + b_scale * b;
    case BinaryOp::sub:
      return a - b;
    case BinaryOp::mul:
      return a * b;
    case BinaryOp::div:
      return a / b;
    case BinaryOp::max:
      return std::max(a, b);
    case BinaryOp::min:
      return std::min(a, b);
  }
  fail("ERR_DTYPE", "binary: unknown op");
}

/// How a norm cuts x into groups of elements that share statistics, and which weight each element has.
struct NormLayout {
  std::int64_t rows, size, channels, channel_size;
  bool grouped;
  NormLayout(const Tensor& x, const NormArgs& args) : grouped(args.kind == NormKind::group) {
    channels = grouped ? x.dim(1) : x.dim(-1);
    rows = grouped ? x.dim(0) * args.groups : x.numel() / channels;
    size = rows ? x.numel() / rows : 0;
    channel_size = grouped && x.dim(0) ? x.numel() / x.dim(0) / channels : 1;
  }
  std::size_t channel(std::int64_t i) const {
    return at(grouped ? i / channel_size % channels : i % channels);
  }
};

}  // namespace

// ---- memory
// ------------------------------------------------------------------------------------------------------------
void* ReferenceBackend::allocate(std::size_t bytes) {
  auto* address = new double[bytes];
  std::fill(address, address + bytes, std::numeric_limits<double>::quiet_NaN());
  ++stats_.allocations;
  ++stats_.system_allocations;
  stats_.used += bytes;
  stats_.held = stats_.used;
  stats_.peak = std::max(stats_.peak, stats_.used);
  return address;
}

void ReferenceBackend::release(void* address, std::size_t bytes) noexcept {
  delete[] static_cast<double*>(address);
  stats_.used -= bytes;
  stats_.held = stats_.used;
}

std::vector<double> ReferenceBackend::read(const Tensor& x) {
  Values values(at(x.numel()));
  const double* from = first_element(x);
  each_offset(x, [&](std::size_t i, std::int64_t offset) { values[i] = from[offset]; });
  return values;
}

void ReferenceBackend::write(const Tensor& x, const std::vector<double>& values) {
  require(values.size() == at(x.numel()), "ERR_SHAPE", "write: expected ", x.numel(), " values, got ",
          values.size());
  double* to = first_element(x);
  each_offset(x, [&](std::size_t i, std::int64_t offset) { to[offset] = rounded(values[i], x.dtype()); });
}

void ReferenceBackend::upload(const Tensor& tensor, const void* host) {
  Values values(at(tensor.numel()));
  if (tensor.dtype() == DType::i32) {
    std::copy_n(static_cast<const std::int32_t*>(host), values.size(), values.begin());
  } else {
    convert_elements(values.data(), DType::f64, host, tensor.dtype(), values.size());
  }
  write(tensor, values);
}

void ReferenceBackend::download(void* host, const Tensor& tensor) {
  const Values values = read(tensor);
  if (tensor.dtype() == DType::i32) {
    std::copy(values.begin(), values.end(), static_cast<std::int32_t*>(host));
  } else {
    convert_elements(host, tensor.dtype(), values.data(), DType::f64, values.size());
  }
}

// ---- elements
// ----------------------------------------------------------------------------------------------------------
void ReferenceBackend::copy(const Tensor& out, const Tensor& x) { write(out, read(x)); }

void ReferenceBackend::fill(const Tensor& out, float value) { write(out, Values(at(out.numel()), value)); }

void ReferenceBackend::unary(UnaryOp op, const Tensor& out, const Tensor& x, float a, float b) {
  Values values = read(x);
  for (double& value : values) value = unary_value(op, value, a, b);
  write(out, values);
}

void ReferenceBackend::unary_backward(UnaryOp op, const Tensor& dx, const Tensor& x, const Tensor& dy,
                                      float a, float b) {
  Values values = read(dy);
  const Values inputs = read(x);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] *= unary_slope(op, inputs[i], a, b);
  write(dx, values);
}

void ReferenceBackend::binary(BinaryOp op, const Tensor& out, const Tensor& a, const Tensor& b,
                              float b_scale) {
  Values values = read(a);
  const Values right = read(b);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = binary_value(op, values[i], right[i], b_scale);
  write(out, values);
}

void ReferenceBackend::reduce(ReduceOp op, const Tensor& out, const Tensor& x) {
  const double start = op == ReduceOp::max ? -std::numeric_limits<double>::infinity() : 0;
  fill(out, static_cast<float>(start));
  // A broadcast view of `out` lays each element of x over the one that it is summed into.
  const Tensor target = out.expand(x.shape());
  const Values values = read(x);
  double* to = first_element(target);
  each_offset(target, [&](std::size_t i, std::int64_t offset) {
    const double value = op == ReduceOp::sum_of_squares ? values[i] * values[i] : values[i];
    to[offset] = op == ReduceOp::max ? std::max(to[offset], value) : to[offset] + value;
  });
  if (op != ReduceOp::mean) return;
  Values sums = read(out);
  for (double& sum : sums) sum /= static_cast<double>(x.numel()) / static_cast<double>(out.numel());
  write(out, sums);
}

// ---- softmax, matmul
// ---------------------------------------------------------------------------------------------------
void ReferenceBackend::softmax(const Tensor& out, const Tensor& x) {
  Values values = read(x);
  const std::size_t width = at(x.dim(-1));
  for (std::size_t row = 0; row < values.size(); row += width) {
    double* y = &values[row];
    const double largest = *std::max_element(y, y + width);
    double total = 0;
    for (std::size_t i = 0; i < width; ++i) {
      y[i] = std::isinf(largest) && largest < 0 ? 0 : std::exp(y[i] - largest);
      total += y[i];
    }
    for (std::size_t i = 0; i < width; ++i) y[i] = total > 0 ? y[i] / total : 0;
  }
  write(out, values);
}

void ReferenceBackend::softmax_backward(const Tensor& dx, const Tensor& y, const Tensor& dy) {
  Values values = read(dy);
  const Values outputs = read(y);
  const std::size_t width = at(y.dim(-1));
  for (std::size_t row = 0; row < values.size(); row += width) {
    double dot = 0;
    for (std::size_t i = row; i < row + width; ++i) dot += values[i] * outputs[i];
    for (std::size_t i = row; i < row + width; ++i) values[i] = outputs[i] * (values[i] - dot);
  }
  write(dx, values);
}

void ReferenceBackend::matmul(const Tensor& out, const Tensor& a, const Tensor& b, const Tensor& bias,
                              const MatmulArgs& args) {
  const std::size_t M = at(a.dim(-2)), K = at(a.dim(-1)), N = at(b.dim(-1));
  const std::size_t batches = out.numel() ? at(out.numel()) / (M * N) : 0;
  const Values left = read(a), right = read(b), shift = bias ? read(bias) : Values(N, 0);
  Values result = args.accumulate ? read(out) : Values(at(out.numel()), 0);
  std::vector<double> row(N);
  for (std::size_t i = 0; i < batches * M; ++i) {
    const double* matrix = right.data() + i / M * K * N;
    std::fill(row.begin(), row.end(), 0);
    for (std::size_t k = 0; k < K; ++k) {
      for (std::size_t n = 0; n < N; ++n) row[n] += left[i * K + k] * matrix[k * N + n];
    }
    for (std::size_t n = 0; n < N; ++n) result[i * N + n] += args.alpha * row[n] + shift[n];
  }
  write(out, result);
}

// ---- norms
// -------------------------------------------------------------------------------------------------------------
void ReferenceBackend::norm(const Tensor& out, const Tensor& mean, const Tensor& rstd, const Tensor& x,
                            const Tensor& weight, const Tensor& bias, const NormArgs& args) {
  const NormLayout layout(x, args);
  Values values = read(x), means(at(layout.rows), 0), rstds(at(layout.rows));
  const Values scale = weight ? read(weight) : Values(at(layout.channels), 1);
  const Values shift = bias ? read(bias) : Values(at(layout.channels), 0);
  const double count = static_cast<double>(layout.size);
  for (std::int64_t row = 0; row < layout.rows; ++row) {
    const std::int64_t begin = row * layout.size, end = begin + layout.size;
    double squares = 0;
    for (std::int64_t i = begin; i < end && args.kind != NormKind::rms; ++i)
      means[at(row)] += values[at(i)] / count;
    for (std::int64_t i = begin; i < end; ++i) squares += std::pow(values[at(i)] - means[at(row)], 2);
    rstds[at(row)] = 1 / std::sqrt(squares / count + args.eps);
    for (std::int64_t i = begin; i < end; ++i) {
      const double normed = (values[at(i)] - means[at(row)]) * rstds[at(row)];
      values[at(i)] = normed * scale[layout.channel(i)] + shift[layout.channel(i)];
    }
  }
  write(out, values);
  write(rstd, rstds);
  if (mean) write(mean, means);
}

void ReferenceBackend::norm_backward(const Tensor& dx, const Tensor& dweight, const Tensor& dbias,
                                     const Tensor& dy, const Tensor& x, const Tensor& mean,
                                     const Tensor& rstd, const Tensor& weight, const NormArgs& args) {
  const NormLayout layout(x, args);
  const Values inputs = read(x), rstds = read(rstd), means = mean ? read(mean) : Values(at(layout.rows), 0);
  const Values scale = weight ? read(weight) : Values(at(layout.channels), 1);
  Values values = read(dy), weight_sums(at(layout.channels), 0), bias_sums(at(layout.channels), 0);
  const double count = static_cast<double>(layout.size);
  for (std::int64_t row = 0; row < layout.rows; ++row) {
    const std::int64_t begin = row * layout.size, end = begin + layout.size;
    const auto normed = [&](std::int64_t i) { return (inputs[at(i)] - means[at(row)]) * rstds[at(row)]; };
    double average = 0, projection = 0;
    for (std::int64_t i = begin; i < end; ++i) {
      weight_sums[layout.channel(i)] += values[at(i)] * normed(i);
      bias_sums[layout.channel(i)] += values[at(i)];
      values[at(i)] *= scale[layout.channel(i)];
      average += values[at(i)] / count;
      projection += values[at(i)] * normed(i) / count;
    }
    if (args.kind == NormKind::rms) average = 0;
    for (std::int64_t i = begin; i < end; ++i) {
      values[at(i)] = rstds[at(row)] * (values[at(i)] - average - normed(i) * projection);
    }
  }
  write(dx, values);
  if (dweight) write(dweight, weight_sums);
  if (dbias) write(dbias, bias_sums);
}

// ---- rope, rows
// --------------------------------------------------------------------------------------------------------
void ReferenceBackend::rope(const Tensor& out, const Tensor& x, const Tensor& cos, const Tensor& sin,
                            bool inverse) {
  Values values = read(x);
  const Values cosines = read(cos), sines = read(sin);
  const std::size_t L = at(x.dim(1)), H = at(x.dim(2)), half = at(x.dim(3)) / 2;
  for (std::size_t pair = 0; pair < values.size() / 2; ++pair) {
    const std::size_t entry = pair / half / H % L * half + pair % half;
    const double c = cosines[entry], s = inverse ? -sines[entry] : sines[entry];
    const double x0 = values[2 * pair], x1 = values[2 * pair + 1];
    values[2 * pair] = x0 * c - x1 * s;
    values[2 * pair + 1] = x1 * c + x0 * s;
  }
  write(out, values);
}

void ReferenceBackend::gather_rows(const Tensor& out, const Tensor& table, const Tensor& ids) {
  const Values rows = read(table), numbers = read(ids);
  const std::size_t width = at(table.dim(1));
  Values values;
  for (const double id : numbers) {
    const auto row = rows.begin() + static_cast<std::ptrdiff_t>(id) * static_cast<std::ptrdiff_t>(width);
    values.insert(values.end(), row, row + static_cast<std::ptrdiff_t>(width));
  }
  write(out, values);
}

void ReferenceBackend::scatter_add_rows(const Tensor& table, const Tensor& rows, const Tensor& ids) {
  Values sums = read(table);
  const Values terms = read(rows), numbers = read(ids);
  const std::size_t width = at(table.dim(1));
  for (std::size_t i = 0; i < terms.size(); ++i)
    sums[static_cast<std::size_t>(numbers[i / width]) * width + i % width] += terms[i];
  write(table, sums);
}

// ---- convolution: one loop over all products, told what to do with each
// ------------------------------------------------
namespace {

/// body(out index, x index, weight index) for every product that a convolution sums.
template <class Body>
void each_product(const Shape& out, const Shape& x, const Shape& weight, const ConvArgs& args, Body body) {
  for (std::int64_t b = 0; b < out[0]; ++b)
    for (std::int64_t o = 0; o < out[1]; ++o)
      for (std::int64_t i = 0; i < out[2]; ++i)
        for (std::int64_t j = 0; j < out[3]; ++j)
          for (std::int64_t c = 0; c < x[1]; ++c)
            for (std::int64_t u = 0; u < weight[2]; ++u)
              for (std::int64_t v = 0; v < weight[3]; ++v) {
                const std::int64_t row = i * args.stride + u - args.pad_top,
                                   column = j * args.stride + v - args.pad_left;
                if (row < 0 || row >= x[2] || column < 0 || column >= x[3]) continue;
                body(at(((b * out[1] + o) * out[2] + i) * out[3] + j),
                     at(((b * x[1] + c) * x[2] + row) * x[3] + column),
                     at(((o * x[1] + c) * weight[2] + u) * weight[3] + v));
              }
}

}  // namespace

void ReferenceBackend::conv2d(const Tensor& out, const Tensor& x, const Tensor& weight, const Tensor& bias,
                              const ConvArgs& args) {
  const Values image = read(x), kernel = read(weight), shift = bias ? read(bias) : Values(at(out.dim(1)), 0);
  Values values(at(out.numel()));
  const std::size_t pixels = at(out.dim(2) * out.dim(3));
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = shift[i / pixels % shift.size()];
  each_product(out.shape(), x.shape(), weight.shape(), args,
               [&](std::size_t y, std::size_t from, std::size_t w) { values[y] += image[from] * kernel[w]; });
  write(out, values);
}

void ReferenceBackend::conv2d_backward_data(const Tensor& dx, const Tensor& dy, const Tensor& weight,
                                            const ConvArgs& args) {
  const Values gradient = read(dy), kernel = read(weight);
  Values values(at(dx.numel()), 0);
  each_product(dy.shape(), dx.shape(), weight.shape(), args,
               [&](std::size_t y, std::size_t to, std::size_t w) { values[to] += gradient[y] * kernel[w]; });
  write(dx, values);
}

void ReferenceBackend::conv2d_backward_weight(const Tensor& dweight, const Tensor& dbias, const Tensor& dy,
                                              const Tensor& x, const ConvArgs& args) {
  const Values gradient = read(dy), image = read(x);
  Values values(at(dweight.numel()), 0), bias_sums(at(dy.dim(1)), 0);
  each_product(
      dy.shape(), x.shape(), dweight.shape(), args,
      [&](std::size_t y, std::size_t from, std::size_t w) { values[w] += gradient[y] * image[from]; });
  write(dweight, values);
  const std::size_t pixels = at(dy.dim(2) * dy.dim(3));
  for (std::size_t i = 0; i < gradient.size(); ++i) bias_sums[i / pixels % bias_sums.size()] += gradient[i];
  if (dbias) write(dbias, bias_sums);
}

// ---- update
// ------------------------------------------------------------------------------------------------------------
void ReferenceBackend::adamw(const Tensor& parameter, const Tensor& master, const Tensor& m, const Tensor& v,
                             const Tensor& gradient, const AdamWArgs& args) {
  Values weights = read(master), first = read(m), second = read(v);
  const Values gradients = read(gradient);
  const double beta1 = args.beta1, beta2 = args.beta2, steps = static_cast<double>(args.step);
  const double correction1 = 1 - std::pow(beta1, steps), correction2 = 1 - std::pow(beta2, steps);
  for (std::size_t i = 0; i < weights.size(); ++i) {
    const double g = gradients[i] * args.gradient_scale;
    first[i] = beta1 * first[i] + (1 - beta1) * g;
    second[i] = beta2 * second[i] + (1 - beta2) * g * g;
    weights[i] *= 1 - double{args.lr} * args.weight_decay;
    weights[i] -= args.lr / correction1 * first[i] / (std::sqrt(second[i] / correction2) + args.eps);
  }
  write(master, weights);
  write(m, first);
  write(v, second);
  write(parameter, weights);
}

}  // namespace danceflux::test
