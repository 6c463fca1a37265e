// What openDevice("ascend:0", options) may say, and what a level of determinism becomes on a CANN version.
#pragma once
#include <string>
#include <utility>
#include <vector>

#include "backend/ascend/libraries.h"

namespace danceflux::ascend {

enum class Determinism : std::uint8_t { off, run_to_run, strict };

struct Settings {
  Determinism determinism = Determinism::strict;
  /// Activations stay in f32 for weights of any dtype, and products keep all bits of their factors.
  bool parity = false;
  /// Wait for the device after every operator, so that a failure is told by the one that failed.
  bool launch_blocking = false;
  /// Planned operators to keep for reuse; 0: none.
  int executor_cache = 0;
  /// Scores (batch x heads x queries x keys) that one launch of attention computes at most; 0: any number.
  std::int64_t attention_scores = 0;
};
/// Throws ERR_OPTION for an unknown option; those of collectives are left to the communicator.
Settings read_settings(const char* options_json);

/// What is set, in the process and in the context, for a level.
struct DeterminismPlan {
  std::vector<std::pair<AclOption, std::int64_t>> options;
  std::int64_t level = 0;  // of kOptDeterministic: part of what a planned operator depends on
  /// What holds then, for people: "the same bits from run to run; a row's bits may depend on its batch (CANN
  /// before 9 knows no batch consistency)".
  std::string promise;
  /// Is all that the level asks for promised?
  bool kept = true;
};
/// CANN 8.1 knows 0 and 1; 8.5 adds strong consistency as an option of its own; from 9 level 3 makes a row
/// independent of the others in its batch. A version that is not told counts as the oldest.
DeterminismPlan plan_determinism(Determinism level, const CannVersion& version);

}  // namespace danceflux::ascend
