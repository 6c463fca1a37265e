# The C++ benches, which bench/*.mjs build when asked for and nobody else does. The op bench reads the tests' table of cases.
file(GLOB op_table CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/test/native/op_*.cpp)
list(FILTER op_table EXCLUDE REGEX "_test\\.cpp$")

function(danceflux_bench name)
  add_executable(${name} EXCLUDE_FROM_ALL ${ARGN})
  target_include_directories(${name} PRIVATE ${PROJECT_SOURCE_DIR}/bench/native ${PROJECT_SOURCE_DIR}/test/native)
  target_link_libraries(${name} PRIVATE danceflux_core)
  danceflux_compile(${name})
  danceflux_runtime(${name})
endfunction()

danceflux_bench(danceflux_op_bench bench/native/op_bench.cpp ${op_table} test/native/reference_backend.cpp)
danceflux_bench(danceflux_gemm_bench bench/native/gemm_bench.cpp bench/native/fma_peak.cpp)
