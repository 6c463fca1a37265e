# danceflux_tests: test/native/*_test.cpp in one program. Other files there are support, shared with the benches.
# danceflux_<name>: bench/native/<name>_bench.cpp, built on demand only.
# The test plugins go to a folder of their own, so that they are never shipped.
set(native_tests ${PROJECT_SOURCE_DIR}/test/native)
set(native_bench ${PROJECT_SOURCE_DIR}/bench/native)
file(GLOB test_sources CONFIGURE_DEPENDS ${native_tests}/*_test.cpp)
file(GLOB support_sources CONFIGURE_DEPENDS ${native_tests}/*.cpp)
list(REMOVE_ITEM support_sources ${test_sources} ${native_tests}/main.cpp)

function(danceflux_add_program target)
  target_include_directories(${target} PRIVATE ${native_tests})
  target_link_libraries(${target} PRIVATE danceflux_core)
  danceflux_compile(${target})
  danceflux_runtime(${target})
  # found where they were built, wherever the engine's own folder is
  set_target_properties(${target} PROPERTIES BUILD_WITH_INSTALL_RPATH OFF)
endfunction()

add_library(danceflux_test_support OBJECT ${support_sources})
target_include_directories(danceflux_test_support PRIVATE ${native_tests} ${PROJECT_SOURCE_DIR}/native)
target_compile_definitions(danceflux_test_support PRIVATE DANCEFLUX_FIXTURES="${PROJECT_SOURCE_DIR}/test/fixtures")
danceflux_compile(danceflux_test_support)

option(DANCEFLUX_CUDA_EMULATION "Run the CUDA backend's sources in the tests, on an emulated device" ON)
if(DANCEFLUX_CUDA_EMULATION)
  include(cmake/cuda_emulation.cmake)
else()
  list(FILTER test_sources EXCLUDE REGEX "/cuda_[a-z_]*test\\.cpp$")
endif()
add_executable(danceflux_tests ${native_tests}/main.cpp ${test_sources} $<TARGET_OBJECTS:danceflux_test_support>
  $<TARGET_OBJECTS:danceflux_ascend_host>)
if(DANCEFLUX_CUDA_EMULATION)
  target_sources(danceflux_tests PRIVATE $<TARGET_OBJECTS:danceflux_cuda_emulated>)
  add_dependencies(danceflux_tests danceflux_fake_cublaslt danceflux_fake_nccl danceflux_fake_cudnn)
endif()
target_compile_definitions(danceflux_tests PRIVATE
  DANCEFLUX_FIXTURES="${PROJECT_SOURCE_DIR}/test/fixtures" DANCEFLUX_TEST_PLUGINS="${PROJECT_BINARY_DIR}/test-plugins")
danceflux_add_program(danceflux_tests)

file(GLOB bench_mains CONFIGURE_DEPENDS ${native_bench}/*_bench.cpp)
file(GLOB bench_support CONFIGURE_DEPENDS ${native_bench}/*.cpp)
list(REMOVE_ITEM bench_support ${bench_mains} "")
foreach(main ${bench_mains})
  get_filename_component(name ${main} NAME_WE)
  add_executable(danceflux_${name} EXCLUDE_FROM_ALL ${main} ${bench_support} $<TARGET_OBJECTS:danceflux_test_support>)
  danceflux_add_program(danceflux_${name})
  if(name MATCHES "^ascend_")
    target_sources(danceflux_${name} PRIVATE $<TARGET_OBJECTS:danceflux_ascend_host>)
  endif()
endforeach()

add_subdirectory(${native_tests}/plugins ${PROJECT_BINARY_DIR}/test-plugins-build)
option(DANCEFLUX_ASCEND_DOUBLE "Build the double of CANN that the Ascend plugin is tested against" ON)
if(DANCEFLUX_ASCEND_DOUBLE)
  include(cmake/ascend_double.cmake)
endif()
