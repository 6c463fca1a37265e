#include "backend/cpu/isa_select.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "backend/cpu/attention_kernels.h"
#include "backend/cpu/gemm_kernels.h"
#include "backend/cpu/row_kernels.h"
#include "core/error.h"

// The tables that isa/*.cpp define for one instruction set.
#define DANCEFLUX_TABLES(isa)                      \
  namespace isa {                                  \
  extern const GemmKernels gemm_kernels;           \
  extern const AttentionKernels attention_kernels; \
  const RowKernels& row_kernels();                 \
  }
#define DANCEFLUX_CANDIDATE(isa, runs_here) \
  { #isa, &isa_##isa::gemm_kernels, &isa_##isa::attention_kernels, isa_##isa::row_kernels, runs_here }

namespace danceflux::cpu {

#if DANCEFLUX_HAS_AVX512
DANCEFLUX_TABLES(isa_avx512)
#endif
#if DANCEFLUX_HAS_AVX2
DANCEFLUX_TABLES(isa_avx2)
#endif
#if DANCEFLUX_HAS_NEON
DANCEFLUX_TABLES(isa_neon)
#endif
#if DANCEFLUX_HAS_PORTABLE
DANCEFLUX_TABLES(isa_portable)
#endif

namespace {

#if defined(__x86_64__)
struct CpuId {
  unsigned a = 0, b = 0, c = 0, d = 0;
  CpuId(unsigned leaf, unsigned subleaf) { __get_cpuid_count(leaf, subleaf, &a, &b, &c, &d); }
};

bool has_all(unsigned reg, unsigned bits) { return (reg & bits) == bits; }

// The operating system must save the wide registers too; XCR0 says which it does.
bool os_saves(unsigned state) {
  if (!has_all(CpuId(1, 0).c, bit_OSXSAVE)) return false;
  unsigned low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return has_all(low, state);
}

bool has_avx2() {
  return os_saves(0x6) && has_all(CpuId(1, 0).c, bit_AVX | bit_FMA | bit_F16C) &&
         has_all(CpuId(7, 0).b, bit_AVX2);
}
bool has_avx512() {
  return has_avx2() && os_saves(0xe6) &&
         has_all(CpuId(7, 0).b, bit_AVX512F | bit_AVX512BW | bit_AVX512VL | bit_AVX512DQ);
}
#endif
[[maybe_unused]] bool always() { return true; }

struct Candidate {
  const char* name;
  const GemmKernels* gemm;
  const AttentionKernels* attention;
  const RowKernels& (*rows)();
  bool (*runs_here)();
};

const Candidate kCandidates[] = {
#if DANCEFLUX_HAS_AVX512
    DANCEFLUX_CANDIDATE(avx512, has_avx512),
#endif
#if DANCEFLUX_HAS_AVX2
    DANCEFLUX_CANDIDATE(avx2, has_avx2),
#endif
#if DANCEFLUX_HAS_NEON
    DANCEFLUX_CANDIDATE(neon, always),
#endif
#if DANCEFLUX_HAS_PORTABLE
    DANCEFLUX_CANDIDATE(portable, always),
#endif
};

std::vector<IsaKernels> find_isas() {
  std::vector<IsaKernels> found;
  for (const Candidate& isa : kCandidates)
    if (isa.runs_here()) found.push_back({isa.name, isa.gemm, isa.attention, &isa.rows()});
  return found;
}

}  // namespace

const std::vector<IsaKernels>& available_isas() {
  static const std::vector<IsaKernels> found = find_isas();
  return found;
}

const IsaKernels& select_isa(const std::string& name) {
  std::string known;
  for (const IsaKernels& isa : available_isas()) {
    if (name.empty() || name == isa.name) return isa;
    known += (known.empty() ? "" : ", ") + std::string(isa.name);
  }
  fail("ERR_DEVICE", "cpu: expected an instruction set of this machine (", known, "), got \"", name, "\"");
}

}  // namespace danceflux::cpu
