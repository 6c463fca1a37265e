// danceflux_ascend.so: Ascend NPUs and HCCL. It links no library of CANN: probe() looks for them.
#include <cstdio>
#include <sstream>

#include "backend/ascend/ascend_backend.h"
#include "backend/ascend/collective.h"
#include "backend/ascend/libraries.h"
#include "backend/plugin.h"

namespace {
using namespace danceflux;
using namespace danceflux::ascend;

template <std::size_t N>
void say(char (&to)[N], const std::string& text) {
  std::snprintf(to, N, "%s", text.c_str());
}

std::string what_is_missing(const Cann& cann) {
  std::string text;
  for (const std::string& name : cann.missing_operators) text += (text.empty() ? "; without " : ", ") + name;
  if (!cann.has_hccl) text += "; without HCCL";
  return text;
}

void probe(PluginProbe* found) {
  const Cann& cann = ascend::cann();
  found->state = ProbeState::no_device;
  if (!cann.failure.empty()) {
    say(found->message, cann.failure);
    return say(found->hint, cann.hint);
  }
  std::uint32_t devices = 0;
  const AclStatus status = cann.acl.aclrtGetDeviceCount(&devices);
  std::ostringstream text;
  text << "CANN " << cann.version.text << ", ";
  if (status != kAclSuccess || devices == 0) {
    const std::string words = recent_words(cann.acl);
    text << "no NPU" << (words.empty() ? "" : ": " + words);
    say(found->message, text.str());
    return say(found->hint,
               "see npu-smi info, ASCEND_RT_VISIBLE_DEVICES, and whether this user may open /dev/davinci*");
  }
  found->state = ProbeState::ready;
  found->devices = static_cast<std::int32_t>(devices);
  text << cann.soc << what_is_missing(cann);
  say(found->message, text.str());
}

Backend* create(std::int32_t index, const char* options_json) {
  return open_ascend(index, read_settings(options_json)).release();
}

CommunicatorSetup* create_communicator(const std::shared_ptr<Backend>& device,
                                       const CommunicatorOptions& options) {
  return make_hccl_setup(device, options).release();
}

const PluginInfo info{DANCEFLUX_PLUGIN_ABI, "ascend", probe, create, create_communicator};

}  // namespace

extern "C" const danceflux::PluginInfo* danceflux_plugin() { return &info; }
