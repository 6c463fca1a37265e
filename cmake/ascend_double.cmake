# The Ascend test double and its tests: build/ascend_double, ascend_double_tests.
add_subdirectory(${PROJECT_SOURCE_DIR}/test/native/ascend_double ${PROJECT_BINARY_DIR}/ascend_double-build)
