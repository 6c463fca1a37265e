# How every source of the project is compiled.
#
# Results must be the same bits whatever the compiler finds profitable: it may not contract a*b+c on its own
# (-ffp-contract=off; kernels that want FMA say so), and nothing here may reorder sums. errno after sqrt and
# friends is read by nobody.
function(danceflux_compile target)
  target_compile_options(${target} PRIVATE -fno-math-errno -ffp-contract=off -Wall -Wextra -Wno-missing-field-initializers)
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    # -fno-gnu-unique: a template's static must not be merged with a like-named one of some other library in the process.
    # -Wno-psabi: notes about passing vectors, which concern no caller outside this build.
    # -Wno-restrict: g++ 12 sees overlaps in joining std::strings that are not there.
    target_compile_options(${target} PRIVATE -fno-gnu-unique -Wno-psabi -Wno-restrict)
  endif()
  if(DANCEFLUX_WERROR)
    target_compile_options(${target} PRIVATE -Werror)
  endif()
  if(DANCEFLUX_SANITIZE)
    target_compile_options(${target} PRIVATE -fsanitize=${DANCEFLUX_SANITIZE} -fno-omit-frame-pointer -g1)
    target_link_options(${target} PRIVATE -fsanitize=${DANCEFLUX_SANITIZE})
    if(DANCEFLUX_SANITIZE MATCHES "undefined")
      target_compile_options(${target} PRIVATE -fno-sanitize-recover=undefined)
    endif()
  endif()
  if(DANCEFLUX_FUZZ)
    target_compile_options(${target} PRIVATE -fsanitize=fuzzer-no-link)
    target_link_options(${target} PRIVATE -fsanitize=fuzzer-no-link)
  endif()
endfunction()
