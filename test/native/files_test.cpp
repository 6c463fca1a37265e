// Reading safetensors that are well-formed, odd, and lying.
#include <sys/stat.h>

#include <cstring>
#include <limits>
#include <numeric>

#include "harness.h"
#include "io/safetensors.h"
#include "temporary.h"

namespace danceflux::test {
namespace {

std::string with_length(const std::string& header, std::uint64_t length) {
  std::string bytes;
  for (int i = 0; i < 8; ++i) bytes += static_cast<char>(length >> (8 * i) & 0xff);
  return bytes + header;
}
std::string with_header(const std::string& header, std::size_t data_bytes) {
  return with_length(header, header.size()) + std::string(data_bytes, '\1');
}
std::string entry(const std::string& dtype, const std::string& shape, const std::string& offsets) {
  return R"({"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" + offsets + "}";
}
std::string one_tensor(const std::string& dtype, const std::string& shape, const std::string& offsets,
                       std::size_t bytes) {
  return with_header(R"({"w":)" + entry(dtype, shape, offsets) + "}", bytes);
}
std::string nested(std::size_t depth) { return std::string(depth, '[') + std::string(depth, ']'); }

struct BadFile {
  const char* name;
  std::string bytes;
  const char* told;  // in the message
};

std::vector<BadFile> bad_files() {
  const std::string good = entry("F32", "[2]", "[0,8]");
  return {
      {"seven bytes", "1234567", "expected at least 8 bytes, got 7"},
      {"no header", with_length("", 0), "expected a value at byte 0"},
      {"header cut off", with_length("{}", 100), "expected a header within 2 bytes, got a length of 100"},
      {"header of 2^63", with_length("{}", 1ull << 63), "got a length of 9223372036854775808"},
      {"header of 2^64 - 1", with_length("{}", ~0ull), "got a length of 18446744073709551615"},
      {"not JSON", with_header("hello", 0), "at byte 0"},
      {"a list", with_header("[]", 0), "expected a JSON object"},
      {"two headers", with_header("{}{}", 0), "expected nothing more at byte 2"},
      {"not UTF-8", with_header("{\"\xc3(\":" + good + "}", 8), "expected UTF-8 at byte 2"},
      {"lone surrogate", with_header(R"({"\ud800":)" + good + "}", 8), "expected a pair of surrogates"},
      {"depth bomb", with_header(nested(100000), 0), "expected at most 32 nested values"},
      {"leading zero", one_tensor("F32", "[02]", "[0,8]", 8), "expected ',' or ']'"},
      {"entry is a number", with_header(R"({"w":5})", 0), "w: expected a dtype"},
      {"no dtype", with_header(R"({"w":{"shape":[2],"data_offsets":[0,8]}})", 8), "w: expected a dtype"},
      {"dtype a number", with_header(R"({"w":{"dtype":1,"shape":[2],"data_offsets":[0,8]}})", 8),
       "w: expected a dtype"},
      {"unknown dtype", one_tensor("F33", "[2]", "[0,8]", 8), "w: expected a known dtype, got F33"},
      {"wrong dtype", one_tensor("F64", "[2]", "[0,8]", 8), "w: expected the bytes of [2] F64, got 8"},
      {"no shape", with_header(R"({"w":{"dtype":"F32","data_offsets":[0,8]}})", 8), "w: expected a shape"},
      {"nine dimensions", one_tensor("F32", "[1,1,1,1,1,1,1,1,1]", "[0,4]", 4), "at most 8 dimensions"},
      {"negative dimension", one_tensor("F32", "[-2]", "[0,8]", 8),
       "expected dimensions of 0 or more, got -2"},
      {"two negative dimensions", one_tensor("F32", "[-1,-2]", "[0,8]", 8), "got -1"},
      {"fractional dimension", one_tensor("F32", "[2.0]", "[0,8]", 8), "got 2.0"},
      {"dimension of 2^63", one_tensor("F32", "[9223372036854775808]", "[0,8]", 8),
       "got 9223372036854775808"},
      {"dimension a string", one_tensor("F32", R"(["2"])", "[0,8]", 8), "got 2"},
      {"product overflows to 2", one_tensor("F32", "[4611686018427387905,2]", "[0,8]", 8),
       "a product below 2^62"},
      {"product 2^64", one_tensor("U8", "[4294967296,4294967296]", "[0,0]", 0), "a product below 2^62"},
      {"product 0 of giants", one_tensor("U8", "[0,4611686018427387904,4]", "[0,0]", 0),
       "a product below 2^62"},
      {"bytes overflow to 0", one_tensor("F64", "[2305843009213693952]", "[0,0]", 0),
       "w: expected the bytes of"},
      {"no offsets", with_header(R"({"w":{"dtype":"F32","shape":[2]}})", 8), "w: expected two data_offsets"},
      {"one offset", one_tensor("F32", "[2]", "[0]", 8), "w: expected two data_offsets"},
      {"offset null", one_tensor("F32", "[2]", "[0,null]", 8), "within 8 bytes, got 0 to something else"},
      {"offsets swapped", one_tensor("F32", "[2]", "[8,0]", 8), "got 8 to 0"},
      {"negative offset", one_tensor("F32", "[2]", "[-8,0]", 8), "got -8 to 0"},
      {"offset outside", one_tensor("F32", "[2]", "[0,8]", 7),
       "w: expected data_offsets within 7 bytes, got 0 to 8"},
      {"offset of 2^64", one_tensor("F32", "[2]", "[0,18446744073709551624]", 8),
       "got 0 to 18446744073709551624"},
      {"too few bytes", one_tensor("F32", "[3]", "[0,8]", 8), "expected the bytes of [3] F32, got 8"},
      {"overlap", with_header(R"({"a":)" + good + R"(,"b":)" + entry("F32", "[2]", "[4,12]") + "}", 12),
       "b: expected data of its own, got an overlap with a"},
      {"same data twice", with_header(R"({"a":)" + good + R"(,"b":)" + good + "}", 8),
       "got an overlap with a"},
      {"a hole", with_header(R"({"a":)" + good + R"(,"b":)" + entry("F32", "[1]", "[12,16]") + "}", 16),
       "b: expected data from byte 8, got 12"},
      {"bytes behind", one_tensor("F32", "[2]", "[0,8]", 9), "expected 8 bytes of data, got 9"},
      {"name twice", with_header(R"({"w":)" + good + R"(,"w":)" + good + "}", 8),
       "expected each name once, got w again"},
      {"name twice by escape", with_header(R"({"w":)" + good + R"(,"\u0077":)" + good + "}", 8),
       "got w again"},
      {"metadata a number", with_header(R"({"__metadata__":3})", 0), "expected __metadata__ to be an object"},
      {"metadata of numbers", with_header(R"({"__metadata__":{"step":3}})", 0),
       "expected metadata step to be a string"},
      {"terminal escapes in a name", with_header("{\"\\u001b[2J\\n\":5}", 0),
       R"(\x1b[2J\x0a: expected a dtype)"},
  };
}

void check_refused(const TemporaryFolder& folder, const BadFile& bad) {
  const std::string path = folder.write("bad.safetensors", bad.bytes);
  const Error error = error_of([&] { io::open_safetensors(path); });
  if (error.code != "ERR_SAFETENSORS")
    fail_at(__FILE__, __LINE__, bad.name, ": got ", error.code, ": ", error.what());
  check_told(error, path);
  check_told(error, bad.told);
}

template <class T>
std::vector<T> read(const io::FileTensor& tensor, DType dtype, std::int64_t row = 0, std::int64_t rows = -1,
                    bool transposed = false, std::size_t count = 0) {
  std::vector<T> values(count ? count : static_cast<std::size_t>(tensor.shape.numel()));
  io::read_rows(tensor, row, rows, transposed, dtype, values.data());
  return values;
}

// A 3 x 4 matrix of f32 that counts from 0, behind one byte, so that nothing is aligned.
std::string unaligned_matrix() {
  std::vector<float> values(12);
  std::iota(values.begin(), values.end(), 0.0f);
  std::string data(1 + sizeof(float) * values.size(), '\7');
  std::memcpy(data.data() + 1, values.data(), data.size() - 1);
  const std::string header =
      R"({"byte":)" + entry("U8", "[1]", "[0,1]") + R"(,"m":)" + entry("F32", "[3,4]", "[1,49]") + "}";
  return with_length(header, header.size()) + data;
}

TEST("safetensors: refuses what lies, and says where") {
  const TemporaryFolder folder;
  for (const BadFile& bad : bad_files()) check_refused(folder, bad);
}

TEST("safetensors: a header past the format's limit is not even looked at") {
  const TemporaryFolder folder;
  const std::string path = folder.write("long.safetensors", with_length("{}", 100'000'001));
  std::filesystem::resize_file(path, 100'000'100);  // sparse
  check_told(error_of([&] { io::open_safetensors(path); }), "got a length of 100000001");
}

TEST("safetensors: millions of tiny values in a header do not fill the memory") {
  const TemporaryFolder folder;
  std::string header = "{\"w\":[0";
  for (int i = 0; i < 4'300'000; ++i) header += ",0";
  const std::string path = folder.write("many.safetensors", with_header(header + "]}", 0));
  check_told(error_of([&] { io::open_safetensors(path); }), "expected at most 4194304 values");
}

TEST("safetensors: every byte of a good file cut off is noticed") {
  const TemporaryFolder folder;
  const std::string whole = unaligned_matrix();
  for (std::size_t bytes = 1; bytes < whole.size(); ++bytes) {
    const std::string path = folder.write("cut.safetensors", whole.substr(0, bytes));
    CHECK_THROWS("ERR_SAFETENSORS", io::open_safetensors(path));
  }
}

TEST("files: missing, empty, a folder, a pipe, a pointer") {
  const TemporaryFolder folder;
  check_told(error_of([&] { io::open_tensor_file(folder.path("none")); }), "cannot be opened: No such file");
  check_told(error_of([&] { io::open_tensor_file(folder.write("empty", "")); }),
             "expected a file that is not empty");
  check_told(error_of([&] { io::open_tensor_file(folder.path()); }), "expected a file, got a folder");
  CHECK(::mkfifo(folder.path("pipe").c_str(), 0600) == 0);
  check_told(error_of([&] { io::open_tensor_file(folder.path("pipe")); }), "expected a file");
  const Error pointer = error_of([&] {
    io::open_tensor_file(folder.write("lfs", "version https://git-lfs.github.com/spec/v1\noid\n"));
  });
  check_told(pointer, "Git LFS pointer");
  CHECK_EQ(pointer.hint, std::string("fetch them: git lfs pull"));
  for (const char* name : {"none", "empty", "", "pipe", "lfs"}) {
    CHECK_THROWS("ERR_FILE", io::open_tensor_file(folder.path(name)));
  }
}

TEST("safetensors: odd but well-formed") {
  const TemporaryFolder folder;
  const std::string header = R"( {"__metadata__":{"format":"pt","":"\u00e9\n"},"scalar":)" +
                             entry("F32", "[]", "[0,4]") + R"(,"none":)" + entry("BF16", "[0,3]", "[4,4]") +
                             R"(,"last":)" + entry("U8", "[1,2,1]", "[4,6]") +
                             R"(,"a \"quoted\" n\u00e4me":)" + entry("I64", "[1]", "[6,14]") + "}   \n";
  const auto file = io::open_tensor_file(folder.write("odd.safetensors", with_header(header, 14)));
  CHECK_EQ(file->tensors().size(), std::size_t{4});
  CHECK_EQ(file->metadata().at("format"), std::string("pt"));
  CHECK_EQ(file->metadata().at(""), std::string("\xc3\xa9\n"));
  CHECK_EQ(file->find("scalar").shape, Shape());
  CHECK_EQ(file->find("none").shape, Shape({0, 3}));
  CHECK(read<std::uint8_t>(file->find("last"), DType::u8) == (std::vector<std::uint8_t>{1, 1}));
  CHECK(read<std::int64_t>(file->find("a \"quoted\" n\xc3\xa4me"), DType::i64) ==
        (std::vector<std::int64_t>{0x0101010101010101}));
  const auto none = io::open_tensor_file(folder.write("none.safetensors", with_header("{}", 0)));
  CHECK(none->tensors().empty());
}

// The length of a header may make the file begin like an old pickle: 0x0280 bytes.
TEST("safetensors: a header of 640 bytes is no pickle") {
  const TemporaryFolder folder;
  std::string header = R"({"w":)" + entry("F32", "[1]", "[0,4]") + "}";
  header.resize(0x0280, ' ');
  CHECK_EQ(io::open_tensor_file(folder.write("640.safetensors", with_header(header, 4)))->tensors().size(),
           std::size_t{1});
}

TEST("safetensors: types that are known but not read are told when asked for") {
  const TemporaryFolder folder;
  const std::string path = folder.write("f8.safetensors", one_tensor("F8_E4M3", "[2,2]", "[0,4]", 4));
  const auto file = io::open_tensor_file(path);
  CHECK(!file->find("w").readable);
  const Error error = error_of([&] { read<float>(file->find("w"), DType::f32); });
  CHECK_EQ(error.code, std::string("ERR_DTYPE"));
  check_told(error, "w: expected f32, bf16, f16, f64, i32, i64 or u8, got F8_E4M3");
  const auto half =
      io::open_tensor_file(folder.write("f4.safetensors", one_tensor("F4", "[3,2]", "[0,3]", 3)));
  CHECK_EQ(half->find("w").dtype_name, std::string("F4"));
}

TEST("files: find names the nearest") {
  const TemporaryFolder folder;
  const auto file = io::open_tensor_file(folder.write("m.safetensors", unaligned_matrix()));
  const Error error = error_of([&] { (void)file->find("bytes"); });
  CHECK_EQ(error.code, std::string("ERR_WEIGHTS"));
  check_told(error, "expected a tensor named \"bytes\", got none among 2");
  CHECK_EQ(error.hint, std::string("the nearest name there is \"byte\""));
  CHECK_EQ(error_of([&] { (void)file->find("something else entirely"); }).hint, std::string());
}

TEST("files: rows, transposed, converted, unaligned") {
  const TemporaryFolder folder;
  const auto file = io::open_tensor_file(folder.write("m.safetensors", unaligned_matrix()));
  const io::FileTensor& matrix = file->find("m");
  CHECK(reinterpret_cast<std::uintptr_t>(matrix.data) % alignof(float) != 0);
  CHECK_EQ(read<float>(matrix, DType::f32)[11], 11.0f);
  CHECK(read<double>(matrix, DType::f64, 1, 2, false, 8) == (std::vector<double>{4, 5, 6, 7, 8, 9, 10, 11}));
  CHECK(read<double>(matrix, DType::f64, 0, -1, true) ==
        (std::vector<double>{0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11}));
  CHECK(read<double>(matrix, DType::f64, 1, 2, true, 8) == (std::vector<double>{4, 8, 5, 9, 6, 10, 7, 11}));
  CHECK(read<std::uint16_t>(matrix, DType::bf16, 2, 1, false, 4) ==
        (std::vector<std::uint16_t>{0x4100, 0x4110, 0x4120, 0x4130}));
  CHECK(read<std::uint16_t>(matrix, DType::f16, 2, 1, false, 4) ==
        (std::vector<std::uint16_t>{0x4800, 0x4880, 0x4900, 0x4980}));
  CHECK(read<float>(matrix, DType::f32, 3, 0, false, 1) == (std::vector<float>{0}));  // nothing is written
}

// Bytes of files that are in this process's memory.
std::size_t file_bytes_in_memory() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("RssFile:")) return std::stoul(line.substr(8)) * 1024;
  }
  fail_at(__FILE__, __LINE__, "expected RssFile in /proc/self/status");
}

TEST("files: what was read for good leaves the memory, and can be read again") {
  constexpr std::size_t kBytes = 32u << 20;
  const std::string numbers = std::to_string(kBytes);
  const TemporaryFolder folder;
  const std::string path =
      folder.write("w.safetensors", one_tensor("U8", "[" + numbers + "]", "[0," + numbers + "]", kBytes));
  const auto file = io::open_tensor_file(path);
  const io::FileTensor& tensor = file->find("w");
  const std::size_t before = file_bytes_in_memory();
  const auto first = read<std::uint8_t>(tensor, DType::u8, 0, -1, false, kBytes);
  const std::size_t between = file_bytes_in_memory();
  file->release(tensor);
  const std::size_t after = file_bytes_in_memory();
  CHECK(between > before + kBytes / 2);
  CHECK(after < before + kBytes / 4);
  CHECK(read<std::uint8_t>(tensor, DType::u8, 0, -1, false, kBytes) == first);
}

TEST("files: rows that are not there") {
  const TemporaryFolder folder;
  const auto file = io::open_tensor_file(folder.write("m.safetensors", unaligned_matrix()));
  const io::FileTensor& matrix = file->find("m");
  constexpr std::int64_t kMost = std::numeric_limits<std::int64_t>::max();
  const std::pair<std::int64_t, std::int64_t> outside[] = {
      {2, 2}, {4, 0}, {-1, 1}, {0, kMost}, {kMost, kMost}};
  for (const auto& [row, rows] : outside) {
    CHECK_THROWS("ERR_WEIGHTS", read<float>(matrix, DType::f32, row, rows, false, 16));
  }
  CHECK_THROWS("ERR_WEIGHTS", read<float>(file->find("byte"), DType::u8, 0, -1, true));  // no matrix
  CHECK_THROWS("ERR_DTYPE", read<float>(file->find("byte"), DType::f32));
}

}  // namespace
}  // namespace danceflux::test
