# The CUDA backend's own sources on the host: kernels as plain C++ over an emulated device (test/native/cuda), the vendor's
# headers and libraries as stand-ins. So its kernels, and what it tells the libraries, are tested where there is no GPU.
set(emulation ${native_tests}/cuda)
file(GLOB cuda_sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/native/backend/cuda/*.cpp)
file(GLOB cuda_kernels CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/native/backend/cuda/*.cu)
file(GLOB emulation_sources CONFIGURE_DEPENDS ${emulation}/emulated_*.cpp)
list(FILTER cuda_sources EXCLUDE REGEX "cuda_plugin\\.cpp$")

add_library(danceflux_cuda_emulated OBJECT ${cuda_sources} ${cuda_kernels} ${emulation_sources})
set_source_files_properties(${cuda_kernels} PROPERTIES LANGUAGE CXX COMPILE_OPTIONS "-x;c++")
target_include_directories(danceflux_cuda_emulated PRIVATE ${emulation} ${emulation}/stand_in ${PROJECT_SOURCE_DIR}/native)
target_compile_definitions(danceflux_cuda_emulated PRIVATE DANCEFLUX_CUDA_EMULATED=1
  DANCEFLUX_FAKE_CUDA="${PROJECT_BINARY_DIR}/fake-cuda")
danceflux_compile(danceflux_cuda_emulated)

# It reads what cuDNN would be told, so it knows the backend's insides; the other tests do not.
set_source_files_properties(${native_tests}/cuda_dnn_test.cpp PROPERTIES
  INCLUDE_DIRECTORIES "${emulation};${emulation}/stand_in" COMPILE_DEFINITIONS DANCEFLUX_CUDA_EMULATED=1)

# fake_<library>*.cpp as the file that the plugin opens
function(danceflux_fake_library name soname)
  file(GLOB sources CONFIGURE_DEPENDS ${emulation}/fake_${name}.cpp ${emulation}/fake_${name}_*.cpp)
  add_library(danceflux_fake_${name} SHARED ${sources})
  set_target_properties(danceflux_fake_${name} PROPERTIES PREFIX "" SUFFIX "" OUTPUT_NAME ${soname}
    LIBRARY_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/fake-cuda)
  target_include_directories(danceflux_fake_${name} PRIVATE ${emulation} ${PROJECT_SOURCE_DIR}/native)
  danceflux_compile(danceflux_fake_${name})
endfunction()
danceflux_fake_library(cublaslt libcublasLt.so.13)
danceflux_fake_library(nccl libnccl.so.2)
danceflux_fake_library(cudnn libcudnn.so.9)

# The same as a plugin, so that whole programs run on it: DANCEFLUX_PLUGIN_PATH=<build>/emulated-cuda and
# DANCEFLUX_CUDA_LIBRARIES=<build>/fake-cuda make "cuda:0" an emulated card. Slow: for tiny models.
add_library(danceflux_cuda_emulated_plugin MODULE ${PROJECT_SOURCE_DIR}/native/backend/cuda/cuda_plugin.cpp
  $<TARGET_OBJECTS:danceflux_cuda_emulated>)
set_target_properties(danceflux_cuda_emulated_plugin PROPERTIES PREFIX "" SUFFIX ".so" OUTPUT_NAME danceflux_cuda
  LIBRARY_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/emulated-cuda)
target_include_directories(danceflux_cuda_emulated_plugin PRIVATE ${emulation} ${emulation}/stand_in)
target_compile_definitions(danceflux_cuda_emulated_plugin PRIVATE DANCEFLUX_CUDA_EMULATED=1)
target_link_libraries(danceflux_cuda_emulated_plugin PRIVATE danceflux_core)
danceflux_compile(danceflux_cuda_emulated_plugin)
danceflux_runtime(danceflux_cuda_emulated_plugin)
add_dependencies(danceflux_cuda_emulated_plugin danceflux_fake_cublaslt danceflux_fake_nccl danceflux_fake_cudnn)
