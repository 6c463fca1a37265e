#include "backend/cuda/options.h"

#include "core/error.h"

namespace danceflux::cuda {

Options Options::parse(const std::string& json) {
  const DeviceOptions given = DeviceOptions::parse(json);
  given.allow_only("cuda", {"determinism", "tf32", "attention", "synchronous", "graphs", "nccl.*", "hccl.*"});
  Options options;
  const std::string level = given.text("determinism", "strict");
  if (level == "off") {
    options.determinism = Determinism::off;
  } else if (level == "run-to-run") {
    options.determinism = Determinism::run_to_run;
  } else {
    require(level == "strict", "ERR_OPTION", "option determinism: expected off, run-to-run or strict, got ",
            level);
  }
  options.tf32 = given.flag("tf32", false);
  const std::string attention = given.text("attention", "auto");
  require(attention == "auto" || attention == "own", "ERR_OPTION",
          "option attention: expected auto or own, got ", attention);
  options.own_attention = attention == "own";
  options.synchronous = given.flag("synchronous", false);
  options.graphs = given.flag("graphs", false);
  return options;
}

}  // namespace danceflux::cuda
