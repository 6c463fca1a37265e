// The fuzz targets under a small seeded mutator, for machines without clang: about two seconds each, from the
// fixtures.
#include <algorithm>
#include <chrono>
#include <random>

#include "fuzz/targets.h"
#include "harness.h"
#include "temporary.h"

namespace danceflux::test {
namespace {

using Seeds = std::vector<std::string>;

constexpr std::uint32_t kSeed = 20260801;
constexpr int kMostInputs = 20000;
constexpr std::size_t kMostSeedBytes = 16384, kMostInputBytes = 32768;
constexpr std::chrono::seconds kLongest{2};

Seeds files_of(const std::string& folder) {
  Seeds seeds;
  std::vector<std::filesystem::path> paths;
  for (const auto& entry :
       std::filesystem::directory_iterator(std::string(DANCEFLUX_FIXTURES) + "/" + folder))
    paths.push_back(entry.path());
  std::sort(paths.begin(), paths.end());
  for (const auto& path : paths) {
    const auto bytes = std::filesystem::file_size(path);
    if (bytes > 0 && bytes <= kMostSeedBytes) seeds.push_back(read_bytes(path));
  }
  CHECK(!seeds.empty());
  return seeds;
}

class Mutator {
 public:
  explicit Mutator(const Seeds& seeds) : seeds_(seeds) {}

  std::string next() {
    std::string text = seeds_[below(seeds_.size())];
    for (std::size_t edits = 1 + below(4); edits > 0; --edits)
      (this->*kEdits[below(std::size(kEdits))])(text);
    text.resize(std::min(text.size(), kMostInputBytes));
    return text;
  }

 private:
  using Edit = void (Mutator::*)(std::string&);
  static const Edit kEdits[8];

  std::size_t below(std::size_t count) { return count ? random_() % count : 0; }
  void flip(std::string& text) {
    if (!text.empty()) text[below(text.size())] ^= static_cast<char>(1 << below(8));
  }
  void put(std::string& text) {
    if (!text.empty()) text[below(text.size())] = static_cast<char>(below(256));
  }
  void cut(std::string& text) { text.resize(below(text.size() + 1)); }
  void remove(std::string& text) { text.erase(below(text.size() + 1), 1 + below(8)); }
  void repeat(std::string& text) {
    const std::string block = text.substr(below(text.size() + 1), 1 + below(32));
    for (std::size_t times = 1 + below(40); times > 0; --times) text.insert(below(text.size() + 1), block);
  }
  void splice(std::string& text) {
    const std::string& other = seeds_[below(seeds_.size())];
    text.resize(below(text.size() + 1));
    text += other.substr(below(other.size() + 1));
  }
  // Where a number ends: the ends of the ranges of 1 to 8 bytes.
  void number(std::string& text) {
    static constexpr std::uint64_t kEnds[] = {0,      1,          0x7f,       0x80,       0xff,       0x7fff,
                                              0xffff, 0x7fffffff, 0x80000000, 0xffffffff, ~0ull >> 1, ~0ull};
    const std::string bytes = little(kEnds[below(std::size(kEnds))], 1 << below(4));
    if (text.size() >= bytes.size()) text.replace(below(text.size() - bytes.size() + 1), bytes.size(), bytes);
  }
  void digits(std::string& text) {
    static constexpr const char* kNumbers[] = {
        "0",   "-1", "9223372036854775807", "9223372036854775808", "18446744073709551615", "4294967296",
        "1e9", "0.5"};
    const std::size_t start = below(text.size() + 1);
    const std::size_t digit = text.find_first_of("0123456789", start);
    if (digit == std::string::npos) return;
    const std::size_t end = std::min(text.find_first_not_of("0123456789", digit), text.size());
    text.replace(digit, end - digit, kNumbers[below(std::size(kNumbers))]);
  }

  const Seeds& seeds_;
  std::mt19937 random_{kSeed};
};

const Mutator::Edit Mutator::kEdits[8] = {&Mutator::flip,   &Mutator::put,    &Mutator::cut,
                                          &Mutator::remove, &Mutator::repeat, &Mutator::splice,
                                          &Mutator::number, &Mutator::digits};

void mutate(const Seeds& seeds, void (*target)(std::string_view)) {
  for (const std::string& seed : seeds) target(seed);
  Mutator mutator(seeds);
  const auto end = std::chrono::steady_clock::now() + kLongest;
  for (int i = 0; i < kMostInputs && std::chrono::steady_clock::now() < end; ++i) {
    const std::string input = mutator.next();
    try {
      target(input);
    } catch (const std::exception& error) {
      fail_at(__FILE__, __LINE__, "input ", i, " (", input.size(), " bytes): ", error.what());
    }
  }
}

TEST("fuzz: safetensors") {
  Seeds seeds = files_of("adapters");
  for (std::string& file : files_of("goldens")) seeds.push_back(std::move(file));
  const std::size_t files = seeds.size();
  for (std::size_t i = 0; i < files; ++i)
    seeds.push_back(seeds[i].substr(8, 600));  // headers, to be given a length
  seeds.push_back(
      R"({"w":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},"__metadata__":{"format":"pt"}})");
  mutate(seeds, fuzz::safetensors);
}

TEST("fuzz: checkpoints") { mutate(files_of("pickles"), fuzz::torch_zip); }

TEST("fuzz: pickles") {
  Seeds seeds;
  seeds.push_back(good_pickle());
  seeds.push_back(pickle_of(dictionary_op(text_op("a") +
                                          dictionary_op(text_op("b") + tensor_op({2, 2}, {1, 2}) + "q\x01") +
                                          number_op(5) + "](Nh\x01\x88K\x05" + "e") +
                            "}b"));
  seeds.push_back(pickle_of(dictionary_op(text_op("p") + "ctorch._utils\n_rebuild_parameter\n" +
                                          tensor_op({}, {}, 3) + "\x88}\x87R")));
  mutate(seeds, fuzz::pickle);
}

TEST("fuzz: JSON") {
  Seeds seeds = files_of("cases");
  seeds.push_back(R"({"a":[1.5e-3,"\u00e9\ud83d\ude00\n",true,null,-0],"b":{"c":false,"d":[[],{}]}})");
  mutate(seeds, fuzz::json);
}

TEST("fuzz: device options") {
  mutate({R"({"threads":2,"isa":"avx2","a":{"b":true,"c":null}})", R"({"a.b":1e3,"threads":"x"})", "{}"},
         fuzz::options);
}

}  // namespace
}  // namespace danceflux::test
