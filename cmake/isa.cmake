# Kernels that exist once per instruction set.
#
# Every native/backend/cpu/isa/<name>.cpp is compiled once for each instruction set of the target, with
#   DANCEFLUX_ISA_NAMESPACE=isa_avx2     wrap everything in  namespace danceflux::DANCEFLUX_ISA_NAMESPACE { ... }
#   DANCEFLUX_ISA=avx2                   the bare word
#   DANCEFLUX_ISA_NAME="avx2"            the same as a string
#   DANCEFLUX_ISA_AVX2=1                 for #if
# Which one runs is chosen at run time by the CPU backend.
#
# The trap: an inline function of a shared header (std::vector growing, say) that is instantiated in an AVX-512 object
# may be the copy that the linker keeps for everybody, and then an older machine dies of it. So these files keep to raw pointers and
# to what is inlined, and scripts/check-isa.mjs fails the build when one of their objects defines a weak symbol.
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  set(danceflux_isas portable avx2 avx512)
  set(danceflux_isa_flags_portable "")
  set(danceflux_isa_flags_avx2 -mavx2 -mfma -mf16c)
  set(danceflux_isa_flags_avx512 -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx2 -mfma -mf16c)
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64)$")
  set(danceflux_isas neon)  # part of the base architecture: no flag, no portable twin
  set(danceflux_isa_flags_neon "")
else()
  set(danceflux_isas portable)
  set(danceflux_isa_flags_portable "")
endif()

# Sets `result` to the objects of all instruction sets.
function(danceflux_isa_objects result folder)
  file(GLOB sources CONFIGURE_DEPENDS ${folder}/*.cpp)
  set(objects)
  if(sources)
    foreach(isa ${danceflux_isas})
      string(TOUPPER ${isa} upper)
      add_library(danceflux_isa_${isa} OBJECT ${sources})
      danceflux_compile(danceflux_isa_${isa})
      target_include_directories(danceflux_isa_${isa} PRIVATE ${PROJECT_SOURCE_DIR}/native)
      target_compile_options(danceflux_isa_${isa} PRIVATE ${danceflux_isa_flags_${isa}})
      target_compile_definitions(danceflux_isa_${isa} PRIVATE
        DANCEFLUX_ISA=${isa} DANCEFLUX_ISA_NAMESPACE=isa_${isa} DANCEFLUX_ISA_NAME="${isa}" DANCEFLUX_ISA_${upper}=1)
      list(APPEND objects $<TARGET_OBJECTS:danceflux_isa_${isa}>)
    endforeach()
  endif()
  set(${result} ${objects} PARENT_SCOPE)
endfunction()

# The rest of the CPU backend learns which instruction sets were compiled: DANCEFLUX_HAS_AVX2=1 and so on.
foreach(isa ${danceflux_isas})
  string(TOUPPER ${isa} upper)
  add_compile_definitions(DANCEFLUX_HAS_${upper}=1)
endforeach()
