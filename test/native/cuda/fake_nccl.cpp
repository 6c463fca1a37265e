// libnccl.so.2 for tests: ranks are threads of one process. As a non-blocking communicator does, a call
// answers "in progress" until every rank has made the same; the last one to come does the work for all. Sums
// of 16 bits are rounded at every step, as the real ones are.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "backend/cuda/formulas.h"
#include "stand_in/nccl.h"

using danceflux::cuda::Bf16;
using danceflux::cuda::F16;
using danceflux::cuda::narrow_to;
using danceflux::cuda::widen;

namespace {

enum class Kind { all_reduce, reduce_scatter, all_gather, broadcast, send, receive };

struct Call {
  Kind kind;
  const void* from;
  void* to;
  std::size_t count;
  ncclDataType_t type;
  int detail;  // op, root or peer
};

struct Round {
  std::vector<std::vector<Call>> calls;
  std::size_t arrived = 0;
  bool done = false;
};

struct World {
  std::size_t size = 0, joined = 0;
  std::map<std::uint64_t, Round> rounds;
  ncclResult_t failure = ncclSuccess;
};

std::mutex mutex;
std::map<std::uint64_t, std::shared_ptr<World>> worlds;
std::atomic<std::uint64_t> next_id{1};

std::size_t size_of(ncclDataType_t type) { return type == ncclFloat32 ? 4 : 2; }
float read(const void* from, ncclDataType_t type, std::size_t i) {
  if (type == ncclFloat32) return static_cast<const float*>(from)[i];
  if (type == ncclFloat16) return widen(static_cast<const F16*>(from)[i]);
  return widen(static_cast<const Bf16*>(from)[i]);
}
void write(void* to, ncclDataType_t type, std::size_t i, float value) {
  if (type == ncclFloat32) {
    static_cast<float*>(to)[i] = value;
  } else if (type == ncclFloat16) {
    static_cast<F16*>(to)[i] = narrow_to<F16>(value);
  } else {
    static_cast<Bf16*>(to)[i] = narrow_to<Bf16>(value);
  }
}

/// Element i of all ranks' inputs, from the last rank to the first.
void reduce(const std::vector<std::vector<Call>>& calls, std::size_t first, std::size_t count, void* to) {
  const Call& model = calls[0][0];
  for (std::size_t i = 0; i < count; ++i) {
    float value = read(calls.back()[0].from, model.type, first + i);
    for (std::size_t rank = calls.size() - 1; rank-- > 0;) {
      const float other = read(calls[rank][0].from, model.type, first + i);
      value = model.detail == ncclMax ? std::max(value, other) : value + other;
      if (model.type == ncclBfloat16) value = widen(narrow_to<Bf16>(value));
      if (model.type == ncclFloat16) value = widen(narrow_to<F16>(value));
    }
    write(to, model.type, i, value);
  }
}

void exchange(const std::vector<std::vector<Call>>& calls) {
  for (std::size_t rank = 0; rank < calls.size(); ++rank)
    for (const Call& wanted : calls[rank]) {
      if (wanted.kind != Kind::receive) continue;
      for (const Call& offered : calls[static_cast<std::size_t>(wanted.detail)])
        if (offered.kind == Kind::send && offered.detail == static_cast<int>(rank))
          std::memcpy(wanted.to, offered.from, std::min(wanted.count, offered.count) * size_of(wanted.type));
    }
}

ncclResult_t perform(const std::vector<std::vector<Call>>& calls) {
  const Call& model = calls[0][0];
  if (model.kind == Kind::send || model.kind == Kind::receive) return exchange(calls), ncclSuccess;
  for (const auto& each : calls)
    if (each.size() != 1 || each[0].kind != model.kind || each[0].count != model.count ||
        each[0].type != model.type)
      return ncclInvalidUsage;
  const std::size_t bytes = model.count * size_of(model.type);
  // What is written may be what another rank still reads: into copies first.
  std::vector<std::vector<char>> results(calls.size());
  for (std::size_t rank = 0; rank < calls.size(); ++rank) {
    std::vector<char>& result = results[rank];
    switch (model.kind) {
      case Kind::all_reduce:
        result.resize(bytes);
        reduce(calls, 0, model.count, result.data());
        break;
      case Kind::reduce_scatter:
        result.resize(bytes);
        reduce(calls, rank * model.count, model.count, result.data());
        break;
      case Kind::all_gather:
        for (const auto& each : calls) {
          const auto* from = static_cast<const char*>(each[0].from);
          result.insert(result.end(), from, from + bytes);
        }
        break;
      default: {
        const auto* from = static_cast<const char*>(calls[static_cast<std::size_t>(model.detail)][0].from);
        result.assign(from, from + bytes);
      }
    }
  }
  for (std::size_t rank = 0; rank < calls.size(); ++rank)
    std::memcpy(calls[rank][0].to, results[rank].data(), results[rank].size());
  return ncclSuccess;
}

}  // namespace

struct ncclComm {
  std::shared_ptr<World> world;
  std::size_t rank;
  std::uint64_t calls = 0;
};

namespace {

thread_local int group_depth = 0;
thread_local std::vector<Call> group;
thread_local ncclComm_t group_comm = nullptr;

ncclResult_t state_of(ncclComm_t comm) {
  if (comm->world->failure != ncclSuccess) return comm->world->failure;
  if (comm->world->joined < comm->world->size) return ncclInProgress;
  if (comm->calls == 0) return ncclSuccess;
  return comm->world->rounds[comm->calls - 1].done ? ncclSuccess : ncclInProgress;
}

ncclResult_t post(ncclComm_t comm, std::vector<Call> calls) {
  const std::lock_guard lock(mutex);
  World& world = *comm->world;
  if (const ncclResult_t state = state_of(comm)) return state == ncclInProgress ? ncclInvalidUsage : state;
  Round& round = world.rounds[comm->calls++];
  round.calls.resize(world.size);
  round.calls[comm->rank] = std::move(calls);
  if (++round.arrived < world.size) return ncclInProgress;
  world.failure = perform(round.calls);
  round.done = true;
  return world.failure;
}

ncclResult_t add(ncclComm_t comm, const Call& call) {
  if (group_depth == 0) return post(comm, {call});
  group.push_back(call);
  group_comm = comm;
  return ncclSuccess;
}

}  // namespace

extern "C" {

ncclResult_t ncclGetVersion(int* version) { return *version = 23007, ncclSuccess; }
ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  const std::uint64_t number = next_id++;
  std::memset(id, 0, sizeof *id);
  std::memcpy(id->internal, &number, sizeof number);
  return ncclSuccess;
}
ncclResult_t ncclCommInitRankConfig(ncclComm_t* comm, int size, ncclUniqueId id, int rank,
                                    ncclConfig_t* config) {
  if (config->magic != 0xcafebeef || config->blocking != 0) return ncclInvalidArgument;
  std::uint64_t number;
  std::memcpy(&number, id.internal, sizeof number);
  if (number == 0) return ncclInvalidArgument;
  const std::lock_guard lock(mutex);
  std::shared_ptr<World>& world = worlds[number];
  if (!world) world = std::make_shared<World>();
  world->size = static_cast<std::size_t>(size);
  ++world->joined;
  *comm = new ncclComm{world, static_cast<std::size_t>(rank)};
  return ncclInProgress;
}
ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t* result) {
  const std::lock_guard lock(mutex);
  *result = state_of(comm);
  return ncclSuccess;
}
ncclResult_t ncclCommAbort(ncclComm_t comm) {
  const std::lock_guard lock(mutex);
  comm->world->failure = ncclRemoteError;
  delete comm;
  return ncclSuccess;
}
ncclResult_t ncclCommDestroy(ncclComm_t comm) {
  delete comm;
  return ncclSuccess;
}
ncclResult_t ncclAllReduce(const void* send, void* receive, std::size_t count, ncclDataType_t type,
                           ncclRedOp_t op, ncclComm_t comm, cudaStream_t) {
  return add(comm, {Kind::all_reduce, send, receive, count, type, op});
}
ncclResult_t ncclReduceScatter(const void* send, void* receive, std::size_t count, ncclDataType_t type,
                               ncclRedOp_t op, ncclComm_t comm, cudaStream_t) {
  return add(comm, {Kind::reduce_scatter, send, receive, count, type, op});
}
ncclResult_t ncclAllGather(const void* send, void* receive, std::size_t count, ncclDataType_t type,
                           ncclComm_t comm, cudaStream_t) {
  return add(comm, {Kind::all_gather, send, receive, count, type, 0});
}
ncclResult_t ncclBroadcast(const void* send, void* receive, std::size_t count, ncclDataType_t type, int root,
                           ncclComm_t comm, cudaStream_t) {
  return add(comm, {Kind::broadcast, send, receive, count, type, root});
}
ncclResult_t ncclSend(const void* send, std::size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t) {
  return add(comm, {Kind::send, send, nullptr, count, type, peer});
}
ncclResult_t ncclRecv(void* receive, std::size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t) {
  return add(comm, {Kind::receive, nullptr, receive, count, type, peer});
}
ncclResult_t ncclGroupStart() { return ++group_depth, ncclSuccess; }
ncclResult_t ncclGroupEnd() {
  if (--group_depth > 0 || group.empty()) return ncclSuccess;
  std::vector<Call> calls;
  calls.swap(group);
  return post(group_comm, std::move(calls));
}
const char* ncclGetErrorString(ncclResult_t result) {
  return result == ncclRemoteError    ? "remote process exited"
         : result == ncclInvalidUsage ? "invalid usage"
                                      : "failed";
}
const char* ncclGetLastError(ncclComm_t) { return ""; }
}
