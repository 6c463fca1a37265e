// The Communicator contract: what ranks that compute together owe each other.
//
// Rules for every call below
// - All ranks make the same calls in the same order, with the same sizes and dtypes.
// - Tensors are contiguous, on the communicator's device, f32, bf16 or f16; sums are made in f32 and rounded
//   once.
// - A call returns at once. It runs on the communicator's own stream, after all that the device's stream held
//   when the call was made, and beside what comes later; device.wait(event) makes the device's stream wait
//   for it. The implementation keeps the tensors alive; nobody may touch them before the event.
// - Every wait has a deadline. A failure is thrown by the wait (or by the next call): ERR_COMMUNICATION,
// naming
//   the rank that was missing, the operation and the reason. After it every further call fails likewise.
// - The same inputs give the same bits from run to run.
#pragma once
#include <memory>
#include <span>
#include <string>

#include "backend/backend.h"
#include "backend/progress.h"

namespace danceflux {

enum class CollectiveReduce : std::uint8_t { sum, max };

struct ReduceArgs {
  CollectiveReduce op = CollectiveReduce::sum;
  /// Sum over ranks in one fixed pairwise tree, so that the bits depend on neither the engine nor, for a
  /// power of two, on where a sum is cut into ranks. Otherwise any fixed order. Neighbours are added, then
  /// the sums of neighbours, and one that is left over at the end waits for the next round:
  ///   4: (0 + 1) + (2 + 3)      5: ((0 + 1) + (2 + 3)) + 4      7: ((0 + 1) + (2 + 3)) + ((4 + 5) + 6)
  bool ordered = false;
};

class Communicator {
 public:
  virtual ~Communicator() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  /// What a person wants to know: "shared memory, 4 ranks".
  virtual std::string description() const = 0;

  /// In place.
  virtual Event all_reduce(const Tensor& x, const ReduceArgs& args) = 0;
  /// x [size * n], out [n]: this rank's part of the reduced x. `out` may be that part of `x`; the rest of `x`
  /// is left undefined.
  virtual Event reduce_scatter(const Tensor& out, const Tensor& x, const ReduceArgs& args) = 0;
  /// out [size * n] from each rank's x [n], in rank order. `x` may be this rank's part of `out`.
  virtual Event all_gather(const Tensor& out, const Tensor& x) = 0;
  virtual Event broadcast(const Tensor& x, int root) = 0;
  virtual Event barrier() = 0;
  /// From any thread: what is under way and what comes later fails with `reason`. Idempotent.
  virtual void abort(const std::string& reason) = 0;

  /// Kept by engines that cannot tell who is missing.
  CollectiveProgress progress;
};

struct CommunicatorOptions {
  int rank = 0, size = 1;
  double timeout_seconds = 300;       // longest wait for another rank
  std::string engine_options = "{}";  // the engine's own, a JSON object (backend/options.h)
};

/// How ranks become a communicator: each makes an offer, a rendezvous brings everybody's offers to everybody,
/// and all connect at once. No engine opens a rendezvous of its own.
class CommunicatorSetup {
 public:
  virtual ~CommunicatorSetup() = default;
  /// What the others must know of this rank (a name, addresses, an id): at most 64 KiB, opaque.
  virtual std::string offer() = 0;
  /// `offers` in rank order, this rank's own among them; they come from the network and are not trusted.
  /// Returns when all ranks are connected; throws ERR_COMMUNICATION at the deadline.
  virtual std::unique_ptr<Communicator> connect(std::span<const std::string> offers) = 0;
};

}  // namespace danceflux
