// Gradients of data-parallel training: they lie in flat buckets, and a bucket travels as soon as backward has
// finished it, while earlier blocks still run.
//
// Sharding, by what a rank keeps for itself:
// - none: all gradients are summed over ranks (all_reduce) after the last backward pass of an update.
// - optimizer (ZeRO-1): they are summed into shards (reduce_scatter); state lives in shards, and updated
//   weights are gathered. The weights are moved into flat memory of their own for it.
// - gradients (ZeRO-2): moreover a bucket's memory goes back once its sum over ranks is in the shard, so that
//   no rank holds all gradients. Therefore every backward pass is summed over ranks at once, and the shards
//   over passes: the same terms as in the other modes, in another order when an update has several passes.
// In one backward pass per update, and always when ordered, all modes give the same bits. Ordered, buckets
// must be kept until the update's last sample.
#pragma once
#include <chrono>
#include <deque>
#include <memory>
#include <unordered_map>
#include <vector>

#include "backend/communicator.h"
#include "train/gradient_layout.h"
#include "train/sample_tree.h"

namespace danceflux::train {

enum class Sharding : std::uint8_t { none, optimizer, gradients };

/// "none", "optimizer" or "optimizer+gradients"; throws ERR_OPTION for another name.
Sharding sharding_from_name(const std::string& name);

struct SyncOptions {
  std::shared_ptr<Communicator> communicator;  // none: one rank
  Sharding sharding = Sharding::none;
  std::int64_t bucket_bytes = std::int64_t{25} << 20;  // of f32 gradients
  /// Sum over the samples of an update in one tree, whatever the number of ranks (see sample_tree.h).
  bool ordered = false;
  /// Buckets travel during backward; otherwise all at the step, which is for measurements.
  bool overlap = true;
};

/// What communication took since the last report. Seconds are the host's.
struct SyncReport {
  double seconds_in_flight = 0;    // something was under way
  double seconds_waited = 0;       // of which somebody waited for it
  std::int64_t bytes = 0;          // handed to the communicator by this rank
  int collectives = 0;             // of gradients
  int overlapped = 0;              // of which began before backward ended
  std::size_t gradient_bytes = 0;  // most that this rank held for gradients
};

class GradientSync final : public nn::GradientKeeper, public std::enable_shared_from_this<GradientSync> {
 public:
  /// Becomes the keeper of the module's gradients. All ranks must have the same trainable parameters and
  /// options. Throws ERR_OPTION when nothing trains.
  static std::shared_ptr<GradientSync> attach(nn::Module& module, const SyncOptions& options);

  void begin(const nn::BackwardMarks& marks) override;
  Tensor memory(nn::Parameter& parameter) override;
  void finished(nn::Parameter& parameter) override;
  void clear() override;

  /// Sends what has not travelled yet and waits for all of it. What finish() does first; ranks may do so
  /// earlier, to look at gradients, whether others do or not.
  void settle();
  /// After settle(), returns the sum of squares of all gradients: the same bits on all ranks, for every
  /// sharding, and, when ordered, for every number of ranks.
  double finish();
  /// After the step: gradients are zero again.
  void release();
  /// Brings every rank's updated weights to all, and waits for them. Nothing to do without sharding.
  void gather_values();

  /// What this rank's optimizer moves.
  const std::vector<TrainedRange>& ranges() const { return ranges_; }
  const GradientLayout& layout() const { return layout_; }
  /// Flat views of a range: weights (stored dtype) and, between finish() and release(), its gradient.
  Tensor value(const TrainedRange& range) const;
  Tensor gradient(const TrainedRange& range) const;

  int rank() const { return rank_; }
  int ranks() const { return ranks_; }
  bool sharded() const { return options_.sharding != Sharding::none && ranks_ > 1; }
  /// Bytes in gradients now.
  std::size_t gradient_bytes() const;
  SyncReport take_report();

 private:
  struct Bucket {
    Tensor sum;            // [size] what was gathered so far; undefined: nothing
    Tensor shard;          // [size / ranks] summed over ranks, when gradients are sharded
    Tensor values;         // [size] the weights, when they were moved here
    std::size_t left = 0;  // slots that backward has not finished
    bool whole = false;    // in this backward pass
    bool reduced = false;  // summed over ranks in this update
    SampleTree tree;
  };
  /// A collective under way.
  struct Flight {
    Event event;
    Tensor whole;  // kept until it arrived
    std::size_t bucket;
    Tensor shard;  // to be added to the bucket's
  };
  using Clock = std::chrono::steady_clock;

  GradientSync(nn::Module& module, const SyncOptions& options);
  void move_values();
  bool sheds_gradients() const { return options_.sharding == Sharding::gradients && ranks_ > 1; }
  bool travels_now() const;
  std::int64_t shard_size(std::size_t bucket) const { return layout_.buckets[bucket].size / ranks_; }
  Tensor fresh(std::size_t bucket);
  void complete(std::size_t bucket);
  void launch(std::size_t bucket);
  void drop(std::size_t bucket);
  void took_off(Flight flight);
  void land();
  void land_all();
  Tensor reduced(std::size_t bucket) const;
  void note_bytes();

  SyncOptions options_;
  Backend& device_;
  std::shared_ptr<Device> held_device_;
  int rank_ = 0, ranks_ = 1;
  GradientLayout layout_;
  std::vector<TrainedRange> ranges_;
  std::unordered_map<const nn::Parameter*, std::size_t> slot_of_;
  std::vector<Bucket> buckets_;
  nn::BackwardMarks marks_;
  std::size_t next_ = 0;        // to travel in this backward pass
  std::size_t unfinished_ = 0;  // slots of all buckets
  bool synchronized_ = false;   // the last backward pass of the update has begun
  std::deque<Flight> flights_;
  Clock::time_point departed_;
  SyncReport report_;
};

}  // namespace danceflux::train
