#include "backend/ascend/launcher.h"

#include <algorithm>
#include <iterator>

namespace danceflux::ascend {

Launcher::Launcher(std::shared_ptr<Npu> npu, Pool& pool, const Settings& settings)
    : npu_(std::move(npu)),
      pool_(pool),
      blocking_(settings.launch_blocking),
      cache_limit_(npu_->acl().aclSetAclOpExecutorRepeatable && npu_->acl().aclDestroyAclOpExecutor &&
                           npu_->acl().aclSetInputTensorAddr && npu_->acl().aclSetOutputTensorAddr
                       ? static_cast<std::size_t>(settings.executor_cache)
                       : 0),
      level_(npu_->determinism().level),
      stream_(npu_->stream()) {}

Launcher::~Launcher() {
  for (const auto& [key, planned] : planned_) npu_->acl().aclDestroyAclOpExecutor(planned.executor);
}

void Launcher::require_found(const char* op, const OperatorSymbols& call) const {
  if (call.found()) [[likely]]
    return;
  throw Error("ERR_DEVICE",
              std::string(op) + ": expected the operator " + call.name + ", got CANN " +
                  npu_->cann().version.text + " without it",
              "danceflux doctor tells which libraries were searched");
}

void Launcher::fail_call(const char* op, const OperatorSymbols& call, const char* phase, AclStatus status,
                         const Tell& tell) const {
  std::ostringstream what;
  what << op << ": " << call.name << phase << '(';
  tell(what);
  what << ')';
  fail_acl(npu_->acl(), status, what.str());
}

void Launcher::execute(const char* op, const OperatorSymbols& call, std::uint64_t workspace,
                       aclOpExecutor* executor, const Tell& tell) {
  void* memory = nullptr;
  if (workspace > 0) {
    try {
      memory = pool_.allocate(workspace);
    } catch (...) {
      discard(executor);
      throw;
    }
  }
  run(op, call, workspace, memory, executor, tell);
}

void Launcher::run(const char* op, const OperatorSymbols& call, std::uint64_t bytes, void* memory,
                   aclOpExecutor* executor, const Tell& tell) {
  const AclStatus status = reinterpret_cast<Execute>(call.execute)(memory, bytes, executor, stream_);
  // Later work on the same stream may have it at once: it comes after.
  if (memory) {
    if (kept_) {
      kept_->emplace_back(memory, bytes);
    } else {
      pool_.release(memory, bytes);
    }
  }
  recent_[launched_++ % kRecent] = call.name;
  if (status != kAclSuccess) fail_call(op, call, " launched", status, tell);
  if (blocking_) {
    const AclStatus done = npu_->acl().aclrtSynchronizeStream(stream_);
    if (done != kAclSuccess) fail_call(op, call, " run", done, tell);
  }
}

// ---- planned operators -----------------------------------------------------------------------------------

bool Launcher::make_repeatable(aclOpExecutor* executor) const {
  if (npu_->acl().aclSetAclOpExecutorRepeatable(executor) == kAclSuccess) return true;
  npu_->acl().aclGetRecentErrMsg();  // not every operator can be; that is no failure
  return false;
}

/// An executor that was not launched can only be let go of by way of being repeatable.
void Launcher::discard(aclOpExecutor* executor) const noexcept {
  const Acl& acl = npu_->acl();
  if (!acl.aclDestroyAclOpExecutor || !acl.aclSetAclOpExecutorRepeatable) return;
  if (acl.aclSetAclOpExecutorRepeatable(executor) == kAclSuccess) acl.aclDestroyAclOpExecutor(executor);
}

void Launcher::keep(std::string key, aclOpExecutor* executor, std::uint64_t workspace,
                    const std::vector<Place>& places) {
  while (planned_.size() >= cache_limit_) forget(std::string(ages_.front()));
  Planned planned{executor, workspace, {}, {}};
  for (const Place& place : places) planned.tensors.push_back(std::move(*place.argument));
  ages_.push_back(key);
  planned.age = std::prev(ages_.end());
  planned_.emplace(std::move(key), std::move(planned));
}

void Launcher::execute_again(const char* op, const OperatorSymbols& call, std::uint64_t workspace,
                             aclOpExecutor* executor, const Tell& tell) {
  try {
    void* const memory = workspace > 0 ? pool_.allocate(workspace) : nullptr;
    run(op, call, workspace, memory, executor, tell);
  } catch (...) {
    npu_->acl().aclDestroyAclOpExecutor(executor);
    throw;
  }
}

void Launcher::drop(std::unordered_map<std::string, Planned>::iterator planned) {
  ages_.erase(planned->second.age);
  planned_.erase(planned);
}

void Launcher::forget(const std::string& key) {
  const auto found = planned_.find(key);
  npu_->acl().aclDestroyAclOpExecutor(found->second.executor);
  drop(found);
}

bool Launcher::launch_planned(const char* op, const OperatorSymbols& call, const std::string& key,
                              const std::vector<Place>& places, const Tell& tell) {
  const auto found = planned_.find(key);
  if (found == planned_.end()) return false;
  Planned& planned = found->second;
  const Acl& acl = npu_->acl();
  std::size_t inputs = 0, outputs = 0;
  for (std::size_t i = 0; i < places.size(); ++i) {
    aclTensor* const tensor = planned.tensors[i].handle();
    void* const address = places[i].argument->form().address;
    const AclStatus status = places[i].input
                                 ? acl.aclSetInputTensorAddr(planned.executor, inputs++, tensor, address)
                                 : acl.aclSetOutputTensorAddr(planned.executor, outputs++, tensor, address);
    if (status != kAclSuccess) {  // plan it anew
      acl.aclGetRecentErrMsg();
      forget(key);
      return false;
    }
  }
  ages_.splice(ages_.end(), ages_, planned.age);
  ++reused_;
  try {
    execute_again(op, call, planned.workspace, planned.executor, tell);
  } catch (...) {
    drop(planned_.find(key));
    throw;
  }
  return true;
}

std::string Launcher::recent() const {
  std::string text;
  const std::size_t count = std::min(launched_, kRecent);
  for (std::size_t i = launched_ - count; i < launched_; ++i)
    text += (text.empty() ? "" : ", ") + std::string(recent_[i % kRecent]);
  return text;
}

}  // namespace danceflux::ascend
