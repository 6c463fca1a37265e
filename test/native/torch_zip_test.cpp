// PyTorch checkpoints: the fixtures of test/fixtures/pickles, and archives and pickles that lie in every
// field.
#include "io/torch_zip.h"

#include <cstring>
#include <limits>

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

std::string good_pickle() { return pickle_of(dictionary_op(text_op("w") + tensor_op())); }

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

// ---- pickles that lie

struct BadPickle {
  const char* name;
  std::string pickle;
  const char* told;
};

std::string repeat(const std::string& text, std::size_t times) {
  std::string all;
  for (std::size_t i = 0; i < times; ++i) all += text;
  return all;
}

// A dictionary that holds the one before twice, 25 times over: 2^25 tensors in half a kilobyte.
std::string laughs() {
  std::string value = dictionary_op(text_op("w") + tensor_op());
  for (int i = 0; i < 25; ++i)
    value = "}(" + text_op("a") + value + "q" + little(static_cast<unsigned>(i), 1) + text_op("b") + "h" +
            little(static_cast<unsigned>(i), 1) + "u";
  return pickle_of(value);
}

// The same of lists of plain values, of which no tensor ever comes.
std::string silent_laughs() {
  std::string value = "]Na";
  for (int i = 0; i < 25; ++i) {
    const std::string key = little(static_cast<unsigned>(i), 1);
    value = "](" + value + "q" + key + "h" + key + "e";
  }
  return pickle_of("}" + text_op("w") + value + "s");
}

// One tensor under a hundred short names below a long one.
std::string long_shadow() {
  std::string members = text_op("first") + tensor_op() + "q\x01";
  for (int i = 0; i < 100; ++i) members += text_op(std::to_string(i)) + "h\x01";
  return pickle_of(dictionary_op(text_op(std::string(1000, 'x')) + dictionary_op(members)));
}

// A tensor with the seventh field, which tells of conjugate and negated views.
std::string with_metadata(std::string_view value) {
  std::string tensor = tensor_op();
  tensor.insert(tensor.size() - 2, value);
  return pickle_of(dictionary_op(text_op("w") + tensor));
}

std::vector<BadPickle> bad_pickles() {
  const std::string w = text_op("w"), tensor = tensor_op();
  const auto in_dictionary = [&](const std::string& value) { return pickle_of(dictionary_op(w + value)); };
  const auto view = [&](std::vector<std::int64_t> shape, std::vector<std::int64_t> strides,
                        std::int64_t offset) { return in_dictionary(tensor_op(shape, strides, offset)); };
  constexpr std::int64_t kMost = std::numeric_limits<std::int64_t>::max();
  return {
      {"empty", "", "expected 1 more bytes"},
      {"no protocol", "}.", "expected a pickle"},
      {"protocol 3", "\x80\x03}.", "expected pickle protocol 2, got 3"},
      {"bytes behind", good_pickle() + ".", "expected one value and the end"},
      {"two values", pickle_of("}}"), "expected one value and the end"},
      {"no value", pickle_of(""), "expected one value and the end"},
      {"open mark", pickle_of("}("), "expected one value and the end"},
      {"pop below a mark", pickle_of("N(\x85"), "expected a value on the stack"},
      {"set across a mark", pickle_of("}(NNs"), "expected a value on the stack"},
      {"odd items", pickle_of("}(NNNu"), "expected a value for each key"},
      {"append to a dictionary", pickle_of("}Na"), "expected a list, got a dictionary"},
      {"item of a list", pickle_of("]NNs"), "expected a dictionary, got a list"},
      {"dictionary as key", pickle_of("}}Ns"), "expected a key that can be one, got a dictionary"},
      {"memo of nothing", pickle_of("q\x01"), "expected a value on the stack"},
      {"memo far away", pickle_of("}r\xff\xff\xff\xff"), "expected memo keys that count up, got 4294967295"},
      {"memo gap", pickle_of("}r\x05" + std::string(3, '\0') + "h\x04"), "expected a value remembered as 4"},
      {"list on top", pickle_of("]"), "expected a dictionary of tensors"},
      {"tensor on top", pickle_of(tensor), "expected a dictionary of tensors"},
      {"global with a newline", pickle_of("cos\nsys\x1btem\n)R"), "got the global os.sys\\x1btem"},
      {"global without end",
       "\x80\x02"
       "cposix",
       "expected a line that ends"},
      {"call of a string", pickle_of(w + ")R"), "expected a global, got a string"},
      {"call of a storage type", pickle_of("ctorch\nFloatStorage\n)R"),
       "expected no call of torch.FloatStorage"},
      {"call of OrderedDict", pickle_of("ccollections\nOrderedDict\nN\x85R"),
       "expected no call of collections.OrderedDict with 1"},
      {"call without a tuple", pickle_of("ccollections\nOrderedDict\nNR"), "expected a tuple, got None"},
      {"persistent id of two", pickle_of("NN\x86Q"), "expected a storage of 5 fields, got 2"},
      {"persistent id of another kind",
       pickle_of("(" + text_op("module") + "ctorch\nFloatStorage\n" + text_op("0") + text_op("cpu") +
                 "K\x04tQ"),
       "expected a storage, got module"},
      {"state of a tensor", in_dictionary(tensor + "}b"), "expected a dictionary, got a tensor"},
      {"state that is no dictionary", pickle_of("}Nb"), "expected a dictionary, got None"},
      {"parameter of a dictionary", in_dictionary("ctorch._utils\n_rebuild_parameter\n}\x89}\x87R"),
       "expected a tensor, got a dictionary"},
      {"tensor of a tensor",
       in_dictionary("ctorch._utils\n_rebuild_tensor_v2\n(" + tensor + "K\x01" + "))\x89}tR"),
       "expected a storage, got a tensor"},
      {"tensor of 3 fields", in_dictionary("ctorch._utils\n_rebuild_tensor_v2\nNNN\x87R"),
       "expected a plain tensor of 6 fields, got 3"},
      {"negated tensor", with_metadata("}(" + text_op("neg") + "\x88u"),
       "expected a plain tensor of 6 fields, got 7"},
      {"float as offset",
       in_dictionary("ctorch._utils\n_rebuild_tensor_v2\n((" + text_op("storage") + "ctorch\nFloatStorage\n" +
                     text_op("0") + text_op("cpu") + "K\x04tQG" + std::string(8, '\0') + "))\x89}tR"),
       "expected an integer, got a number"},
      {"more than the storage has", in_dictionary(tensor_op({4}, {1}, 0, "FloatStorage", 5)),
       "storage 0 to hold 5 elements of F32, got 16 bytes"},
      {"wider elements", in_dictionary(tensor_op({4}, {1}, 0, "DoubleStorage", 4)),
       "storage 0 to hold 4 elements of F64, got 16 bytes"},
      {"2^63 elements", in_dictionary(tensor_op({4}, {1}, 0, "FloatStorage", kMost)),
       "storage 0 to hold 9223372036854775807"},
      {"-1 elements", in_dictionary(tensor_op({4}, {1}, 0, "FloatStorage", -1)), "storage 0 to hold -1"},
      {"nine dimensions", view(std::vector<std::int64_t>(9, 1), std::vector<std::int64_t>(9, 1), 0),
       "expected at most 8 dimensions, got 9"},
      {"offset at the end", view({1}, {1}, 4), "expected a tensor within the 4 elements"},
      {"offset of 2^63 - 1", view({1}, {1}, kMost), "expected an offset within 4 elements"},
      {"empty beyond", view({0}, {1}, 5), "expected an offset within 4 elements, got 5"},
      {"stride times steps is 2^64", view({5}, {std::int64_t{1} << 62}, 0),
       "expected a tensor within the 4 elements"},
      {"negative stride", view({2}, {-1}, 3), "expected strides of 0 or more, got [-1]"},
      {"strides of 2^63 - 1", view({2, 2}, {kMost, kMost}, 0), "expected a tensor within the 4 elements"},
      {"strides that add up", view({2, 2, 2}, {1, 2, 1}, 0), "expected a tensor within the 4 elements"},
      {"giant of stride 0", view({std::int64_t{1} << 30}, {0}, 0), "expected at most 262148 elements"},
      {"giants beside nothing", view({0, std::int64_t{1} << 62, 4}, {1, 1, 1}, 0), "a product below 2^62"},
      {"one name twice", pickle_of(dictionary_op(w + tensor + w + tensor)),
       "expected each name once, got w again"},
      {"one dotted name twice",
       pickle_of(
           dictionary_op(text_op("a.b") + tensor + text_op("a") + dictionary_op(text_op("b") + tensor))),
       "got a.b again"},
      {"name not in UTF-8", pickle_of(dictionary_op(text_op("\xff") + tensor)),
       "expected names in UTF-8, got \\xff"},
      {"long name", pickle_of(dictionary_op(text_op(std::string(1025, 'x')) + tensor)),
       "expected names of at most 1024 bytes"},
      {"long name in parts",
       pickle_of(repeat("}(" + text_op(std::string(100, 'y')), 12) + tensor + repeat("u", 12)),
       "expected names of at most 1024 bytes, got yyy"},
      {"deep lists", pickle_of("}" + w + repeat("]", 40) + tensor + repeat("a", 40) + "s"),
       "expected at most 32 nested values"},
      {"a million deep", pickle_of("}" + w + repeat("]", 1'000'000) + repeat("a", 999'999) + "s"),
       "expected at most 32 nested values"},
      {"a list in itself", pickle_of("}" + w + "]q\x01h\x01" + "as"), "expected at most 32 nested values"},
      {"billion laughs", laughs(), "expected a tree that does not share itself over and over"},
      {"silent laughs", silent_laughs(), "expected a tree that does not share itself over and over"},
      {"long shadow", long_shadow(), "expected a tree that does not share itself over and over"},
      {"values without end", pickle_of(repeat("N", (1 << 21) + 1)), "expected at most 2097152 values"},
      {"marks without end", pickle_of(repeat("(", (1 << 21) + 1)), "expected at most 2097152 marks"},
  };
}

TEST("unpickler: pickles that lie are refused") {
  const TemporaryFolder folder;
  for (const BadPickle& bad : bad_pickles()) {
    const Error error = error_of([&] { io::open_torch_zip(folder.write("bad.pt", checkpoint(bad.pickle))); });
    if (error.code != "ERR_PICKLE") fail_at(__FILE__, __LINE__, bad.name, ": got ", error.code);
    if (std::string(error.what()).find(bad.told) == std::string::npos)
      fail_at(__FILE__, __LINE__, bad.name, ": ", error.what());
    check_told(error, bad.told);
  }
}

std::vector<double> read_view(const std::string& pickle) {
  const TemporaryFolder folder;
  const auto file = io::open_torch_zip(folder.write("good.pt", checkpoint(pickle)));
  CHECK_EQ(file->tensors().size(), std::size_t{1});
  return values_of(file->tensors()[0]);
}

TEST("unpickler: views that stay inside their storage are read") {
  const auto view = [](std::vector<std::int64_t> shape, std::vector<std::int64_t> strides,
                       std::int64_t offset) {
    return read_view(pickle_of(dictionary_op(text_op("w") + tensor_op(shape, strides, offset))));
  };
  constexpr std::int64_t kMost = std::numeric_limits<std::int64_t>::max();
  CHECK(view({2, 2}, {1, 2}, 0) == (std::vector<double>{1, 3, 2, 4}));
  CHECK(view({2, 3}, {2, 0}, 1) == (std::vector<double>{2, 2, 2, 4, 4, 4}));
  CHECK(view({2, 2, 2}, {1, 1, 1}, 0) == (std::vector<double>{1, 2, 2, 3, 2, 3, 3, 4}));
  CHECK(view({1, 2}, {kMost, 3}, 0) == (std::vector<double>{1, 4}));  // a stride that is never walked
  CHECK(view({5, 0}, {kMost, kMost}, 4).empty());
  CHECK(read_view(with_metadata("N")) == (std::vector<double>{1, 2, 3, 4}));
  CHECK(view({}, {}, 3) == std::vector<double>{4});
  CHECK(view({1, 1, 1, 1, 1, 1, 1, 1}, {1, 1, 1, 1, 1, 1, 1, 1}, 2) == std::vector<double>{3});
  CHECK_EQ(view({1 << 18}, {0}, 1).back(), 2.0);
}

// So that no later product of a row and its stride overflows.
TEST("unpickler: strides that are never walked are made plain") {
  const TemporaryFolder folder;
  constexpr std::int64_t kMost = std::numeric_limits<std::int64_t>::max();
  const auto strides_of = [&](std::vector<std::int64_t> shape, std::vector<std::int64_t> strides) {
    const std::string pickle = pickle_of(dictionary_op(text_op("w") + tensor_op(shape, strides)));
    return io::open_torch_zip(folder.write("good.pt", checkpoint(pickle)))->tensors()[0].strides;
  };
  CHECK_EQ(strides_of({1, 2, 1}, {kMost, 3, kMost}), Shape({2, 3, 1}));
  CHECK_EQ(strides_of({4, 0}, {kMost, kMost}), Shape({1, 1}));
}

TEST("unpickler: what is no tensor is passed over, what is shared has every name") {
  const TemporaryFolder folder;
  const std::string tied = tensor_op() + "q\x07";
  const std::string members = text_op("none") + "N" + text_op("list") + "](\x88\x89" + number_op(-5) +
                              text_op("x") + tied + "e" + "K\x03" + dictionary_op(text_op("tied") + "h\x07") +
                              "J\xfe\xff\xff\xff"
                              "h\x07" +
                              "\x8a\x01\xfd"
                              "h\x07" +
                              text_op("pair") + "Nh\x07\x86" + "N" +
                              dictionary_op(text_op("lost") + "h\x07") + text_op("big") + "\x8a\x09" +
                              std::string(9, '\1') + text_op("zero") + "\x8a" + std::string(1, '\0');
  const auto file =
      io::open_torch_zip(folder.write("good.pt", checkpoint(pickle_of(dictionary_op(members) + "}b"))));
  std::string names;
  for (const io::FileTensor& tensor : file->tensors()) names += tensor.name + " ";
  CHECK_EQ(names, std::string("list.4 3.tied -2 -3 pair.1 "));
  for (const io::FileTensor& tensor : file->tensors()) CHECK(tensor.data == file->tensors()[0].data);
}

}  // namespace
}  // namespace danceflux::test
