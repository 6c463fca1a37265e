// libcudnn.so.9 for tests: keeps what the descriptors are told and does it on the host. It names three
// engines for a graph: one whose bits differ from run to run and one that rounds f32 inputs, which must not
// be taken, and a good one.
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <vector>

#include "backend/cuda/formulas.h"
#include "stand_in/cudnn.h"

using danceflux::cuda::Bf16;
using danceflux::cuda::F16;
using danceflux::cuda::narrow_to;
using danceflux::cuda::widen;

struct cudnnContext {};

namespace {

constexpr std::int64_t kWorkspace = 1000;
enum Engine : std::int64_t { kUnsteady, kRounding, kGood, kEngines };

struct Descriptor {
  cudnnBackendDescriptorType_t type;
  std::map<int, std::vector<char>> values;
  bool final = false;
  std::int64_t engine = -1;  // of configurations and engines
  Descriptor* graph = nullptr;

  template <class T>
  std::vector<T> list(int name) const {
    const auto found = values.find(name);
    if (found == values.end()) return {};
    std::vector<T> result(found->second.size() / sizeof(T));
    std::memcpy(result.data(), found->second.data(), result.size() * sizeof(T));
    return result;
  }
  template <class T>
  T one(int name) const {
    const auto all = list<T>(name);
    return all.empty() ? T{} : all[0];
  }
  Descriptor* of(int name) const { return one<Descriptor*>(name); }
};

std::size_t size_of(cudnnBackendAttributeType_t type) {
  switch (type) {
    case CUDNN_TYPE_BOOLEAN:
      return 1;
    case CUDNN_TYPE_DATA_TYPE:
    case CUDNN_TYPE_FLOAT:
    case CUDNN_TYPE_CONVOLUTION_MODE:
    case CUDNN_TYPE_HEUR_MODE:
      return 4;
    default:
      return 8;
  }
}

/// A tensor with its memory.
struct View {
  std::vector<std::int64_t> dims, strides;
  cudnnDataType_t type = CUDNN_DATA_FLOAT;
  void* base = nullptr;
  std::int64_t at(std::int64_t a, std::int64_t b, std::int64_t c, std::int64_t d) const {
    return a * strides[0] + b * strides[1] + c * strides[2] + d * strides[3];
  }
  float get(std::int64_t a, std::int64_t b, std::int64_t c, std::int64_t d) const {
    const std::int64_t i = at(a, b, c, d);
    if (type == CUDNN_DATA_FLOAT) return static_cast<const float*>(base)[i];
    if (type == CUDNN_DATA_HALF) return widen(static_cast<const F16*>(base)[i]);
    return widen(static_cast<const Bf16*>(base)[i]);
  }
  void put(std::int64_t a, std::int64_t b, std::int64_t c, std::int64_t d, float value) const {
    const std::int64_t i = at(a, b, c, d);
    if (type == CUDNN_DATA_FLOAT) {
      static_cast<float*>(base)[i] = value;
    } else if (type == CUDNN_DATA_HALF) {
      static_cast<F16*>(base)[i] = narrow_to<F16>(value);
    } else {
      static_cast<Bf16*>(base)[i] = narrow_to<Bf16>(value);
    }
  }
};

struct Run {
  const Descriptor& operation;
  std::map<std::int64_t, void*> pointers;

  bool bound(int role) const { return operation.of(role) != nullptr; }
  View view(int role) const {
    const Descriptor& t = *operation.of(role);
    View v{t.list<std::int64_t>(CUDNN_ATTR_TENSOR_DIMENSIONS),
           t.list<std::int64_t>(CUDNN_ATTR_TENSOR_STRIDES),
           t.one<cudnnDataType_t>(CUDNN_ATTR_TENSOR_DATA_TYPE),
           pointers.at(t.one<std::int64_t>(CUDNN_ATTR_TENSOR_UNIQUE_ID))};
    return v;
  }
  float scalar(int role) const { return bound(role) ? *static_cast<const float*>(view(role).base) : 1.0f; }
};

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
    for (std::int64_t a = 0; a < to.dims[0]; ++a)
      for (std::int64_t b = 0; b < to.dims[1]; ++b)
        for (std::int64_t c = 0; c < to.dims[2]; ++c)
          for (std::int64_t d = 0; d < to.dims[3]; ++d) to.put(a, b, c, d, (*this)(a, b, c, d));
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

using Operation = void (*)(const Run&);
Operation operation_of(cudnnBackendDescriptorType_t type) {
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

Descriptor& real(cudnnBackendDescriptor_t descriptor) { return *static_cast<Descriptor*>(descriptor); }

}  // namespace

extern "C" {

std::size_t cudnnGetVersion() { return 92400; }
const char* cudnnGetErrorString(cudnnStatus_t) { return "refused by the fake"; }
cudnnStatus_t cudnnCreate(cudnnHandle_t* handle) { return *handle = new cudnnContext, CUDNN_STATUS_SUCCESS; }
cudnnStatus_t cudnnDestroy(cudnnHandle_t handle) {
  delete handle;
  return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnSetStream(cudnnHandle_t, cudaStream_t) { return CUDNN_STATUS_SUCCESS; }
cudnnStatus_t cudnnBackendCreateDescriptor(cudnnBackendDescriptorType_t type,
                                           cudnnBackendDescriptor_t* made) {
  return *made = new Descriptor{type}, CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnBackendDestroyDescriptor(cudnnBackendDescriptor_t descriptor) {
  delete static_cast<Descriptor*>(descriptor);
  return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnBackendSetAttribute(cudnnBackendDescriptor_t descriptor, cudnnBackendAttributeName_t name,
                                       cudnnBackendAttributeType_t type, std::int64_t count,
                                       const void* values) {
  if (real(descriptor).final) return CUDNN_STATUS_BAD_PARAM;
  const auto* bytes = static_cast<const char*>(values);
  if (type == CUDNN_TYPE_BACKEND_DESCRIPTOR && !real(*static_cast<Descriptor* const*>(values)).final)
    return CUDNN_STATUS_BAD_PARAM;
  real(descriptor).values[name].assign(bytes, bytes + static_cast<std::size_t>(count) * size_of(type));
  return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnBackendFinalize(cudnnBackendDescriptor_t descriptor) {
  Descriptor& d = real(descriptor);
  if (d.type == CUDNN_BACKEND_TENSOR_DESCRIPTOR) {
    const auto dims = d.list<std::int64_t>(CUDNN_ATTR_TENSOR_DIMENSIONS);
    if (dims.size() != 4 || d.list<std::int64_t>(CUDNN_ATTR_TENSOR_STRIDES).size() != 4)
      return CUDNN_STATUS_BAD_PARAM;
    for (const std::int64_t dim : dims)
      if (dim < 1) return CUDNN_STATUS_BAD_PARAM;
  }
  if (d.type == CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR) {
    const Descriptor* config = d.of(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG);
    if (!config || !d.of(CUDNN_ATTR_EXECUTION_PLAN_HANDLE)) return CUDNN_STATUS_BAD_PARAM;
    d.graph = config->graph;
    d.engine = config->engine;
  }
  d.final = true;
  return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnBackendGetAttribute(cudnnBackendDescriptor_t descriptor, cudnnBackendAttributeName_t name,
                                       cudnnBackendAttributeType_t, std::int64_t asked, std::int64_t* got,
                                       void* values) {
  Descriptor& d = real(descriptor);
  switch (name) {
    case CUDNN_ATTR_ENGINEHEUR_RESULTS: {
      Descriptor* graph = d.of(CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH);
      if (!operation_of(graph->of(CUDNN_ATTR_OPERATIONGRAPH_OPS)->type)) return CUDNN_STATUS_NOT_SUPPORTED;
      for (*got = 0; *got < kEngines && *got < asked; ++*got) {
        Descriptor& config = *static_cast<Descriptor**>(values)[*got];
        config.graph = graph;
        config.engine = *got;
        config.final = true;
      }
      return CUDNN_STATUS_SUCCESS;
    }
    case CUDNN_ATTR_ENGINECFG_ENGINE:
      (*static_cast<Descriptor**>(values))->engine = d.engine;
      return *got = 1, CUDNN_STATUS_SUCCESS;
    case CUDNN_ATTR_ENGINE_NUMERICAL_NOTE: {
      const auto note = d.engine == kUnsteady ? CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC
                                              : CUDNN_NUMERICAL_NOTE_DOWN_CONVERT_INPUTS;
      *got = d.engine == kGood ? 0 : 1;
      if (*got) *static_cast<cudnnBackendNumericalNote_t*>(values) = note;
      return CUDNN_STATUS_SUCCESS;
    }
    case CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE:
      *static_cast<std::int64_t*>(values) = kWorkspace;
      return *got = 1, CUDNN_STATUS_SUCCESS;
    default:
      return CUDNN_STATUS_BAD_PARAM;
  }
}
cudnnStatus_t cudnnBackendExecute(cudnnHandle_t, cudnnBackendDescriptor_t plan,
                                  cudnnBackendDescriptor_t pack) {
  const Descriptor &p = real(plan), &v = real(pack);
  if (!p.final || !v.final || p.engine == kUnsteady) return CUDNN_STATUS_BAD_PARAM;
  auto* workspace = static_cast<char*>(v.one<void*>(CUDNN_ATTR_VARIANT_PACK_WORKSPACE));
  if (!workspace) return CUDNN_STATUS_BAD_PARAM;
  std::memset(workspace, 0x5a, kWorkspace);
  const Descriptor& operation = *p.graph->of(CUDNN_ATTR_OPERATIONGRAPH_OPS);
  const auto ids = v.list<std::int64_t>(CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS);
  const auto pointers = v.list<void*>(CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS);
  if (ids.size() != pointers.size()) return CUDNN_STATUS_BAD_PARAM;
  Run run{operation, {}};
  for (std::size_t i = 0; i < ids.size(); ++i) run.pointers[ids[i]] = pointers[i];
  operation_of(operation.type)(run);
  return CUDNN_STATUS_SUCCESS;
}
}
