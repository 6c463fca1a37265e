// Where the gradients of a model lie: flat buckets in the reverse order of use, cut into equal shards whose
// borders know nothing of parameters.
//
// Everything here is the same on all ranks, and, but for padding at the ends of buckets, for any number of
// them.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "nn/module.h"

namespace danceflux::train {

/// Sums of squares are taken over so many neighbours first; shards are whole numbers of them, so that a norm
/// has the same bits however gradients are cut.
inline constexpr std::int64_t kNormChunk = 1024;

/// A stored tensor and its place in a bucket; numbers of elements.
struct GradientSlot {
  std::shared_ptr<nn::Parameter> parameter;
  std::size_t bucket = 0;
  std::int64_t offset = 0, count = 0;
  /// Rows that no trained parameter has: first element and count, within the slot.
  std::vector<std::pair<std::int64_t, std::int64_t>> untrained;
};

/// A trained parameter: `count` elements of a slot from `start` on.
struct TrainedPart {
  std::string name;
  Shape shape;
  std::size_t slot = 0;
  std::int64_t start = 0, count = 0;
};

struct GradientBucket {
  std::int64_t size = 0;     // elements, padding included: a multiple of ranks * kNormChunk
  DType dtype = DType::f32;  // of the values; gradients are f32
  std::vector<std::size_t> slots;
};

struct GradientLayout {
  std::vector<GradientSlot> slots;
  std::vector<TrainedPart> parts;  // in the model's order
  /// In the order in which backward is expected to finish them.
  std::vector<GradientBucket> buckets;

  /// A bucket is closed when it holds `bucket_bytes` of gradients; a larger tensor has one to itself. Values
  /// of one bucket have one dtype. Throws ERR_OPTION when nothing trains.
  static GradientLayout of(const nn::Module& module, std::int64_t bucket_bytes, int ranks);
};

/// A part of a trained parameter that lies in elements [first, first + length) of its bucket.
struct TrainedRange {
  std::size_t part = 0, bucket = 0;
  std::int64_t begin = 0, end = 0;  // elements of the parameter
  std::int64_t place = 0;           // of `begin` in the bucket
};

/// What of the trained parameters lies in shard `rank` of `ranks` of every bucket, in the model's order.
std::vector<TrainedRange> ranges_of_shard(const GradientLayout& layout, int rank, int ranks);

}  // namespace danceflux::train
