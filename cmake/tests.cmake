# danceflux_tests: test/native/*.cpp in one program.  The test plugins go to a folder of their own, so that they are never shipped.
file(GLOB test_sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/test/native/*.cpp)
if(test_sources)
  add_executable(danceflux_tests ${test_sources})
  target_include_directories(danceflux_tests PRIVATE ${PROJECT_SOURCE_DIR}/test/native)
  target_link_libraries(danceflux_tests PRIVATE danceflux_core)
  target_compile_definitions(danceflux_tests PRIVATE
    DANCEFLUX_FIXTURES="${PROJECT_SOURCE_DIR}/test/fixtures" DANCEFLUX_TEST_PLUGINS="${PROJECT_BINARY_DIR}/test-plugins")
  danceflux_compile(danceflux_tests)
  danceflux_runtime(danceflux_tests)
endif()
if(EXISTS ${PROJECT_SOURCE_DIR}/test/native/plugins/CMakeLists.txt)
  add_subdirectory(${PROJECT_SOURCE_DIR}/test/native/plugins ${PROJECT_BINARY_DIR}/test-plugins-build)
endif()
