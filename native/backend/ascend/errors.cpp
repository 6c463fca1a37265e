#include "backend/ascend/errors.h"

#include <algorithm>
#include <cctype>

#include "core/error.h"

namespace danceflux::ascend {
namespace {

struct Row {
  std::int32_t first, last;  // codes
  ErrorWords words;
};

constexpr const char* kMemoryHint =
    "use a smaller batch or resolution, block recompute, or weights in bf16; other processes may hold memory "
    "(npu-smi info)";
constexpr const char* kSourceHint = "source CANN's set_env.sh in the shell that starts node";

// The first row that holds a code is the one.
constexpr Row kRows[] = {
    {100000, 100000, {"a parameter is not valid", "ERR_DEVICE", ""}},
    {100001, 100001, {"CANN was not initialised", "ERR_DEVICE", ""}},
    {107000, 107000, {"a parameter of the runtime is not valid", "ERR_DEVICE", ""}},
    {107001,
     107001,
     {"there is no such device", "ERR_DEVICE", "ASCEND_RT_VISIBLE_DEVICES counts devices anew from 0"}},
    {107002, 107002, {"this thread has no context", "ERR_DEVICE", ""}},
    {107003, 107003, {"a stream or event of another context", "ERR_DEVICE", ""}},
    {200000, 200000, {"no memory", "ERR_MEMORY", kMemoryHint}},
    {207001, 207001, {"no device memory", "ERR_MEMORY", kMemoryHint}},
    {207018, 207018, {"the device is out of memory", "ERR_MEMORY", kMemoryHint}},
    {207000, 207000, {"the driver or chip does not support it", "ERR_DEVICE", ""}},
    {161001, 161001, {"a tensor that is wanted was null", "ERR_DEVICE", ""}},
    {161002, 161002, {"the operator does not take these shapes, dtypes or values", "ERR_DEVICE", ""}},
    {361001, 361001, {"the operator's call of the runtime failed", "ERR_DEVICE", ""}},
    {561001, 561001, {"the operator could not infer its shapes", "ERR_DEVICE", ""}},
    {561002, 561002, {"the operator could not tile these shapes", "ERR_DEVICE", ""}},
    {561003,
     561003,
     {"no kernel of the operator for this chip", "ERR_DEVICE", "install the kernels package of this chip"}},
    {561107, 561107, {"ASCEND_OPP_PATH is not set", "ERR_DEVICE", kSourceHint}},
    {561112,
     561112,
     {"the package of kernels is missing", "ERR_DEVICE", "install the kernels package of this chip"}},
    {561000, 561999, {"the operator failed inside", "ERR_DEVICE", ""}},
    {507010, 507010, {"the device's heartbeat was lost", "ERR_DEVICE", "see npu-smi info"}},
    {507014,
     507014,
     {"the AI core ran too long", "ERR_DEVICE",
      "device option ascend.attentionScores cuts long attention into shorter launches; so does a smaller "
      "batch"}},
    {507015, 507015, {"the AI core raised an exception", "ERR_DEVICE", ""}},
    {507018, 507018, {"the AI CPU raised an exception", "ERR_DEVICE", ""}},
    {507035, 507035, {"the vector core raised an exception", "ERR_DEVICE", ""}},
    {507046, 507046, {"waiting took too long", "ERR_DEVICE", ""}},
    {507053,
     507055,
     {"device memory has an error that cannot be corrected", "ERR_DEVICE", "see npu-smi info -t ecc"}},
    {507899, 507899, {"the driver failed", "ERR_DEVICE", "see npu-smi info and the driver's log"}},
    {500000, 599999, {"the device failed inside", "ERR_DEVICE", ""}},
    {200000, 299999, {"a resource ran out", "ERR_DEVICE", ""}},
};

constexpr const char* kHccl[] = {"no error",
                                 "a parameter is not valid",
                                 "a null pointer",
                                 "no memory",
                                 "an inner failure",
                                 "not supported",
                                 "not found",
                                 "not available",
                                 "a system call failed",
                                 "it took too long",
                                 "a file does not open",
                                 "a TCP connection was not made",
                                 "a RoCE connection was not made",
                                 "a TCP transfer failed",
                                 "a RoCE transfer failed",
                                 "the runtime failed",
                                 "the driver failed",
                                 "profiling failed",
                                 "a command queue failed",
                                 "the network failed",
                                 "to be tried again",
                                 "another rank failed",
                                 "it is being suspended",
                                 "retries were of no use",
                                 "out of memory"};

constexpr std::size_t kMostWords = 600;

}  // namespace

ErrorWords words_of(AclStatus status) {
  for (const Row& row : kRows) {
    if (status >= row.first && status <= row.last) return row.words;
  }
  return {"an unknown error", "ERR_DEVICE", ""};
}

const char* words_of_hccl(std::int32_t status) {
  const bool known = status >= 0 && status < static_cast<std::int32_t>(std::size(kHccl));
  return known ? kHccl[status] : "an unknown error";
}

std::string recent_words(const Acl& acl) {
  const char* words = acl.aclGetRecentErrMsg();
  std::string text = words ? words : "";
  std::replace_if(
      text.begin(), text.end(), [](unsigned char c) { return std::iscntrl(c) != 0; }, ' ');
  text.erase(std::unique(text.begin(), text.end(), [](char a, char b) { return a == ' ' && b == ' '; }),
             text.end());
  while (!text.empty() && text.back() == ' ') text.pop_back();
  if (text.size() > kMostWords) text.resize(kMostWords);
  return text;
}

void fail_acl(const Acl& acl, AclStatus status, const std::string& what) {
  const std::string vendor = recent_words(acl);
  const ErrorWords words = words_of(status);
  throw Error(words.code,
              what + ": expected success, got " + std::to_string(status) + " (" + words.meaning + ")" +
                  (vendor.empty() ? "" : ": " + vendor),
              words.hint);
}

}  // namespace danceflux::ascend
