// Communicators: how they come to be and what they know.
#include "ascend_double/hccl/communicator.h"

#include <unistd.h>

#include <cstring>
#include <fstream>
#include <iterator>
#include <random>
#include <thread>

namespace ascend_double {
namespace {

constexpr char kRootMagic[] = "ascend_double root";

std::string fresh_id() {
  std::random_device device;
  return text_of("ascend_double_%d_%08x%08x", getpid(), device(), device());
}

std::string id_of(const HcclRootInfo* root) {
  if (!root) refuse(HCCL_E_PTR, "rootInfo is NULL");
  if (std::memcmp(root->internal, kRootMagic, sizeof kRootMagic) != 0)
    refuse(HCCL_E_PARA, "EI0003: these are no bytes of HcclGetRootInfo");
  // Every byte must have come along.
  for (std::size_t i = 256; i < sizeof root->internal; ++i)
    if (root->internal[i] != static_cast<char>(i * 7))
      refuse(HCCL_E_PARA, "EI0003: byte %zu of rootInfo was lost", i);
  return root->internal + 64;
}

Deadline connect_deadline(const HcclSettings& settings) {
  const std::int64_t ms = setting("HCCL_CONNECT_MS", (settings.connect_timeout_s + 20) * 1000);
  return std::chrono::steady_clock::now() + std::chrono::milliseconds(ms);
}

/// Two buffers of hcclBufferSize, taken from the device as the real library takes them.
void pin_buffers(Communicator& communicator) {
  const std::size_t bytes = static_cast<std::size_t>(communicator.settings.buffer_mib) << 20;
  if (!setting("HCCL_PIN", std::int64_t{0})) return;
  for (int i = 0; i < 2; ++i)
    communicator.buffers.push_back(device_memory().allocate(communicator.device, bytes, 32));
}

Communicator* create(const std::string& id, std::uint32_t ranks, std::uint32_t rank,
                     const HcclSettings& settings, int device) {
  if (ranks == 0 || ranks > kMostRanks || rank >= ranks)
    refuse(HCCL_E_PARA, "EI0003: rank %u of %u", rank, ranks);
  auto communicator = std::make_unique<Communicator>();
  communicator->id = id;
  communicator->name = settings.name.empty() ? id : settings.name;
  communicator->settings = settings;
  communicator->device = device;
  bool taken = false;
  communicators().each([&](Communicator& other) {
    taken = taken || (!settings.name.empty() && other.name == settings.name && other.device == device);
  });
  if (taken) refuse(HCCL_E_PARA, "EI0003: there is a communicator named %s", settings.name.c_str());
  communicator->segment = std::make_unique<Segment>(id, ranks, rank);
  pin_buffers(*communicator);
  if (!communicator->segment->join(connect_deadline(settings)))
    refuse(HCCL_E_TIMEOUT, "EI0006: not all of %u ranks connected in time", ranks);
  return communicators().add(communicator.release());
}

int own_device() {
  try {
    return current_context().device;
  } catch (const Refusal& refusal) {
    refuse(HCCL_E_RUNTIME, "%s", refusal.text.c_str());
  }
}

}  // namespace

Communicator::~Communicator() = default;

Handles<Communicator>& communicators() {
  static auto& all = *new Handles<Communicator>("communicator");
  return all;
}

Communicator& communicator_of(HcclComm handle) {
  return communicators().get(handle, HCCL_E_PARA, HCCL_E_PTR);
}

ENTRY(hcomm, HcclGetRootInfo, HcclRootInfo* root) {
  if (!root) refuse(HCCL_E_PTR, "rootInfo is NULL");
  own_device();
  environment_settings();
  for (std::size_t i = 0; i < sizeof root->internal; ++i) root->internal[i] = static_cast<char>(i * 7);
  std::memcpy(root->internal, kRootMagic, sizeof kRootMagic);
  const std::string id = fresh_id();
  std::memcpy(root->internal + 64, id.c_str(), id.size() + 1);
  return HCCL_SUCCESS;
}

static int initialize(std::uint32_t ranks, const std::string& id, std::uint32_t rank, const void* config,
                      HcclComm* out) {
  if (!out) refuse(HCCL_E_PTR, "comm is NULL");
  const int device = own_device();
  *out = create(id, ranks, rank, settings_of(config), device);
  return HCCL_SUCCESS;
}

ENTRY(hcomm, HcclCommInitRootInfo, std::uint32_t ranks, const HcclRootInfo* root, std::uint32_t rank,
      HcclComm* out) {
  return initialize(ranks, id_of(root), rank, nullptr, out);
}
ENTRY(hcomm, HcclCommInitRootInfoConfig, std::uint32_t ranks, const HcclRootInfo* root, std::uint32_t rank,
      const void* config, HcclComm* out) {
  if (!config) refuse(HCCL_E_PTR, "config is NULL");
  return initialize(ranks, id_of(root), rank, config, out);
}

// The rank table is JSON; all that matters here is how many ranks it lists, and that everybody reads the same
// file.
static int initialize_from_table(const char* path, std::uint32_t rank, const void* config, HcclComm* out) {
  if (!path) refuse(HCCL_E_PTR, "the path of the rank table is NULL");
  std::ifstream file(path);
  if (!file) refuse(HCCL_E_OPEN_FILE_FAILURE, "%s cannot be read", path);
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  std::uint32_t ranks = 0;
  const std::string key = "\"rank_id\"";
  for (std::size_t at = text.find(key); at != std::string::npos; at = text.find(key, at + 1)) ++ranks;
  if (text.find("\"completed\"") == std::string::npos || ranks == 0)
    refuse(HCCL_E_PARA, "EI0004: %s is no complete rank table", path);
  return initialize(ranks, text_of("ascend_double_table_%zx", std::hash<std::string>{}(text)), rank, config,
                    out);
}
ENTRY(hcomm, HcclCommInitClusterInfo, const char* path, std::uint32_t rank, HcclComm* out) {
  return initialize_from_table(path, rank, nullptr, out);
}
ENTRY(hcomm, HcclCommInitClusterInfoConfig, const char* path, std::uint32_t rank, const void* config,
      HcclComm* out) {
  if (!config) refuse(HCCL_E_PTR, "config is NULL");
  return initialize_from_table(path, rank, config, out);
}

// All ranks in this process, one per device. Joining waits for the others, so each joins on a thread.
ENTRY(hcomm, HcclCommInitAll, std::uint32_t count, std::int32_t* devices, HcclComm* out) {
  if (!devices || !out) refuse(HCCL_E_PTR, "devices or comms is NULL");
  const std::string id = fresh_id();
  const HcclSettings settings = settings_of(nullptr);
  std::vector<std::thread> threads;
  std::atomic<int> failed{0};
  for (std::uint32_t rank = 0; rank < count; ++rank)
    threads.emplace_back([&, rank] {
      try {
        out[rank] = create(id, count, rank, settings, devices[rank]);
      } catch (const Refusal& refusal) {
        failed = refusal.code;
      }
    });
  for (std::thread& thread : threads) thread.join();
  if (failed) refuse(failed, "a rank did not join");
  return HCCL_SUCCESS;
}

ENTRY(hcomm, HcclCreateSubCommConfig, HcclComm* parent, std::uint32_t ranks, std::uint32_t* ids,
      std::uint64_t sub_id, std::uint32_t sub_rank, const void* config, HcclComm* out) {
  if (!parent || !config || !out) refuse(HCCL_E_PTR, "parent, config or subComm is NULL");
  Communicator& whole = communicator_of(*parent);
  if (!ids) {  // a rank that takes no part
    *out = nullptr;
    return HCCL_SUCCESS;
  }
  std::string members;
  for (std::uint32_t i = 0; i < ranks; ++i) {
    if (ids[i] >= whole.segment->ranks) refuse(HCCL_E_PARA, "EI0003: rank %u is not in the parent", ids[i]);
    members += text_of("_%u", ids[i]);
  }
  if (sub_rank >= ranks || ids[sub_rank] != whole.segment->rank)
    refuse(HCCL_E_PARA, "EI0003: subCommRankId %u is not this rank", sub_rank);
  *out = create(
      text_of("%s_sub%llu%s", whole.id.c_str(), static_cast<unsigned long long>(sub_id), members.c_str()),
      ranks, sub_rank, settings_of(config), whole.device);
  return HCCL_SUCCESS;
}

ENTRY(hcomm, HcclCommDestroy, HcclComm handle) {
  Communicator& communicator = communicator_of(handle);
  for (void* buffer : communicator.buffers) device_memory().free(buffer);
  bool pending = false;
  streams().each([&](Stream& stream) { pending = pending || !stream.pending_named("Hccl").empty(); });
  if (pending) violation("a communicator was destroyed while a collective is queued");
  communicators().remove(handle);
  return HCCL_SUCCESS;
}

ENTRY(hcomm, HcclGetRankSize, HcclComm handle, std::uint32_t* size) {
  if (!size) refuse(HCCL_E_PTR, "rankSize is NULL");
  *size = communicator_of(handle).segment->ranks;
  return HCCL_SUCCESS;
}
ENTRY(hcomm, HcclGetRankId, HcclComm handle, std::uint32_t* rank) {
  if (!rank) refuse(HCCL_E_PTR, "rank is NULL");
  *rank = communicator_of(handle).segment->rank;
  return HCCL_SUCCESS;
}
ENTRY(hcomm, HcclGetCommName, HcclComm handle, char* name) {
  if (!name) refuse(HCCL_E_PTR, "commName is NULL");
  std::snprintf(name, 128, "%s", communicator_of(handle).name.c_str());
  return HCCL_SUCCESS;
}

// 0 or 21 (a lost link), which ASCEND_DOUBLE_HCCL_ASYNC_ERROR plays.
ENTRY(hcomm, HcclGetCommAsyncError, HcclComm handle, int* error) {
  if (!error) refuse(HCCL_E_PTR, "asyncError is NULL");
  communicator_of(handle);
  if (soc().generation == 950) refuse(HCCL_E_NOT_SUPPORT, "not on %s", soc().name.c_str());
  *error = setting("HCCL_ASYNC_ERROR", std::int64_t{0}) ? HCCL_E_REMOTE : HCCL_SUCCESS;
  return HCCL_SUCCESS;
}

// A capability N means that the enum values below N are honoured.
static std::uint32_t capability() { return layout() >= 9 ? 12 : 5; }
static const Register entry_capability(Library::hcomm, always, "HcclGetCommConfigCapability",
                                       reinterpret_cast<void*>(&capability));

ENTRY_OF(const char*, hcomm, HcclGetErrorString, int code) {
  switch (code) {
    case HCCL_SUCCESS:
      return "no error";
    case HCCL_E_PARA:
      return "parameter error";
    case HCCL_E_PTR:
      return "empty pointer";
    case HCCL_E_MEMORY:
      return "memory error";
    case HCCL_E_NOT_SUPPORT:
      return "not supported";
    case HCCL_E_TIMEOUT:
      return "timeout";
    case HCCL_E_REMOTE:
      return "remote or network fault";
    default:
      return "unknown error";
  }
}

}  // namespace ascend_double
