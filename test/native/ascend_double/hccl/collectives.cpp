// Collectives: queued on a stream, computed chunk by chunk through the segment. Ranks that disagree wait for
// each other until the time for execution is over, as on hardware.
#include <cstring>

#include "ascend_double/hccl/communicator.h"
#include "ascend_double/ops/half.h"

namespace ascend_double {
namespace {

constexpr std::int64_t kForever = 1 << 25;  // seconds

enum Kind : std::uint32_t {
  all_reduce = 1,
  reduce_scatter,
  all_gather,
  broadcast,
  reduce,
  scatter,
  barrier,
  message
};

struct TypeRow {
  int type;
  std::size_t bytes;
  bool reducible, multiplies;
};
constexpr TypeRow kTypes[] = {
    {HCCL_DATA_TYPE_INT8, 1, true, true},     {HCCL_DATA_TYPE_INT16, 2, true, false},
    {HCCL_DATA_TYPE_INT32, 4, true, true},    {HCCL_DATA_TYPE_INT64, 8, true, true},
    {HCCL_DATA_TYPE_FP16, 2, true, true},     {HCCL_DATA_TYPE_FP32, 4, true, true},
    {HCCL_DATA_TYPE_BFP16, 2, true, false},   {HCCL_DATA_TYPE_UINT8, 1, false, false},
    {HCCL_DATA_TYPE_UINT16, 2, false, false}, {HCCL_DATA_TYPE_UINT32, 4, false, false},
    {HCCL_DATA_TYPE_UINT64, 8, false, false}, {HCCL_DATA_TYPE_FP64, 8, false, false},
};

const TypeRow& type_row(int type) {
  for (const TypeRow& row : kTypes)
    if (row.type == type) return row;
  refuse(HCCL_E_NOT_SUPPORT, "EI0003: data type %d", type);
}

void check_reduction(int type, int op) {
  const TypeRow& row = type_row(type);
  if (op < HCCL_REDUCE_SUM || op > HCCL_REDUCE_MIN) refuse(HCCL_E_NOT_SUPPORT, "EI0003: reduce op %d", op);
  if (!row.reducible || (op == HCCL_REDUCE_PROD && !row.multiplies))
    refuse(HCCL_E_NOT_SUPPORT, "EI0003: data type %d does not reduce by op %d", type, op);
}

template <class Value>
Value combine(Value a, Value b, int op) {
  switch (op) {
    case HCCL_REDUCE_SUM:
      return static_cast<Value>(a + b);
    case HCCL_REDUCE_PROD:
      return static_cast<Value>(a * b);
    case HCCL_REDUCE_MAX:
      return a > b ? a : b;
    default:
      return a < b ? a : b;
  }
}

// Integers wrap; halves are rounded after each addition, as the links do it.
template <class Stored>
void accumulate(char* into, const char* more, std::size_t count, int op) {
  for (std::size_t i = 0; i < count; ++i) {
    Stored a, b;
    std::memcpy(&a, into + i * sizeof a, sizeof a);
    std::memcpy(&b, more + i * sizeof b, sizeof b);
    if constexpr (std::is_class_v<Stored>)
      a = Stored(combine(static_cast<float>(a), static_cast<float>(b), op));
    else if constexpr (std::is_integral_v<Stored>)
      a = op == HCCL_REDUCE_MAX || op == HCCL_REDUCE_MIN
              ? combine(a, b, op)
              : static_cast<Stored>(
                    combine(static_cast<std::uint64_t>(a), static_cast<std::uint64_t>(b), op));
    else
      a = combine(a, b, op);
    std::memcpy(into + i * sizeof a, &a, sizeof a);
  }
}

void accumulate(int type, char* into, const char* more, std::size_t count, int op) {
  switch (type) {
    case HCCL_DATA_TYPE_INT8:
      return accumulate<std::int8_t>(into, more, count, op);
    case HCCL_DATA_TYPE_INT16:
      return accumulate<std::int16_t>(into, more, count, op);
    case HCCL_DATA_TYPE_INT32:
      return accumulate<std::int32_t>(into, more, count, op);
    case HCCL_DATA_TYPE_INT64:
      return accumulate<std::int64_t>(into, more, count, op);
    case HCCL_DATA_TYPE_FP16:
      return accumulate<Half>(into, more, count, op);
    case HCCL_DATA_TYPE_BFP16:
      return accumulate<BFloat>(into, more, count, op);
    default:
      return accumulate<float>(into, more, count, op);
  }
}

struct Call {
  Communicator* communicator;
  const char* name;
  CallDescription what;
  void *send, *receive;
  std::size_t send_bytes, receive_bytes;
  std::uint64_t turn;  // of the communicator's collectives
};

class Exchange {
 public:
  explicit Exchange(const Call& call)
      : call_(call),
        segment_(*call.communicator->segment),
        item_(call.what.dtype < 0 ? 1 : type_row(call.what.dtype).bytes) {
    const std::int64_t seconds = call.communicator->settings.exec_timeout_s;
    deadline_ = std::chrono::steady_clock::now() + std::chrono::seconds(seconds ? seconds : kForever);
    send_ = call.send_bytes ? device_memory().storage(call.send, call.send_bytes) : nullptr;
    receive_ = call.receive_bytes ? device_memory().storage(call.receive, call.receive_bytes) : nullptr;
  }

  void run() {
    agree();
    const std::uint32_t kind = call_.what.kind,
                        parts = kind == reduce_scatter || kind == scatter ? segment_.ranks : 1;
    if (kind == barrier) return;
    const std::size_t total = call_.what.count * item_;
    for (std::uint32_t part = 0; part < parts; ++part)
      for (std::size_t at = 0; at < total; at += kChunk) step(part, at, std::min(kChunk, total - at));
  }

 private:
  /// The rank that alone has the data to give, or kMostRanks.
  std::uint32_t source() const {
    return call_.what.kind == broadcast || call_.what.kind == scatter ? call_.what.root : kMostRanks;
  }

  void agree() {
    segment_.description(segment_.rank) = call_.what;
    meet();
    for (std::uint32_t other = 0; other < segment_.ranks; ++other) {
      if (segment_.description(other) == call_.what) continue;
      // They would wait for messages of another size that never come.
      Segment::wait(deadline_, [] { return false; });
      time_out();
    }
    meet();
  }

  void step(std::uint32_t part, std::size_t at, std::size_t bytes) {
    const std::size_t offset = part * call_.what.count * item_ + at;
    if (source() == kMostRanks || source() == segment_.rank)
      std::memcpy(segment_.chunk(segment_.rank), send_ + offset, bytes);
    meet();
    switch (call_.what.kind) {
      case all_reduce:
        combine_all(at, bytes);
        break;
      case reduce:
        if (segment_.rank == call_.what.root) combine_all(at, bytes);
        break;
      case reduce_scatter:
        if (segment_.rank == part) combine_all(at, bytes);
        break;
      case all_gather:
        for (std::uint32_t other = 0; other < segment_.ranks; ++other)
          std::memcpy(receive_ + other * call_.what.count * item_ + at, segment_.chunk(other), bytes);
        break;
      case broadcast:
        if (segment_.rank != call_.what.root)
          std::memcpy(receive_ + at, segment_.chunk(call_.what.root), bytes);
        break;
      case scatter:
        if (segment_.rank == part) std::memcpy(receive_ + at, segment_.chunk(call_.what.root), bytes);
        break;
      default:
        break;
    }
    meet();
  }

  // Everybody adds in the same order. It is that of the ranks, or, where nobody asked for determinism, one
  // that changes from call to call.
  void combine_all(std::size_t at, std::size_t bytes) {
    const std::uint32_t first = call_.communicator->settings.deterministic
                                    ? 0
                                    : static_cast<std::uint32_t>(call_.turn * 5 % segment_.ranks);
    std::memcpy(receive_ + at, segment_.chunk(first), bytes);
    for (std::uint32_t i = 1; i < segment_.ranks; ++i)
      accumulate(call_.what.dtype, receive_ + at, segment_.chunk((first + i) % segment_.ranks), bytes / item_,
                 call_.what.op);
  }

  void meet() {
    if (call_.communicator->broken || !segment_.barrier(deadline_)) time_out();
  }

  [[noreturn]] void time_out() {
    call_.communicator->broken = true;
    refuse(ACL_ERROR_RT_FFTSPLUS_TIMEOUT,
           "EI0002: %s of rank %u waited longer than HCCL_EXEC_TIMEOUT for its peers", call_.name,
           segment_.rank);
  }

  const Call& call_;
  Segment& segment_;
  std::size_t item_;
  Deadline deadline_;
  const char* send_;
  char* receive_;
};

void check_buffer(const void* buffer, std::size_t bytes, std::size_t item, const char* which) {
  if (!buffer) refuse(HCCL_E_PTR, "EI0003: %s is NULL", which);
  if (reinterpret_cast<std::uintptr_t>(buffer) % item)
    refuse(HCCL_E_PARA, "EI0003: %s is not aligned to its type", which);
  const std::string reason = device_memory().why_not_inside(buffer, bytes);
  if (reason.empty()) return;
  violation("a collective's %s: %s", which, reason.c_str());
  refuse(HCCL_E_PARA, "EI0003: %s: %s", which, reason.c_str());
}

Stream& checked_stream(aclrtStream handle) {
  try {
    return stream_of(handle);
  } catch (const Refusal& refusal) {
    refuse(HCCL_E_PARA, "EI0003: stream: %s", refusal.text.c_str());
  }
}

/// How many counts of data a rank sends and receives.
struct Extents {
  std::uint64_t send, receive;
};

int queue(const char* name, const CallDescription& what, const Extents& extents, void* send, void* receive,
          HcclComm handle, aclrtStream stream_handle) {
  Communicator& communicator = communicator_of(handle);
  const std::size_t item = what.dtype < 0 ? 1 : type_row(what.dtype).bytes;
  if (what.root >= communicator.segment->ranks) refuse(HCCL_E_PARA, "EI0003: root %u", what.root);
  if (what.op >= 0) check_reduction(what.dtype, what.op);
  if (extents.send && what.count) check_buffer(send, extents.send * what.count * item, item, "sendBuf");
  if (extents.receive && what.count)
    check_buffer(receive, extents.receive * what.count * item, item, "recvBuf");
  Stream& stream = checked_stream(stream_handle);
  const Call call{&communicator,
                  name,
                  what,
                  send,
                  receive,
                  extents.send * what.count * item,
                  extents.receive * what.count * item,
                  communicator.collectives++};
  Task task;
  task.name = name;
  if (call.send_bytes) task.touches.push_back({send, call.send_bytes, false});
  if (call.receive_bytes) task.touches.push_back({receive, call.receive_bytes, true});
  task.run = [call] { Exchange(call).run(); };
  stream.enqueue(std::move(task));
  return HCCL_SUCCESS;
}

std::uint64_t ranks_of(HcclComm handle) { return communicator_of(handle).segment->ranks; }
std::uint32_t rank_of(HcclComm handle) { return communicator_of(handle).segment->rank; }

}  // namespace

ENTRY(hccl, HcclAllReduce, void* send, void* receive, std::uint64_t count, int type, int op, HcclComm comm,
      aclrtStream stream) {
  return queue("HcclAllReduce", {all_reduce, type, op, 0, count}, {1, 1}, send, receive, comm, stream);
}
ENTRY(hccl, HcclReduceScatter, void* send, void* receive, std::uint64_t count, int type, int op,
      HcclComm comm, aclrtStream stream) {
  return queue("HcclReduceScatter", {reduce_scatter, type, op, 0, count}, {ranks_of(comm), 1}, send, receive,
               comm, stream);
}
ENTRY(hccl, HcclAllGather, void* send, void* receive, std::uint64_t count, int type, HcclComm comm,
      aclrtStream stream) {
  return queue("HcclAllGather", {all_gather, type, -1, 0, count}, {1, ranks_of(comm)}, send, receive, comm,
               stream);
}
ENTRY(hccl, HcclBroadcast, void* buffer, std::uint64_t count, int type, std::uint32_t root, HcclComm comm,
      aclrtStream stream) {
  const bool gives = rank_of(comm) == root;
  return queue("HcclBroadcast", {broadcast, type, -1, root, count}, {gives ? 1u : 0u, gives ? 0u : 1u},
               buffer, buffer, comm, stream);
}
ENTRY(hccl, HcclReduce, void* send, void* receive, std::uint64_t count, int type, int op, std::uint32_t root,
      HcclComm comm, aclrtStream stream) {
  return queue("HcclReduce", {reduce, type, op, root, count}, {1, rank_of(comm) == root ? 1u : 0u}, send,
               receive, comm, stream);
}
ENTRY(hccl, HcclScatter, void* send, void* receive, std::uint64_t count, int type, std::uint32_t root,
      HcclComm comm, aclrtStream stream) {
  return queue("HcclScatter", {scatter, type, -1, root, count},
               {rank_of(comm) == root ? ranks_of(comm) : 0, 1}, send, receive, comm, stream);
}
ENTRY(hcomm, HcclBarrier, HcclComm comm, aclrtStream stream) {
  return queue("HcclBarrier", {barrier, -1, -1, 0, 0}, {0, 0}, nullptr, nullptr, comm, stream);
}

// ---- messages between two ranks
// -----------------------------------------------------------------------------------------------
static int queue_message(const char* name, void* buffer, std::uint64_t count, int type, std::uint32_t peer,
                         HcclComm comm, aclrtStream stream_handle, bool sends) {
  Communicator& communicator = communicator_of(comm);
  Segment& segment = *communicator.segment;
  const std::size_t item = type_row(type).bytes, bytes = count * item;
  if (peer >= segment.ranks || peer == segment.rank) refuse(HCCL_E_PARA, "EI0003: peer %u", peer);
  if (bytes) check_buffer(buffer, bytes, item, "buffer");
  Task task;
  task.name = name;
  if (bytes) task.touches.push_back({buffer, bytes, !sends});
  task.run = [=, &communicator, &segment] {
    Segment::Mailbox& box = sends ? segment.mailbox(segment.rank, peer) : segment.mailbox(peer, segment.rank);
    const std::int64_t seconds = communicator.settings.exec_timeout_s;
    const Deadline deadline =
        std::chrono::steady_clock::now() + std::chrono::seconds(seconds ? seconds : kForever);
    const auto give_up = [&](bool reached) {
      if (!reached)
        refuse(ACL_ERROR_RT_FFTSPLUS_TIMEOUT, "EI0002: %s waited longer than HCCL_EXEC_TIMEOUT", name);
    };
    char* data = bytes ? device_memory().storage(buffer, bytes) : nullptr;
    const CallDescription what{message, type, -1, 0, count};
    for (std::size_t at = 0; at < bytes; at += kMailChunk) {
      const std::size_t length = std::min(kMailChunk, bytes - at);
      if (sends) {
        give_up(Segment::wait(deadline, [&] { return box.written == box.read; }));
        box.description = what;
        std::memcpy(box.bytes, data + at, length);
        ++box.written;
      } else {
        give_up(Segment::wait(deadline, [&] { return box.written != box.read; }));
        if (!(box.description == what)) give_up(Segment::wait(deadline, [] { return false; }));
        std::memcpy(data + at, box.bytes, length);
        ++box.read;
      }
    }
  };
  checked_stream(stream_handle).enqueue(std::move(task));
  return HCCL_SUCCESS;
}
ENTRY(hccl, HcclSend, void* buffer, std::uint64_t count, int type, std::uint32_t peer, HcclComm comm,
      aclrtStream stream) {
  return queue_message("HcclSend", buffer, count, type, peer, comm, stream, true);
}
ENTRY(hccl, HcclRecv, void* buffer, std::uint64_t count, int type, std::uint32_t peer, HcclComm comm,
      aclrtStream stream) {
  return queue_message("HcclRecv", buffer, count, type, peer, comm, stream, false);
}

}  // namespace ascend_double
