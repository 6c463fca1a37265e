#include "backend/ascend/settings.h"

#include "backend/options.h"
#include "core/error.h"

namespace danceflux::ascend {
namespace {

constexpr int kMostExecutors = 100000;

Determinism read_determinism(const std::string& text) {
  if (text == "off") return Determinism::off;
  if (text == "run-to-run") return Determinism::run_to_run;
  if (text == "strict") return Determinism::strict;
  fail("ERR_OPTION", "option determinism: expected off, run-to-run or strict, got ", text);
}

}  // namespace

Settings read_settings(const char* options_json) {
  const DeviceOptions options = DeviceOptions::parse(options_json);
  options.allow_only("ascend", {"determinism", "ascend.parity", "ascend.launchBlocking",
                                "ascend.executorCache", "ascend.attentionScores", "hccl.*", "nccl.*"});
  Settings settings;
  settings.determinism = read_determinism(options.text("determinism", "strict"));
  settings.parity = options.flag("ascend.parity", false);
  settings.launch_blocking = options.flag("ascend.launchBlocking", false);
  const std::int64_t cache = options.integer("ascend.executorCache", 0);
  require(cache >= 0 && cache <= kMostExecutors, "ERR_OPTION",
          "option ascend.executorCache: expected 0 (none) to ", kMostExecutors, ", got ", cache);
  settings.executor_cache = static_cast<int>(cache);
  settings.attention_scores = options.integer("ascend.attentionScores", 0);
  require(settings.attention_scores >= 0, "ERR_OPTION",
          "option ascend.attentionScores: expected 0 (any number) or more, got ", settings.attention_scores);
  return settings;
}

DeterminismPlan plan_determinism(Determinism level, const CannVersion& version) {
  if (level == Determinism::off)
    return {{{kOptDeterministic, 0}}, 0, "operators may choose the fastest order of sums", true};
  const std::string repeats = "the same bits from run to run on the same CANN, driver and chip";
  if (level == Determinism::run_to_run) return {{{kOptDeterministic, 1}}, 1, repeats, true};
  if (version.major >= 9)
    return {{{kOptDeterministic, 3}}, 3, repeats + "; a row's bits do not depend on its batch", true};
  const std::string named =
      version.major == 0 ? version.text + " does not say its version and" : "CANN " + version.text;
  if (version.major == 8 && version.minor >= 5)
    return {{{kOptDeterministic, 1}, {kOptStrongConsistency, 1}},
            1,
            repeats + "; a row's bits do not depend on its place, but " + named +
                " promises nothing of its batch",
            false};
  return {
      {{kOptDeterministic, 1}},
      1,
      repeats + "; " + named + " promises nothing of a row's batch: keep rollout and update batches equal",
      false};
}

}  // namespace danceflux::ascend
