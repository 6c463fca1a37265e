#include "backend/gloo/gloo_engine.h"

#include <net/if.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstring>
#include <mutex>
#include <sstream>
#include <thread>
#include <vector>

#include "backend/gloo/gloo_bridge.h"
#include "backend/host_communicator.h"
#include "backend/host_reduce.h"
#include "backend/options.h"
#include "core/cancel.h"
#include "core/error.h"

namespace danceflux::gloo_engine {
namespace {

constexpr std::size_t kPiece = 4 << 20;    // bytes of a tensor under way at once
constexpr std::size_t kDirect = 64 << 10;  // up to here a broadcast goes straight to everybody
constexpr int kMostRanks = 256;            // an offer holds an address for each
constexpr std::size_t kErrorRoom = 400;

/// What ranks tell each other when they begin a call.
struct Arrival {
  std::uint64_t number, kind, count;
  char payload[232];  // the tensor of a small all_reduce
};
static_assert(sizeof(Arrival) == 256);

std::string seconds_of(double seconds) {
  std::ostringstream text;
  text << seconds << " s";
  return text.str();
}

using MeshPointer = std::shared_ptr<GlooMesh>;

class GlooEngine final : public CollectiveEngine {
 public:
  GlooEngine(MeshPointer mesh, int rank, int ranks, double timeout)
      : mesh_(std::move(mesh)),
        rank_(rank),
        ranks_(static_cast<std::size_t>(ranks)),
        timeout_(timeout),
        sends_(2 * ranks_),
        receives_(2 * ranks_),
        parts_(ranks_),
        arrivals_(ranks_) {}

  std::string description() const override {
    return "gloo over TCP, " + std::to_string(ranks_) + (ranks_ == 1 ? " rank" : " ranks");
  }
  void run(const CollectiveCall& call) override;
  void interrupt(const std::string& reason) noexcept override;

 private:
  struct Range {
    std::size_t begin, end;
    std::size_t size() const { return end - begin; }
  };

  void arrive(const CollectiveCall& call);
  void all_reduce(const CollectiveCall& call);
  void reduce_scatter(const CollectiveCall& call);
  void all_gather(const CollectiveCall& call);
  void broadcast(const CollectiveCall& call);

  void transfer(int lanes, const char* missed);
  GlooPiece& send(std::size_t rank, std::size_t lane = 0) { return sends_[lane * ranks_ + rank]; }
  GlooPiece& receive(std::size_t rank, std::size_t lane = 0) { return receives_[lane * ranks_ + rank]; }
  void clear() {
    std::fill(sends_.begin(), sends_.end(), GlooPiece{nullptr, 0});
    std::fill(receives_.begin(), receives_.end(), GlooPiece{nullptr, 0});
  }
  bool mine(std::size_t rank) const { return rank == static_cast<std::size_t>(rank_); }
  /// Part `rank` of `bytes` bytes of elements of `unit` bytes.
  Range slice(std::size_t bytes, std::size_t unit, std::size_t rank) const {
    const std::size_t each = (bytes / unit + ranks_ - 1) / ranks_ * unit;
    const std::size_t begin = std::min(bytes, each * rank);
    return {begin, std::min(bytes, begin + each)};
  }
  /// Takes every other rank's share of `own` into the inbox and reduces it there with ours.
  void reduce_inbox(const CollectiveCall& call, char* out, const char* own, std::size_t bytes);
  char* inbox(std::size_t rank, std::size_t bytes) {
    inbox_.resize(std::max(inbox_.size(), ranks_ * bytes));
    return inbox_.data() + rank * bytes;
  }

  const MeshPointer mesh_;
  const int rank_;
  const std::size_t ranks_;
  const double timeout_;
  std::uint64_t tag_ = 0;
  std::vector<GlooPiece> sends_, receives_;
  std::vector<const void*> parts_;
  std::vector<Arrival> arrivals_;
  std::vector<char> inbox_;
  std::mutex mutex_;
  std::string interrupted_;  // why; empty: not
};

void GlooEngine::interrupt(const std::string& reason) noexcept {
  {
    const std::lock_guard lock(mutex_);
    if (!interrupted_.empty()) return;
    interrupted_ = reason;
  }
  danceflux_gloo_abort(mesh_.get());
}

/// One round of sends_ and receives_.
void GlooEngine::transfer(int lanes, const char* missed) {
  char error[kErrorRoom];
  int peer = -1;
  const std::uint64_t tag = tag_;
  tag_ += static_cast<std::uint64_t>(lanes);
  if (danceflux_gloo_transfer(mesh_.get(), tag, lanes, sends_.data(), receives_.data(),
                              std::llround(timeout_ * 1000), &peer, error, sizeof error))
    return;
  const std::lock_guard lock(mutex_);
  if (!interrupted_.empty()) fail_communication("aborted: " + interrupted_);
  const std::string who = "rank " + std::to_string(peer);
  if (std::strstr(error, "imed out"))
    fail_communication(who + " " + missed + " within " + seconds_of(timeout_));
  fail_communication(who + " is gone: " + error);
}

void GlooEngine::arrive(const CollectiveCall& call) {
  Arrival own{call.number, call.signature(), static_cast<std::uint64_t>(call.count), {}};
  if (call.kind == CollectiveKind::all_reduce && call.bytes() <= sizeof own.payload)
    std::memcpy(own.payload, call.x.address(), call.bytes());
  clear();
  for (std::size_t rank = 0; rank < ranks_; ++rank) {
    send(rank) = {&own, sizeof own};
    receive(rank) = {&arrivals_[rank], sizeof own};
  }
  transfer(1, "did not arrive");
  arrivals_[static_cast<std::size_t>(rank_)] = own;
  for (std::size_t rank = 0; rank < ranks_; ++rank) {
    const Arrival& theirs = arrivals_[rank];
    if (theirs.number != own.number || theirs.kind != own.kind || theirs.count != own.count)
      fail_mismatch(rank_, CollectiveCall::told(own.number, own.kind, own.count), static_cast<int>(rank),
                    CollectiveCall::told(theirs.number, theirs.kind, theirs.count));
  }
}

void GlooEngine::run(const CollectiveCall& call) {
  if (ranks_ == 1) return call.run_alone();
  arrive(call);
  switch (call.kind) {
    case CollectiveKind::all_reduce:
      return all_reduce(call);
    case CollectiveKind::reduce_scatter:
      return reduce_scatter(call);
    case CollectiveKind::all_gather:
      return all_gather(call);
    case CollectiveKind::broadcast:
      return broadcast(call);
    case CollectiveKind::barrier:
      return;
  }
}

void GlooEngine::reduce_inbox(const CollectiveCall& call, char* out, const char* own, std::size_t bytes) {
  for (std::size_t rank = 0; rank < ranks_; ++rank) parts_[rank] = mine(rank) ? own : inbox(rank, bytes);
  reduce_parts(call.reduce.op, call.dtype, out, parts_,
               static_cast<std::int64_t>(bytes / size_of(call.dtype)));
}

// Slice r of a piece goes to rank r, which reduces it and sends the result to all, while the next piece's
// slices are on their way.
void GlooEngine::all_reduce(const CollectiveCall& call) {
  char* const x = call.x.data<char>();
  const std::size_t bytes = call.bytes(), unit = size_of(call.dtype);
  if (bytes <= sizeof Arrival::payload) {
    for (std::size_t rank = 0; rank < ranks_; ++rank) parts_[rank] = arrivals_[rank].payload;
    return reduce_parts(call.reduce.op, call.dtype, x, parts_, call.count);
  }
  const std::size_t pieces = (bytes + kPiece - 1) / kPiece;
  const auto length = [&](std::size_t piece) { return std::min(kPiece, bytes - piece * kPiece); };
  for (std::size_t step = 0; step <= pieces; ++step) {
    clear();
    Range own{0, 0};
    if (step < pieces) {
      own = slice(length(step), unit, static_cast<std::size_t>(rank_));
      for (std::size_t rank = 0; rank < ranks_; ++rank) {
        const Range theirs = slice(length(step), unit, rank);
        send(rank) = {x + step * kPiece + theirs.begin, theirs.size()};
        receive(rank) = {inbox(rank, own.size()), own.size()};
      }
    }
    if (step > 0) {
      char* const done = x + (step - 1) * kPiece;
      const Range reduced = slice(length(step - 1), unit, static_cast<std::size_t>(rank_));
      for (std::size_t rank = 0; rank < ranks_; ++rank) {
        const Range theirs = slice(length(step - 1), unit, rank);
        send(rank, 1) = {done + reduced.begin, reduced.size()};
        receive(rank, 1) = {done + theirs.begin, theirs.size()};
      }
    }
    transfer(2, "did not do its part");
    if (step < pieces) {
      char* const result = x + step * kPiece + own.begin;
      reduce_inbox(call, result, result, own.size());
    }
  }
}

void GlooEngine::reduce_scatter(const CollectiveCall& call) {
  char *const x = call.x.data<char>(), *const out = call.out.data<char>();
  const std::size_t bytes = call.bytes();
  for (std::size_t begin = 0; begin < bytes; begin += kPiece) {
    const std::size_t length = std::min(kPiece, bytes - begin);
    clear();
    for (std::size_t rank = 0; rank < ranks_; ++rank) {
      send(rank) = {x + rank * bytes + begin, length};
      receive(rank) = {inbox(rank, length), length};
    }
    transfer(1, "did not do its part");
    reduce_inbox(call, out + begin, x + static_cast<std::size_t>(rank_) * bytes + begin, length);
  }
}

void GlooEngine::all_gather(const CollectiveCall& call) {
  char *const x = call.x.data<char>(), *const out = call.out.data<char>();
  const std::size_t bytes = call.bytes();
  clear();
  for (std::size_t rank = 0; rank < ranks_; ++rank) {
    send(rank) = {x, bytes};
    receive(rank) = {out + rank * bytes, bytes};
  }
  transfer(1, "did not do its part");
  char* const own = out + static_cast<std::size_t>(rank_) * bytes;
  if (own != x && bytes > 0) std::memcpy(own, x, bytes);
}

// A large tensor goes out in slices, one to each rank, and from there to all: no rank sends it more than
// twice.
void GlooEngine::broadcast(const CollectiveCall& call) {
  char* const x = call.x.data<char>();
  const std::size_t bytes = call.bytes(), unit = size_of(call.dtype);
  const auto root = static_cast<std::size_t>(call.root);
  const bool slices = bytes > kDirect && ranks_ > 2;
  const auto part = [&](std::size_t rank) { return slices ? slice(bytes, unit, rank) : Range{0, bytes}; };
  clear();
  for (std::size_t rank = 0; rank < ranks_; ++rank) {
    if (mine(root)) send(rank) = {x + part(rank).begin, part(rank).size()};
  }
  const Range own = part(static_cast<std::size_t>(rank_));
  if (!mine(root)) receive(root) = {x + own.begin, own.size()};
  transfer(1, "did not do its part");
  if (!slices) return;
  clear();
  for (std::size_t rank = 0; rank < ranks_; ++rank) {
    if (rank != root) send(rank) = {x + own.begin, own.size()};
    if (!mine(root)) receive(rank) = {x + part(rank).begin, part(rank).size()};
  }
  transfer(1, "did not do its part");
}

// ---- how ranks meet --------------------------------------------------------------------------------------

constexpr char kOfferMagic[8] = {'d', 'f', 'g', 'l', 'o', 'o', '1', '\n'};

/// The addresses of an offer, one per rank, each with its length before it.
std::vector<std::string> read_offer(const std::string& offer, int rank, int ranks) {
  std::size_t at = 0;
  const auto take = [&](std::size_t bytes) {
    require(offer.size() - at >= bytes, "ERR_COMMUNICATION", "gloo: rank ", rank,
            ": expected an offer of gloo, got ", offer.size(), " other bytes");
    at += bytes;
    return offer.substr(at - bytes, bytes);
  };
  const auto number = [&] {
    std::uint32_t value;
    std::memcpy(&value, take(sizeof value).data(), sizeof value);
    return value;
  };
  require(take(sizeof kOfferMagic) == std::string(kOfferMagic, sizeof kOfferMagic), "ERR_COMMUNICATION",
          "gloo: rank ", rank, ": expected an offer of gloo, got ", offer.size(), " other bytes");
  const std::uint32_t their_rank = number(), their_ranks = number();
  require(their_rank == static_cast<std::uint32_t>(rank) && their_ranks == static_cast<std::uint32_t>(ranks),
          "ERR_COMMUNICATION", "gloo: rank ", rank, ": expected the offer of rank ", rank, " of ", ranks,
          ", got that of rank ", their_rank, " of ", their_ranks);
  std::vector<std::string> addresses;
  for (int peer = 0; peer < ranks; ++peer) addresses.push_back(take(number()));
  return addresses;
}

/// Far from those of collectives, which count from 0.
constexpr std::uint64_t kGreetingTag = std::uint64_t{1} << 40;

/// Connecting blocks inside Gloo, so it is done on a thread that can be left behind.
struct Connecting {
  MeshPointer mesh;
  std::vector<std::string> addresses;  // of the peers, by rank
  int rank;
  std::int64_t timeout_ms;
  std::atomic<int> peer{0};
  std::atomic<bool> done{false};
  char error[kErrorRoom] = {};

  void run() {
    for (int other = 0; other < static_cast<int>(addresses.size()); ++other) {
      if (other == rank) continue;
      peer = other;
      const std::string& address = addresses[static_cast<std::size_t>(other)];
      if (!danceflux_gloo_connect(mesh.get(), other, address.data(), address.size(), error, sizeof error)) {
        done = true;
        return;
      }
    }
    greet();
    done = true;
  }

  /// A connection stands as soon as one end asks for it and the other listens; only a word from the other
  /// rank shows that it connects too.
  void greet() {
    std::vector<char> words(2 * addresses.size());
    std::vector<GlooPiece> sends, receives;
    for (std::size_t other = 0; other < addresses.size(); ++other) {
      const std::size_t bytes = static_cast<int>(other) == rank ? 0 : 1;
      sends.push_back({&words[2 * other], bytes});
      receives.push_back({&words[2 * other + 1], bytes});
    }
    int missing = -1;
    if (!danceflux_gloo_transfer(mesh.get(), kGreetingTag, 1, sends.data(), receives.data(), timeout_ms,
                                 &missing, error, sizeof error))
      peer = missing;
  }
};

class GlooSetup final : public CommunicatorSetup {
 public:
  GlooSetup(const std::shared_ptr<Backend>& device, const CommunicatorOptions& options, MeshPointer mesh)
      : device_(device), options_(options), mesh_(std::move(mesh)) {}

  std::string offer() override {
    require(mesh_ != nullptr, "ERR_COMMUNICATION", "gloo: expected an offer before connect");
    std::string bytes(kOfferMagic, sizeof kOfferMagic);
    const auto number = [&](std::size_t value) {
      const auto word = static_cast<std::uint32_t>(value);
      bytes.append(reinterpret_cast<const char*>(&word), sizeof word);
    };
    number(static_cast<std::size_t>(options_.rank));
    number(static_cast<std::size_t>(options_.size));
    for (int peer = 0; peer < options_.size; ++peer) {
      char address[danceflux_gloo_address_room];
      const std::size_t size =
          peer == options_.rank ? 0 : danceflux_gloo_address(mesh_.get(), peer, address, sizeof address);
      number(size);
      bytes.append(address, size);
    }
    return bytes;
  }

  std::unique_ptr<Communicator> connect(std::span<const std::string> offers) override;

 private:
  const std::shared_ptr<Backend> device_;
  const CommunicatorOptions options_;
  MeshPointer mesh_;
};

std::unique_ptr<Communicator> GlooSetup::connect(std::span<const std::string> offers) {
  require(mesh_ != nullptr, "ERR_COMMUNICATION", "gloo: expected one connect, got another");
  require(offers.size() == static_cast<std::size_t>(options_.size), "ERR_COMMUNICATION", "gloo: expected ",
          options_.size, " offers, got ", offers.size());
  const auto work = std::make_shared<Connecting>();
  for (int rank = 0; rank < options_.size; ++rank)
    work->addresses.push_back(read_offer(offers[static_cast<std::size_t>(rank)], rank,
                                         options_.size)[static_cast<std::size_t>(options_.rank)]);
  const MeshPointer mesh = std::move(mesh_);
  work->mesh = mesh;
  work->rank = options_.rank;
  work->timeout_ms = static_cast<std::int64_t>(options_.timeout_seconds * 1000);
  const auto deadline =
      std::chrono::steady_clock::now() + std::chrono::duration<double>(options_.timeout_seconds);
  std::thread([work] { work->run(); }).detach();
  while (!work->done) {
    throw_if_cancelled();
    if (std::chrono::steady_clock::now() > deadline) break;
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  const std::string who = "gloo: rank " + std::to_string(work->peer.load());
  if (!work->done || std::strstr(work->error, "imed out") || std::strstr(work->error, "imeout"))
    fail_communication(who + " did not connect within " + seconds_of(options_.timeout_seconds));
  if (work->error[0] != '\0') fail_communication(who + " did not connect: " + work->error);
  auto engine = std::make_unique<GlooEngine>(mesh, options_.rank, options_.size, options_.timeout_seconds);
  return std::make_unique<HostCommunicator>(device_, options_.rank, options_.size, std::move(engine));
}

MeshPointer open_mesh(const std::string& interface, const std::string& address, int rank, int ranks,
                      double timeout) {
  // libgloo's own search loses memory when it fails.
  require(interface.empty() || if_nametoindex(interface.c_str()) != 0, "ERR_COMMUNICATION",
          "gloo: expected a network interface of this host, got ", interface);
  char error[kErrorRoom];
  GlooMesh* const mesh = danceflux_gloo_open(interface.c_str(), address.c_str(), rank, ranks,
                                             std::llround(timeout * 1000), error, sizeof error);
  if (!mesh)
    throw Error("ERR_COMMUNICATION", std::string("gloo: cannot listen: ") + error,
                "engine option interface or address names where the other ranks reach this host");
  return {mesh, danceflux_gloo_close};
}

}  // namespace

std::unique_ptr<CommunicatorSetup> make_setup(const std::shared_ptr<Backend>& device,
                                              const CommunicatorOptions& options) {
  require(device && device->name() == "cpu", "ERR_DEVICE", "gloo: expected the cpu, got ",
          device ? device->name() : "no device");
  require(options.size <= kMostRanks, "ERR_OPTION", "gloo: expected at most ", kMostRanks, " ranks, got ",
          options.size);
  const DeviceOptions engine = DeviceOptions::parse(options.engine_options);
  engine.allow_only("gloo", {"interface", "address"});
  const std::string interface = engine.text("interface", ""), address = engine.text("address", "");
  require(interface.empty() || address.empty(), "ERR_OPTION",
          "gloo options: expected interface or address, got both");
  return std::make_unique<GlooSetup>(
      device, options, open_mesh(interface, address, options.rank, options.size, options.timeout_seconds));
}

std::string probe() {
  try {
    open_mesh("", "127.0.0.1", 0, 1, 1);
    return {};
  } catch (const std::exception& error) {
    return error.what();
  }
}

}  // namespace danceflux::gloo_engine
