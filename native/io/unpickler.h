// The pickles of torch.save as data. Nothing a pickle names is ever run: the few functions that tensors need
// are known here by name, and any other name ends the reading.
#pragma once
#include <cstdint>
#include <deque>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "io/tensor_file.h"

namespace danceflux::io {

/// A value of a pickle. Values live in one table and name each other by position, so that what a pickle
/// shares is shared here.
struct PickleValue {
  enum class Kind : std::uint8_t {
    none,
    boolean,
    integer,
    number,
    string,
    tuple,
    list,
    dictionary,
    global,
    storage,
    tensor
  };
  Kind kind = Kind::none;
  std::int64_t integer = 0;            // integer, boolean; else a position in the table of its kind
  std::string_view text{};             // string: points into the pickle
  std::vector<std::uint32_t> items{};  // tuple, list; dictionary: key, value, key, value
};

struct Pickle {
  std::deque<PickleValue> values;
  std::vector<FileTensor> tensors;  // without names
  std::uint32_t root = 0;
};

/// The raw bytes of a storage by its key; throws when there is none.
using FindStorage = std::function<std::string_view(std::string_view key)>;

/// Reads one pickle of protocol 2. Throws ERR_PICKLE as "<what>: ... at byte N" for opcodes and globals
/// outside the allow-lists (naming them), for tensors that leave their storage, and for more than 2 million
/// values. Memory stays within a few hundred bytes per byte of the pickle. `bytes` and the storages must
/// outlive the result.
Pickle read_pickle(std::string_view bytes, const std::string& what, const FindStorage& find_storage);

}  // namespace danceflux::io
