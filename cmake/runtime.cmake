# What the binaries need of the system: libc and libm, as old ones as the toolchain can ask for.
#
# libstdc++ and libgcc are linked in. Two private copies of the unwinder in one process abort at the first exception that
# goes from one binary to the other, so only the core holds the exception machinery; it exports that under a version name of its
# own (exports.core.map), and addon, plugins and tests bind to it because they link the core first.
# test/native/registry_test.cpp and test/packaging check it. Sanitizers bring a runtime of their own: plain linking there.
include(CheckCXXSourceCompiles)
set(CMAKE_REQUIRED_LINK_OPTIONS -static-libstdc++ -static-libgcc)
check_cxx_source_compiles("#include <string>\nint main(int n, char**) { return std::string(n, 'x').size() == 7; }"
                          DANCEFLUX_CAN_LINK_STATIC_RUNTIME)
unset(CMAKE_REQUIRED_LINK_OPTIONS)

set(danceflux_static_runtime OFF)
if(DANCEFLUX_STATIC_RUNTIME AND DANCEFLUX_CAN_LINK_STATIC_RUNTIME AND NOT DANCEFLUX_SANITIZE AND NOT DANCEFLUX_FUZZ
   AND CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_SYSTEM_NAME STREQUAL "Linux")
  set(danceflux_static_runtime ON)
  add_library(danceflux_old_glibc OBJECT ${PROJECT_SOURCE_DIR}/cmake/old_glibc.cpp)
  target_compile_options(danceflux_old_glibc PRIVATE -ffunction-sections)
endif()

function(danceflux_link_runtime target map)
  get_target_property(type ${target} TYPE)
  if(NOT type STREQUAL "EXECUTABLE")
    # Node closes an addon when the last worker that opened it ends; threads of ours may still be running in it then.
    target_link_options(${target} PRIVATE -Wl,-z,nodelete)
  endif()
  if(danceflux_static_runtime)
    target_sources(${target} PRIVATE $<TARGET_OBJECTS:danceflux_old_glibc>)
    # Up to glibc 2.33 threads and dlopen lived in files of their own; newer ones keep empty files of these names.
    target_link_options(${target} PRIVATE -static-libstdc++ -static-libgcc
      -Wl,--push-state,--no-as-needed -l:libpthread.so.0 -l:libdl.so.2 -Wl,--pop-state)
    if(NOT type STREQUAL "EXECUTABLE")
      target_link_options(${target} PRIVATE -Wl,--version-script=${map} -Wl,--gc-sections)
      set_target_properties(${target} PROPERTIES LINK_DEPENDS ${map})
    endif()
  endif()
endfunction()

function(danceflux_runtime_provider target)
  danceflux_link_runtime(${target} ${PROJECT_SOURCE_DIR}/cmake/exports.core.map)
  if(DANCEFLUX_WERROR AND NOT DANCEFLUX_SANITIZE AND NOT DANCEFLUX_FUZZ)
    target_link_options(${target} PRIVATE -Wl,-z,defs)
  endif()
  if(danceflux_static_runtime)
    # pulled in whole even where the core itself does not use them
    target_link_options(${target} PRIVATE -Wl,-u,__cxa_rethrow -Wl,-u,__cxa_demangle -Wl,-u,__dynamic_cast
      -Wl,-u,__cxa_current_exception_type -Wl,-u,_ZSt17current_exceptionv -Wl,-u,_ZSt19uncaught_exceptionsv
      -Wl,-u,__cxa_guard_acquire -Wl,-u,__cxa_pure_virtual -Wl,-u,__cxa_throw_bad_array_new_length -Wl,-u,__cxa_bad_cast)
  endif()
endfunction()

function(danceflux_runtime target)
  danceflux_link_runtime(${target} ${PROJECT_SOURCE_DIR}/cmake/exports.module.map)
endfunction()
