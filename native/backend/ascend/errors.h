// CANN's error codes in words, with what to do about them.
#pragma once
#include <string>

#include "backend/ascend/acl.h"
#include "backend/ascend/hccl.h"

namespace danceflux::ascend {

struct ErrorWords {
  const char* meaning;  // "the AI core raised an exception"
  const char* code;     // ERR_MEMORY, ERR_DEVICE, ...
  const char* hint;     // "" when there is nothing to say
};
/// Of an aclError or aclnnStatus.
ErrorWords words_of(AclStatus status);
/// Of an HcclResult.
const char* words_of_hccl(std::int32_t status);

/// Throws Error "what: expected success, got 507015 (the AI core raised an exception): EZ9999 ..." with the
/// vendor's own words, which are read on this thread at once: reading takes them away, and the next call
/// replaces them.
[[noreturn]] void fail_acl(const Acl& acl, AclStatus status, const std::string& what);

/// The vendor's last words on this thread in one line, at most 600 characters; "" for none.
std::string recent_words(const Acl& acl);

}  // namespace danceflux::ascend
