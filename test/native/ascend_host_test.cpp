// The Ascend plugin as far as it is text and tables: where libraries are looked for, what options become, how
// tensors are described. No CANN is needed.
#include <cstring>
#include <map>
#include <set>

#include "backend/ascend/errors.h"
#include "backend/ascend/handles.h"
#include "backend/ascend/hccl_settings.h"
#include "backend/ascend/libraries.h"
#include "backend/ascend/search.h"
#include "backend/ascend/settings.h"
#include "harness.h"
#include "reference_backend.h"

namespace danceflux::test {
namespace {
using namespace danceflux::ascend;

/// A machine made of a few variables and files.
struct Machine {
  std::map<std::string, std::string> variables;
  std::map<std::string, std::string> files;
  std::set<std::string> strangers;  // files of somebody else

  Surroundings surroundings() const {
    Surroundings here;
    here.variable = [this](const std::string& name) {
      const auto found = variables.find(name);
      return found == variables.end() ? std::string() : found->second;
    };
    here.list = [this](const std::string& folder) {
      std::set<std::string> names;
      for (const auto& [path, text] : files) {
        if (!path.starts_with(folder + "/")) continue;
        const std::string rest = path.substr(folder.size() + 1);
        names.insert(rest.substr(0, rest.find('/')));
      }
      return std::vector<std::string>(names.begin(), names.end());
    };
    here.exists = [this](const std::string& wanted) {
      for (const auto& [path, text] : files) {
        if (path == wanted || path.starts_with(wanted + "/")) return true;
      }
      return false;
    };
    here.trusted = [this](const std::string& path) { return !strangers.contains(path); };
    here.read = [this](const std::string& path) {
      const auto found = files.find(path);
      return found == files.end() ? std::string() : found->second;
    };
    return here;
  }
};

using Paths = std::vector<std::string>;

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

Machine cann8() {
  Machine machine;
  machine.variables = {{"ASCEND_HOME_PATH", "/opt/cann"}, {"ASCEND_OPP_PATH", "/opt/cann/opp"}};
  for (const char* name : {"libascendcl.so", "libnnopbase.so", "libopapi.so", "libhccl.so"})
    machine.files[std::string("/opt/cann/lib64/") + name] = "";
  return machine;
}

std::string message_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.code + ": " + error.what();
  }
  return "no error";
}

}  // namespace

TEST("ascend: libraries are looked for where set_env.sh points, then by name, then at the usual places") {
  Machine machine = cann8();
  machine.files["/usr/local/Ascend/ascend-toolkit/latest/lib64/libascendcl.so"] = "";
  const Surroundings here = machine.surroundings();
  CHECK(library_candidates(here, "libascendcl.so") ==
        (Paths{"/opt/cann/lib64/libascendcl.so", "libascendcl.so",
               "/usr/local/Ascend/ascend-toolkit/latest/lib64/libascendcl.so"}));
  CHECK(library_candidates(here, "libabsent.so") == Paths{"libabsent.so"});
}

TEST("ascend: operators of CANN 8 are in one library, after those of the user") {
  Machine machine = cann8();
  machine.variables["ASCEND_CUSTOM_OPP_PATH"] = "/srv/ops:/srv/more";
  machine.files["/srv/more/op_api/lib/libcust_opapi.so"] = "";
  machine.files["/opt/cann/opp/vendors/config.ini"] = "load_priority=second, first\n";
  for (const char* vendor : {"first", "second", "third"})
    machine.files[std::string("/opt/cann/opp/vendors/") + vendor + "/op_api/lib/libcust_opapi.so"] = "";
  const OperatorLibraries found = operator_libraries(machine.surroundings());
  const Paths wanted = {
      "/srv/more/op_api/lib/libcust_opapi.so", "/opt/cann/opp/vendors/second/op_api/lib/libcust_opapi.so",
      "/opt/cann/opp/vendors/first/op_api/lib/libcust_opapi.so",
      "/opt/cann/opp/vendors/third/op_api/lib/libcust_opapi.so", "/opt/cann/lib64/libopapi.so"};
  CHECK(found.paths.size() > wanted.size());
  CHECK(Paths(found.paths.begin(), found.paths.begin() + static_cast<std::ptrdiff_t>(wanted.size())) ==
        wanted);
}

TEST("ascend: operators of CANN 9 are in a library per domain") {
  Machine machine = cann8();
  machine.files.erase("/opt/cann/lib64/libopapi.so");
  for (const char* domain : {"math", "nn"})
    machine.files[std::string("/opt/cann/lib64/libopapi_") + domain + ".so"] = "";
  const OperatorLibraries found = operator_libraries(machine.surroundings());
  CHECK_EQ(found.paths.at(0), "/opt/cann/lib64/libopapi_math.so");
  CHECK_EQ(found.paths.at(1), "/opt/cann/lib64/libopapi_nn.so");
  CHECK_EQ(found.paths.at(2), "libopapi.so");
}

TEST("ascend: a library of a stranger is not opened, and that is told") {
  Machine machine = cann8();
  const std::string path = "/opt/cann/opp/vendors/x/op_api/lib/libcust_opapi.so";
  machine.files[path] = "";
  machine.strangers.insert(path);
  const OperatorLibraries found = operator_libraries(machine.surroundings());
  CHECK_EQ(found.paths.at(0), "/opt/cann/lib64/libopapi.so");
  CHECK_EQ(found.notes.size(), std::size_t{1});
  CHECK(contains(found.notes[0], path + " belongs to somebody else"));
}

TEST("ascend: what to do when CANN does not open") {
  Machine machine;
  CHECK(contains(loading_hint(machine.surroundings()), "install the CANN toolkit"));
  machine.files["/usr/local/Ascend/ascend-toolkit/latest/set_env.sh"] = "";
  CHECK(contains(loading_hint(machine.surroundings()),
                 "source /usr/local/Ascend/ascend-toolkit/latest/set_env.sh"));
  machine.variables["ASCEND_HOME_PATH"] = "/opt/cann";
  CHECK(contains(loading_hint(machine.surroundings()), "LD_LIBRARY_PATH does not name it"));
  machine.variables["LD_LIBRARY_PATH"] = "/usr/lib:/opt/cann/lib64";
  CHECK(contains(loading_hint(machine.surroundings()), "driver"));
}

TEST("ascend: versions and chips by their names") {
  CHECK_EQ(read_version("8.1.RC1").major, 8);
  CHECK_EQ(read_version("8.1.RC1").minor, 1);
  CHECK_EQ(read_version("8.5.0").minor, 5);
  CHECK_EQ(read_version("9.0.0-beta.1").major, 9);
  for (const char* none : {"", "V100R001", "8", "8.x"}) CHECK_EQ(read_version(none).major, 0);
  const std::pair<const char*, Chip> chips[] = {
      {"Ascend910B", Chip::gen1},   {"Ascend910ProB", Chip::gen1},    {"Ascend910PremiumA", Chip::gen1},
      {"Ascend910B1", Chip::a2},    {"Ascend910B4-1", Chip::a2},      {"Ascend910B2C", Chip::a2},
      {"Ascend910_9391", Chip::a3}, {"Ascend310P3", Chip::inference}, {"Ascend950PR_9579", Chip::a5},
      {"", Chip::unknown}};
  for (const auto& [name, chip] : chips) CHECK(chip_of(name) == chip);
  CHECK(!knows_bf16(Chip::gen1) && knows_bf16(Chip::a2));
}

TEST("ascend: options of the device") {
  const Settings plain = read_settings("{}");
  CHECK(plain.determinism == Determinism::strict && !plain.parity && plain.executor_cache == 0);
  const Settings all = read_settings(
      R"({"determinism": "run-to-run", "ascend": {"parity": true, "executorCache": 64, "launchBlocking": true,
                                                              "attentionScores": 1000000},
          "hccl": {"bufferSizeMiB": 800, "deterministic": "strict", "rdma": {"timeout": 5}}, "nccl": {"x": 1}})");
  CHECK(all.determinism == Determinism::run_to_run && all.parity && all.launch_blocking);
  CHECK_EQ(all.executor_cache, 64);
  CHECK_EQ(all.attention_scores, 1000000);
  CHECK_EQ(plain.attention_scores, 0);
  CHECK_THROWS("ERR_OPTION", read_settings(R"({"ascend": {"attentionScores": -1}})"));
  CHECK_THROWS("ERR_OPTION", read_settings(R"({"determinism": "sometimes"})"));
  CHECK_THROWS("ERR_OPTION", read_settings(R"({"threads": 2})"));
  CHECK_THROWS("ERR_OPTION", read_settings(R"({"ascend": {"executorCache": -1}})"));
  CHECK_THROWS("ERR_OPTION", read_settings(R"({"hcclx": {"bufferSizeMiB": 1}})"));
}

TEST("ascend: levels of determinism by version of CANN") {
  const auto plan = [](Determinism level, const char* version) {
    return plan_determinism(level, read_version(version));
  };
  CHECK_EQ(plan(Determinism::off, "9.0.0").level, std::int64_t{0});
  CHECK_EQ(plan(Determinism::run_to_run, "9.0.0").level, std::int64_t{1});
  CHECK_EQ(plan(Determinism::strict, "9.0.0").level, std::int64_t{3});
  CHECK(plan(Determinism::strict, "9.0.0").kept);
  CHECK_EQ(plan(Determinism::strict, "8.1.RC1").level, std::int64_t{1});
  CHECK_EQ(plan(Determinism::strict, "8.1.RC1").options.size(), std::size_t{1});
  CHECK(!plan(Determinism::strict, "8.1.RC1").kept);
  CHECK(contains(plan(Determinism::strict, "8.1.RC1").promise,
                 "CANN 8.1.RC1 promises nothing of a row's batch"));
  const DeterminismPlan strong = plan(Determinism::strict, "8.5.0");
  CHECK_EQ(strong.options.size(), std::size_t{2});
  CHECK(strong.options[1] == (std::pair<AclOption, std::int64_t>{kOptStrongConsistency, 1}));
  CHECK_EQ(plan(Determinism::strict, "acl 1.13.0").level, std::int64_t{1});
}

TEST("ascend: a tensor's descriptor counts in elements from the start of its storage") {
  const auto device = std::make_shared<ReferenceBackend>();
  const Tensor whole = device->empty({4, 6});
  const TensorForm form = form_of(whole.narrow(1, 2, 3).transpose(0, 1));
  CHECK(form.dims == (IntList{3, 4}));
  CHECK(form.strides == (IntList{1, 6}));
  CHECK_EQ(form.offset, std::int64_t{2});
  CHECK(form.address == whole.storage()->address());
  CHECK_EQ(form.told(), "f32 [3, 4] strides [1, 6]");
  CHECK_EQ(form_of(whole).told(), "f32 [4, 6]");
  // An axis of one element has one spelling.
  CHECK(form_of(whole.narrow(0, 1, 1)).strides == (IntList{6, 1}));
  CHECK(form_of(whole, kFormatNchw).format == kFormatNchw);
  CHECK(empty_form(DType::bf16).type == kAclBf16 && empty_form(DType::bf16).address == nullptr);
}

TEST("ascend: error codes in words") {
  CHECK_EQ(words_of(207001).code, std::string("ERR_MEMORY"));
  CHECK_EQ(words_of(507015).meaning, std::string("the AI core raised an exception"));
  CHECK(contains(words_of(561107).hint, "set_env.sh"));
  CHECK_EQ(words_of(561555).meaning, std::string("the operator failed inside"));
  CHECK_EQ(words_of(7).meaning, std::string("an unknown error"));
  CHECK_EQ(words_of_hccl(9), std::string("it took too long"));
  CHECK_EQ(words_of_hccl(1041), std::string("an unknown error"));
}

TEST("hccl: options become fields of the configuration") {
  const HcclSettings settings = read_hccl_settings(
      R"({"bufferSizeMiB": 800, "deterministic": "strict", "opExpansionMode": "AIV",
          "rdma": {"trafficClass": 100, "serviceLevel": 3}})");
  const HcclCommConfig config = make_hccl_config(settings, Chip::a2, "danceflux_1", 9);
  std::size_t size = 0;
  std::memcpy(&size, config.size, sizeof size);
  CHECK_EQ(size, std::size_t{300});
  CHECK_EQ(config.magic, 0xf0f0f0f0u);
  CHECK_EQ(config.version, 5u);
  CHECK_EQ(config.buffer_size_mb, 800u);
  CHECK_EQ(config.deterministic, 2u);
  CHECK_EQ(config.op_expansion_mode, 3u);
  CHECK_EQ(config.rdma_traffic_class, 100u);
  CHECK_EQ(std::string(config.name), "danceflux_1");
  CHECK_EQ(make_hccl_config(settings, Chip::gen1, "", 9).deterministic, 1u);
  CHECK_EQ(make_hccl_config(settings, Chip::a5, "", 9).deterministic, kHcclNotSet);
  const HcclCommConfig old = make_hccl_config(settings, Chip::a2, "", 2);
  std::memcpy(&size, old.size, sizeof size);
  CHECK_EQ(size, std::size_t{32});
  const HcclCommConfig unset = make_hccl_config(read_hccl_settings("{}"), Chip::a2, "", 9);
  CHECK_EQ(unset.buffer_size_mb, kHcclNotSet);
  CHECK_EQ(unset.deterministic, kHcclNotSet);
  CHECK_EQ(unset.op_expansion_mode, 0u);
}

TEST("hccl: options that cannot be") {
  for (const char* wrong : {R"({"bufferSizeMiB": 0})", R"({"deterministic": "sometimes"})",
                            R"({"deterministic": 1})", R"({"opExpansionMode": "aiv"})", R"({"buffer": 1})"})
    CHECK_THROWS("ERR_OPTION", read_hccl_settings(wrong));
  CHECK_EQ(read_hccl_settings(R"({"deterministic": true})").deterministic, 1u);
  CHECK_EQ(read_hccl_settings(R"({"deterministic": false})").deterministic, 0u);
  CHECK_EQ(message_of([] { read_hccl_settings(R"({"deterministic": "sometimes"})"); }),
           "ERR_OPTION: hccl.deterministic: expected true, false or \"strict\", got sometimes");
}

}  // namespace danceflux::test
