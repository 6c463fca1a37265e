#include "backend/cpu/collective.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <optional>
#include <vector>

#include "backend/cpu/rank_board.h"
#include "backend/host_communicator.h"
#include "backend/host_reduce.h"
#include "backend/options.h"
#include "core/error.h"

namespace danceflux::cpu {
namespace {

constexpr std::size_t kLine = 64;
// Up to here every rank reduces everything itself: one wait is dearer than the sums.
constexpr std::size_t kSmall = 8 << 10;
constexpr std::size_t kReduceBlock = 16 << 10;  // what is reduced twice over stays in the first cache
constexpr std::int64_t kDefaultSlotKiB = 256;

std::size_t round_up(std::size_t value, std::size_t unit) { return (value + unit - 1) / unit * unit; }

class SharedMemoryEngine final : public CollectiveEngine {
 public:
  SharedMemoryEngine(std::unique_ptr<RankBoard> board, std::size_t slot_bytes)
      : board_(std::move(board)),
        rank_(board_->rank()),
        ranks_(board_->ranks()),
        slot_bytes_(slot_bytes),
        slice_room_(slot_bytes / static_cast<std::size_t>(ranks_) / kLine * kLine),
        parts_(static_cast<std::size_t>(ranks_)) {}

  std::string description() const override {
    return "shared memory, " + std::to_string(ranks_) + (ranks_ == 1 ? " rank" : " ranks");
  }
  void interrupt(const std::string& reason) noexcept override { board_->interrupt(reason); }
  void run(const CollectiveCall& call) override;

 private:
  void all_reduce(const CollectiveCall& call);
  void all_reduce_small(const CollectiveCall& call);
  void reduce_scatter(const CollectiveCall& call);
  void all_gather(const CollectiveCall& call);
  void broadcast(const CollectiveCall& call);

  template <class Stage, class Reduce>
  void two_phases(const CollectiveCall& call, std::size_t steps, Stage stage, Reduce reduce);
  template <class Stage, class Reduce, class Collect>
  void three_phases(const CollectiveCall& call, std::size_t steps, Stage stage, Reduce reduce,
                    Collect collect);
  template <class Stage>
  void stage_step(std::size_t steps, std::size_t step, Stage stage);
  template <class Reduce>
  void reduce_step(const CollectiveCall& call, std::size_t steps, std::size_t step, Reduce reduce);

  void compare(const CollectiveCall& call) const;
  char* slot(int rank, std::size_t step) const {
    return board_->segment().slot(rank, first_ + static_cast<std::uint32_t>(step));
  }
  /// Number of pieces of at most `piece` bytes; one for nothing, so that ranks meet in every call.
  static std::size_t pieces(std::size_t bytes, std::size_t piece) {
    return std::max<std::size_t>((bytes + piece - 1) / piece, 1);
  }

  const std::unique_ptr<RankBoard> board_;
  const int rank_, ranks_;
  const std::size_t slot_bytes_;
  const std::size_t slice_room_;  // bytes of a slot for each rank
  std::uint32_t first_ = 0;       // steps of all calls before this one; wraps around
  std::vector<const void*> parts_;
};

void SharedMemoryEngine::compare(const CollectiveCall& call) const {
  const auto count = static_cast<std::uint64_t>(call.count);
  for (int other = 0; other < ranks_; ++other) {
    const PostedCall& theirs = board_->posted(other, call.number);
    const std::uint64_t number = theirs.number.load(std::memory_order_relaxed),
                        kind = theirs.kind.load(std::memory_order_relaxed),
                        their_count = theirs.count.load(std::memory_order_relaxed);
    if (number == call.number && kind == call.signature() && their_count == count) continue;
    fail_mismatch(rank_, CollectiveCall::told(call.number, call.signature(), count), other,
                  CollectiveCall::told(number, kind, their_count));
  }
}

template <class Stage>
void SharedMemoryEngine::stage_step(std::size_t steps, std::size_t step, Stage stage) {
  if (step >= steps) return;
  const auto at = first_ + static_cast<std::uint32_t>(step);
  board_->wait(kCollected, at + 1 - kSlots);  // the slot is free again
  stage(step);
  board_->publish(kStaged, at + 1);
}

template <class Reduce>
void SharedMemoryEngine::reduce_step(const CollectiveCall& call, std::size_t steps, std::size_t step,
                                     Reduce reduce) {
  if (step < 1 || step > steps) return;
  board_->wait(kStaged, first_ + static_cast<std::uint32_t>(step));
  if (step == 1) compare(call);
  reduce(step - 1);
}

template <class Stage, class Reduce>
void SharedMemoryEngine::two_phases(const CollectiveCall& call, std::size_t steps, Stage stage,
                                    Reduce reduce) {
  for (std::size_t step = 0; step < steps + 1; ++step) {
    stage_step(steps, step, stage);
    reduce_step(call, steps, step, [&](std::size_t piece) {
      reduce(piece);
      board_->publish(kCollected, first_ + static_cast<std::uint32_t>(piece) + 1);
    });
  }
  first_ += static_cast<std::uint32_t>(steps);
  board_->publish(kReduced, first_);  // skipped: nobody waits for it here
}

template <class Stage, class Reduce, class Collect>
void SharedMemoryEngine::three_phases(const CollectiveCall& call, std::size_t steps, Stage stage,
                                      Reduce reduce, Collect collect) {
  for (std::size_t step = 0; step < steps + 2; ++step) {
    stage_step(steps, step, stage);
    reduce_step(call, steps, step, [&](std::size_t piece) {
      reduce(piece);
      board_->publish(kReduced, first_ + static_cast<std::uint32_t>(piece) + 1);
    });
    if (step < 2) continue;
    const auto done = first_ + static_cast<std::uint32_t>(step) - 1;
    board_->wait(kReduced, done);
    collect(step - 2);
    board_->publish(kCollected, done);
  }
  first_ += static_cast<std::uint32_t>(steps);
}

void SharedMemoryEngine::run(const CollectiveCall& call) {
  if (ranks_ == 1) return call.run_alone();
  board_->check_aborted();
  board_->post(call.number, call.signature(), static_cast<std::uint64_t>(call.count));
  switch (call.kind) {
    case CollectiveKind::all_reduce:
      return call.bytes() <= std::min(kSmall, slot_bytes_) ? all_reduce_small(call) : all_reduce(call);
    case CollectiveKind::reduce_scatter:
      return reduce_scatter(call);
    case CollectiveKind::all_gather:
      return all_gather(call);
    case CollectiveKind::broadcast:
      return broadcast(call);
    case CollectiveKind::barrier:
      return two_phases(
          call, 1, [](std::size_t) {}, [](std::size_t) {});
  }
}

void SharedMemoryEngine::all_reduce_small(const CollectiveCall& call) {
  char* const x = call.x.data<char>();
  two_phases(
      call, 1, [&](std::size_t step) { std::memcpy(slot(rank_, step), x, call.bytes()); },
      [&](std::size_t step) {
        for (int rank = 0; rank < ranks_; ++rank) parts_[static_cast<std::size_t>(rank)] = slot(rank, step);
        reduce_parts(call.reduce.op, call.dtype, x, parts_, call.count);
      });
}

// In a piece and in every slot, slice r is what rank r reduces. In the slots of the others it is their share
// of it, in its own slot the result.
void SharedMemoryEngine::all_reduce(const CollectiveCall& call) {
  char* const x = call.x.data<char>();
  const std::size_t ranks = static_cast<std::size_t>(ranks_), piece = slice_room_ * ranks;
  struct Range {
    std::size_t begin, end;
    std::size_t size() const { return end - begin; }
  };
  const auto length = [&](std::size_t step) { return std::min(piece, call.bytes() - step * piece); };
  const auto slice = [&](std::size_t step, int rank) {
    const std::size_t all = length(step), each = round_up((all + ranks - 1) / ranks, kLine);
    const std::size_t begin = std::min(all, each * static_cast<std::size_t>(rank));
    return Range{begin, std::min(all, begin + each)};
  };
  const auto stage = [&](std::size_t step) {
    const Range own = slice(step, rank_);
    const char* const from = x + step * piece;
    char* const to = slot(rank_, step);
    std::memcpy(to, from, own.begin);
    std::memcpy(to + own.end, from + own.end, length(step) - own.end);
  };
  const auto reduce = [&](std::size_t step) {
    const Range own = slice(step, rank_);
    for (std::size_t at = own.begin; at < own.end; at += kReduceBlock) {
      const std::size_t bytes = std::min(kReduceBlock, own.end - at);
      for (int rank = 0; rank < ranks_; ++rank)
        parts_[static_cast<std::size_t>(rank)] =
            rank == rank_ ? x + step * piece + at : slot(rank, step) + at;
      reduce_parts(call.reduce.op, call.dtype, slot(rank_, step) + at, parts_,
                   static_cast<std::int64_t>(bytes / size_of(call.dtype)));
      std::memcpy(x + step * piece + at, slot(rank_, step) + at, bytes);
    }
  };
  const auto collect = [&](std::size_t step) {
    for (int rank = 0; rank < ranks_; ++rank) {
      if (rank == rank_) continue;
      const Range theirs = slice(step, rank);
      std::memcpy(x + step * piece + theirs.begin, slot(rank, step) + theirs.begin, theirs.size());
    }
  };
  three_phases(call, pieces(call.bytes(), piece), stage, reduce, collect);
}

void SharedMemoryEngine::reduce_scatter(const CollectiveCall& call) {
  const char* const x = call.x.data<char>();
  char* const out = call.out.data<char>();
  const std::size_t bytes = call.bytes();
  const auto length = [&](std::size_t step) { return std::min(slice_room_, bytes - step * slice_room_); };
  const auto mine = [&](std::size_t step, int rank) {
    return x + static_cast<std::size_t>(rank) * bytes + step * slice_room_;
  };
  two_phases(
      call, pieces(bytes, slice_room_),
      [&](std::size_t step) {
        for (int rank = 0; rank < ranks_; ++rank) {
          if (rank != rank_)
            std::memcpy(slot(rank_, step) + static_cast<std::size_t>(rank) * slice_room_, mine(step, rank),
                        length(step));
        }
      },
      [&](std::size_t step) {
        for (int rank = 0; rank < ranks_; ++rank)
          parts_[static_cast<std::size_t>(rank)] =
              rank == rank_ ? mine(step, rank)
                            : slot(rank, step) + static_cast<std::size_t>(rank_) * slice_room_;
        reduce_parts(call.reduce.op, call.dtype, out + step * slice_room_, parts_,
                     static_cast<std::int64_t>(length(step) / size_of(call.dtype)));
      });
}

void SharedMemoryEngine::all_gather(const CollectiveCall& call) {
  const char* const x = call.x.data<char>();
  char* const out = call.out.data<char>();
  const std::size_t bytes = call.bytes();
  const auto length = [&](std::size_t step) { return std::min(slot_bytes_, bytes - step * slot_bytes_); };
  two_phases(
      call, pieces(bytes, slot_bytes_),
      [&](std::size_t step) { std::memcpy(slot(rank_, step), x + step * slot_bytes_, length(step)); },
      [&](std::size_t step) {
        for (int rank = 0; rank < ranks_; ++rank) {
          char* const to = out + static_cast<std::size_t>(rank) * bytes + step * slot_bytes_;
          const char* const from = rank == rank_ ? x + step * slot_bytes_ : slot(rank, step);
          if (to != from) std::memcpy(to, from, length(step));
        }
      });
}

void SharedMemoryEngine::broadcast(const CollectiveCall& call) {
  char* const x = call.x.data<char>();
  const std::size_t bytes = call.bytes();
  const auto length = [&](std::size_t step) { return std::min(slot_bytes_, bytes - step * slot_bytes_); };
  two_phases(
      call, pieces(bytes, slot_bytes_),
      [&](std::size_t step) {
        if (rank_ == call.root) std::memcpy(slot(rank_, step), x + step * slot_bytes_, length(step));
      },
      [&](std::size_t step) {
        if (rank_ != call.root) std::memcpy(x + step * slot_bytes_, slot(call.root, step), length(step));
      });
}

// ---- how ranks meet --------------------------------------------------------------------------------------

constexpr char kOfferMagic[8] = {'d', 'f', 's', 'h', 'm', '-', '1', '\n'};

/// Read and written as it lies in memory: ranks of one host.
struct Offer {
  char magic[8];
  std::uint32_t rank, ranks;
  std::uint64_t slot_bytes;
  char host[40];  // this boot of this host
  std::uint32_t pid, descriptor, in_folder, unused;
  unsigned char nonce[kNonceBytes];
};

template <class T>
void read_file(const char* path, T& bytes) {
  std::ifstream file(path, std::ios::binary);
  file.read(reinterpret_cast<char*>(&bytes), sizeof bytes);
}

class SharedMemorySetup final : public CommunicatorSetup {
 public:
  SharedMemorySetup(const std::shared_ptr<Backend>& device, const CommunicatorOptions& options,
                    const SegmentPlan& plan)
      : device_(device), options_(options), plan_(plan) {
    read_file("/proc/sys/kernel/random/boot_id", host_);
    host_[sizeof host_ - 1] = '\0';
  }

  std::string offer() override;
  std::unique_ptr<Communicator> connect(std::span<const std::string> offers) override;

 private:
  Offer read_offer(const std::string& bytes, int rank) const;

  const std::shared_ptr<Backend> device_;
  const CommunicatorOptions options_;
  SegmentPlan plan_;
  char host_[sizeof Offer::host] = {};
  std::optional<SharedSegment> segment_;  // of rank 0, between offer and connect
  bool connected_ = false;
};

std::string SharedMemorySetup::offer() {
  if (options_.rank == 0 && !segment_ && !connected_) {
    std::ifstream random("/dev/urandom", std::ios::binary);
    random.read(reinterpret_cast<char*>(plan_.nonce), sizeof plan_.nonce);
    require(random.good(), "ERR_COMMUNICATION", "shared memory: cannot read /dev/urandom");
    segment_.emplace(SharedSegment::create(plan_));
  }
  Offer offer{};
  std::memcpy(offer.magic, kOfferMagic, sizeof kOfferMagic);
  offer.rank = static_cast<std::uint32_t>(options_.rank);
  offer.ranks = static_cast<std::uint32_t>(options_.size);
  offer.slot_bytes = plan_.slot_bytes;
  std::memcpy(offer.host, host_, sizeof host_);
  if (segment_) {
    offer.pid = segment_->place().pid;
    offer.descriptor = segment_->place().descriptor;
    offer.in_folder = segment_->place().in_folder ? 1 : 0;
    std::memcpy(offer.nonce, plan_.nonce, sizeof offer.nonce);
  }
  return {reinterpret_cast<const char*>(&offer), sizeof offer};
}

Offer SharedMemorySetup::read_offer(const std::string& bytes, int rank) const {
  const std::string who = "shared memory: rank " + std::to_string(rank);
  Offer offer{};
  const bool whole = bytes.size() == sizeof offer;
  if (whole) std::memcpy(&offer, bytes.data(), sizeof offer);
  require(whole && std::memcmp(offer.magic, kOfferMagic, sizeof kOfferMagic) == 0, "ERR_COMMUNICATION", who,
          ": expected an offer of shared memory, got ", bytes.size(), " other bytes");
  require(offer.rank == static_cast<std::uint32_t>(rank) &&
              offer.ranks == static_cast<std::uint32_t>(options_.size),
          "ERR_COMMUNICATION", who, ": expected the offer of rank ", rank, " of ", options_.size,
          ", got that of rank ", offer.rank, " of ", offer.ranks);
  require(offer.slot_bytes == plan_.slot_bytes, "ERR_COMMUNICATION", who, ": expected slotKiB ",
          plan_.slot_bytes >> 10, " on all ranks, got ", offer.slot_bytes >> 10);
  if (std::memcmp(offer.host, host_, sizeof host_) != 0)
    throw Error("ERR_COMMUNICATION", who + " runs on another host",
                "ranks of several hosts need another engine, such as gloo");
  return offer;
}

std::unique_ptr<Communicator> SharedMemorySetup::connect(std::span<const std::string> offers) {
  require(!connected_, "ERR_COMMUNICATION", "shared memory: expected one connect, got another");
  require(offers.size() == static_cast<std::size_t>(options_.size), "ERR_COMMUNICATION",
          "shared memory: expected ", options_.size, " offers, got ", offers.size());
  for (int rank = options_.size - 1; rank >= 0; --rank) {
    const Offer offer = read_offer(offers[static_cast<std::size_t>(rank)], rank);
    if (rank > 0) continue;
    if (options_.rank == 0) {
      require(segment_.has_value() && std::memcmp(offer.nonce, plan_.nonce, sizeof offer.nonce) == 0,
              "ERR_COMMUNICATION", "shared memory: expected this rank's own offer among the offers");
    } else {
      std::memcpy(plan_.nonce, offer.nonce, sizeof offer.nonce);
      segment_.emplace(SharedSegment::open(plan_, {offer.pid, offer.descriptor, offer.in_folder != 0}));
    }
  }
  connected_ = true;
  auto board = std::make_unique<RankBoard>(std::move(*segment_), options_.rank, options_.size,
                                           options_.timeout_seconds);
  segment_.reset();
  board->attach();
  auto engine = std::make_unique<SharedMemoryEngine>(std::move(board), plan_.slot_bytes);
  return std::make_unique<HostCommunicator>(device_, options_.rank, options_.size, std::move(engine));
}

}  // namespace

std::unique_ptr<CommunicatorSetup> make_shared_memory_setup(const std::shared_ptr<Backend>& device,
                                                            const CommunicatorOptions& options) {
  require(device && device->name() == "cpu", "ERR_DEVICE", "shared-memory: expected the cpu, got ",
          device ? device->name() : "no device");
  const DeviceOptions engine = DeviceOptions::parse(options.engine_options);
  engine.allow_only("shared-memory", {"slotKiB", "folder"});
  SegmentPlan plan;
  const std::int64_t slot = engine.integer("slotKiB", kDefaultSlotKiB);
  require(slot >= 64 && slot <= 65536 && slot % 4 == 0, "ERR_OPTION",
          "option slotKiB: expected a multiple of 4 from 64 to 65536, got ", slot);
  plan.slot_bytes = static_cast<std::uint64_t>(slot) << 10;
  plan.ranks = options.size;
  plan.folder = engine.text("folder", "");
  require(plan.folder.empty() || plan.folder.front() == '/', "ERR_OPTION",
          "option folder: expected an absolute path, got ", plan.folder);
  require(options.size <= 1024, "ERR_OPTION", "shared-memory: expected at most 1024 ranks, got ",
          options.size);
  return std::make_unique<SharedMemorySetup>(device, options, plan);
}

}  // namespace danceflux::cpu
