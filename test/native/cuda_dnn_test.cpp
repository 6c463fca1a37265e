// Attention through cuDNN in each way that one may offer: what it is told, and what comes of it. The stand-in
// does the operations one by one, so a graph that is not attention gives other numbers.
#include <algorithm>
#include <map>
#include <set>

#include "backend/cuda/dnn_attention.h"
#include "cuda/emulated_cuda.h"
#include "harness.h"
#include "op_readers.h"
#include "op_rows.h"
#include "reference_backend.h"

namespace danceflux::test {
namespace {

using cuda::AttentionPass;
using cuda::AttentionWay;
using cuda::DnnGraph;
using cuda::DnnPlace;

constexpr AttentionWay kWays[] = {AttentionWay::unified, AttentionWay::composite};
constexpr AttentionPass kPasses[] = {AttentionPass::forward, AttentionPass::backward};

/// Heads as a joint projection leaves them: q of [B, Lq, 3, H, K], k and v of [B, Lk, 3, H, K].
OpCase strided_attention(std::int64_t B, std::int64_t Lq, std::int64_t Lk, std::int64_t H, std::int64_t K) {
  OpCase row{
      .name = label("attention of joint", Shape{B, Lq, 3, H, K}, Lk, "keys"),
      .family = Family::attention,
      .inputs = {{.shape = {B, Lq, 3, H, K}, .batched = true}, {.shape = {B, Lk, 3, H, K}, .batched = true}}};
  row.activations = DType::bf16;
  row.forward = [K](std::span<const Tensor> in) {
    const auto third = [](const Tensor& x, std::int64_t which) {
      return ops::reshape(ops::narrow(x, 2, which, 1), {x.dim(0), x.dim(1), x.dim(3), x.dim(4)});
    };
    return std::vector{ops::attention(third(in[0], 0), third(in[1], 1), third(in[1], 2), {},
                                      {.scale = 1 / std::sqrt(static_cast<float>(K))})};
  };
  return row;
}

struct Offered {
  const char* what;
  std::size_t version;
  unsigned refused;
  const char *forward, *backward;          // the ways, where the same bits are wanted
  const char *forward_off, *backward_off;  // and where not
};
constexpr const char *kUnified = "unified", *kComposite = "composite", *kOwn = "own kernels";
const Offered kOffers[] = {
    {"all", 92400, 0, kUnified, kComposite, kUnified, kUnified},
    {"no unified engine", 92400, FakeCudnn::unified, kComposite, kComposite, kComposite, kComposite},
    {"9.1", 90100, 0, kComposite, kComposite, kComposite, kComposite},
    {"9.14", 91400, 0, kUnified, kComposite, kUnified, kComposite},
    {"forward only", 92400, FakeCudnn::backward, kUnified, kOwn, kUnified, kOwn},
    {"forward only, composite", 90800, FakeCudnn::backward, kComposite, kOwn, kComposite, kOwn},
    {"no composite engine", 92400, FakeCudnn::composite, kUnified, kOwn, kUnified, kUnified},
    {"neither", 92400, FakeCudnn::unified | FakeCudnn::composite, kOwn, kOwn, kOwn, kOwn},
    {"other bits at each run", 92400, FakeCudnn::repeatable, kOwn, kOwn, kUnified, kUnified},
    {"9.10.1, which is wrong", 91001, 0, kOwn, kOwn, kOwn, kOwn},
};

std::string options_of(const std::string& determinism) {
  return R"({"determinism": ")" + determinism + "\"}";
}

/// What the device says of a forward and a backward of `keys` keys.
std::string expected_words(const Offered& offered, bool off, std::int64_t keys) {
  const std::string forward = off ? offered.forward_off : offered.forward;
  std::string backward = off ? offered.backward_off : offered.backward;
  if (backward == kComposite && offered.version <= 91500 && keys % 128 != 0) backward = kOwn;
  return "; attention " + forward + "; its gradient " + backward;
}

double allowed_error(const OpCase& row, bool gradient) {
  const double rounded = rounding_of(DType::bf16);
  return gradient ? gradient_tolerance(row.family, row.activations) + 2 * rounded
                  : forward_tolerance(row.family, row.activations) + rounded;
}

void compare(Complaints& complaints, const std::string& what, const Columns& got, const Columns& wanted,
             double allowed) {
  for (std::size_t i = 0; i < wanted.size(); ++i)
    if (const double error = error_of(got.at(i), wanted[i]); !(error <= allowed))
      complaints.add(what, ", column ", i, ": expected an error of ", allowed, " or less, got ", error);
}

/// Tensors as attention gets them, of which nothing is read here.
struct Call {
  Tensor q, k, v, out, lse, dout, dq, dk, dv;
  Call(Backend& device, std::int64_t B, std::int64_t Lq, std::int64_t Lk, std::int64_t H, std::int64_t K,
       DType dtype = DType::bf16) {
    const Tensor joint = device.empty({B, Lk, 3, H, K}, dtype);
    q = device.empty({B, Lq, H, K}, dtype);
    k = joint.narrow(2, 1, 1).view({B, Lk, H, K});
    v = joint.narrow(2, 2, 1).view({B, Lk, H, K});
    out = device.empty(q.shape(), dtype), dout = device.empty(q.shape(), dtype);
    dq = device.empty(q.shape(), dtype), dk = device.empty(k.shape(), dtype),
    dv = device.empty(k.shape(), dtype);
    lse = device.empty({B, H, Lq});
  }
  cuda::AttentionTensors tensors() const { return {q, k, v, out, lse, &dout, &dq, &dk, &dv}; }
  DnnGraph graph(AttentionWay way, AttentionPass pass, bool repeatable = true) const {
    return cuda::attention_graph(way, pass, tensors(), q.dim(0), repeatable).graph;
  }
};

const cuda::DnnTensor& tensor_of(const DnnGraph& graph, std::int64_t id) {
  return graph.tensors.at(static_cast<std::size_t>(id) - 1);
}

std::size_t count_of(const DnnGraph& graph, cudnnBackendDescriptorType_t type) {
  return static_cast<std::size_t>(
      std::count_if(graph.operations.begin(), graph.operations.end(),
                    [&](const auto& operation) { return operation.type == type; }));
}

/// Whether the stand-in makes a plan of it.
bool planned(const DnnGraph& graph) {
  static const cuda::DnnFunctions functions = [] {
    cuda::DnnFunctions found;
    void* library = cuda::open_library(cuda::dnn_library(), nullptr);
#define DF_FIND(name) \
  found.name = reinterpret_cast<decltype(found.name)>(cuda::find_symbol(library, cuda::dnn_library(), #name));
    DANCEFLUX_DNN_FUNCTIONS(DF_FIND)
#undef DF_FIND
    return found;
  }();
  cudnnHandle_t handle = nullptr;
  functions.cudnnCreate(&handle);
  const bool made = cuda::DnnPlan::make(functions, handle, graph, {true, false}) != nullptr;
  functions.cudnnDestroy(handle);
  return made;
}

}  // namespace

TEST("cudnn: attention and its gradient in each way, and the device says which") {
  const auto reference = std::make_shared<ReferenceBackend>();
  Complaints complaints;
  for (const OpCase& row : {strided_attention(2, 40, 40, 3, 16), strided_attention(2, 24, 128, 2, 32)}) {
    const std::int64_t keys = row.inputs[1].shape[1];
    const Columns values = forward_values(*reference, row), gradients = gradient_values(*reference, row);
    for (const Offered& offered : kOffers)
      for (const std::string level : {"strict", "run-to-run", "off"}) {
        EmulatedMachine machine;
        machine.cudnn(offered.version, offered.refused);
        const auto device = open_emulated_cuda(options_of(level));
        const std::string what = label(row.name, "with", offered.what, level);
        complaints.during(what, [&] {
          compare(complaints, what, forward_values(*device, row), values, allowed_error(row, false));
          const Columns got = gradient_values(*device, row);
          compare(complaints, what + ", gradients", got, gradients, allowed_error(row, true));
          if (level != "off" && gradient_values(*device, row) != got)
            complaints.add(what, ": expected the same bits again");
          const std::string wanted = expected_words(offered, level == "off", keys);
          if (!device->description().ends_with(wanted))
            complaints.add(what, ": expected \"", wanted, "\" at the end of \"", device->description(), '"');
          if (!device->declined().empty()) complaints.add(what, ": expected nothing declined");
        });
      }
  }
  complaints.finish();
}

TEST("cudnn: an engine that differs from run to run is taken with determinism off, and shows") {
  EmulatedMachine machine;
  const OpCase row = strided_attention(1, 40, 40, 3, 16);
  for (const unsigned refused : {0u, static_cast<unsigned>(FakeCudnn::unified)}) {
    machine.cudnn(92400, refused);
    const auto device = open_emulated_cuda(options_of("off"));
    CHECK(gradient_values(*device, row) != gradient_values(*device, row));
  }
}

TEST("cudnn: strict gives it an image alone, run-to-run all at once") {
  EmulatedMachine machine;
  machine.cudnn(92400, FakeCudnn::unified);
  const OpCase row = strided_attention(3, 24, 40, 2, 16);
  const auto runs = [&](const char* level) {
    const auto device = open_emulated_cuda(options_of(level));
    const int before = emulated_cudnn().composite_runs;
    forward_values(*device, row);
    return emulated_cudnn().composite_runs - before;
  };
  CHECK_EQ(runs("strict"), 3);
  CHECK_EQ(runs("run-to-run"), 1);
  const auto device = open_emulated_cuda();
  const auto inputs = make_inputs(*device, row);
  const Tensor together = row.forward(inputs)[0];
  const std::vector<Tensor> last = {inputs[0].narrow(0, 2, 1), inputs[1].narrow(0, 2, 1)};
  CHECK(ops::to_host(row.forward(last)[0]) == ops::to_host(together.narrow(0, 2, 1)));
}

TEST("cudnn: a graph's key tells every graph from every other") {
  const auto device = open_emulated_cuda();
  std::map<std::string, std::string> seen;
  const auto add = [&](const std::string& what, const DnnGraph& graph) {
    const auto [entry, fresh] = seen.emplace(graph.key(), what);
    if (!fresh)
      fail_at(__FILE__, __LINE__, "expected a key of its own for ", what, ", got that of ", entry->second);
  };
  const Call call(*device, 2, 24, 40, 3, 16);
  for (const AttentionWay way : kWays)
    for (const AttentionPass pass : kPasses) {
      const std::string what = label(static_cast<int>(way), static_cast<int>(pass));
      add(what, call.graph(way, pass));
      add(what + " of one image", cuda::attention_graph(way, pass, call.tensors(), 1, true).graph);
      add(what + " more queries", Call(*device, 2, 32, 40, 3, 16).graph(way, pass));
      add(what + " more keys", Call(*device, 2, 24, 48, 3, 16).graph(way, pass));
      add(what + " wider", Call(*device, 2, 24, 40, 3, 24).graph(way, pass));
      add(what + " f16", Call(*device, 2, 24, 40, 3, 16, DType::f16).graph(way, pass));
      Call packed = call;
      packed.k = packed.dk;
      add(what + " other strides", packed.graph(way, pass));
      CHECK_EQ(call.graph(way, pass).key(), Call(*device, 2, 24, 40, 3, 16).graph(way, pass).key());
    }
  add("in any order", call.graph(AttentionWay::composite, AttentionPass::backward, false));
}

TEST("cudnn: composite graphs hand every tensor on once, in order") {
  const auto device = open_emulated_cuda();
  const Call call(*device, 2, 24, 40, 3, 16);
  for (const AttentionPass pass : kPasses)
    for (const bool repeatable : {true, false}) {
      const DnnGraph graph = call.graph(AttentionWay::composite, pass, repeatable);
      std::set<std::int64_t> written, used;
      for (const cuda::DnnOperation& operation : graph.operations) {
        for (std::size_t i = 0; i < operation.tensors.size(); ++i) {
          const std::int64_t id = operation.tensors[i].second;
          used.insert(id);
          if (i + 1 == operation.tensors.size())
            CHECK(written.insert(id).second);
          else if (tensor_of(graph, id).place == DnnPlace::between)
            CHECK(written.count(id));
        }
      }
      CHECK_EQ(used.size(), graph.tensors.size());
      const bool forward = pass == AttentionPass::forward;
      CHECK_EQ(count_of(graph, CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR), forward ? 2u : 5u);
      CHECK_EQ(count_of(graph, CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR), forward ? 2u : 1u);
      CHECK_EQ(count_of(graph, CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR), forward ? 0u : 3u);
      // K comes turned, by its strides alone; V too where it is the right side of a product as it is stored.
      CHECK(tensor_of(graph, 2).dims == (std::vector<std::int64_t>{2, 3, 16, 40}));
      CHECK(tensor_of(graph, 2).strides == (std::vector<std::int64_t>{40 * 3 * 48, 16, 1, 3 * 48}));
      CHECK(tensor_of(graph, 3).dims ==
            (std::vector<std::int64_t>{2, 3, forward ? 40 : 16, forward ? 16 : 40}));
      const auto outside = std::count_if(graph.tensors.begin(), graph.tensors.end(), [](const auto& tensor) {
        return tensor.place != DnnPlace::between;
      });
      CHECK_EQ(outside, forward ? 6 : repeatable ? 12 : 13);
    }
}

TEST("cudnn: which ways a version has, and which it does wrong") {
  const auto has = [](AttentionWay way, AttentionPass pass, std::size_t version, int capability = 9,
                      bool repeatable = true, std::int64_t queries = 24, std::int64_t keys = 40) {
    return cuda::has_way(way, pass, {version, capability, repeatable, queries, keys});
  };
  const auto unified = AttentionWay::unified, composite = AttentionWay::composite;
  const auto forward = AttentionPass::forward, backward = AttentionPass::backward;
  CHECK(!has(unified, forward, 91300) && has(unified, forward, 91301));
  CHECK(!has(unified, backward, 91600, 9, false) && has(unified, backward, 91700, 9, false));
  CHECK(!has(unified, backward, 92400));  // it does not say whether it repeats itself
  CHECK(has(composite, forward, 90000) && has(composite, forward, 92400));
  CHECK(!has(composite, forward, 91000) && !has(composite, backward, 91001, 9, true, 24, 128));
  CHECK(has(composite, forward, 91002) && has(composite, backward, 91002, 9, true, 24, 128));
  CHECK(!has(composite, backward, 91500) && has(composite, backward, 91501));
  CHECK(has(composite, forward, 92400, 9, true, 1, 1) && !has(composite, backward, 92400, 9, true, 1, 1));
  CHECK(!has(composite, backward, 92400, 10) && has(composite, backward, 92400, 10, false));
  CHECK(has(composite, backward, 92400, 8) && has(composite, backward, 92400, 12));
}

TEST("cudnn: a graph with a mistake in it has no plan") {
  const auto device = open_emulated_cuda();
  const Call call(*device, 2, 24, 40, 3, 16);
  for (const AttentionPass pass : kPasses) {
    const auto changed = [&](const std::function<void(DnnGraph&)>& change) {
      DnnGraph graph = call.graph(AttentionWay::composite, pass);
      change(graph);
      return planned(graph);
    };
    CHECK(changed([](DnnGraph&) {}));
    CHECK(!changed([](DnnGraph& g) { g.operations[0].manner.reset(); }));
    CHECK(!changed([](DnnGraph& g) { g.operations[0].manner->attributes.pop_back(); }));
    CHECK(!changed([](DnnGraph& g) { g.operations[0].tensors.pop_back(); }));
    CHECK(!changed([](DnnGraph& g) { g.operations.push_back(g.operations.back()); }));  // writes twice
    CHECK(!changed([](DnnGraph& g) { g.operations.erase(g.operations.begin()); }));  // reads what none wrote
    CHECK(!changed([](DnnGraph& g) { g.tensors[0].dims[3] = 8; }));
    CHECK(!changed([](DnnGraph& g) { g.tensors[0].alignment = 1; }));
    CHECK(!changed([](DnnGraph& g) { g.tensors[5].place = DnnPlace::between; }));
  }
}

}  // namespace danceflux::test
