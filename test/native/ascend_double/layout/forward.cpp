// One library of a layout: every symbol is an indirect function that asks libascend_double.so for its address
// when dlsym looks it up. What this version of CANN lacks, or ASCEND_DOUBLE_MISSING takes away, is answered
// with NULL: not found.
extern "C" {

void* ascend_double_resolve(const char* name);
void ascend_double_opened(int version);

__attribute__((constructor, visibility("hidden"))) void ascend_double_forwarding() {
  ascend_double_opened(ASCEND_DOUBLE_VERSION);
}

using Forwarded = void (*)();
#define FORWARD(name)                                                 \
  __attribute__((visibility("hidden"))) Forwarded find_##name() {     \
    return reinterpret_cast<Forwarded>(ascend_double_resolve(#name)); \
  }                                                                   \
  __attribute__((visibility("default"), ifunc("find_" #name))) void name();
#include ASCEND_DOUBLE_NAMES
}
