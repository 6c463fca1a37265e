#include "io/torch_zip.h"

#include <optional>
#include <unordered_set>

#include "core/json.h"
#include "io/byte_reader.h"
#include "io/unpickler.h"
#include "io/zip.h"

namespace danceflux::io {
namespace {

using Kind = PickleValue::Kind;

constexpr int kMostNested = 32;
constexpr std::size_t kLongestName = 1024;
constexpr std::size_t kMostPickleBytes = std::size_t{64} << 20;

// The tensors of a tree of dictionaries, lists and tuples, under the keys on the way to them. What is shared
// in the pickle appears under each of its names, so the walk is bounded by itself: a few lines of pickle can
// share themselves into billions.
class Flattener {
 public:
  Flattener(const Pickle& pickle, std::size_t pickle_bytes, const std::string& what)
      : pickle_(pickle),
        what_(what),
        visits_left_(4 * pickle.values.size() + 64),
        name_bytes_left_(16 * pickle_bytes + 4096) {}

  std::vector<FileTensor> flatten() {
    const PickleValue& root = pickle_.values[pickle_.root];
    check(root.kind == Kind::dictionary, "a dictionary of tensors, got something else");
    visit(root, "", 0);
    return std::move(tensors_);
  }

 private:
  template <class... Parts>
  void check(bool holds, const Parts&... expected) const {
    require(holds, kPickleCode, what_, ": expected ", expected...);
  }

  void visit(const PickleValue& value, const std::string& name, int depth) {
    check(depth < kMostNested, "at most ", kMostNested, " nested values");
    const bool keyed = value.kind == Kind::dictionary;
    for (std::size_t i = 0; i < value.items.size(); i += keyed ? 2 : 1) {
      check(visits_left_-- > 0, "a tree that does not share itself over and over");
      const PickleValue& member = pickle_.values[value.items[keyed ? i + 1 : i]];
      if (member.kind != Kind::tensor && member.items.empty()) continue;  // a plain value
      const auto key = keyed ? key_text(pickle_.values[value.items[i]]) : std::to_string(i);
      if (!key) continue;
      check(name.size() + 1 + key->size() <= kLongestName, "names of at most ", kLongestName, " bytes, got ",
            Shown{*key});
      const std::string full = name.empty() ? *key : name + "." + *key;
      if (member.kind == Kind::tensor)
        add(full, pickle_.tensors[static_cast<std::size_t>(member.integer)]);
      else
        visit(member, full, depth + 1);
    }
  }
  static std::optional<std::string> key_text(const PickleValue& key) {
    if (key.kind == Kind::string) return std::string(key.text);
    if (key.kind == Kind::integer) return std::to_string(key.integer);
    return std::nullopt;  // no way to name what lies below
  }

  void add(const std::string& name, const FileTensor& tensor) {
    check(name_bytes_left_ >= name.size(), "a tree that does not share itself over and over");
    name_bytes_left_ -= name.size();
    check(is_utf8(name), "names in UTF-8, got ", Shown{name});
    check(seen_.insert(name).second, "each name once, got ", Shown{name}, " again");
    tensors_.push_back(tensor);
    tensors_.back().name = name;
  }

  const Pickle& pickle_;
  const std::string& what_;
  std::size_t visits_left_, name_bytes_left_;
  std::vector<FileTensor> tensors_;
  std::unordered_set<std::string> seen_;
};

class TorchZip final : public TensorFile {
 public:
  explicit TorchZip(const std::string& path) : TensorFile(path) {
    if (is_legacy_pickle(file_)) refuse_legacy();
    const StoredZip zip(file_, path);
    const ZipEntry& pickle = find_pickle(zip);
    const std::string_view root = pickle.name.substr(0, pickle.name.size() - kPickleName.size());
    check_byte_order(zip, root);
    const std::string what = path + ": " + shown(pickle.name);
    require(pickle.data.size() <= kMostPickleBytes, kPickleCode, what, ": expected at most ",
            kMostPickleBytes, " bytes, got ", pickle.data.size());
    const Pickle read =
        read_pickle(pickle.data, what, [&](std::string_view key) { return storage(zip, root, key); });
    tensors_ = Flattener(read, pickle.data.size(), what).flatten();
  }
  const std::vector<FileTensor>& tensors() const override { return tensors_; }
  const std::map<std::string, std::string>& metadata() const override { return metadata_; }

 private:
  static constexpr std::string_view kPickleName = "data.pkl";

  [[noreturn]] void refuse_legacy() const {
    throw Error(kPickleCode, path() + ": expected the zip format of PyTorch 1.6 and later, got an older one",
                "convert it: torch.save(torch.load(\"old.pt\", weights_only=True), \"new.pt\")");
  }

  // "<root>/data.pkl"; the root is what the writer liked to call it.
  const ZipEntry& find_pickle(const StoredZip& zip) const {
    const ZipEntry* found = nullptr;
    for (const ZipEntry& entry : zip.entries()) {
      const std::size_t slash = entry.name.find('/');
      if (slash == std::string_view::npos || entry.name.substr(slash + 1) != kPickleName) continue;
      require(!found, kPickleCode, path(), ": expected one data.pkl, got two");
      found = &entry;
    }
    require(found != nullptr, kPickleCode, path(),
            ": expected a PyTorch checkpoint, got a zip without data.pkl");
    return *found;
  }

  void check_byte_order(const StoredZip& zip, std::string_view root) const {
    const ZipEntry* order = zip.find(std::string(root) + "byteorder");
    require(!order || order->data == "little", kPickleCode, path(), ": expected byte order little, got ",
            order ? shown(order->data) : "");
  }

  std::string_view storage(const StoredZip& zip, std::string_view root, std::string_view key) const {
    const ZipEntry* entry = zip.find(std::string(root) + "data/" + std::string(key));
    require(entry != nullptr, kPickleCode, path(), ": expected a storage ", Shown{key}, ", got none");
    return entry->data;
  }

  std::vector<FileTensor> tensors_;
  std::map<std::string, std::string> metadata_;
};

}  // namespace

std::shared_ptr<TensorFile> open_torch_zip(const std::string& path) {
  return std::make_shared<TorchZip>(path);
}

bool is_legacy_pickle(const MappedFile& file) {
  constexpr std::size_t kPrefix = 8;
  if (file.size() < kPrefix || file.data()[0] != std::byte{0x80}) return false;
  // A safetensors file may start with this byte too: the lowest of its header's length, whose upper half is
  // then zero.
  const std::string_view upper = file.text(kPrefix / 2, kPrefix / 2);
  const auto protocol = std::to_integer<int>(file.data()[1]);
  return protocol >= 1 && protocol <= 5 && upper != std::string_view("\0\0\0\0", 4);
}

}  // namespace danceflux::io
