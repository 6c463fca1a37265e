#include "backend/ascend/collective.h"

#include <atomic>
#include <chrono>
#include <cstring>
#include <sstream>
#include <thread>

#include "backend/ascend/hccl_communicator.h"
#include "backend/ascend/hccl_settings.h"
#include "core/cancel.h"
#include "core/error.h"

namespace danceflux::ascend {
namespace {

constexpr char kOfferMagic[8] = {'d', 'f', 'h', 'c', 'c', 'l', '1', '\n'};

/// A name that the ranks of one communicator share and other communicators do not have.
std::string name_from(const HcclRootInfo& root) {
  std::uint64_t hash = 14695981039346656037u;  // FNV-1a
  for (const char byte : root.bytes) hash = (hash ^ static_cast<unsigned char>(byte)) * 1099511628211u;
  std::ostringstream text;
  text << "danceflux_" << std::hex << hash;
  return text.str();
}

/// Connecting blocks inside HCCL, so it is done on a thread that can be left behind.
struct Connecting {
  std::shared_ptr<Backend> device;
  CommunicatorOptions options;
  HcclSettings settings;
  HcclRootInfo root{};
  HcclComm comm = nullptr;
  std::string error;
  std::atomic<bool> done{false}, left_behind{false};

  void run() {
    auto& backend = static_cast<AscendBackend&>(*device);
    const Hccl& hccl = backend.npu()->cann().hccl;
    try {
      backend.npu()->bind();
      const HcclStatus status = initialise(hccl, backend.npu()->cann().chip);
      if (status != kHcclSuccess) {
        const std::string vendor = recent_words(backend.npu()->acl());
        error = "got " + std::to_string(status) + " (" + words_of_hccl(status) + ")" +
                (vendor.empty() ? "" : ": " + vendor);
      } else if (left_behind) {
        hccl.HcclCommDestroy(comm);
      }
    } catch (const std::exception& thrown) {
      error = thrown.what();
    }
    done = true;
  }

  HcclStatus initialise(const Hccl& hccl, Chip chip) {
    const std::uint32_t capability =
        hccl.HcclGetCommConfigCapability ? hccl.HcclGetCommConfigCapability() : 0;
    const bool table = !settings.rank_table.empty();
    alignas(8) HcclCommConfig config =
        make_hccl_config(settings, chip, table ? "" : name_from(root), capability);
    const auto rank = static_cast<std::uint32_t>(options.rank);
    if (table) return hccl.HcclCommInitClusterInfoConfig(settings.rank_table.c_str(), rank, &config, &comm);
    return hccl.HcclCommInitRootInfoConfig(static_cast<std::uint32_t>(options.size), &root, rank, &config,
                                           &comm);
  }
};

class HcclSetup final : public CommunicatorSetup {
 public:
  HcclSetup(const std::shared_ptr<Backend>& device, const CommunicatorOptions& options, HcclSettings settings)
      : device_(device), options_(options), settings_(std::move(settings)) {}

  // Rank 0 makes the root info, and only it may. With a table of ranks there is none.
  std::string offer() override {
    std::string bytes(kOfferMagic, sizeof kOfferMagic);
    const std::uint32_t facts[2] = {static_cast<std::uint32_t>(options_.rank),
                                    static_cast<std::uint32_t>(options_.size)};
    bytes.append(reinterpret_cast<const char*>(facts), sizeof facts);
    if (options_.rank != 0 || !needs_root()) return bytes;
    const auto& npu = static_cast<AscendBackend&>(*device_).npu();
    npu->bind();
    HcclRootInfo root{};
    const HcclStatus status = npu->cann().hccl.HcclGetRootInfo(&root);
    if (status != kHcclSuccess) {
      const std::string vendor = recent_words(npu->acl());
      throw Error("ERR_COMMUNICATION",
                  std::string("hccl: HcclGetRootInfo: expected success, got ") + std::to_string(status) +
                      " (" + words_of_hccl(status) + ")" + (vendor.empty() ? "" : ": " + vendor),
                  "hccl.socketInterface names the interface that other hosts reach this one by");
    }
    bytes.append(root.bytes, sizeof root.bytes);
    return bytes;
  }

  std::unique_ptr<Communicator> connect(std::span<const std::string> offers) override;

 private:
  bool needs_root() const { return options_.size > 1 && settings_.rank_table.empty(); }
  HcclRootInfo read_offers(std::span<const std::string> offers) const;
  std::string description() const;

  const std::shared_ptr<Backend> device_;
  const CommunicatorOptions options_;
  const HcclSettings settings_;
  bool connected_ = false;
};

/// They come from the network: forms and lengths are looked at before anything is believed.
HcclRootInfo HcclSetup::read_offers(std::span<const std::string> offers) const {
  require(offers.size() == static_cast<std::size_t>(options_.size), "ERR_COMMUNICATION", "hccl: expected ",
          options_.size, " offers, got ", offers.size());
  HcclRootInfo root{};
  for (std::size_t rank = 0; rank < offers.size(); ++rank) {
    const std::string& offer = offers[rank];
    const bool has_root = rank == 0 && needs_root();
    const std::size_t expected =
        sizeof kOfferMagic + 2 * sizeof(std::uint32_t) + (has_root ? sizeof root.bytes : 0);
    require(offer.size() == expected && std::memcmp(offer.data(), kOfferMagic, sizeof kOfferMagic) == 0,
            "ERR_COMMUNICATION", "hccl: rank ", rank, ": expected an offer of hccl, got ", offer.size(),
            " other bytes");
    std::uint32_t facts[2];
    std::memcpy(facts, offer.data() + sizeof kOfferMagic, sizeof facts);
    require(facts[0] == rank && facts[1] == static_cast<std::uint32_t>(options_.size), "ERR_COMMUNICATION",
            "hccl: rank ", rank, ": expected the offer of rank ", rank, " of ", options_.size,
            ", got that of rank ", facts[0], " of ", facts[1]);
    if (has_root) std::memcpy(root.bytes, offer.data() + expected - sizeof root.bytes, sizeof root.bytes);
  }
  return root;
}

std::string HcclSetup::description() const {
  const Cann& cann = static_cast<AscendBackend&>(*device_).npu()->cann();
  std::ostringstream text;
  text << "HCCL of CANN " << cann.version.text << ", " << options_.size
       << (options_.size == 1 ? " rank" : " ranks");
  if (settings_.deterministic == 2 && cann.chip != Chip::a2 && cann.chip != Chip::a3)
    text << ", deterministic without \"strict\", which " << cann.soc << " does not know";
  return text.str();
}

std::unique_ptr<Communicator> HcclSetup::connect(std::span<const std::string> offers) {
  require(!connected_, "ERR_COMMUNICATION", "hccl: expected one connect, got another");
  const auto work = std::make_shared<Connecting>();
  work->root = read_offers(offers);
  connected_ = true;
  work->device = device_;
  work->options = options_;
  work->settings = settings_;
  if (options_.size > 1) {
    const auto deadline =
        std::chrono::steady_clock::now() + std::chrono::duration<double>(options_.timeout_seconds);
    std::thread([work] { work->run(); }).detach();
    while (!work->done) {
      try {
        throw_if_cancelled();
      } catch (...) {
        work->left_behind = true;
        throw;
      }
      if (std::chrono::steady_clock::now() > deadline) {
        work->left_behind = true;
        fail("ERR_COMMUNICATION", "hccl: rank ", options_.rank, " of ", options_.size,
             " did not meet all others within ", options_.timeout_seconds, " s");
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    if (!work->error.empty())
      throw Error("ERR_COMMUNICATION",
                  "hccl: rank " + std::to_string(options_.rank) + " did not connect: " + work->error,
                  "HCCL's own log is below ~/ascend/log/run");
  }
  return std::make_unique<HcclCommunicator>(device_, options_, work->comm, description());
}

}  // namespace

std::unique_ptr<CommunicatorSetup> make_hccl_setup(const std::shared_ptr<Backend>& device,
                                                   const CommunicatorOptions& options) {
  const auto* const backend = dynamic_cast<AscendBackend*>(device.get());
  require(backend != nullptr, "ERR_DEVICE", "hccl: expected an ascend device, got ",
          device ? device->name() : "no device");
  HcclSettings settings = read_hccl_settings(options.engine_options);
  AscendBackend& npu = static_cast<AscendBackend&>(*device);
  const Cann& cann = npu.npu()->cann();
  std::string missing;
  for (const std::string& name : cann.missing_hccl) missing += (missing.empty() ? "" : ", ") + name;
  if (options.size > 1 && !cann.has_hccl)
    throw Error("ERR_COMMUNICATION",
                "hccl: expected HCCL, got CANN " + cann.version.text + " without " + missing,
                "danceflux doctor tells which libraries were searched");
  require(settings.rank_table.empty() || cann.hccl.HcclCommInitClusterInfoConfig, "ERR_OPTION",
          "hccl.rankTable: expected a CANN that takes one, got ", cann.version.text);
  return std::make_unique<HcclSetup>(device, options, std::move(settings));
}

}  // namespace danceflux::ascend
