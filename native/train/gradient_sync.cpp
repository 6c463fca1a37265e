#include "train/gradient_sync.h"

#include <algorithm>
#include <array>
#include <utility>

#include "core/error.h"

namespace danceflux::train {
namespace {

constexpr std::array<std::pair<const char*, Sharding>, 3> kShardings{
    {{"none", Sharding::none},
     {"optimizer", Sharding::optimizer},
     {"optimizer+gradients", Sharding::gradients}}};

// Where memory goes back after a bucket has travelled, so many may be under way: one that travels, and one
// that waits for it.
constexpr std::size_t kMostShed = 2;

}  // namespace

Sharding sharding_from_name(const std::string& name) {
  for (const auto& [known, sharding] : kShardings) {
    if (name == known) return sharding;
  }
  fail("ERR_OPTION", "sharding: expected none, optimizer or optimizer+gradients, got \"", name, "\"");
}

std::shared_ptr<GradientSync> GradientSync::attach(nn::Module& module, const SyncOptions& options) {
  std::shared_ptr<GradientSync> sync(new GradientSync(module, options));
  if (sync->sharded()) sync->move_values();
  if (!sync->sheds_gradients()) {
    // Before the first activations: made after them, they would take the memory that those leave.
    for (const GradientSlot& slot : sync->layout_.slots) sync->memory(*slot.parameter);
  }
  module.set_keeper(sync);
  return sync;
}

GradientSync::GradientSync(nn::Module& module, const SyncOptions& options)
    : options_(options),
      device_(module.device()),
      held_device_(device_.shared_from_this()),
      rank_(options.communicator ? options.communicator->rank() : 0),
      ranks_(options.communicator ? options.communicator->size() : 1),
      layout_(GradientLayout::of(module, options.bucket_bytes, ranks_)),
      ranges_(sharded() ? ranges_of_shard(layout_, rank_, ranks_) : ranges_of_shard(layout_, 0, 1)),
      buckets_(layout_.buckets.size()) {
  for (std::size_t i = 0; i < layout_.slots.size(); ++i) slot_of_[layout_.slots[i].parameter.get()] = i;
}

/// Gives all weights of a bucket one piece of memory, so that they are gathered without a copy.
void GradientSync::move_values() {
  for (std::size_t b = 0; b < buckets_.size(); ++b) {
    const GradientBucket& bucket = layout_.buckets[b];
    Tensor& values = buckets_[b].values;
    values = device_.empty({bucket.size}, bucket.dtype);
    ops::fill_(values, 0);
    for (const std::size_t i : bucket.slots) {
      const GradientSlot& slot = layout_.slots[i];
      const Tensor moved = values.narrow(0, slot.offset, slot.count).view(slot.parameter->shape);
      ops::copy_(moved, slot.parameter->value);
      slot.parameter->value = moved;
    }
  }
}

// ---- backward -------------------------------------------------------------------------------------------

void GradientSync::begin(const nn::BackwardMarks& marks) {
  require(!synchronized_ || (ranks_ == 1 && !options_.ordered), "ERR_OPTION",
          "gradients: expected the optimizer's step after an update's last backward pass, got another pass");
  marks_ = marks;
  synchronized_ = marks.synchronize;
  next_ = 0;
  unfinished_ = layout_.slots.size();
  for (std::size_t b = 0; b < buckets_.size(); ++b) {
    buckets_[b].left = layout_.buckets[b].slots.size();
    buckets_[b].whole = false;
  }
}

Tensor GradientSync::fresh(std::size_t bucket) {
  Tensor tensor = buckets_[bucket].tree.spare();
  if (!tensor) tensor = device_.empty({layout_.buckets[bucket].size});
  ops::fill_(tensor, 0);
  return tensor;
}

Tensor GradientSync::memory(nn::Parameter& parameter) {
  const auto found = slot_of_.find(&parameter);
  require(found != slot_of_.end(), "ERR_OPTION",
          "gradients: expected the parameters that trained when the optimizer was made, got another one of "
          "shape ",
          parameter.shape);
  const GradientSlot& slot = layout_.slots[found->second];
  Tensor& sum = buckets_[slot.bucket].sum;
  if (!sum) {
    sum = fresh(slot.bucket);
    note_bytes();
  }
  parameter.gradient = sum.narrow(0, slot.offset, slot.count).view(parameter.shape);
  return parameter.gradient;
}

void GradientSync::finished(nn::Parameter& parameter) {
  const auto found = slot_of_.find(&parameter);
  if (found == slot_of_.end()) return;  // watched, but nothing reached it: memory() would have told
  const GradientSlot& slot = layout_.slots[found->second];
  Bucket& bucket = buckets_[slot.bucket];
  if (bucket.sum) {
    // Nobody asked for these: they must not count in the norm.
    for (const auto& [start, count] : slot.untrained) {
      ops::fill_(bucket.sum.narrow(0, slot.offset + start, count), 0);
    }
  }
  --unfinished_;
  if (--bucket.left == 0) complete(slot.bucket);
}

/// Does the running backward pass send its gradients?
bool GradientSync::travels_now() const {
  if (ranks_ == 1 || !options_.overlap) return false;
  return marks_.synchronize || (sheds_gradients() && !options_.ordered);
}

void GradientSync::complete(std::size_t index) {
  Bucket& bucket = buckets_[index];
  if (options_.ordered && marks_.ends_sample) {
    Tensor sample = bucket.sum ? std::move(bucket.sum) : fresh(index);
    drop(index);
    bucket.sum = bucket.tree.add(std::move(sample), marks_.samples);
    note_bytes();
    if (bucket.sum && !sheds_gradients()) {
      for (const std::size_t slot : layout_.buckets[index].slots) memory(*layout_.slots[slot].parameter);
    }
  }
  bucket.whole = true;
  if (!travels_now()) return;
  // In one order on all ranks, whatever order their backward passes finish in.
  while (next_ < buckets_.size() && buckets_[next_].whole) launch(next_++);
}

/// The bucket's memory is no longer where gradients are gathered.
void GradientSync::drop(std::size_t index) {
  buckets_[index].sum = {};
  for (const std::size_t slot : layout_.buckets[index].slots) layout_.slots[slot].parameter->gradient = {};
}

// ---- over ranks -----------------------------------------------------------------------------------------

void GradientSync::launch(std::size_t index) {
  Bucket& bucket = buckets_[index];
  require(bucket.tree.taken() == 0, "ERR_OPTION",
          "gradients: expected the end of the update's last sample before its sum over ranks, got ",
          bucket.tree.taken(), " samples");
  if (sheds_gradients()) {
    while (flights_.size() >= kMostShed) land();
  }
  bucket.reduced = true;
  if (!bucket.sum) bucket.sum = fresh(index);
  const ReduceArgs args{CollectiveReduce::sum, options_.ordered};
  Communicator& communicator = *options_.communicator;
  const std::int64_t length = shard_size(index);
  Flight flight{{}, bucket.sum, index, {}};
  if (!sharded()) {
    flight.event = communicator.all_reduce(bucket.sum, args);
  } else if (!sheds_gradients()) {
    flight.event =
        communicator.reduce_scatter(bucket.sum.narrow(0, rank_ * length, length), bucket.sum, args);
  } else {
    flight.shard = device_.empty({length});
    flight.event = communicator.reduce_scatter(flight.shard, bucket.sum, args);
    drop(index);
  }
  report_.bytes += static_cast<std::int64_t>(flight.whole.bytes());
  ++report_.collectives;
  if (unfinished_ > 0) ++report_.overlapped;
  took_off(std::move(flight));
  note_bytes();
}

void GradientSync::took_off(Flight flight) {
  if (flights_.empty()) departed_ = Clock::now();
  flights_.push_back(std::move(flight));
}

/// Waits for the oldest collective.
void GradientSync::land() {
  const Flight flight = std::move(flights_.front());
  flights_.pop_front();
  const auto seconds = [](Clock::duration time) { return std::chrono::duration<double>(time).count(); };
  const auto before = Clock::now();
  device_.wait(flight.event);
  const auto after = Clock::now();
  report_.seconds_waited += seconds(after - before);
  if (flights_.empty()) report_.seconds_in_flight += seconds(after - departed_);
  if (!flight.shard) return;
  Tensor& shard = buckets_[flight.bucket].shard;
  if (shard)
    ops::add_(shard, flight.shard);
  else
    shard = flight.shard;
}

void GradientSync::land_all() {
  while (!flights_.empty()) land();
}

/// This rank's part of the gradients, or all of them, summed over ranks.
Tensor GradientSync::reduced(std::size_t index) const {
  const Bucket& bucket = buckets_[index];
  if (sheds_gradients()) return bucket.shard;
  const std::int64_t length = shard_size(index);
  return sharded() ? bucket.sum.narrow(0, rank_ * length, length) : bucket.sum;
}

void GradientSync::settle() {
  unfinished_ = 0;
  for (std::size_t b = 0; b < buckets_.size(); ++b) {
    Bucket& bucket = buckets_[b];
    require(bucket.tree.taken() == 0, "ERR_OPTION",
            "gradients: expected the end of the update's last sample, got ", bucket.tree.taken(), " samples");
    // Also what no pass was marked for: gradients that were gathered one by one, or none at all.
    const bool left = !bucket.reduced || (sheds_gradients() && bucket.sum);
    if (ranks_ > 1 && left) launch(b);
    if (ranks_ == 1 && !bucket.sum) bucket.sum = fresh(b);
  }
  land_all();
}

double GradientSync::finish() {
  settle();
  std::vector<std::int64_t> chunks;
  std::int64_t own = 0;
  for (std::size_t b = 0; b < buckets_.size(); ++b) {
    chunks.push_back(reduced(b).numel() / kNormChunk);
    own += chunks.back();
  }
  const int parts = sharded() ? ranks_ : 1;
  const Tensor all = device_.empty({own * parts});
  const Tensor mine = all.narrow(0, sharded() ? rank_ * own : 0, own);
  std::int64_t place = 0;
  for (std::size_t b = 0; b < buckets_.size(); ++b) {
    ops::sums_of_squares_(mine.narrow(0, place, chunks[b]), reduced(b));
    place += chunks[b];
  }
  if (sharded()) {
    took_off({options_.communicator->all_gather(all, mine), all, 0, {}});
    land_all();
  }
  // In the order of the buckets, as if one rank held all of it.
  const std::vector<float> host = ops::to_host(all);
  double total = 0;
  place = 0;
  for (const std::int64_t count : chunks) {
    for (int part = 0; part < parts; ++part) {
      for (std::int64_t i = 0; i < count; ++i)
        total += host[static_cast<std::size_t>(part * own + place + i)];
    }
    place += count;
  }
  return total;
}

void GradientSync::release() {
  for (std::size_t b = 0; b < buckets_.size(); ++b) {
    Bucket& bucket = buckets_[b];
    if (sheds_gradients()) {
      drop(b);
      bucket.tree.clear();
    } else if (bucket.sum) {
      ops::fill_(bucket.sum, 0);
    }
    bucket.shard = {};
    bucket.reduced = false;
  }
  synchronized_ = false;
}

void GradientSync::clear() {
  land_all();
  for (Bucket& bucket : buckets_) bucket.tree.clear();
  release();
}

void GradientSync::gather_values() {
  if (!sharded()) return;
  for (std::size_t b = 0; b < buckets_.size(); ++b) {
    const Tensor& values = buckets_[b].values;
    const std::int64_t length = shard_size(b);
    report_.bytes += static_cast<std::int64_t>(values.bytes()) / ranks_;
    took_off(
        {options_.communicator->all_gather(values, values.narrow(0, rank_ * length, length)), values, b, {}});
  }
  land_all();
}

// ---- views and numbers ----------------------------------------------------------------------------------

Tensor GradientSync::value(const TrainedRange& range) const {
  const TrainedPart& part = layout_.parts[range.part];
  const GradientSlot& slot = layout_.slots[part.slot];
  return slot.parameter->value.view({slot.count})
      .narrow(0, part.start + range.begin, range.end - range.begin);
}

Tensor GradientSync::gradient(const TrainedRange& range) const {
  const std::int64_t first = sharded() ? rank_ * shard_size(range.bucket) : 0;
  return reduced(range.bucket).narrow(0, range.place - first, range.end - range.begin);
}

std::size_t GradientSync::gradient_bytes() const {
  std::size_t all = 0;
  for (const Bucket& bucket : buckets_) {
    for (const Tensor* tensor : {&bucket.sum, &bucket.shard}) all += *tensor ? tensor->bytes() : 0;
    all += bucket.tree.bytes();
  }
  for (const Flight& flight : flights_) {
    if (flight.shard) all += flight.whole.bytes() + flight.shard.bytes();
  }
  return all;
}

void GradientSync::note_bytes() {
  report_.gradient_bytes = std::max(report_.gradient_bytes, gradient_bytes());
}

SyncReport GradientSync::take_report() {
  note_bytes();
  return std::exchange(report_, {});
}

}  // namespace danceflux::train
