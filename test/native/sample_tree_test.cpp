// The tree of samples, against its definition by recursion.
#include "train/sample_tree.h"
#include <map>

#include "goldens.h"
#include "harness.h"
#include "ops/ops.h"

namespace danceflux::test {
namespace {

/// Numbers whose sums round differently in every order.
float term(std::size_t i) {
  return std::ldexp(1.0f + 0.13f * static_cast<float>(i * i % 17), static_cast<int>(i * 7 % 23) - 11);
}

float defined(std::size_t first, std::size_t count) {
  if (count % 2 == 0) return defined(first, count / 2) + defined(first + count / 2, count / 2);
  float sum = term(first);
  for (std::size_t i = 1; i < count; ++i) sum += term(first + i);
  return sum;
}

float summed(Backend& device, train::SampleTree& tree, std::size_t first, std::size_t count) {
  Tensor sum;
  for (std::size_t i = 0; i < count; ++i) {
    CHECK(!sum);
    CHECK_EQ(tree.taken(), static_cast<std::int64_t>(i));
    Tensor sample = tree.spare();
    if (!sample) sample = device.empty({3});
    ops::fill_(sample, term(first + i));
    sum = tree.add(std::move(sample), static_cast<std::int64_t>(count));
  }
  CHECK(sum.defined());
  return ops::to_host(sum)[1];
}

TEST("sample tree: sums as it is defined, and is cut at nodes") {
  const auto device = cpu_device();
  for (std::size_t count = 1; count <= 48; ++count) {
    train::SampleTree tree;
    const float whole = defined(0, count);
    for (int again = 0; again < 2; ++again) CHECK_EQ(summed(*device, tree, 0, count), whole);
    // Halves, quarters: each of its own, and the levels above in pairs.
    if (count % 2 == 0) {
      const std::size_t half = count / 2;
      CHECK_EQ(summed(*device, tree, 0, half) + summed(*device, tree, half, half), whole);
    }
    if (count % 4 == 0) {
      const std::size_t part = count / 4;
      const auto sum = [&](std::size_t i) { return summed(*device, tree, i * part, part); };
      const float left = sum(0) + sum(1), right = sum(2) + sum(3);
      CHECK_EQ(left + right, whole);
    }
  }
}

TEST("sample tree: needs about log2(n) tensors") {
  const auto device = cpu_device();
  // The one that is being gathered among them.
  const std::map<std::int64_t, int> wanted{{1, 1}, {2, 2}, {3, 2}, {4, 3}, {12, 4}, {64, 7}, {96, 7}};
  for (const auto& [count, most] : wanted) {
    train::SampleTree tree;
    int made = 0;
    for (std::int64_t i = 0; i < count; ++i) {
      Tensor sample = tree.spare();
      if (!sample) ++made;
      tree.add(sample ? sample : device->empty({8}), count);
    }
    CHECK_EQ(made, most);
    CHECK_EQ(tree.taken(), 0);
  }
}

TEST("sample tree: refuses another number of samples on the way") {
  const auto device = cpu_device();
  train::SampleTree tree;
  CHECK_THROWS("ERR_OPTION", tree.add(device->empty({1}), 0));
  tree.add(device->empty({1}), 4);
  CHECK_THROWS("ERR_OPTION", tree.add(device->empty({1}), 2));
  tree.clear();
  CHECK_EQ(tree.bytes(), std::size_t{0});
  CHECK(tree.add(device->empty({1}), 1).defined());
}

}  // namespace
}  // namespace danceflux::test
