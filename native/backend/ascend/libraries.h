// CANN as it was found on this machine: libraries opened, functions looked up, versions asked.
#pragma once
#include <string>
#include <vector>

#include "backend/ascend/acl.h"
#include "backend/ascend/hccl.h"
#include "backend/ascend/operators.h"
#include "backend/ascend/search.h"

namespace danceflux::ascend {

struct CannVersion {
  int major = 0, minor = 0;  // 0, 0: not told
  std::string text;          // "8.1.RC1", or "acl 1.13.0" where the toolkit does not say
};
/// "8.1.RC1" -> 8, 1. Zeros for what is no version.
CannVersion read_version(const std::string& text);

/// What a chip can do, by the name that aclrtGetSocName tells. Ascend910B without a digit is of the first
/// generation.
enum class Chip : std::uint8_t { unknown, gen1, inference, a2, a3, a5 };
Chip chip_of(const std::string& soc);
/// bf16 needs A2 or later.
inline bool knows_bf16(Chip chip) { return chip == Chip::a2 || chip == Chip::a3 || chip == Chip::a5; }

struct Cann {
  Acl acl;
  Operators operators;
  Hccl hccl;
  bool has_hccl = false;
  CannVersion version;
  std::string soc;
  Chip chip = Chip::unknown;

  /// Why it cannot be used, and what to do; empty when it can.
  std::string failure, hint;
  std::vector<std::string> libraries;          // paths, as opened
  std::vector<std::string> missing_operators;  // looked for in all of them
  std::vector<std::string> missing_hccl;
  std::vector<std::string> notes;
};

/// Opens CANN once per process; never closed.
const Cann& cann();

/// The parts in one text.
std::string join(const std::vector<std::string>& parts, const char* separator);

/// Looks an operator up in one library that is open already.
void find_operator(const std::string& library, OperatorSymbols& wanted);

}  // namespace danceflux::ascend
