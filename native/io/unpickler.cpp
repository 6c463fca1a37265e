#include "io/unpickler.h"

#include <algorithm>
#include <array>

#include "core/json.h"
#include "io/byte_reader.h"
#include "io/format_dtype.h"
#include "io/pickled_tensor.h"

namespace danceflux::io {
namespace {

using Kind = PickleValue::Kind;
using Ref = std::uint32_t;

constexpr std::size_t kMostValues = std::size_t{1} << 21;
constexpr std::uint8_t kProtocol = 2;
constexpr Ref kUnset = ~Ref{0};

constexpr const char* kKindNames[] = {"None",     "a boolean", "an integer", "a number",
                                      "a string", "a tuple",   "a list",     "a dictionary",
                                      "a global", "a storage", "a tensor"};

enum class Action : std::uint8_t { tensor, parameter, dictionary, storage };

// All that a pickle may name. `dtype` is how safetensors spells the elements of a storage.
struct Global {
  std::string_view module, name;
  Action action;
  std::string_view dtype{};
};
constexpr Global kGlobals[] = {{"torch._utils", "_rebuild_tensor_v2", Action::tensor},
                               {"torch._utils", "_rebuild_parameter", Action::parameter},
                               {"collections", "OrderedDict", Action::dictionary},
                               {"torch", "FloatStorage", Action::storage, "F32"},
                               {"torch", "HalfStorage", Action::storage, "F16"},
                               {"torch", "BFloat16Storage", Action::storage, "BF16"},
                               {"torch", "DoubleStorage", Action::storage, "F64"},
                               {"torch", "LongStorage", Action::storage, "I64"},
                               {"torch", "IntStorage", Action::storage, "I32"},
                               {"torch", "ShortStorage", Action::storage, "I16"},
                               {"torch", "CharStorage", Action::storage, "I8"},
                               {"torch", "ByteStorage", Action::storage, "U8"},
                               {"torch", "BoolStorage", Action::storage, "BOOL"}};

class Unpickler {
 public:
  Unpickler(std::string_view bytes, const std::string& what, const FindStorage& find_storage)
      : reader_(bytes, what), find_storage_(find_storage) {}

  Pickle read() {
    check(reader_.u8() == 0x80, "a pickle");
    check_protocol();
    while (!stopped_) step();
    check(stack_.size() == 1 && marks_.empty() && reader_.left() == 0, "one value and the end");
    pickle_.root = stack_.back();
    return std::move(pickle_);
  }

 private:
  using Handler = void (Unpickler::*)();
  struct Opcode {
    std::uint8_t code;
    Handler run;
  };
  static const std::array<Handler, 256> kHandlers;
  static std::array<Handler, 256> handlers();

  template <class... Parts>
  void check(bool holds, const Parts&... expected) const {
    require(holds, kPickleCode, reader_.what(), ": expected ", expected..., " at byte ", at_);
  }

  void step() {
    at_ = reader_.at();
    const std::uint8_t code = reader_.u8();
    const Handler handler = kHandlers[code];
    check(handler != nullptr, "an opcode that tensors need, got ", int{code});
    (this->*handler)();
  }
  void check_protocol() {
    const std::uint8_t protocol = reader_.u8();
    if (protocol == kProtocol) return;
    throw Error(kPickleCode, reader_.what() + ": expected pickle protocol 2, got " + std::to_string(protocol),
                "write the file again by torch.save without pickle_protocol");
  }

  // ---- stack and memo
  PickleValue& value(Ref ref) { return pickle_.values[ref]; }
  void push(PickleValue made) {
    check(pickle_.values.size() < kMostValues, "at most ", kMostValues, " values");
    stack_.push_back(static_cast<Ref>(pickle_.values.size()));
    pickle_.values.push_back(std::move(made));
  }
  Ref pop() {
    const std::size_t floor = marks_.empty() ? 0 : marks_.back();
    check(stack_.size() > floor, "a value on the stack");
    const Ref top = stack_.back();
    stack_.pop_back();
    return top;
  }
  Ref top() {
    const Ref ref = pop();
    stack_.push_back(ref);
    return ref;
  }
  std::vector<Ref> pop_many(std::size_t count) {
    std::vector<Ref> taken(count);
    for (std::size_t i = count; i-- > 0;) taken[i] = pop();
    return taken;
  }
  std::vector<Ref> pop_to_mark() {
    check(!marks_.empty(), "a mark on the stack");
    std::vector<Ref> taken = pop_many(stack_.size() - marks_.back());
    marks_.pop_back();
    return taken;
  }
  Ref pop(Kind kind) {
    const Ref top = pop();
    check_kind(top, kind);
    return top;
  }
  void check_kind(Ref ref, Kind kind) {
    const Kind got = value(ref).kind;
    check(got == kind, name_of_kind(kind), ", got ", name_of_kind(got));
  }
  static const char* name_of_kind(Kind kind) { return kKindNames[static_cast<std::size_t>(kind)]; }

  // Writers count from 0 and a put takes two bytes, so a memo longer than the pickle is a lie.
  void memo_put(std::uint32_t key) {
    check(key < reader_.at(), "memo keys that count up, got ", key);
    if (key >= memo_.size()) memo_.resize(std::size_t{key} + 1, kUnset);
    memo_[key] = top();
  }
  void memo_get(std::uint32_t key) {
    check(key < memo_.size() && memo_[key] != kUnset, "a value remembered as ", key);
    check(stack_.size() < kMostValues, "at most ", kMostValues, " values on the stack");
    stack_.push_back(memo_[key]);
  }

  // ---- opcodes, named as in Python's pickletools
  void stop() { stopped_ = true; }
  void mark() {
    check(marks_.size() < kMostValues, "at most ", kMostValues, " marks");
    marks_.push_back(stack_.size());
  }
  void none() { push({}); }
  void newtrue() { push({.kind = Kind::boolean, .integer = 1}); }
  void newfalse() { push({.kind = Kind::boolean}); }
  void empty_dict() { push({.kind = Kind::dictionary}); }
  void empty_list() { push({.kind = Kind::list}); }
  void empty_tuple() { push({.kind = Kind::tuple}); }
  void binint() { push({.kind = Kind::integer, .integer = static_cast<std::int32_t>(reader_.u32())}); }
  void binint1() { push({.kind = Kind::integer, .integer = reader_.u8()}); }
  void binint2() { push({.kind = Kind::integer, .integer = reader_.u16()}); }
  void binfloat() {
    reader_.text(8);  // no tensor is made of it
    push({.kind = Kind::number});
  }
  void long1() {
    const std::string_view raw = reader_.text(reader_.u8());
    if (raw.size() > 8) return push({.kind = Kind::number});  // too large for any size or offset
    std::uint64_t bits =
        !raw.empty() && static_cast<unsigned char>(raw.back()) >= 0x80 ? ~std::uint64_t{0} : 0;
    for (std::size_t i = raw.size(); i-- > 0;) bits = bits << 8 | static_cast<unsigned char>(raw[i]);
    push({.kind = Kind::integer, .integer = static_cast<std::int64_t>(bits)});
  }
  void binunicode() { push({.kind = Kind::string, .text = reader_.text(reader_.u32())}); }
  void binput() { memo_put(reader_.u8()); }
  void long_binput() { memo_put(reader_.u32()); }
  void binget() { memo_get(reader_.u8()); }
  void long_binget() { memo_get(reader_.u32()); }
  void tuple() { push({.kind = Kind::tuple, .items = pop_to_mark()}); }
  void tuple1() { push({.kind = Kind::tuple, .items = pop_many(1)}); }
  void tuple2() { push({.kind = Kind::tuple, .items = pop_many(2)}); }
  void tuple3() { push({.kind = Kind::tuple, .items = pop_many(3)}); }

  void append() { extend(pop_many(1), Kind::list); }
  void appends() { extend(pop_to_mark(), Kind::list); }
  void setitem() { extend(pop_many(2), Kind::dictionary); }
  void setitems() { extend(pop_to_mark(), Kind::dictionary); }
  void extend(const std::vector<Ref>& items, Kind kind) {
    const Ref target = pop(kind);
    stack_.push_back(target);
    if (kind == Kind::dictionary) check_keys(items);
    auto& held = value(target).items;
    held.insert(held.end(), items.begin(), items.end());
  }
  void check_keys(const std::vector<Ref>& items) {
    check(items.size() % 2 == 0, "a value for each key");
    for (std::size_t i = 0; i < items.size(); i += 2) {
      const Kind kind = value(items[i]).kind;
      check(kind <= Kind::tuple, "a key that can be one, got ", name_of_kind(kind));
    }
  }

  // The state of an OrderedDict is what Python code hung on it ("_metadata"): no tensors.
  void build() {
    pop(Kind::dictionary);
    check_kind(top(), Kind::dictionary);
  }

  void global() {
    const std::string_view module = reader_.line(), name = reader_.line();
    const auto* found = std::find_if(std::begin(kGlobals), std::end(kGlobals), [&](const Global& row) {
      return row.module == module && row.name == name;
    });
    if (found == std::end(kGlobals)) refuse_global(module, name);
    push({.kind = Kind::global, .integer = found - std::begin(kGlobals)});
  }
  [[noreturn]] void refuse_global(std::string_view module, std::string_view name) const {
    throw Error(kPickleCode,
                reader_.what() + ": expected tensors, dictionaries and plain values only, got the global " +
                    shown(std::string(module) + "." + std::string(name)) + " at byte " + std::to_string(at_),
                "save the tensors alone: torch.save(model.state_dict(), path)");
  }

  void binpersid() {
    const std::vector<Ref>& fields = value(pop(Kind::tuple)).items;
    check(fields.size() == 5, "a storage of 5 fields, got ", fields.size());
    for (const int i : {0, 2, 3}) check_kind(fields[static_cast<std::size_t>(i)], Kind::string);
    check_kind(fields[1], Kind::global);
    const Global& type = kGlobals[value(fields[1]).integer];
    check(value(fields[0]).text == "storage" && type.action == Action::storage, "a storage, got ",
          Shown{value(fields[0]).text});
    const std::string_view key = value(fields[2]).text;
    const FormatDType& format = *find_format_dtype(type.dtype);
    const std::int64_t elements = integer(fields[4]);
    const std::string_view data = find_storage_(key);
    const std::uint64_t held = data.size() / (format.bits / 8);
    check(elements >= 0 && static_cast<std::uint64_t>(elements) <= held, "storage ", Shown{key}, " to hold ",
          elements, " elements of ", format.name, ", got ", data.size(), " bytes");
    storages_.push_back({data.substr(0, static_cast<std::size_t>(elements) * (format.bits / 8)), &format});
    push({.kind = Kind::storage, .integer = static_cast<std::int64_t>(storages_.size() - 1)});
  }

  void reduce() {
    const Ref arguments = pop(Kind::tuple);
    const Global& called = kGlobals[value(pop(Kind::global)).integer];
    const std::vector<Ref>& fields = value(arguments).items;  // stays in place: the table is a deque
    if (called.action == Action::tensor) return rebuild_tensor(fields);
    if (called.action == Action::parameter) return rebuild_parameter(fields);
    const bool empty_dictionary = called.action == Action::dictionary && fields.empty();
    check(empty_dictionary, "no call of ", called.module, ".", called.name, " with ", fields.size(),
          " arguments");
    push({.kind = Kind::dictionary});
  }

  std::int64_t integer(Ref ref) {
    check_kind(ref, Kind::integer);
    return value(ref).integer;
  }
  Shape integers(Ref ref) {
    check_kind(ref, Kind::tuple);
    const auto& items = value(ref).items;
    check(items.size() <= kMaxRank, "at most ", kMaxRank, " dimensions, got ", items.size());
    Shape numbers;
    for (const Ref item : items) numbers.push_back(integer(item));
    return numbers;
  }

  // (storage, offset, size, stride, requires_grad, hooks), and since 1.13 metadata, which plain tensors leave
  // None.
  void rebuild_tensor(const std::vector<Ref>& fields) {
    const bool plain = fields.size() == 6 || (fields.size() == 7 && value(fields[6]).kind == Kind::none);
    check(plain, "a plain tensor of 6 fields, got ", fields.size());
    check_kind(fields[0], Kind::storage);
    const PickledStorage& storage = storages_[static_cast<std::size_t>(value(fields[0]).integer)];
    const std::int64_t offset = integer(fields[1]);
    const Shape shape = integers(fields[2]), strides = integers(fields[3]);
    const std::string trouble = trouble_with_view(storage, offset, shape, strides);
    check(trouble.empty(), trouble);
    pickle_.tensors.push_back(view_storage(storage, offset, shape, strides));
    push({.kind = Kind::tensor, .integer = static_cast<std::int64_t>(pickle_.tensors.size() - 1)});
  }
  // (tensor, requires_grad, hooks)
  void rebuild_parameter(const std::vector<Ref>& fields) {
    check(fields.size() == 3, "a parameter of 3 fields, got ", fields.size());
    check_kind(fields[0], Kind::tensor);
    stack_.push_back(fields[0]);
  }

  ByteReader reader_;
  const FindStorage& find_storage_;
  Pickle pickle_;
  std::vector<Ref> stack_;
  std::vector<std::size_t> marks_;  // stack heights
  std::vector<Ref> memo_;
  std::vector<PickledStorage> storages_;
  std::size_t at_ = 0;
  bool stopped_ = false;
};

std::array<Unpickler::Handler, 256> Unpickler::handlers() {
  constexpr Opcode kOpcodes[] = {
      {'(', &Unpickler::mark},       {'.', &Unpickler::stop},        {'N', &Unpickler::none},
      {0x88, &Unpickler::newtrue},   {0x89, &Unpickler::newfalse},   {'J', &Unpickler::binint},
      {'K', &Unpickler::binint1},    {'M', &Unpickler::binint2},     {0x8a, &Unpickler::long1},
      {'G', &Unpickler::binfloat},   {'X', &Unpickler::binunicode},  {'}', &Unpickler::empty_dict},
      {']', &Unpickler::empty_list}, {')', &Unpickler::empty_tuple}, {'t', &Unpickler::tuple},
      {0x85, &Unpickler::tuple1},    {0x86, &Unpickler::tuple2},     {0x87, &Unpickler::tuple3},
      {'a', &Unpickler::append},     {'e', &Unpickler::appends},     {'s', &Unpickler::setitem},
      {'u', &Unpickler::setitems},   {'q', &Unpickler::binput},      {'r', &Unpickler::long_binput},
      {'h', &Unpickler::binget},     {'j', &Unpickler::long_binget}, {'c', &Unpickler::global},
      {'R', &Unpickler::reduce},     {'b', &Unpickler::build},       {'Q', &Unpickler::binpersid}};
  std::array<Handler, 256> table{};
  for (const Opcode& opcode : kOpcodes) table[opcode.code] = opcode.run;
  return table;
}

const std::array<Unpickler::Handler, 256> Unpickler::kHandlers = Unpickler::handlers();

}  // namespace

Pickle read_pickle(std::string_view bytes, const std::string& what, const FindStorage& find_storage) {
  return Unpickler(bytes, what, find_storage).read();
}

}  // namespace danceflux::io
