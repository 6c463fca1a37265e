// Attention and convolution as one operation each, done on the host.
#include <algorithm>
#include <cmath>
#include <limits>

#include "fake_cudnn.h"

namespace fake {
namespace {

/// Probabilities of one query, and log of the sum of exponentials.
std::vector<float> probabilities(const View& q, const View& k, std::int64_t b, std::int64_t h, std::int64_t i,
                                 float scale, float& log_sum) {
  std::vector<float> p(static_cast<std::size_t>(k.dims[2]));
  float highest = -std::numeric_limits<float>::infinity(), sum = 0;
  for (std::int64_t j = 0; j < k.dims[2]; ++j) {
    float dot = 0;
    for (std::int64_t d = 0; d < q.dims[3]; ++d) dot += q.get(b, h, i, d) * k.get(b, h, j, d);
    p[static_cast<std::size_t>(j)] = dot * scale;
    highest = std::max(highest, dot * scale);
  }
  for (float& each : p) sum += each = std::exp(each - highest);
  for (float& each : p) each /= sum;
  log_sum = highest + std::log(sum);
  return p;
}

void attention(const Run& run) {
  const View q = run.view(CUDNN_ATTR_OPERATION_SDPA_FWD_QDESC),
             k = run.view(CUDNN_ATTR_OPERATION_SDPA_FWD_KDESC),
             v = run.view(CUDNN_ATTR_OPERATION_SDPA_FWD_VDESC),
             o = run.view(CUDNN_ATTR_OPERATION_SDPA_FWD_ODESC),
             stats = run.view(CUDNN_ATTR_OPERATION_SDPA_FWD_STATSDESC);
  const float scale = run.scalar(CUDNN_ATTR_OPERATION_SDPA_FWD_SCALEDESC);
  for (std::int64_t b = 0; b < q.dims[0]; ++b)
    for (std::int64_t h = 0; h < q.dims[1]; ++h)
      for (std::int64_t i = 0; i < q.dims[2]; ++i) {
        float log_sum = 0;
        const auto p = probabilities(q, k, b, h, i, scale, log_sum);
        stats.put(b, h, i, 0, log_sum);
        for (std::int64_t d = 0; d < v.dims[3]; ++d) {
          float sum = 0;
          for (std::int64_t j = 0; j < v.dims[2]; ++j)
            sum += p[static_cast<std::size_t>(j)] * v.get(b, h, j, d);
          o.put(b, h, i, d, sum);
        }
      }
}

void attention_backward(const Run& run) {
  const auto view = [&](int role) { return run.view(role); };
  const View q = view(CUDNN_ATTR_OPERATION_SDPA_BWD_QDESC), k = view(CUDNN_ATTR_OPERATION_SDPA_BWD_KDESC),
             v = view(CUDNN_ATTR_OPERATION_SDPA_BWD_VDESC), o = view(CUDNN_ATTR_OPERATION_SDPA_BWD_ODESC),
             stats = view(CUDNN_ATTR_OPERATION_SDPA_BWD_STATSDESC),
             dod = view(CUDNN_ATTR_OPERATION_SDPA_BWD_DODDESC),
             dq = view(CUDNN_ATTR_OPERATION_SDPA_BWD_DQDESC), dk = view(CUDNN_ATTR_OPERATION_SDPA_BWD_DKDESC),
             dv = view(CUDNN_ATTR_OPERATION_SDPA_BWD_DVDESC);
  const float scale = run.scalar(CUDNN_ATTR_OPERATION_SDPA_BWD_SCALEDESC);
  const std::int64_t width = q.dims[3], keys = k.dims[2], queries = q.dims[2];
  for (std::int64_t b = 0; b < q.dims[0]; ++b)
    for (std::int64_t h = 0; h < q.dims[1]; ++h) {
      std::vector<float> key(static_cast<std::size_t>(keys * width)), value(key.size());
      for (std::int64_t i = 0; i < queries; ++i) {
        std::vector<float> query(static_cast<std::size_t>(width));
        float delta = 0;
        for (std::int64_t d = 0; d < width; ++d) delta += dod.get(b, h, i, d) * o.get(b, h, i, d);
        for (std::int64_t j = 0; j < keys; ++j) {
          float dot = 0, dp = 0;
          for (std::int64_t d = 0; d < width; ++d) {
            dot += q.get(b, h, i, d) * k.get(b, h, j, d);
            dp += dod.get(b, h, i, d) * v.get(b, h, j, d);
          }
          const float p = std::exp(dot * scale - stats.get(b, h, i, 0)), ds = p * (dp - delta) * scale;
          for (std::int64_t d = 0; d < width; ++d) {
            const auto at = static_cast<std::size_t>(j * width + d);
            query[static_cast<std::size_t>(d)] += ds * k.get(b, h, j, d);
            key[at] += ds * q.get(b, h, i, d);
            value[at] += p * dod.get(b, h, i, d);
          }
        }
        for (std::int64_t d = 0; d < width; ++d) dq.put(b, h, i, d, query[static_cast<std::size_t>(d)]);
      }
      for (std::int64_t j = 0; j < keys; ++j)
        for (std::int64_t d = 0; d < width; ++d) {
          dk.put(b, h, j, d, key[static_cast<std::size_t>(j * width + d)]);
          dv.put(b, h, j, d, value[static_cast<std::size_t>(j * width + d)]);
        }
    }
}

/// body(image, out channel, in channel, y row, y column, x row, x column, window row, window column)
template <class Body>
void each_product(const View& x, const View& w, const View& y, const Descriptor& convolution,
                  const Body& body) {
  const auto strides = convolution.list<std::int64_t>(CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES),
             before = convolution.list<std::int64_t>(CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS);
  for (std::int64_t b = 0; b < y.dims[0]; ++b)
    for (std::int64_t o = 0; o < y.dims[1]; ++o)
      for (std::int64_t i = 0; i < y.dims[2]; ++i)
        for (std::int64_t j = 0; j < y.dims[3]; ++j)
          for (std::int64_t c = 0; c < x.dims[1]; ++c)
            for (std::int64_t u = 0; u < w.dims[2]; ++u)
              for (std::int64_t v = 0; v < w.dims[3]; ++v) {
                const std::int64_t row = i * strides[0] + u - before[0],
                                   column = j * strides[1] + v - before[1];
                if (row < 0 || row >= x.dims[2] || column < 0 || column >= x.dims[3]) continue;
                body(b, o, c, i, j, row, column, u, v);
              }
}

struct Sums {
  const View& to;
  std::vector<float> values;
  explicit Sums(const View& view) : to(view), values(static_cast<std::size_t>(count())) {}
  std::int64_t count() const { return to.dims[0] * to.dims[1] * to.dims[2] * to.dims[3]; }
  float& operator()(std::int64_t a, std::int64_t b, std::int64_t c, std::int64_t d) {
    return values[static_cast<std::size_t>(((a * to.dims[1] + b) * to.dims[2] + c) * to.dims[3] + d)];
  }
  void store() {
    to.each([this](std::int64_t a, std::int64_t b, std::int64_t c, std::int64_t d) {
      to.put(a, b, c, d, (*this)(a, b, c, d));
    });
  }
};

using I = std::int64_t;

void conv_forward(const Run& run) {
  const View x = run.view(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X),
             w = run.view(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W),
             y = run.view(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y);
  Sums sums(y);
  each_product(x, w, y, *run.operation.of(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC),
               [&](I b, I o, I c, I i, I j, I row, I column, I u, I v) {
                 sums(b, o, i, j) += x.get(b, c, row, column) * w.get(o, c, u, v);
               });
  sums.store();
}
void conv_data(const Run& run) {
  const View x = run.view(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DX),
             w = run.view(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_W),
             y = run.view(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DY);
  Sums sums(x);
  each_product(x, w, y, *run.operation.of(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_CONV_DESC),
               [&](I b, I o, I c, I i, I j, I row, I column, I u, I v) {
                 sums(b, c, row, column) += y.get(b, o, i, j) * w.get(o, c, u, v);
               });
  sums.store();
}
void conv_weight(const Run& run) {
  const View x = run.view(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_X),
             w = run.view(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DW),
             y = run.view(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DY);
  Sums sums(w);
  each_product(x, w, y, *run.operation.of(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_CONV_DESC),
               [&](I b, I o, I c, I i, I j, I row, I column, I u, I v) {
                 sums(o, c, u, v) += y.get(b, o, i, j) * x.get(b, c, row, column);
               });
  sums.store();
}

}  // namespace

Operation large_operation(cudnnBackendDescriptorType_t type) {
  switch (type) {
    case CUDNN_BACKEND_OPERATION_SDPA_FWD_DESCRIPTOR:
      return attention;
    case CUDNN_BACKEND_OPERATION_SDPA_BWD_DESCRIPTOR:
      return attention_backward;
    case CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR:
      return conv_forward;
    case CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR:
      return conv_data;
    case CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_FILTER_DESCRIPTOR:
      return conv_weight;
    default:
      return nullptr;
  }
}

}  // namespace fake
