// What is particular to an Ascend device. Runs where DANCEFLUX_TEST_BACKEND names one; what needs the test
// double's own controls (faults, counts, violations) is left out on hardware.
#include <dlfcn.h>

#include <cstdlib>
#include <cstring>
#include <string_view>
#include <thread>

#include "backend/ascend/operators.h"
#include "backend/registry.h"
#include "harness.h"
#include "op_readers.h"

namespace danceflux::test {
namespace {

std::string device_name() {
  const char* name = std::getenv("DANCEFLUX_TEST_BACKEND");
  if (!name || std::strncmp(name, "ascend", 6) != 0)
    throw Skipped{"DANCEFLUX_TEST_BACKEND names no Ascend device"};
  return name;
}

std::shared_ptr<Backend> open_npu(const std::string& options = "{}") {
  device_name();
  return open_backend("ascend", 0, options);
}

/// The controls of the double, found in the process once its libraries are open.
struct Double {
  static Double find() {
    open_npu();
    Double found;
    const auto look = [](auto& function, const char* name) {
      function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(RTLD_DEFAULT, name));
      if (!function) throw Skipped{std::string("no test double here: ") + name};
    };
    look(found.calls, "ascend_double_calls");
    look(found.set_fault, "ascend_double_set_fault");
    look(found.clear_faults, "ascend_double_clear_faults");
    look(found.faults_left, "ascend_double_faults_left");
    look(found.violations, "ascend_double_violations");
    look(found.violation, "ascend_double_violation");
    look(found.clear_violations, "ascend_double_clear_violations");
    look(found.leaks, "ascend_double_leaks");
    look(found.leak, "ascend_double_leak");
    return found;
  }

  /// Rules that were broken, and what is still alive.
  std::string wrongs() const {
    std::string text;
    for (std::size_t i = 0; i < violations(); ++i) text += std::string("; violation: ") + violation(i);
    clear_violations();
    const std::size_t count = leaks();
    for (std::size_t i = 0; i < count; ++i) text += std::string("; leak: ") + leak(i);
    return text;
  }

  std::uint64_t (*calls)(const char*) = nullptr;
  void (*set_fault)(const char*, std::uint64_t, int) = nullptr;
  void (*clear_faults)() = nullptr;
  std::size_t (*faults_left)() = nullptr;
  std::size_t (*violations)() = nullptr;
  const char* (*violation)(std::size_t) = nullptr;
  void (*clear_violations)() = nullptr;
  std::size_t (*leaks)() = nullptr;
  const char* (*leak)(std::size_t) = nullptr;
};

constexpr int kAiCoreException = 507015, kTooLong = 507046, kHeartbeatLost = 507010, kNoMemory = 207001,
              kWrongParameter = 161002;

Tensor numbers(Backend& device, const Shape& shape, const char* seed) {
  return ops::from_host(device, shape, normal_stream(seed, shape.numel()));
}

/// What encoders and autoencoders do, forward and backward.
void more_of_life(Backend& device) {
  const Tensor words = numbers(device, {5, 4}, "words"), kernel = numbers(device, {4, 2, 3, 3}, "kernel"),
               scale = ops::full(device, {4}, 1), shift = ops::full(device, {4}, 0);
  const std::vector<std::int32_t> ids{3, 0, 3};
  const Tensor places = device.empty({3}, DType::i32);
  device.upload(places, ids.data());
  Tape tape;
  for (const Tensor& x : {words, kernel, scale, shift}) tape.watch(x);
  const Tensor rows = ops::unary(UnaryOp::quick_gelu, ops::embedding(words, places, ids));
  const Tensor picture =
      ops::conv2d(numbers(device, {1, 2, 4, 4}, "picture"), kernel, {},
                  {.stride = 1, .pad_top = 1, .pad_left = 1, .pad_bottom = 1, .pad_right = 1});
  const Tensor normal = ops::silu(ops::group_norm_silu(picture, 2, scale, shift, 1e-6f));
  const Tensor all = ops::add(ops::mean(normal, {0, 2, 3}), ops::reduce(ReduceOp::max, rows, {0}));
  tape.backward(all, ops::full(device, all.shape(), 1));
  for (const Tensor& x : {words, kernel, scale, shift}) ops::to_host(tape.gradient(x));
}

/// A little of everything that a device does, from opening to closing.
void short_life(const std::string& options) {
  const auto device = open_backend("ascend", 0, options);
  const Tensor x = numbers(*device, {2, 6, 32}, "x"), w = numbers(*device, {32, 32}, "w"),
               b = numbers(*device, {32}, "b"), table = numbers(*device, {6, 4}, "table"),
               vector = numbers(*device, {2, 32}, "v");
  Tape tape;
  tape.watch(w);
  Tensor y = ops::linear_activation(UnaryOp::gelu_tanh, ops::modulated_norm(x, vector, vector, 1e-6f), w, b);
  const Tensor heads =
      ops::qk_norm_rope(ops::reshape(y, {2, 6, 4, 8}), numbers(*device, {8}, "g"), table, table, 1e-6f);
  y = ops::reshape(ops::attention(heads, heads, heads, {}, {.scale = 0.35f, .causal = true}), {2, 6, 32});
  y = ops::gated_residual(x, vector, y);
  tape.backward(ops::softmax(y), x);
  const Tensor gradient = tape.gradient(w), master = ops::full(*device, {32, 32}, 1),
               m = ops::full(*device, {32, 32}, 0), v = ops::full(*device, {32, 32}, 0);
  ops::adamw_(master, master, m, v, gradient, {.lr = 1e-3, .gradient_scale = 0.5f});
  const Tensor image = ops::conv2d(numbers(*device, {1, 2, 5, 5}, "i"), numbers(*device, {3, 2, 3, 3}, "k"),
                                   {}, {.stride = 2, .pad_bottom = 1, .pad_right = 1});
  device->wait(device->record());
  ops::to_host(ops::group_norm(image, 3, {}, {}, 1e-6f));
  more_of_life(*device);
  for (const float value : ops::to_host(master)) CHECK(std::isfinite(value));
  device->trim();
}

}  // namespace

TEST("ascend device: every shortcut is taken") {
  const auto device = open_npu();
  device->strict_shortcuts = true;
  Complaints complaints;
  for (const OpCase& row : op_cases()) {
    const bool fused = *row.shortcut || *row.shortcut_backward;
    const bool composed = std::string_view(row.shortcut).starts_with("flow_");  // CANN has no such operator
    if (row.size != Size::test || !fused || composed) continue;
    complaints.during(row.name, [&] {
      forward_values(*device, row);
      if (row.differentiable) gradient_values(*device, row);
    });
  }
  complaints.finish();
}

TEST("ascend device: the same bits from run to run, and from planned operators used again") {
  const auto device = open_npu();
  const auto planned = open_backend("ascend", 0, R"({"ascend": {"executorCache": 64}})");
  Complaints complaints;
  for (const OpCase& row : op_cases()) {
    if (row.size != Size::test) continue;
    complaints.during(row.name, [&] {
      const Columns first = forward_values(*device, row);
      if (forward_values(*device, row) != first) complaints.add(row.name, ": other bits the second time");
      for (int turn = 0; turn < 2; ++turn) {
        if (forward_values(*planned, row) != first) complaints.add(row.name, ": other bits when planned");
      }
      if (!row.differentiable) return;
      const Columns slopes = gradient_values(*device, row);
      if (gradient_values(*device, row) != slopes) complaints.add(row.name, ": other gradients again");
      if (gradient_values(*planned, row) != slopes) complaints.add(row.name, ": other gradients, planned");
    });
  }
  complaints.finish();
}

TEST("ascend device: attention cut into launches has the same bits") {
  const Double cann = Double::find();
  constexpr std::int64_t kBatch = 3, kTokens = 7, kHeads = 4, kWidth = 8, kScores = kTokens * kTokens;
  struct Answer {
    std::vector<float> out, dq, dk, dv;
    std::uint64_t forward, backward;
  };
  const auto attend = [&](std::int64_t most, bool causal, const Shape& bias_shape) {
    const auto device = open_npu(R"({"ascend": {"attentionScores": )" + std::to_string(most) + "}}");
    const Shape shape{kBatch, kTokens, kHeads, kWidth};
    const Tensor q = numbers(*device, shape, "q"), k = numbers(*device, shape, "k"),
                 v = numbers(*device, shape, "v"), dout = numbers(*device, shape, "dout");
    const Tensor bias = bias_shape.rank() == 0 ? Tensor() : numbers(*device, bias_shape, "bias");
    const auto calls = [&](const char* call) { return cann.calls(call); };
    const std::uint64_t before = calls("aclnnFlashAttentionScore"),
                        after = calls("aclnnFlashAttentionScoreGrad");
    Tape tape;
    for (const Tensor& x : {q, k, v}) tape.watch(x);
    const Tensor out = ops::attention(q, k, v, bias, {.scale = 0.35f, .causal = causal});
    tape.backward(out, dout);
    return Answer{ops::to_host(out),
                  ops::to_host(tape.gradient(q)),
                  ops::to_host(tape.gradient(k)),
                  ops::to_host(tape.gradient(v)),
                  calls("aclnnFlashAttentionScore") - before,
                  calls("aclnnFlashAttentionScoreGrad") - after};
  };
  const std::pair<std::int64_t, std::uint64_t> cuts[] = {
      {1, kBatch * kHeads}, {2 * kScores, kBatch * 2}, {5 * kScores, kBatch}, {9 * kScores, 2}, {1 << 20, 1}};
  for (const bool causal : {false, true}) {
    for (const Shape& bias : {Shape{}, Shape{1, kHeads, kTokens, kTokens}}) {
      if (causal && bias.rank() > 0) continue;
      const Answer whole = attend(0, causal, bias);
      CHECK_EQ(whole.forward, std::uint64_t{1});
      for (const auto& [most, launches] : cuts) {
        const Answer cut = attend(most, causal, bias);
        CHECK_EQ(cut.forward, launches);
        CHECK_EQ(cut.backward, launches);
        CHECK(cut.out == whole.out && cut.dq == whole.dq && cut.dk == whole.dk && cut.dv == whole.dv);
      }
    }
  }
  CHECK_EQ(cann.wrongs(), "");
}

TEST("ascend device: planned operators are used again") {
  const Double cann = Double::find();
  const auto device = open_npu(R"({"ascend": {"executorCache": 3}})");
  const Tensor a = numbers(*device, {4, 5}, "a"), b = numbers(*device, {5, 6}, "b");
  const auto first = ops::to_host(ops::matmul(a, b));
  const std::uint64_t planned = cann.calls("aclnnMmGetWorkspaceSize");
  const Tensor other = numbers(*device, {4, 5}, "other");
  CHECK(ops::to_host(ops::matmul(a, b)) == first);
  CHECK(ops::to_host(ops::matmul(other, b)) != first);
  CHECK_EQ(cann.calls("aclnnMmGetWorkspaceSize"), planned);
  for (const std::int64_t rows : {1, 2, 3, 7}) ops::matmul(numbers(*device, {rows, 5}, "rows"), b);
  CHECK(ops::to_host(ops::matmul(a, b)) == first);  // it was let go of meanwhile
  CHECK(cann.calls("aclnnMmGetWorkspaceSize") > planned + 4);
}

TEST("ascend device: uploads of any size arrive, and in order") {
  const auto device = open_npu();
  for (const std::int64_t count : {1, 1000, 16384, 16385, 3000000}) {
    const auto values = normal_stream("upload", count);
    const Tensor x = ops::from_host(*device, {count}, values);
    CHECK(ops::to_host(x) == values);
    device->upload(x, std::vector<float>(values.size(), 2).data());
    const Tensor y = ops::affine(x, 3);
    device->upload(x, values.data());  // behind what reads the old numbers
    CHECK_EQ(ops::to_host(y).back(), 6.0f);
    CHECK(ops::to_host(x) == values);
  }
}

TEST("ascend device: other threads may use it and let go of its tensors") {
  const auto device = open_npu();
  std::vector<float> got;
  std::thread([&] {
    Tensor x = ops::full(*device, {3}, 2);
    got = ops::to_host(ops::mul(x, x));
    std::thread([x = std::move(x)]() mutable { x = {}; }).join();
  }).join();
  CHECK(got == (std::vector<float>{4, 4, 4}));
}

TEST("ascend device: what nobody has taken of the device's memory is told, to any thread") {
  const auto device = open_npu();
  const std::size_t before = device->free_memory().value();
  const Tensor x = device->empty({1 << 20});
  std::size_t after = 0;
  std::thread([&] { after = device->free_memory().value(); }).join();
  CHECK(before - after >= std::size_t{4} << 20);
}

TEST("ascend device: one level of determinism in a process") {
  const auto device = open_npu(R"({"determinism": "run-to-run"})");
  CHECK_THROWS("ERR_OPTION", open_npu(R"({"determinism": "off"})"));
  const auto same = open_npu(R"({"determinism": "run-to-run"})");
  CHECK(device->description().find("CANN") != std::string::npos);
}

TEST("ascend device: activations follow the weights, unless parity is asked for") {
  const auto device = open_npu(), parity = open_npu(R"({"ascend": {"parity": true}})");
  CHECK(device->activation_dtype(DType::bf16) == DType::bf16);
  CHECK(device->activation_dtype(DType::f16) == DType::f32);
  CHECK(device->activation_dtype(DType::f32) == DType::f32);
  CHECK(parity->activation_dtype(DType::bf16) == DType::f32);
}

TEST("ascend device: what failed is told with op, operator, shapes and CANN's words") {
  const Double cann = Double::find();
  const auto told = [&](const char* function, int code, const std::string& options) {
    const auto device = open_npu(options);
    const Tensor a = numbers(*device, {4, 5}, "a"), b = numbers(*device, {5, 6}, "b");
    cann.set_fault(function, 1, code);
    if (code == kNoMemory)
      cann.set_fault(function, 1, code);  // the pool gives back what it keeps, and asks again
    std::string text = "no error";
    try {
      ops::to_host(ops::matmul(a, b));
    } catch (const Error& error) {
      text = error.code + ": " + error.what() + " | " + error.hint;
    }
    cann.clear_faults();
    return text;
  };
  const auto expect = [](const std::string& text, std::initializer_list<const char*> parts) {
    for (const char* part : parts) {
      if (text.find(part) == std::string::npos)
        fail_at(__FILE__, __LINE__, "expected \"", part, "\" in: ", text);
    }
  };
  expect(
      told("aclnnMmGetWorkspaceSize", kWrongParameter, "{}"),
      {"ERR_DEVICE: matmul: aclnnMm(f32 [4, 5], f32 [5, 6], f32 [4, 6])", "got 161002 (", "does not take"});
  expect(told("aclnnMm", kAiCoreException, R"({"ascend": {"launchBlocking": true}})"),
         {"ERR_DEVICE: matmul: aclnnMm run(f32 [4, 5]", "507015 (the AI core raised an exception)"});
  expect(told("aclnnMm", kAiCoreException, "{}"),
         {"download", "507015", "the last operators were", "aclnnMm", "launchBlocking"});
  expect(told("aclrtMalloc", kNoMemory, "{}"), {"ERR_MEMORY: allocate: expected", "bytes free"});
}

namespace {

/// A function whose calls fail one by one, and how.
struct Site {
  std::string function;
  int code;
};

/// Everything that the plugin calls, but what gives things back: who cannot give back has a leak.
std::vector<Site> fault_sites() {
  std::vector<Site> sites;
  const auto add = [&](const std::string& name) {
    for (const char* gives_back :
         {"aclDestroy", "aclrtDestroy", "aclrtFree", "aclrtResetDevice", "aclInit"}) {
      if (name.starts_with(gives_back)) return;
    }
    sites.push_back({name, kWrongParameter});
  };
#define DF_ADD(result, name, parameters) add(#name);
  DANCEFLUX_ACL_FUNCTIONS(DF_ADD)
  DANCEFLUX_ACL_OPTIONAL(DF_ADD)
  DANCEFLUX_NNOP_FUNCTIONS(DF_ADD)
  DANCEFLUX_NNOP_OPTIONAL(DF_ADD)
#undef DF_ADD
  ascend::Operators operators;
  operators.for_each([&](const ascend::OperatorSymbols& each) {
    sites.push_back({std::string(each.name) + "GetWorkspaceSize", kWrongParameter});
    for (const int code : {kAiCoreException, kTooLong, kHeartbeatLost})
      sites.push_back({each.name, code});  // launched, and fails on the device
  });
  sites.push_back({"aclrtMalloc", kNoMemory});
  return sites;
}

std::string life_with(const Double& cann, const Site& site, std::uint64_t call, const char* options) {
  cann.set_fault(site.function.c_str(), call, site.code);
  if (site.code == kNoMemory) cann.set_fault(site.function.c_str(), call, site.code);
  try {
    short_life(options);
  } catch (const Error& error) {
    const std::string text = error.what();
    const auto has = [&](const std::string& part) { return text.find(part) != std::string::npos; };
    // What fails on the device is heard of later: the operators of late are told then.
    const std::string name =
        site.code == kNoMemory ? "allocate" : site.function.substr(0, site.function.find("GetWorkspaceSize"));
    if (!has(": ") || !has("expected") || !(has(name) || has("the last operators were")))
      return "; expected an op, " + name + " and what was expected, got " + text;
  }
  return {};
}

}  // namespace

TEST("ascend device: a fault at every call leaves nothing behind and is told") {
  const Double cann = Double::find();
  Complaints complaints;
  int faults = 0;
  for (const char* options : {"{}", R"({"ascend": {"executorCache": 8, "launchBlocking": true}})"}) {
    for (const Site& site : fault_sites()) {
      for (std::uint64_t call = 1;; ++call) {
        std::string wrongs = life_with(cann, site, call, options);
        const bool fell = cann.faults_left() == 0;
        cann.clear_faults();
        wrongs += cann.wrongs();
        if (!wrongs.empty()) complaints.add(site.function, " call ", call, " ", options, wrongs);
        if (!fell) break;
        ++faults;
        // Once at each place is enough of what is called everywhere.
        if (call >= 60) break;
      }
    }
  }
  CHECK(faults > 500);
  complaints.finish();
}

}  // namespace danceflux::test
