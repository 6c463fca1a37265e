// Backends found at run time: what is told when one cannot be used, and that one that works is as good as the
// built-in.
#include <cstdlib>
#include <stdexcept>
#include <thread>

#include "backend/backend.h"
#include "backend/options.h"
#include "backend/plugin_file.h"
#include "backend/registry.h"
#include "core/error.h"
#include "harness.h"
#include "ranks.h"

using namespace danceflux;

namespace {

struct PluginPath {
  PluginPath() { setenv("DANCEFLUX_PLUGIN_PATH", "/nowhere:" DANCEFLUX_TEST_PLUGINS, 1); }
  ~PluginPath() { unsetenv("DANCEFLUX_PLUGIN_PATH"); }
};

BackendReport report_of(const std::string& name) {
  for (const BackendReport& report : probe_backends())
    if (report.name == name) return report;
  return {name, "absent", 0, "", ""};
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

}  // namespace

TEST("registry: the cpu is always there") {
  const BackendReport report = probe_backends().front();
  CHECK_EQ(report.name, "cpu");
  CHECK_EQ(report.state, "READY");
  CHECK(open_backend("cpu", 0, R"({"threads": 2})") != nullptr);
  CHECK_THROWS("ERR_DEVICE", open_backend("cpu", 1, "{}"));
  CHECK_THROWS("ERR_OPTION", open_backend("cpu", 0, R"({"thread": 2})"));
  CHECK_THROWS("ERR_OPTION", open_backend("cpu", 0, R"({"threads": -1})"));
}

TEST("registry: a plugin that is not shipped") {
  CHECK_THROWS("ERR_PLUGIN_NOT_SHIPPED", open_backend("nowhere", 0, "{}"));
  try {
    open_backend("nowhere", 0, "{}");
  } catch (const Error& error) {
    CHECK(contains(error.what(), "danceflux_nowhere.so"));
    CHECK(contains(error.hint, "DANCEFLUX_PLUGIN_PATH"));
  }
  CHECK_THROWS("ERR_DEVICE", open_backend("../../etc/x", 0, "{}"));
}

TEST("registry: every missing vendor library is told, with what brings it") {
  const PluginPath path;
  const BackendReport report = report_of("needy");
  CHECK_EQ(report.state, "PLUGIN_LOAD_FAILED");
  CHECK(contains(report.message, "libdanceflux_fake_vendor.so.1"));
  CHECK(contains(report.message, "libdanceflux_fake_collectives.so.2"));
  CHECK(contains(report.hint, "set_env.sh"));
  CHECK(contains(report.hint, "Fake collectives 2"));
  CHECK_THROWS("ERR_PLUGIN_LOAD_FAILED", open_backend("needy", 0, "{}"));
}

TEST("registry: another abi, no device, old driver, no entry, another name") {
  const PluginPath path;
  CHECK_EQ(report_of("old_abi").state, "PLUGIN_ABI");
  CHECK(contains(report_of("old_abi").message, "expected plugin abi 4, got 45"));
  CHECK_EQ(report_of("no_device").state, "NO_DEVICE");
  CHECK_EQ(report_of("no_device").hint, "is the device passed into the container?");
  CHECK_EQ(report_of("old_driver").state, "DRIVER_TOO_OLD");
  CHECK_EQ(report_of("no_entry").state, "PLUGIN_BAD");
  CHECK_EQ(report_of("misnamed").state, "PLUGIN_BAD");
  CHECK_THROWS("ERR_PLUGIN_ABI", open_backend("old_abi", 0, "{}"));
  CHECK_THROWS("ERR_NO_DEVICE", open_backend("no_device", 0, "{}"));
  CHECK_THROWS("ERR_DRIVER_TOO_OLD", open_backend("old_driver", 0, "{}"));
  CHECK_THROWS("ERR_PLUGIN_BAD", open_backend("no_entry", 0, "{}"));
}

TEST("registry: disabled by the user") {
  const PluginPath path;
  setenv("DANCEFLUX_DISABLE_BACKENDS", "cuda,twin", 1);
  const std::string one = report_of("twin").state, other = report_of("no_device").state;
  setenv("DANCEFLUX_DISABLE_BACKENDS", "all", 1);
  const std::string all = report_of("no_device").state;
  unsetenv("DANCEFLUX_DISABLE_BACKENDS");
  CHECK_EQ(one, "DISABLED_BY_USER");
  CHECK_EQ(other, "NO_DEVICE");
  CHECK_EQ(all, "DISABLED_BY_USER");
}

TEST("registry: a plugin that works computes") {
  const PluginPath path;
  CHECK_EQ(report_of("twin").devices, 2);
  const std::shared_ptr<Backend> twin = open_backend("twin", 1, "{}");
  const Tensor x = twin->empty({3});
  const float host[3] = {1, 2, 3};
  twin->upload(x, host);
  twin->binary(BinaryOp::mul, x, x, x, 1);
  float back[3];
  twin->download(back, x);
  CHECK_EQ(back[2], 9.0f);
  CHECK_THROWS("ERR_DEVICE", open_backend("twin", 2, "{}"));
}

TEST("registry: a plugin may bring collectives and no devices") {
  const PluginPath path;
  const BackendReport report = report_of("relay");
  CHECK_EQ(report.state, "READY");
  CHECK(report.collectives && report.devices == 0 && !report_of("twin").collectives);
  CHECK_THROWS("ERR_DEVICE", open_backend("relay", 0, "{}"));
  CHECK_THROWS("ERR_OPTION", make_communicator_setup("twin", open_backend("cpu", 0, "{}"), {}));
  test::on_threads(2, {.engine = "relay"}, [](const test::Rank& rank) {
    const Tensor x = rank.device.empty({3});
    rank.device.fill(x, static_cast<float>(rank.rank + 1));
    rank.wait(rank.communicator.all_reduce(x, {}));
    CHECK_EQ(x.data<float>()[2], 3.0f);
  });
}

TEST("exceptions cross from a plugin, from the engine and between threads") {
  const PluginPath path;
  const int before = std::uncaught_exceptions();
  for (int round = 0; round < 100; ++round) {
    CHECK_THROWS("ERR_TWIN", open_backend("twin", 0, R"({"fail": "engine"})"));
    CHECK_THROWS("ERR_OPTION", open_backend("twin", 0, R"({"fial": "engine"})"));
    CHECK_THROWS("ERR_PLUGIN_BAD", open_backend("twin", 0, R"({"fail": "nothing"})"));
    bool standard = false;
    try {
      open_backend("twin", 0, R"({"fail": "standard"})");
    } catch (const std::out_of_range&) {
      standard = true;
    }
    CHECK(standard);
    std::exception_ptr carried;
    std::thread([&] {
      try {
        open_backend("twin", 0, R"({"fail": "engine"})");
      } catch (...) {
        carried = std::current_exception();
      }
    }).join();
    CHECK_THROWS("ERR_TWIN", std::rethrow_exception(carried));
  }
  CHECK_EQ(std::uncaught_exceptions(), before);
}

TEST("device options: nested objects, kinds and what is refused") {
  const DeviceOptions options =
      DeviceOptions::parse(R"( {"a": 3, "b": {"c": true, "d": "x\"y"}, "e": null} )");
  CHECK_EQ(options.integer("a", 0), 3);
  CHECK_EQ(options.flag("b.c", false), true);
  CHECK_EQ(options.text("b.d", ""), "x\"y");
  CHECK_EQ(options.text("e", "absent"), "absent");
  CHECK_THROWS("ERR_OPTION", options.integer("b.c", 0));
  for (const char* bad : {"", "[]", "{", "{\"a\"}", "{\"a\":}", "{\"a\":1,}", "{\"a\":1}x",
                          "{\"a\":1,\"a\":2}", "{\"a\":[1]}", "{\"a\":\"unended"})
    CHECK_THROWS("ERR_OPTION", DeviceOptions::parse(bad));
  CHECK_THROWS("ERR_OPTION", DeviceOptions::parse(R"({"a":1.5})").integer("a", 0));
  std::string deep;
  for (int i = 0; i < 1000; ++i) deep += "{\"a\":";
  CHECK_THROWS("ERR_OPTION", DeviceOptions::parse(deep));
}

TEST("plugin files that are no plugins are read without harm") {
  CHECK(vendor_libraries("/nowhere").empty());
  CHECK(vendor_libraries("/proc/self/status").empty());
}
