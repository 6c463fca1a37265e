#include "ascend_double/runtime/core.h"
namespace ascend_double {
ENTRY_OF(const char*, hccl, HcclGetErrorString, int) { return "x"; }
ENTRY(hcomm, HcclBarrier, void*, void*) { return 5; }
}
