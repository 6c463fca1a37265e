// danceflux_ascend.so: Ascend NPUs and HCCL. It links no library of CANN: probe() looks for them.
#include <cstdio>
#include <sstream>
#include <string>

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

/// What a person may have to mend before what is only good to know: the room of a message is limited.
std::string details(const Cann& cann) {
  std::string text;
  if (!cann.missing_operators.empty()) text += "; without " + join(cann.missing_operators, ", ");
  if (!cann.has_hccl) text += "; without HCCL (" + join(cann.missing_hccl, ", ") + ")";
  for (const std::string& note : cann.notes) text += "; " + note;
  std::string last;  // those of a folder share its name
  for (const std::string& path : cann.libraries) {
    const std::size_t slash = path.rfind('/') + 1;  // 0 where there is none
    const std::string folder = path.substr(0, slash);
    text += slash > 0 && folder == last ? " " + path.substr(slash) : "; " + path;
    last = folder;
  }
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
  text << cann.soc << details(cann);
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
