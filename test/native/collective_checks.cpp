#include "collective_checks.h"

#include <algorithm>
#include <cstring>

#include "harness.h"

namespace danceflux::test {
namespace {

/// The tree of ReduceArgs, drawn again: neighbours join, one left over waits.
float tree_sum(std::vector<float> level) {
  while (level.size() > 1) {
    std::vector<float> next;
    for (std::size_t i = 0; i + 1 < level.size(); i += 2) next.push_back(level[i] + level[i + 1]);
    if (level.size() % 2) next.push_back(level.back());
    level = next;
  }
  return level[0];
}

/// Numbers whose sum depends on the order.
float rough(std::int64_t i, int rank) {
  std::uint64_t bits = static_cast<std::uint64_t>(i * 64 + rank + 1) * 0x9e3779b97f4a7c15u;
  bits ^= bits >> 29;
  bits *= 0xbf58476d1ce4e5b9u;
  const float scale = rank % 3 == 0 ? 1.0f : rank % 3 == 1 ? 3e-3f : 40.0f;
  return scale * (static_cast<float>(bits >> 40) * 0x1p-23f - 1.0f);
}

}  // namespace

float number(std::int64_t i, int rank) { return static_cast<float>((i * 7 + rank * 5) % 13 - 6); }

std::vector<float> numbers(std::int64_t count, int rank, std::int64_t from) {
  std::vector<float> values(static_cast<std::size_t>(count));
  for (std::int64_t i = 0; i < count; ++i) values[static_cast<std::size_t>(i)] = number(from + i, rank);
  return values;
}

std::vector<float> reduced(std::int64_t count, int ranks, CollectiveReduce op, std::int64_t from) {
  std::vector<float> values = numbers(count, 0, from);
  for (int rank = 1; rank < ranks; ++rank) {
    for (std::size_t i = 0; i < values.size(); ++i) {
      const float other = number(from + static_cast<std::int64_t>(i), rank);
      values[i] = op == CollectiveReduce::sum ? values[i] + other : std::max(values[i], other);
    }
  }
  return values;
}

void check_same(const std::vector<float>& got, const std::vector<float>& wanted, const std::string& what) {
  CHECK_EQ(got.size(), wanted.size());
  for (std::size_t i = 0; i < got.size(); ++i) {
    if (std::memcmp(&got[i], &wanted[i], sizeof(float)) != 0)
      fail_at(__FILE__, __LINE__, what, " element ", i, ": expected ", wanted[i], ", got ", got[i]);
  }
}

void check_all_reduce(const Rank& rank, std::int64_t count, DType dtype, CollectiveReduce op) {
  const Guarded x(rank.device, count, dtype);
  x.set(numbers(count, rank.rank));
  rank.wait(rank.communicator.all_reduce(x.tensor(), {op, false}));
  check_same(x.values(), reduced(count, rank.size, op), "all_reduce of " + std::to_string(count));
  x.check();
}

void check_reduce_scatter(const Rank& rank, std::int64_t count, DType dtype, CollectiveReduce op,
                          bool in_place) {
  const Guarded x(rank.device, count * rank.size, dtype), separate(rank.device, count, dtype);
  x.set(numbers(count * rank.size, rank.rank));
  const Tensor out = in_place ? x.tensor().narrow(0, rank.rank * count, count) : separate.tensor();
  rank.wait(rank.communicator.reduce_scatter(out, x.tensor(), {op, true}));
  check_same(downloaded(rank.device, out), reduced(count, rank.size, op, rank.rank * count),
             "reduce_scatter of " + std::to_string(count));
  x.check(), separate.check();
}

void check_all_gather(const Rank& rank, std::int64_t count, DType dtype, bool in_place) {
  const Guarded out(rank.device, count * rank.size, dtype), separate(rank.device, count, dtype);
  separate.set(numbers(count, rank.rank));
  const Tensor part = out.tensor().narrow(0, rank.rank * count, count);
  if (in_place) rank.device.copy(part, separate.tensor());
  rank.wait(rank.communicator.all_gather(out.tensor(), in_place ? part : separate.tensor()));
  std::vector<float> wanted;
  for (int other = 0; other < rank.size; ++other) {
    const std::vector<float> theirs = numbers(count, other);
    wanted.insert(wanted.end(), theirs.begin(), theirs.end());
  }
  check_same(out.values(), wanted, "all_gather of " + std::to_string(count));
  out.check(), separate.check();
}

void check_broadcast(const Rank& rank, std::int64_t count, DType dtype, int root) {
  const Guarded x(rank.device, count, dtype);
  x.set(numbers(count, rank.rank));
  rank.wait(rank.communicator.broadcast(x.tensor(), root));
  check_same(x.values(), numbers(count, root), "broadcast of " + std::to_string(count));
  x.check();
}

void check_everything(const Rank& rank, const std::vector<std::int64_t>& counts) {
  for (const std::int64_t count : counts) {
    for (const DType dtype : kDTypes) {
      for (const CollectiveReduce op : {CollectiveReduce::sum, CollectiveReduce::max}) {
        check_all_reduce(rank, count, dtype, op);
        check_reduce_scatter(rank, count, dtype, op, op == CollectiveReduce::max);
      }
      check_all_gather(rank, count, dtype, false);
      check_all_gather(rank, count, dtype, true);
      check_broadcast(rank, count, dtype, static_cast<int>(count % rank.size));
      rank.wait(rank.communicator.barrier());
    }
  }
}

void check_tree(const Rank& rank, DType dtype, std::int64_t count) {
  const Guarded x(rank.device, count, dtype);
  std::vector<float> wanted;
  for (std::int64_t i = 0; i < count; ++i) {
    std::vector<float> leaves;
    for (int other = 0; other < rank.size; ++other) {
      float leaf = rough(i, other);
      std::uint16_t stored = 0;
      if (dtype != DType::f32) {
        convert_elements(&stored, dtype, &leaf, DType::f32, 1);
        convert_elements(&leaf, DType::f32, &stored, dtype, 1);
      }
      leaves.push_back(leaf);
    }
    wanted.push_back(tree_sum(leaves));
  }
  std::vector<float> mine;
  for (std::int64_t i = 0; i < count; ++i) mine.push_back(rough(i, rank.rank));
  x.set(mine);
  rank.wait(rank.communicator.all_reduce(x.tensor(), {CollectiveReduce::sum, true}));
  const Guarded rounded(rank.device, count, dtype);
  rounded.set(wanted);
  check_same(x.values(), rounded.values(), "ordered sum");
}

}  // namespace danceflux::test
