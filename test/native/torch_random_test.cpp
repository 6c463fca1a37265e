// PyTorch's CPU generator against frozen draws of PyTorch, bit for bit.
#include "core/torch_random.h"

#include <cstring>

#include "crc32.h"
#include "goldens.h"
#include "harness.h"

namespace danceflux::test {
namespace {

// "-1" is the seed that PyTorch takes as 2^64 - 1.
std::uint64_t seed_of(const Value& run) {
  const std::string& text = run["seed"].text();
  return text[0] == '-' ? static_cast<std::uint64_t>(std::stoll(text)) : std::stoull(text);
}

template <class T>
std::vector<T> draw(TorchGenerator& generator, std::size_t count) {
  std::vector<T> values(count);
  generator.randn(std::span<T>(values));
  return values;
}

// Equal to the bit: the goldens hold f32 widened to f64, which is exact.
template <class T>
void check_bits(const std::vector<T>& got, const std::vector<double>& wanted, std::size_t from = 0) {
  CHECK(from + got.size() <= wanted.size());
  for (std::size_t i = 0; i < got.size(); ++i) {
    const T expected = static_cast<T>(wanted[from + i]);
    if (std::memcmp(&expected, &got[i], sizeof(T)) != 0)
      fail_at(__FILE__, __LINE__, i, ": expected ", expected, ", got ", got[i]);
  }
}

template <class T>
void check_small(const GoldenCase& source, const Value& run, const std::string& dtype) {
  const Golden& golden = source.golden(run, dtype + ".sizes");
  std::size_t from = 0;
  for (const Value& size : run["sizes"].items()) {
    TorchGenerator generator(seed_of(run));
    const auto count = static_cast<std::size_t>(size.number());
    check_bits(draw<T>(generator, count), golden.values, from);
    from += count;
  }
  CHECK_EQ(from, golden.values.size());
}

template <class T>
void check_large(const GoldenCase& source, const Value& run, const std::string& name, std::size_t count) {
  TorchGenerator generator(seed_of(run));
  const std::vector<T> values = draw<T>(generator, count);
  const Value facts = run["large"][name];
  const auto edge = static_cast<std::ptrdiff_t>(facts["edge"].number());
  std::vector<T> edges(values.begin(), values.begin() + edge);
  edges.insert(edges.end(), values.end() - edge, values.end());
  check_bits(edges, source.golden(run, name).values);
  CHECK_EQ(static_cast<double>(crc32(std::span<const T>(values))), facts["crc32"].number());
}

template <class T>
std::vector<T> rounded_to(const std::vector<float>& values, DType dtype) {
  std::vector<std::uint16_t> stored(values.size());
  convert_elements(stored.data(), dtype, values.data(), DType::f32, values.size());
  std::vector<T> widened(values.size());
  convert_elements(widened.data(), DType::f32, stored.data(), dtype, values.size());
  return widened;
}

TEST("torch randn: sizes 1 to 40 and large, f32 and f64, of six seeds") {
  const GoldenCase source = read_case("torch-random");
  int seeds = 0;
  for (const Value& run : source.runs()) {
    if (!run.has("large")) continue;
    check_small<float>(source, run, "f32");
    check_small<double>(source, run, "f64");
    for (const std::size_t count : {std::size_t{1000}, std::size_t{65543}}) {
      check_large<float>(source, run, "f32." + std::to_string(count), count);
      check_large<double>(source, run, "f64." + std::to_string(count), count);
    }
    ++seeds;
  }
  CHECK_EQ(seeds, 6);
}

// Below 16 values and in multiples of 16 a draw of 16-bit numbers is the f32 draw, rounded; the ragged end of
// others is drawn in another order, which nothing here needs.
TEST("torch randn: 16-bit draws are rounded f32 draws") {
  const GoldenCase source = read_case("torch-random");
  int checked = 0;
  for (const Value& run : source.runs()) {
    if (run["name"].text() != "half-seed42") continue;
    std::size_t from = 0;
    for (const Value& size : run["sizes"].items()) {
      const auto count = static_cast<std::size_t>(size.number());
      const bool plain = count < 16 || count % 16 == 0;
      for (const auto& [name, dtype] :
           {std::pair<const char*, DType>{"bf16.sizes", DType::bf16}, {"f16.sizes", DType::f16}}) {
        if (!plain) continue;
        TorchGenerator generator(seed_of(run));
        check_bits(rounded_to<float>(draw<float>(generator, count), dtype), source.golden(run, name).values,
                   from);
        ++checked;
      }
      from += count;
    }
  }
  CHECK_EQ(checked, 10);
}

// Odd small draws leave a second normal behind, which big draws must not touch.
TEST("torch randn: calls in a row on one generator") {
  const GoldenCase source = read_case("torch-random");
  int calls = 0;
  for (const Value& run : source.runs()) {
    if (!run.has("calls")) continue;
    TorchGenerator generator(seed_of(run));
    for (const Value& call : run["calls"].items()) {
      const auto count = static_cast<std::size_t>(call["size"].number());
      const std::string dtype = call["dtype"].text();
      const auto& wanted = source.golden(run, "call" + std::to_string(calls++ % 14)).values;
      if (dtype == "f64") check_bits(draw<double>(generator, count), wanted);
      if (dtype == "f32") check_bits(draw<float>(generator, count), wanted);
      if (dtype == "bf16") check_bits(rounded_to<float>(draw<float>(generator, count), DType::bf16), wanted);
    }
  }
  CHECK_EQ(calls, 28);
}

TEST("torch randperm: fresh generators, and after a normal draw") {
  const GoldenCase source = read_case("torch-random");
  const auto check_order = [](TorchGenerator& generator, const Value& wanted) {
    const auto items = wanted.items();
    const std::vector<std::int32_t> got = generator.randperm(static_cast<std::int32_t>(items.size()));
    for (std::size_t i = 0; i < items.size(); ++i) CHECK_EQ(static_cast<double>(got[i]), items[i].number());
  };
  int runs = 0;
  for (const Value& run : source.runs()) {
    if (!run.has("fresh")) continue;
    for (const char* count : {"1", "2", "15", "100"}) {
      TorchGenerator generator(seed_of(run));
      check_order(generator, run["fresh"][count]);
    }
    TorchGenerator generator(seed_of(run));
    draw<float>(generator, 5);
    for (const Value& order : run["after_randn5"].items()) check_order(generator, order);
    ++runs;
  }
  CHECK_EQ(runs, 3);
  TorchGenerator generator(0);
  CHECK(generator.randperm(0).empty());
  CHECK_THROWS("ERR_ARGUMENT", generator.randperm(-1));
}

}  // namespace
}  // namespace danceflux::test
