// Linked into the engine, the addon and the plugins so that what is built on a new system still loads on an
// old one.
//
// Linking on glibc 2.36 takes the newest version of each symbol, so a binary asks for 2.36 though it would be
// content with far older ones. Each row below defines the symbol hidden inside the binary and jumps to the
// oldest version that glibc exports for it; what has no old version is written out. `scripts/check-glibc.mjs`
// lists what is still missing here.
#if __has_include(<features.h>)
#include <features.h>
#endif
#if defined(__GLIBC__) && (defined(__x86_64__) || defined(__aarch64__))
#include <dlfcn.h>
#include <link.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>

#if defined(__x86_64__)
#define OLDEST "GLIBC_2.2.5"
#define JUMP(name) "jmp *oldest_" name "@GOTPCREL(%rip)\n"
#else
#define OLDEST "GLIBC_2.17"
#define JUMP(name) "b oldest_" name "\n"
#endif

// A section each, so that the linker drops the rows that a binary does not use.
#define USE_VERSION(name, version)                                                                          \
  __asm__(".pushsection .text.oldest_" name ",\"ax\",%progbits\n.balign 16\n.globl " name "\n.hidden " name \
          "\n.type " name ",%function\n" name                                                               \
          ":\n" JUMP(name) ".size " name ", .-" name "\n.symver oldest_" name ", " name "@" version         \
                           "\n.popsection\n")
#define USE_OLDEST(name) USE_VERSION(name, OLDEST)

#if __GLIBC_PREREQ(2, 34)  // libpthread and libdl moved into libc
#if defined(__x86_64__)
USE_VERSION("dlinfo", "GLIBC_2.3.3");
#else
USE_OLDEST("dlinfo");
#endif
USE_OLDEST("pthread_create");
USE_OLDEST("pthread_detach");
USE_OLDEST("pthread_join");
USE_OLDEST("pthread_once");
USE_OLDEST("pthread_key_create");
USE_OLDEST("__pthread_key_create");
USE_OLDEST("pthread_key_delete");
USE_OLDEST("pthread_getspecific");
USE_OLDEST("pthread_setspecific");
USE_OLDEST("pthread_mutex_trylock");
USE_OLDEST("pthread_rwlock_rdlock");
USE_OLDEST("pthread_rwlock_wrlock");
USE_OLDEST("pthread_rwlock_unlock");
USE_OLDEST("pthread_kill");
USE_OLDEST("dladdr");
USE_OLDEST("dlclose");
USE_OLDEST("dlerror");
USE_OLDEST("dlopen");
USE_OLDEST("dlsym");
USE_OLDEST("shm_open");
USE_OLDEST("shm_unlink");
#endif
#if __GLIBC_PREREQ(2, 32)
USE_OLDEST("pthread_sigmask");
#endif
#if __GLIBC_PREREQ(2, 29)  // variants without the old error handling; the values are the same
USE_OLDEST("exp");
USE_OLDEST("log");
USE_OLDEST("pow");
USE_OLDEST("exp2");
USE_OLDEST("log2");
#endif
#if __GLIBC_PREREQ(2, 27)
USE_OLDEST("expf");
USE_OLDEST("logf");
USE_OLDEST("powf");
USE_OLDEST("exp2f");
USE_OLDEST("log2f");
#endif

#define HIDDEN(symbol) __asm__(symbol) __attribute__((visibility("hidden")))

namespace {

struct FindObject {
  std::uintptr_t pc;
  struct dl_find_object* found;
};

int contains_pc(struct dl_phdr_info* info, std::size_t, void* data) {
  auto* find = static_cast<FindObject*>(data);
  const ElfW(Phdr)* frame_header = nullptr;
  bool hit = false;
  std::uintptr_t begin = UINTPTR_MAX, end = 0;
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const ElfW(Phdr)& header = info->dlpi_phdr[i];
    const std::uintptr_t start = info->dlpi_addr + header.p_vaddr;
    if (header.p_type == PT_GNU_EH_FRAME) frame_header = &header;
    if (header.p_type != PT_LOAD) continue;
    hit = hit || (find->pc >= start && find->pc < start + header.p_memsz);
    begin = start < begin ? start : begin;
    end = start + header.p_memsz > end ? start + header.p_memsz : end;
  }
  if (!hit || !frame_header) return 0;
  find->found->dlfo_map_start = reinterpret_cast<void*>(begin);
  find->found->dlfo_map_end = reinterpret_cast<void*>(end);
  find->found->dlfo_eh_frame = reinterpret_cast<void*>(info->dlpi_addr + frame_header->p_vaddr);
  return 1;
}

}  // namespace

extern "C" {

#if __GLIBC_PREREQ(2, 35)
// The statically linked unwinder asks where the frame table of an address lies.
int danceflux_find_object(void* pc, struct dl_find_object* found) HIDDEN("_dl_find_object");
int danceflux_find_object(void* pc, struct dl_find_object* found) {
  FindObject find{reinterpret_cast<std::uintptr_t>(pc), found};
  found->dlfo_flags = 0;
  return dl_iterate_phdr(contains_pc, &find) ? 0 : -1;
}
#endif

#if __GLIBC_PREREQ(2, 32)
// "More than one thread" is always a safe answer, and here always the right one.
extern char danceflux_single_threaded HIDDEN("__libc_single_threaded");
char danceflux_single_threaded = 0;
#endif

#if __GLIBC_PREREQ(2, 25)
int danceflux_getentropy(void* bytes, std::size_t count) HIDDEN("getentropy");
int danceflux_getentropy(void* bytes, std::size_t count) {
  for (std::size_t done = 0; done < count;) {
    const long got = syscall(SYS_getrandom, static_cast<char*>(bytes) + done, count - done, 0);
    if (got < 0 && errno != EINTR) return -1;
    done += got > 0 ? static_cast<std::size_t>(got) : 0;
  }
  return 0;
}
#endif

#if __GLIBC_PREREQ(2, 36)
std::uint32_t danceflux_arc4random() HIDDEN("arc4random");
std::uint32_t danceflux_arc4random() {
  std::uint32_t value = 0;
  if (danceflux_getentropy(&value, sizeof value) != 0) __builtin_trap();
  return value;
}
#endif

#if __GLIBC_PREREQ(2, 33)
// Before 2.33 these were inline in the headers, over versioned twins that glibc still exports.
#if defined(__x86_64__)
constexpr int kStatVersion = 1;
#else
constexpr int kStatVersion = 0;
#endif
int old_xstat(int version, const char* path, struct stat* out) __asm__("oldest___xstat");
int old_lxstat(int version, const char* path, struct stat* out) __asm__("oldest___lxstat");
int old_fxstat(int version, int file, struct stat* out) __asm__("oldest___fxstat");
int old_fxstatat(int version, int folder, const char* path, struct stat* out,
                 int flags) __asm__("oldest___fxstatat");
#if defined(__x86_64__)
#define FXSTATAT_VERSION "GLIBC_2.4"
#else
#define FXSTATAT_VERSION OLDEST
#endif
__asm__(".symver oldest___xstat, __xstat@" OLDEST);
__asm__(".symver oldest___lxstat, __lxstat@" OLDEST);
__asm__(".symver oldest___fxstat, __fxstat@" OLDEST);
__asm__(".symver oldest___fxstatat, __fxstatat@" FXSTATAT_VERSION);

// Under their plain names and their 64-bit ones, which are the same on these machines.
#define STAT_TWINS(suffix)                                                                                \
  int danceflux_stat##suffix(const char* path, struct stat* out) HIDDEN("stat" #suffix);                  \
  int danceflux_stat##suffix(const char* path, struct stat* out) {                                        \
    return old_xstat(kStatVersion, path, out);                                                            \
  }                                                                                                       \
  int danceflux_lstat##suffix(const char* path, struct stat* out) HIDDEN("lstat" #suffix);                \
  int danceflux_lstat##suffix(const char* path, struct stat* out) {                                       \
    return old_lxstat(kStatVersion, path, out);                                                           \
  }                                                                                                       \
  int danceflux_fstat##suffix(int file, struct stat* out) HIDDEN("fstat" #suffix);                        \
  int danceflux_fstat##suffix(int file, struct stat* out) { return old_fxstat(kStatVersion, file, out); } \
  int danceflux_fstatat##suffix(int folder, const char* path, struct stat* out, int flags)                \
      HIDDEN("fstatat" #suffix);                                                                          \
  int danceflux_fstatat##suffix(int folder, const char* path, struct stat* out, int flags) {              \
    return old_fxstatat(kStatVersion, folder, path, out, flags);                                          \
  }
STAT_TWINS()
STAT_TWINS(64)
#endif

}  // extern "C"
#endif
