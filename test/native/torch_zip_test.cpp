// PyTorch checkpoints: the fixtures of test/fixtures/pickles, and archives that lie in every field.
#include "io/torch_zip.h"

#include <cstring>

#include "core/json.h"
#include "goldens.h"
#include "harness.h"
#include "temporary.h"
#include "zip_tools.h"

namespace danceflux::test {
namespace {

const std::string kPickles = std::string(DANCEFLUX_FIXTURES) + "/pickles/";

// Values as doubles, whatever the type; the two types that are not read are looked at byte by byte.
std::vector<double> values_of(const io::FileTensor& tensor) {
  const auto count = static_cast<std::size_t>(tensor.shape.numel());
  std::vector<double> values(count);
  if (!tensor.readable) {
    for (std::size_t i = 0; i < count; ++i) values[i] = std::to_integer<int>(tensor.data[i]);
    return values;
  }
  if (is_float(tensor.dtype)) {
    io::read_rows(tensor, 0, -1, false, DType::f64, values.data());
    return values;
  }
  std::vector<char> raw(count * size_of(tensor.dtype));
  io::read_rows(tensor, 0, -1, false, tensor.dtype, raw.data());
  for (std::size_t i = 0; i < count; ++i) {
    std::int64_t value = 0;  // little-endian, sign extended
    std::memcpy(&value, raw.data() + i * size_of(tensor.dtype), size_of(tensor.dtype));
    if (tensor.dtype == DType::i32) value = static_cast<std::int32_t>(value);
    values[i] = static_cast<double>(value);
  }
  return values;
}

std::string dotted(std::string name) {
  for (char& letter : name) letter = letter == '/' ? '.' : letter;
  return name;
}

void check_read(const std::string& file, const Json& wanted) {
  const auto opened = io::open_tensor_file(kPickles + file);
  CHECK_EQ(opened->tensors().size(), wanted.members().size());
  for (const auto& [name, facts] : wanted.members()) {
    const io::FileTensor& tensor = opened->find(dotted(name));
    CHECK_EQ(tensor.dtype_name, facts.find("dtype")->text());
    CHECK_EQ(tensor.shape, Value(*facts.find("shape")).shape());
    const std::vector<double> got = values_of(tensor);
    const auto& values = facts.find("values")->items();
    CHECK_EQ(got.size(), values.size());
    for (std::size_t i = 0; i < got.size(); ++i) CHECK_EQ(got[i], values[i].number());
  }
}

TEST("torch zip: every fixture is read or refused as its manifest says") {
  const Json manifest = Json::parse(read_bytes(kPickles + "manifest.json"), "ERR_FILE", "manifest");
  std::size_t read = 0, refused = 0;
  for (const Json& entry : manifest.find("files")->items()) {
    const std::string file = entry.find("file")->text(), expected = entry.find("expect")->text();
    if (expected == "read") {
      check_read(file, *entry.find("tensors"));
      ++read;
    } else {
      const Error error = error_of([&] { io::open_torch_zip(kPickles + file); });
      CHECK_EQ(error.code, std::string(file == "empty.pt" ? "ERR_FILE" : "ERR_PICKLE"));
      check_told(error, file);
      ++refused;
    }
  }
  CHECK_EQ(read, std::size_t{7});
  CHECK_EQ(refused, std::size_t{35});
  CHECK(!std::filesystem::exists(manifest.find("marker")->text()));
}

TEST("torch zip: what a refusal names") {
  const auto refusal = [](const char* file) {
    return error_of([&] { io::open_tensor_file(kPickles + file); });
  };
  check_told(refusal("posix-system.pt"), "got the global posix.system");
  check_told(refusal("eval.pt"), "got the global builtins.eval");
  check_told(refusal("module.pt"), "got the global torch.nn.modules.linear.Linear");
  check_told(refusal("storage-type.pt"), "got the global torch.ComplexFloatStorage");
  check_told(refusal("deflated.pt"), "got compression method 8");
  check_told(refusal("big-endian.pt"), "expected byte order little, got big");
  check_told(refusal("missing-storage.pt"), "expected a storage 0, got none");
  check_told(refusal("legacy.pt"), "expected the zip format of PyTorch 1.6");
  CHECK(refusal("legacy.pt").hint.find("torch.save(torch.load(") != std::string::npos);
  CHECK(refusal("module.pt").hint.find("state_dict()") != std::string::npos);
  check_told(refusal("protocol4.pt"), "expected pickle protocol 2, got 4");
}

TEST("torch zip: the small HPS checkpoint, value for value") {
  const auto file = io::open_tensor_file(std::string(DANCEFLUX_FIXTURES) + "/hps-small.pt");
  const GoldenCase source = read_case("open-clip-f16");
  CHECK(source.parameters().size() > 50);
  CHECK_EQ(file->tensors().size(), source.parameters().size());
  for (const CaseParameter& parameter : source.parameters()) {
    const io::FileTensor& tensor = file->find("state_dict." + parameter.name);
    CHECK_EQ(tensor.dtype_name, std::string("F16"));
    CHECK_EQ(tensor.shape, parameter.shape);
    std::vector<float> got(parameter.values.size());
    io::read_rows(tensor, 0, -1, false, DType::f32, got.data());
    CHECK(got == parameter.values);
  }
}

// ---- archives that lie

struct BadArchive {
  const char* name;
  std::string bytes;
  const char* told;
};

std::vector<BadArchive> bad_archives() {
  const StoredEntry pickle{"a/data.pkl", good_pickle()}, storage{"a/data/0", std::string(16, '\0')};
  const auto with = [&](auto edit) {
    StoredEntry changed = storage;
    edit(changed);
    return stored_zip({pickle, changed});
  };
  const auto end = [&](auto edit) { return stored_zip({pickle, storage}, edit); };
  const std::string whole = stored_zip({pickle, storage});
  return {
      {"one byte short", whole.substr(0, whole.size() - 1), "expected an end record"},
      {"one byte more", whole + "x", "expected an end record"},
      {"front cut off", whole.substr(1), "expected a directory before byte"},
      {"other local name", with([](auto& e) { e.local_name = "a/data/1"; }), "expected one name"},
      {"longer local name", with([](auto& e) { e.local_name += std::string(5000, 'x'); }),
       "expected one name"},
      {"sizes disagree", with([](auto& e) { e.local_size = 15; }),
       "a/data/0 of 16 bytes in its local header too, got 15"},
      {"too large", with([](auto& e) { e.central_size = e.local_size = 4096; }),
       "expected a/data/0 to end before"},
      {"4 GB", with([](auto& e) { e.central_size = e.local_size = 0xfffffffe; }),
       "expected a/data/0 to end before"},
      {"zip64 without its field", with([](auto& e) { e.central_size = 0xffffffff; }),
       "a/data/0 of 4294967295 bytes"},
      {"encrypted", with([](auto& e) { e.flags = 1; }), "expected a/data/0 not to be encrypted"},
      {"deflated", with([](auto& e) { e.method = 8; }), "got compression method 8"},
      {"header before the file", with([](auto& e) { e.shift = -1000; }),
       "expected a local header of a/data/0"},
      {"header behind the data", with([](auto& e) { e.shift = 40; }), "expected a local header of a/data/0"},
      {"header of another entry",
       stored_zip({pickle, {"a/data/0", "0123456789abcdef"}, {.name = "a/data/1", .shift = -54}}),
       "expected one name"},
      {"one name twice", stored_zip({pickle, storage, storage}),
       "expected each entry once, got a/data/0 twice"},
      {"more entries", end([](ZipEnd& e) { ++e.entries; }), "expected at most 2 entries, got 3"},
      {"fewer entries", end([](ZipEnd& e) { --e.entries; }), "expected a directory of 1 entries"},
      {"65535 entries", end([](ZipEnd& e) { e.entries = 0xffff; }), "expected at most 2 entries, got 65535"},
      {"directory outside", end([](ZipEnd& e) { e.offset = 0xfffffff0; }),
       "expected a directory before byte"},
      {"directory too long", end([](ZipEnd& e) { e.size += 100; }), "expected a directory before byte"},
      {"directory too short", end([](ZipEnd& e) { e.size -= 1; }), "expected 8 more bytes"},
      {"two pickles", stored_zip({pickle, storage, {"b/data.pkl", good_pickle()}}),
       "expected one data.pkl, got two"},
      {"pickle without a root", stored_zip({{"data.pkl", good_pickle()}, storage}),
       "got a zip without data.pkl"},
      {"pickle too deep", stored_zip({{"a/b/data.pkl", good_pickle()}, storage}),
       "got a zip without data.pkl"},
      {"storage of another root", stored_zip({pickle, {"b/data/0", std::string(16, '\0')}}),
       "expected a storage 0, got none"},
      {"empty archive", stored_zip({}), "got a zip without data.pkl"},
  };
}

TEST("torch zip: archives that lie are refused") {
  const TemporaryFolder folder;
  for (const BadArchive& bad : bad_archives()) {
    const Error error = error_of([&] { io::open_torch_zip(folder.write("bad.pt", bad.bytes)); });
    if (error.code != "ERR_PICKLE") fail_at(__FILE__, __LINE__, bad.name, ": got ", error.code);
    check_told(error, bad.told);
  }
}

// Two directory records for one local header: the names agree, the bytes are shared.
TEST("torch zip: entries may not share bytes") {
  const TemporaryFolder folder;
  const StoredEntry inner{"a/data/0", std::string(16, '\0')};
  const std::string inside = stored_zip({inner});
  const std::string body = inside.substr(0, 30 + 8 + 16);  // its local header and data, inside another entry
  const auto headers = static_cast<std::int64_t>(body.size());
  const StoredEntry hidden{
      .name = "a/data/0", .data = "", .central_size = 16, .local_size = 16, .shift = -headers};
  const std::string path = folder.write("bad.pt", stored_zip({{"a/data/9", body}, hidden}));
  check_told(error_of([&] { io::open_torch_zip(path); }), "got a/data/9 and a/data/0 overlapping");
}

TEST("torch zip: sizes told behind the data, comments and folders are fine") {
  const TemporaryFolder folder;
  const StoredEntry late{.name = "a/data/0",
                         .data = std::string(16, '\0') + std::string(16, 'd'),
                         .flags = 8,
                         .central_size = 16,
                         .local_size = 0};
  const std::string bytes = stored_zip({{"a/", ""}, {"a/data.pkl", good_pickle()}, late},
                                       [](ZipEnd& end) { end.comment = "PK\x05\x06 is no end record"; });
  CHECK_EQ(io::open_torch_zip(folder.write("good.pt", bytes))->tensors().size(), std::size_t{1});
}

}  // namespace
}  // namespace danceflux::test
