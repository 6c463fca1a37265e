// The unpickler: pickles that lie in every field, and what is made of good ones.
#include <limits>

#include "harness.h"
#include "io/torch_zip.h"
#include "temporary.h"
#include "zip_tools.h"

namespace danceflux::test {
namespace {

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

// The stack, the memo and the calls.
std::vector<BadPickle> bad_programs() {
  const std::string w = text_op("w"), tensor = tensor_op();
  const auto in_dictionary = [&](const std::string& value) { return pickle_of(dictionary_op(w + value)); };
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
  };
}

// Views of storages, and the tree around them.
std::vector<BadPickle> bad_trees() {
  const std::string w = text_op("w"), tensor = tensor_op();
  const auto in_dictionary = [&](const std::string& value) { return pickle_of(dictionary_op(w + value)); };
  const auto view = [&](std::vector<std::int64_t> shape, std::vector<std::int64_t> strides,
                        std::int64_t offset) { return in_dictionary(tensor_op(shape, strides, offset)); };
  constexpr std::int64_t kMost = std::numeric_limits<std::int64_t>::max();
  return {
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
  std::vector<BadPickle> all = bad_programs();
  for (BadPickle& bad : bad_trees()) all.push_back(std::move(bad));
  for (const BadPickle& bad : all) {
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
  const io::FileTensor& tensor = file->tensors()[0];
  std::vector<double> values(static_cast<std::size_t>(tensor.shape.numel()));
  io::read_rows(tensor, 0, -1, false, DType::f64, values.data());
  return values;
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
