// The life of an aclOpExecutor: phase 1 makes it, phase 2 consumes it, unless it was made repeatable.
#include <cstdlib>
#include <cstring>

#include "ascend_double/executor/plan.h"

struct aclOpExecutor {
  std::string name;
  std::function<void(const ascend_double::Launch&)> compute;
  std::vector<ascend_double::Slot> slots;
  std::uint64_t workspace = 0;
  int device = 0;
  bool repeatable = false;
  bool pending = true;  // no phase 2 yet: the tensors of phase 1 are in use
};

namespace ascend_double {
namespace {

Handles<aclOpExecutor>& executors() {
  static auto& all = *new Handles<aclOpExecutor>("executor");
  return all;
}

void settle(aclOpExecutor& executor) {
  if (!executor.pending) return;
  executor.pending = false;
  for (const Slot& slot : executor.slots)
    if (slot.tensor) --slot.tensor->pending;
}

void consume(aclOpExecutor& executor) {
  settle(executor);
  executor.compute = nullptr;
  executors().remove(&executor);
}

// What a kernel leaves in its workspace is no zero, and of no use to anybody.
void scribble(void* workspace, std::uint64_t size) {
  if (size) std::memset(device_memory().storage(workspace, size), 0x7E, size);
}

Task task_of(const aclOpExecutor& executor, void* workspace) {
  Task task;
  task.name = executor.name;
  struct Place {
    char* begin;
    std::size_t bytes;
  };
  std::vector<Place> places;
  for (const Slot& slot : executor.slots) {
    places.push_back({static_cast<char*>(slot.base) + slot.offset, slot.extent});
    if (slot.extent) task.touches.push_back({places.back().begin, slot.extent, slot.output});
  }
  const std::uint64_t size = executor.workspace;
  if (size) task.touches.push_back({workspace, size, true});
  task.run = [compute = executor.compute, places, workspace, size] {
    Launch launch;
    launch.chance = random_bits();
    for (const Place& place : places)
      launch.at.push_back(place.bytes ? device_memory().storage(place.begin, place.bytes) : nullptr);
    scribble(workspace, size);
    compute(launch);
    scribble(workspace, size);
  };
  return task;
}

aclOpExecutor& executor_of(aclOpExecutor* handle) {
  return executors().get(handle, ACLNN_ERR_INNER, ACLNN_ERR_INNER_NULLPTR);
}

}  // namespace

static aclnnStatus made_plan(const char* name, const std::function<void(Plan&)>& body,
                             std::uint64_t* workspace, aclOpExecutor** out) {
  if (!workspace || !out) refuse(ACLNN_ERR_PARAM_NULLPTR, "workspaceSize or executor is NULL");
  if (setting("STRICT_ENV", std::int64_t{0}) && !std::getenv("ASCEND_OPP_PATH"))
    refuse(ACLNN_ERR_INNER_OPP_PATH_NOT_FOUND, "ASCEND_OPP_PATH is not set");
  Plan plan(name);
  body(plan);
  auto* executor = new aclOpExecutor;
  executor->name = name;
  executor->compute = plan.compute ? std::move(plan.compute) : [](const Launch&) {};
  executor->slots = std::move(plan.slots);
  executor->device = current_context().device;
  executor->workspace = (plan.workspace + 511) / 512 * 512;
  for (const Slot& slot : executor->slots)
    if (slot.tensor) ++slot.tensor->pending;
  *workspace = executor->workspace;
  *out = executors().add(executor);
  return ACL_SUCCESS;
}

static aclnnStatus launched(const char* name, void* workspace, std::uint64_t size, aclOpExecutor* handle,
                            aclrtStream stream_handle) {
  aclOpExecutor& executor = executor_of(handle);
  if (executor.name != name) {
    violation("%s was run with an executor of %s", name, executor.name.c_str());
    refuse(ACLNN_ERR_INNER, "the executor is one of %s", executor.name.c_str());
  }
  Stream& stream = stream_of(stream_handle);
  if (stream.context->device != executor.device)
    refuse(ACLNN_ERR_PARAM_INVALID, "planned on device %d, run on device %d", executor.device,
           stream.context->device);
  if (executor.workspace > 0) {
    std::string reason = size < executor.workspace
                             ? text_of("a workspace of %llu bytes where phase 1 asked for %llu",
                                       static_cast<unsigned long long>(size),
                                       static_cast<unsigned long long>(executor.workspace))
                             : device_memory().why_not_inside(workspace, executor.workspace);
    if (!reason.empty()) {
      violation("%s: workspace: %s", name, reason.c_str());
      refuse(ACLNN_ERR_PARAM_INVALID, "workspace: %s", reason.c_str());
    }
  }
  stream.enqueue(task_of(executor, workspace));
  if (executor.repeatable)
    settle(executor);
  else
    consume(executor);
  return ACL_SUCCESS;
}

// aclnn has a code of its own for what the runtime refuses (no context, a stream of another one).
template <class Body>
static aclnnStatus translated(Body&& body) {
  try {
    return body();
  } catch (const Refusal& refusal) {
    if (refusal.code < 107000 || refusal.code > 107999) throw;
    refuse(ACLNN_ERR_RUNTIME_ERROR, "%d: %s", refusal.code, refusal.text.c_str());
  }
}

aclnnStatus plan_op(const char* name, const std::function<void(Plan&)>& body, std::uint64_t* workspace,
                    aclOpExecutor** executor) {
  return translated([&] { return made_plan(name, body, workspace, executor); });
}

aclnnStatus launch_op(const char* name, void* workspace, std::uint64_t size, aclOpExecutor* executor,
                      aclrtStream stream) {
  return translated([&] { return launched(name, workspace, size, executor, stream); });
}

ENTRY(base, aclSetAclOpExecutorRepeatable, aclOpExecutor* handle) {
  aclOpExecutor& executor = executor_of(handle);
  const std::string refused = "," + setting("UNREPEATABLE", "") + ",";
  if (refused.find("," + executor.name + ",") != std::string::npos)
    refuse(ACLNN_ERR_INNER, "%s cannot be made repeatable", executor.name.c_str());
  executor.repeatable = true;
  return ACL_SUCCESS;
}

ENTRY(base, aclDestroyAclOpExecutor, aclOpExecutor* handle) {
  consume(executor_of(handle));
  return ACL_SUCCESS;
}

// ---- new addresses for a repeatable executor
// ------------------------------------------------------------------------------------
enum class Among { inputs, outputs, both };

static bool belongs(const Slot& slot, Among among) {
  return among == Among::both || slot.output == (among == Among::outputs);
}

static int set_address(aclOpExecutor* handle, std::size_t index, aclTensor* tensor, void* address,
                       Among among) {
  if (!tensor) refuse(ACLNN_ERR_INNER_NULLPTR, "the tensor is NULL");
  aclOpExecutor& executor = executor_of(handle);
  if (!executor.repeatable) violation("an address was set in an executor that is not repeatable");
  for (Slot& slot : executor.slots) {
    if (!belongs(slot, among)) continue;
    if (index-- > 0) continue;
    if (!slot.tensor) refuse(ACLNN_ERR_PARAM_INVALID, "that optional tensor was not given in phase 1");
    if (reinterpret_cast<std::uintptr_t>(address) % 32)
      refuse(ACLNN_ERR_PARAM_INVALID, "%p is not aligned to 32 bytes", address);
    slot.base = tensor->data = address;
    return ACL_SUCCESS;
  }
  refuse(ACLNN_ERR_PARAM_INVALID, "there is no tensor of that index");
}

static int set_list_address(aclOpExecutor* handle, std::size_t list, std::size_t index,
                            aclTensorList* tensors_list, void* address, Among among) {
  if (!tensors_list) refuse(ACLNN_ERR_INNER_NULLPTR, "the list is NULL");
  if (index >= tensors_list->members.size())
    refuse(ACLNN_ERR_PARAM_INVALID, "there is no member of that index");
  aclOpExecutor& executor = executor_of(handle);
  // A list counts as one tensor of the op's signature.
  std::size_t ordinal = 0;
  int last_list = -1;
  for (std::size_t i = 0; i < executor.slots.size(); ++i) {
    Slot& slot = executor.slots[i];
    if (!belongs(slot, among)) continue;
    const bool starts = slot.list < 0 || slot.list != last_list;
    last_list = slot.list;
    if (!starts) continue;
    if (ordinal++ != list) continue;
    if (slot.list < 0) refuse(ACLNN_ERR_PARAM_INVALID, "tensor %zu is no list", list);
    executor.slots[i + index].base = tensors_list->members[index]->data = address;
    return ACL_SUCCESS;
  }
  refuse(ACLNN_ERR_PARAM_INVALID, "there is no list of that index");
}

#define ADDRESS_SETTER(name, among)                                                                 \
  ENTRY(base, name, aclOpExecutor* executor, std::size_t index, aclTensor* tensor, void* address) { \
    return set_address(executor, index, tensor, address, Among::among);                             \
  }
ADDRESS_SETTER(aclSetInputTensorAddr, inputs)
ADDRESS_SETTER(aclSetOutputTensorAddr, outputs)
ADDRESS_SETTER(aclSetTensorAddr, both)
ADDRESS_SETTER(AclSetInputTensorAddr, inputs)
ADDRESS_SETTER(AclSetOutputTensorAddr, outputs)
ADDRESS_SETTER(AclSetTensorAddr, both)

#define LIST_ADDRESS_SETTER(name, among)                                                              \
  ENTRY(base, name, aclOpExecutor* executor, std::size_t list, std::size_t index, aclTensorList* all, \
        void* address) {                                                                              \
    return set_list_address(executor, list, index, all, address, Among::among);                       \
  }
LIST_ADDRESS_SETTER(aclSetDynamicInputTensorAddr, inputs)
LIST_ADDRESS_SETTER(aclSetDynamicOutputTensorAddr, outputs)
LIST_ADDRESS_SETTER(aclSetDynamicTensorAddr, both)

}  // namespace ascend_double
