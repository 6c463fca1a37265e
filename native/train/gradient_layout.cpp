#include "train/gradient_layout.h"

#include <algorithm>
#include <map>
#include <unordered_map>

#include "core/error.h"

namespace danceflux::train {
namespace {

constexpr std::int64_t kAlignment = 32;  // elements: whole cache lines in every dtype

std::int64_t round_up(std::int64_t n, std::int64_t step) { return (n + step - 1) / step * step; }

/// What is left of the slot's rows when the trained parts are taken away.
void find_untrained(GradientLayout& layout) {
  std::vector<std::vector<std::pair<std::int64_t, std::int64_t>>> trained(layout.slots.size());
  for (const TrainedPart& part : layout.parts) trained[part.slot].push_back({part.start, part.count});
  for (std::size_t i = 0; i < layout.slots.size(); ++i) {
    std::sort(trained[i].begin(), trained[i].end());
    std::int64_t place = 0;
    for (const auto& [start, count] : trained[i]) {
      if (start > place) layout.slots[i].untrained.push_back({place, start - place});
      place = start + count;
    }
    const std::int64_t rest = layout.slots[i].count - place;
    if (rest > 0) layout.slots[i].untrained.push_back({place, rest});
  }
}

void collect_slots(GradientLayout& layout, const nn::Module& module) {
  std::unordered_map<const nn::Parameter*, std::size_t> known;
  for (const nn::NamedParameter& named : module.trainable_parameters()) {
    const auto [entry, is_new] = known.emplace(named.parameter.get(), layout.slots.size());
    if (is_new) layout.slots.push_back({named.parameter, 0, 0, named.parameter->shape.numel(), {}});
    const std::int64_t row = named.shape.numel() / std::max<std::int64_t>(1, named.rows);
    layout.parts.push_back({named.name, named.shape, entry->second, named.row * row, named.shape.numel()});
  }
  require(!layout.parts.empty(), "ERR_OPTION", "optimizer: expected at least one trainable parameter");
}

std::string module_of(const std::string& name) { return name.substr(0, name.rfind('.') + 1); }

/// Slots as backward is expected to finish them. The model's order is that of its forward pass, so the last
/// come first; but what one layer has stays as it is: a bias that came before its matrix would end the bucket
/// of the layer after it, and that bucket would wait for one more layer.
std::vector<std::size_t> in_order_of_backward(const GradientLayout& layout) {
  std::vector<std::string> modules(layout.slots.size());
  for (const TrainedPart& part : layout.parts) {
    if (modules[part.slot].empty()) modules[part.slot] = module_of(part.name);
  }
  std::vector<std::size_t> order;
  for (std::size_t end = layout.slots.size(); end > 0;) {
    std::size_t first = end - 1;
    while (first > 0 && modules[first - 1] == modules[end - 1]) --first;
    for (std::size_t i = first; i < end; ++i) order.push_back(i);
    end = first;
  }
  return order;
}

}  // namespace

GradientLayout GradientLayout::of(const nn::Module& module, std::int64_t bucket_bytes, int ranks) {
  require(bucket_bytes > 0, "ERR_OPTION", "optimizer: expected buckets of at least 1 byte, got ",
          bucket_bytes);
  GradientLayout layout;
  collect_slots(layout, module);
  find_untrained(layout);
  const std::int64_t limit =
      std::max<std::int64_t>(1, bucket_bytes / static_cast<std::int64_t>(sizeof(float)));
  std::vector<GradientBucket> closed;
  std::map<DType, GradientBucket> open;
  const auto close = [&](GradientBucket& bucket) {
    if (!bucket.slots.empty()) closed.push_back(std::move(bucket));
    bucket = {};
  };
  // A bucket that is closed earlier is whole earlier.
  for (const std::size_t i : in_order_of_backward(layout)) {
    GradientSlot& slot = layout.slots[i];
    GradientBucket& bucket = open[slot.parameter->value.dtype()];
    if (bucket.size + slot.count > limit) close(bucket);
    bucket.dtype = slot.parameter->value.dtype();
    slot.offset = bucket.size;
    bucket.size += round_up(slot.count, kAlignment);
    bucket.slots.push_back(i);
  }
  for (auto& entry : open) close(entry.second);
  layout.buckets = std::move(closed);
  for (std::size_t b = 0; b < layout.buckets.size(); ++b) {
    GradientBucket& bucket = layout.buckets[b];
    bucket.size = round_up(bucket.size, kNormChunk * ranks);
    for (const std::size_t slot : bucket.slots) layout.slots[slot].bucket = b;
  }
  return layout;
}

std::vector<TrainedRange> ranges_of_shard(const GradientLayout& layout, int rank, int ranks) {
  std::vector<TrainedRange> ranges;
  for (std::size_t i = 0; i < layout.parts.size(); ++i) {
    const TrainedPart& part = layout.parts[i];
    const GradientSlot& slot = layout.slots[part.slot];
    const std::int64_t length = layout.buckets[slot.bucket].size / ranks;
    const std::int64_t first = slot.offset + part.start;  // in the bucket
    const std::int64_t begin = std::max(first, rank * length);
    const std::int64_t end = std::min(first + part.count, (rank + 1) * length);
    if (begin < end) ranges.push_back({i, slot.bucket, begin - first, end - first, begin});
  }
  return ranges;
}

}  // namespace danceflux::train
