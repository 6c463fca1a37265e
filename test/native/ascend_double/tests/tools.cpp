#include "tools.h"

#include <dlfcn.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <map>

extern char** environ;

namespace double_test {
namespace {

std::map<std::string, void*>& libraries() {
  static std::map<std::string, void*> opened = [] {
    const bool nine = layout()[0] == '9';
    std::map<std::string, void*> all;
    const std::vector<std::string> eight_names{"ascendcl", "nnopbase", "opapi", "hccl"};
    const std::vector<std::string> nine_names{"ascendcl",          "acl_rt",   "nnopbase",
                                              "opapi_math",        "opapi_nn", "opapi_cv",
                                              "opapi_transformer", "hccl",     "hcomm"};
    for (const std::string& name : nine ? nine_names : eight_names) {
      const std::string path =
          std::string(ASCEND_DOUBLE_FOLDER) + "/" + layout() + "/lib64/lib" + name + ".so";
      void* handle = dlopen(path.c_str(), RTLD_LAZY | RTLD_LOCAL);
      if (!handle) danceflux::test::fail_at(__FILE__, __LINE__, dlerror());
      all["lib" + name + ".so"] = handle;
    }
    return all;
  }();
  return opened;
}

}  // namespace

std::string layout() {
  const char* given = std::getenv("ASCEND_DOUBLE_LAYOUT");
  return given ? given : "8.1";
}

void* find_in(const std::string& library, const std::string& name) {
  const auto found = libraries().find(library);
  return found == libraries().end() ? nullptr : dlsym(found->second, name.c_str());
}

void* find(const std::string& name) {
  for (const auto& [file, handle] : libraries())
    if (void* address = dlsym(handle, name.c_str())) return address;
  return nullptr;
}

std::string message() {
  const char* text = call<const char*>("aclGetRecentErrMsg");
  return text ? text : "";
}

std::vector<std::string> violations() {
  std::vector<std::string> all;
  for (std::size_t i = 0; i < call<std::size_t>("ascend_double_violations"); ++i)
    all.push_back(call<const char*>("ascend_double_violation", i));
  return all;
}

With::With(const char* name, const char* value) : name_(name) {
  call<void>("ascend_double_set", name, value);
}
With::~With() { call<void, const char*, const char*>("ascend_double_set", name_, nullptr); }

Session::Session() {
  call<void>("ascend_double_clear_violations");
  call<void>("ascend_double_clear_faults");
  OK(call("aclrtSetDevice", std::int32_t{0}));
  OK(call("aclrtCreateStream", &stream));
  deterministic(false);
}

Session::~Session() {
  call("aclrtDestroyStream", stream);
  call("aclrtResetDevice", std::int32_t{0});
}

void Session::synchronize() const {
  const int code = call("aclrtSynchronizeStream", stream);
  if (code) danceflux::test::fail_at(__FILE__, __LINE__, "the stream answered ", code, ": ", message());
}

void Session::deterministic(bool on) const {
  OK(call("aclrtSetSysParamOpt", 0, std::int64_t{on}));
  OK(call("aclrtCtxSetSysParamOpt", 0, std::int64_t{on}));
}

Memory::Memory(std::size_t size) : address(nullptr), bytes(size) {
  OK(call("aclrtMalloc", &address, std::max<std::size_t>(size, 1), 0));
}
Memory::~Memory() {
  if (address) call("aclrtFree", address);
}
void Memory::write(const void* host, std::size_t count) const {
  if (count) OK(call("aclrtMemcpy", address, bytes, host, count, 1));
}
void Memory::read(void* host, std::size_t count) const {
  if (count)
    OK(call<int, void*, std::size_t, const void*, std::size_t, int>("aclrtMemcpy", host, count, address,
                                                                    count, 2));
}

namespace {

std::int64_t count_of(const Shape& shape) {
  std::int64_t count = 1;
  for (const std::int64_t size : shape) count *= size;
  return count;
}

std::size_t item_of(int dtype) {
  switch (dtype) {
    case ACL_FLOAT16:
    case ACL_BF16:
      return 2;
    case ACL_INT64:
    case ACL_DOUBLE:
      return 8;
    case ACL_BOOL:
    case ACL_UINT8:
      return 1;
    default:
      return 4;
  }
}

std::uint16_t half_bits(double value) {
  // f16 by definition: sign, exponent and the nearest multiple of the last place, ties to even
  if (value == 0) return std::signbit(value) ? 0x8000 : 0;
  const std::uint16_t sign = value < 0 ? 0x8000 : 0;
  const double magnitude = std::abs(value);
  const int exponent = std::max(std::ilogb(magnitude), -14);
  const double steps = std::nearbyint(std::ldexp(magnitude, 10 - exponent));
  const double back = std::ldexp(steps, exponent - 10);
  if (back >= 65536) return sign | 0x7c00;
  if (back < std::ldexp(1, -14))
    return static_cast<std::uint16_t>(sign | static_cast<int>(std::ldexp(back, 24)));
  const int top = std::ilogb(back);
  return static_cast<std::uint16_t>(sign | (top + 15) << 10 |
                                    (static_cast<int>(std::ldexp(back, 10 - top)) - 1024));
}

double from_half(std::uint16_t bits) {
  const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  const double magnitude = exponent == 31  ? (mantissa ? NAN : INFINITY)
                           : exponent == 0 ? std::ldexp(mantissa, -24)
                                           : std::ldexp(1024 + mantissa, exponent - 25);
  return bits & 0x8000 ? -magnitude : magnitude;
}

std::uint16_t bfloat_bits(double value) {
  const float narrow = static_cast<float>(value);
  std::uint32_t bits;
  std::memcpy(&bits, &narrow, 4);
  bits += 0x7fff + (bits >> 16 & 1);
  return static_cast<std::uint16_t>(bits >> 16);
}

double from_bfloat(std::uint16_t bits) {
  const std::uint32_t wide = static_cast<std::uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, 4);
  return value;
}

template <class Stored>
void put(char* at, Stored value) {
  std::memcpy(at, &value, sizeof value);
}
template <class Stored>
double get(const char* at) {
  Stored value;
  std::memcpy(&value, at, sizeof value);
  return static_cast<double>(value);
}

}  // namespace

Array::Array(Shape sizes, int type, int tag)
    : shape(std::move(sizes)),
      dtype(type),
      format(tag),
      memory(static_cast<std::size_t>(count_of(shape)) * item_of(type)) {
  tensor_ = describe(shape, dtype, memory.address, format);
}

Array::Array(Shape sizes, const std::vector<double>& given, int type, int tag)
    : Array(std::move(sizes), type, tag) {
  set(given);
}

Array::Array(Array&& other) noexcept
    : shape(other.shape),
      dtype(other.dtype),
      format(other.format),
      memory(std::move(other.memory)),
      tensor_(std::exchange(other.tensor_, nullptr)),
      views_(std::move(other.views_)) {}

Array::~Array() {
  for (const aclTensor* one : views_) call<int, const aclTensor*>("aclDestroyTensor", one);
  call<int, const aclTensor*>("aclDestroyTensor", tensor_);
}

std::vector<double> Array::values() const {
  const std::size_t count = static_cast<std::size_t>(count_of(shape)), item = item_of(dtype);
  std::vector<char> bytes(count * item);
  memory.read(bytes.data(), bytes.size());
  std::vector<double> result(count);
  for (std::size_t i = 0; i < count; ++i) {
    const char* at = bytes.data() + i * item;
    std::uint16_t two = 0;
    if (item == 2) std::memcpy(&two, at, 2);
    result[i] = dtype == ACL_FLOAT     ? get<float>(at)
                : dtype == ACL_BF16    ? from_bfloat(two)
                : dtype == ACL_FLOAT16 ? from_half(two)
                : dtype == ACL_DOUBLE  ? get<double>(at)
                : dtype == ACL_INT64   ? get<std::int64_t>(at)
                : item == 1            ? get<std::uint8_t>(at)
                                       : get<std::int32_t>(at);
  }
  return result;
}

void Array::set(const std::vector<double>& given) const {
  const std::size_t item = item_of(dtype);
  std::vector<char> bytes(given.size() * item);
  for (std::size_t i = 0; i < given.size(); ++i) {
    char* at = bytes.data() + i * item;
    switch (dtype) {
      case ACL_FLOAT:
        put(at, static_cast<float>(given[i]));
        break;
      case ACL_BF16:
        put(at, bfloat_bits(given[i]));
        break;
      case ACL_FLOAT16:
        put(at, half_bits(given[i]));
        break;
      case ACL_DOUBLE:
        put(at, given[i]);
        break;
      case ACL_INT64:
        put(at, static_cast<std::int64_t>(given[i]));
        break;
      case ACL_BOOL:
      case ACL_UINT8:
        put(at, static_cast<std::uint8_t>(given[i]));
        break;
      default:
        put(at, static_cast<std::int32_t>(given[i]));
    }
  }
  memory.write(bytes.data(), bytes.size());
}

const aclTensor* Array::view(const Shape& sizes, const Shape& strides, std::int64_t offset) {
  const std::int64_t storage = count_of(shape);
  views_.push_back(call<aclTensor*, const std::int64_t*, std::uint64_t, int, const std::int64_t*,
                        std::int64_t, int, const std::int64_t*, std::uint64_t, void*>(
      "aclCreateTensor", sizes.data(), sizes.size(), dtype, strides.data(), offset, format, &storage, 1,
      memory.address));
  return views_.back();
}

const aclTensor* Array::transposed() {
  Shape sizes = shape, strides(shape.size(), 1);
  for (std::size_t axis = shape.size() - 1; axis-- > 0;) strides[axis] = strides[axis + 1] * shape[axis + 1];
  const std::size_t last = shape.size() - 1;
  std::swap(sizes[last], sizes[last - 1]);
  std::swap(strides[last], strides[last - 1]);
  return view(sizes, strides);
}

aclTensor* describe(const Shape& shape, int dtype, void* data, int format) {
  const std::int64_t storage = count_of(shape);
  return call<aclTensor*, const std::int64_t*, std::uint64_t, int, const std::int64_t*, std::int64_t, int,
              const std::int64_t*, std::uint64_t, void*>("aclCreateTensor", shape.data(), shape.size(), dtype,
                                                         nullptr, 0, format, &storage, 1, data);
}

Owned<aclScalar> scalar(float value) {
  return {call<aclScalar*, void*, int>("aclCreateScalar", &value, ACL_FLOAT), "aclDestroyScalar"};
}
Owned<aclIntArray> ints(const Shape& values) {
  return {call<aclIntArray*, const std::int64_t*, std::uint64_t>("aclCreateIntArray", values.data(),
                                                                 values.size()),
          "aclDestroyIntArray"};
}
Owned<aclBoolArray> bools(std::initializer_list<bool> values) {
  return {
      call<aclBoolArray*, const bool*, std::uint64_t>("aclCreateBoolArray", values.begin(), values.size()),
      "aclDestroyBoolArray"};
}

std::vector<double> numbers(std::int64_t count, std::uint64_t seed, double low, double high) {
  std::vector<double> result(static_cast<std::size_t>(count));
  std::uint64_t state = seed * 2654435761u + 88172645463325252ull;
  for (double& value : result) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    value = static_cast<float>(low + (high - low) * static_cast<double>(state >> 40) / double(1 << 24));
  }
  return result;
}

double rounded(double value, int dtype) {
  if (dtype == ACL_BF16) return from_bfloat(bfloat_bits(value));
  if (dtype == ACL_FLOAT16) return from_half(half_bits(value));
  if (dtype == ACL_FLOAT) return static_cast<float>(value);
  return value;
}
std::vector<double> rounded(std::vector<double> values, int dtype) {
  for (double& value : values) value = rounded(value, dtype);
  return values;
}

double worst(const std::vector<double>& got, const std::vector<double>& wanted) {
  CHECK_EQ(got.size(), wanted.size());
  double most = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    if (std::isnan(got[i]) != std::isnan(wanted[i])) return INFINITY;
    if (std::isnan(got[i]) || got[i] == wanted[i]) continue;
    most = std::max(most, std::abs(got[i] - wanted[i]) / std::max(1.0, std::abs(wanted[i])));
  }
  return most;
}

int start(const std::string& filter, const std::vector<std::pair<std::string, std::string>>& more) {
  std::vector<std::string> kept;
  for (char** entry = environ; *entry; ++entry) {
    bool replaced = false;
    for (const auto& [name, value] : more)
      replaced = replaced || std::string(*entry).rfind(name + "=", 0) == 0;
    if (!replaced) kept.push_back(*entry);
  }
  for (const auto& [name, value] : more) kept.push_back(name + "=" + value);
  std::vector<char*> environment;
  for (std::string& entry : kept) environment.push_back(entry.data());
  environment.push_back(nullptr);
  std::string program = "ascend_double_tests", argument = filter;
  char* arguments[] = {program.data(), argument.data(), nullptr};
  pid_t child = 0;
  char path[4096] = {};
  CHECK(readlink("/proc/self/exe", path, sizeof path - 1) > 0);
  CHECK_EQ(posix_spawn(&child, path, nullptr, nullptr, arguments, environment.data()), 0);
  return child;
}

int finish(int process) {
  int status = 0;
  CHECK_EQ(waitpid(process, &status, 0), process);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

int rerun(const std::string& filter, const std::vector<std::pair<std::string, std::string>>& environment) {
  return finish(start(filter, environment));
}

}  // namespace double_test
