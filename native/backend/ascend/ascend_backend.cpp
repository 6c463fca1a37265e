#include "backend/ascend/ascend_backend.h"

#include <algorithm>

#include "core/error.h"

namespace danceflux::ascend {
namespace {

constexpr std::size_t kAlignment = 64;  // of every start

/// Vector operators read up to 32 bytes past the end of their data. Newer chips' runtime leaves that to us.
std::size_t with_margin(std::size_t bytes) { return (bytes + 31) / 32 * 32 + 32; }

void* take(Npu& npu, std::size_t bytes) {
  npu.bind();
  void* address = nullptr;
  const AclStatus status = npu.acl().aclrtMalloc(&address, with_margin(bytes), kMallocHugeFirst);
  if (std::string(words_of(status).code) == "ERR_MEMORY") {
    npu.acl().aclGetRecentErrMsg();
    return nullptr;
  }
  npu.check(status, "allocate: aclrtMalloc");
  require(reinterpret_cast<std::uintptr_t>(address) % kAlignment == 0, "ERR_DEVICE",
          "allocate: aclrtMalloc: expected an address that is a multiple of ", kAlignment, ", got ", address);
  return address;
}

void give(Npu& npu, void* address) noexcept {
  if (npu.abandoned()) return;  // a collective that never ends may still use it
  try {
    npu.bind();
    npu.acl().aclrtSynchronizeStream(npu.stream());  // operators under way may use it
    npu.acl().aclrtFree(address);
    npu.acl().aclGetRecentErrMsg();
  } catch (...) {
  }
}

}  // namespace

std::unique_ptr<Backend> open_ascend(int index, const Settings& settings) {
  return std::make_unique<AscendBackend>(Npu::open(index, settings), settings);
}

AscendBackend::AscendBackend(std::shared_ptr<Npu> npu, const Settings& settings)
    : npu_(std::move(npu)),
      settings_(settings),
      pool_([device = npu_.get()](std::size_t bytes) { return take(*device, bytes); },
            [device = npu_.get()](void* address, std::size_t) { give(*device, address); }),
      launch_(npu_, pool_, settings) {}

AscendBackend::~AscendBackend() = default;

std::string AscendBackend::description() const {
  const Cann& cann = npu_->cann();
  std::string text = cann.soc + ", CANN " + cann.version.text + "; " + npu_->determinism().promise;
  if (settings_.parity) text += "; parity";
  return text;
}

DType AscendBackend::activation_dtype(DType weights) const {
  const bool narrow = weights == DType::bf16 && !settings_.parity && knows_bf16(npu_->cann().chip);
  return narrow ? DType::bf16 : DType::f32;
}

void* AscendBackend::allocate(std::size_t bytes) {
  try {
    return pool_.allocate(bytes);
  } catch (const Error& error) {
    if (error.code != "ERR_MEMORY") throw;
    std::size_t free = 0, total = 0;
    npu_->bind();
    if (npu_->acl().aclrtGetMemInfo(kHbmMemory, &free, &total) != kAclSuccess) throw;
    throw Error(error.code,
                std::string(error.what()) + "; the device has " + std::to_string(free) + " of " +
                    std::to_string(total) + " bytes free",
                error.hint);
  }
}

void AscendBackend::release(void* address, std::size_t bytes) noexcept { pool_.release(address, bytes); }
MemoryStats AscendBackend::memory() const { return pool_.stats(); }
std::optional<std::size_t> AscendBackend::free_memory() const {
  std::size_t free = 0, total = 0;
  npu_->bind();
  if (npu_->acl().aclrtGetMemInfo(kHbmMemory, &free, &total) != kAclSuccess) return {};
  return free;
}
void AscendBackend::reset_peak() { pool_.reset_peak(); }
void AscendBackend::trim() {
  synchronize();
  pool_.trim();
}

void AscendBackend::upload(const Tensor& tensor, const void* host) {
  if (tensor.numel() > 0) npu_->upload(tensor.address(), host, tensor.bytes());
}

void AscendBackend::download(void* host, const Tensor& tensor) {
  if (tensor.numel() == 0) return;
  const Tensor source = dense(tensor);
  wait_for_stream("download");
  npu_->check(npu_->acl().aclrtMemcpy(host, source.bytes(), source.address(), source.bytes(), kDeviceToHost),
              "download: aclrtMemcpy");
}

void AscendBackend::synchronize() { wait_for_stream("synchronize"); }

/// What operators did wrong shows when the host waits: then the last ones are named.
void AscendBackend::wait_for_stream(const char* op) {
  try {
    npu_->synchronize(op);
  } catch (const Error& error) {
    if (error.code != "ERR_DEVICE") throw;
    const std::string hint = error.hint.empty() ? "" : "; " + error.hint;
    throw Error(error.code, std::string(error.what()) + "; the last operators were " + launch_.recent(),
                "option ascend.launchBlocking tells which operator it is" + hint);
  }
}

Event AscendBackend::record() { return {npu_->record(npu_->stream())}; }

void AscendBackend::wait(const Event& event) {
  if (!event.handle) return;
  npu_->throw_if_failed();
  npu_->wait(npu_->stream(), *static_cast<const DeviceEvent*>(event.handle.get()));
}

Tensor AscendBackend::as(const Tensor& x, DType dtype) {
  return !x || x.dtype() == dtype ? x : dense(x, dtype);
}

Tensor AscendBackend::dense(const Tensor& x, DType dtype) {
  if (!x || (x.dtype() == dtype && x.is_contiguous())) return x;
  const Tensor packed = empty(x.shape(), dtype);
  copy(packed, x);
  return packed;
}

Tensor AscendBackend::filled(const Shape& shape, float value, DType dtype) {
  const Tensor x = empty(shape, dtype);
  fill(x, value);
  return x;
}

}  // namespace danceflux::ascend
