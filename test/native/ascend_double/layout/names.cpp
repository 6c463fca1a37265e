// Prints the functions of one library of a layout, a line "FORWARD(name)" each: ascend_double_names 9.0
// libopapi_nn.so This table is the map of who exports what.
#include <cstring>
#include <iostream>
#include <set>
#include <string>

#include "ascend_double/runtime/core.h"

extern "C" std::size_t ascend_double_functions(const void** first);

namespace {

using ascend_double::Library;

std::set<Library> parts_of(const std::string& layout, const std::string& library) {
  const bool nine = layout[0] == '9';
  if (library == "libascendcl.so") return {Library::acl};
  if (library == "libacl_rt.so" && nine) return {Library::acl};
  if (library == "libnnopbase.so") return {Library::base};
  if (library == "libopapi.so" && !nine)
    return {Library::math, Library::nn, Library::cv, Library::transformer};
  if (library == "libopapi_math.so" && nine) return {Library::math};
  if (library == "libopapi_nn.so" && nine) return {Library::nn};
  if (library == "libopapi_cv.so" && nine) return {Library::cv};
  if (library == "libopapi_transformer.so" && nine) return {Library::transformer};
  if (library == "libhccl.so" && !nine) return {Library::hccl, Library::hcomm};
  if (library == "libhccl.so") return {Library::hccl};
  if (library == "libhcomm.so" && nine) return {Library::hcomm};
  return {};
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  const std::set<Library> parts = parts_of(argv[1], argv[2]);
  const void* first = nullptr;
  const std::size_t count = ascend_double_functions(&first);
  const auto* functions = static_cast<const ascend_double::Function*>(first);
  std::set<std::string> seen;
  for (std::size_t i = 0; i < count; ++i)
    if (parts.count(functions[i].library) && seen.insert(functions[i].name).second)
      std::cout << "FORWARD(" << functions[i].name << ")\n";
  return seen.empty() ? 1 : 0;
}
