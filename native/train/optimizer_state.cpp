// The optimizer's state on disk: each rank writes its share, and any number of ranks reads all of them.
#include <algorithm>
#include <charconv>
#include <map>

#include "core/error.h"
#include "io/safetensors.h"
#include "train/optimizer.h"

namespace danceflux::train {
namespace {

constexpr const char* kStepsKey = "danceflux.optimizer.steps";
constexpr std::int64_t kMostElements = std::int64_t{1} << 60;  // sums of two places stay in range

/// A whole text as a number that is not negative, or -1.
std::int64_t whole_number(std::string_view text) {
  std::int64_t number = -1;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  return error == std::errc{} && end == text.data() + text.size() ? number : -1;
}

std::int64_t stored_steps(const io::TensorFile& file) {
  const auto entry = file.metadata().find(kStepsKey);
  require(entry != file.metadata().end(), "ERR_CHECKPOINT", file.path(),
          ": expected optimizer state, got another file");
  const std::int64_t steps = whole_number(entry->second);
  require(steps >= 0, "ERR_CHECKPOINT", file.path(), ": expected a step count, got \"", entry->second, "\"");
  return steps;
}

/// Elements [begin, end) of a state, as one file has them.
struct Piece {
  std::int64_t begin = 0, end = 0;
  bool whole = false;  // the tensor has the parameter's shape
  const io::FileTensor* tensor = nullptr;
  const io::TensorFile* file = nullptr;
};

/// What all files have together, by the name of the state.
class StoredState {
 public:
  explicit StoredState(std::span<const std::string> paths) {
    require(!paths.empty(), "ERR_CHECKPOINT", "optimizer: expected at least one file of state");
    for (const std::string& path : paths) {
      files_.push_back(io::open_tensor_file(path));
      const std::int64_t steps = stored_steps(*files_.back());
      require(files_.size() == 1 || steps == steps_, "ERR_CHECKPOINT", path, ": expected state after ",
              steps_, " steps as in ", paths.front(), ", got ", steps);
      steps_ = steps;
      for (const io::FileTensor& tensor : files_.back()->tensors()) add(*files_.back(), tensor);
    }
    for (auto& [name, pieces] : states_) {
      std::sort(pieces.begin(), pieces.end(),
                [](const Piece& a, const Piece& b) { return a.begin < b.begin; });
    }
  }

  std::int64_t steps() const { return steps_; }
  std::size_t size() const { return states_.size(); }
  const std::string& path() const { return files_.front()->path(); }

  /// Sorted and without a gap from 0 to the end. Throws ERR_CHECKPOINT.
  const std::vector<Piece>& pieces(const std::string& name, const Shape& shape) const {
    const auto found = states_.find(name);
    require(found != states_.end(), "ERR_CHECKPOINT", path(), ": expected ", name,
            ", got none: a file is missing, or it was written with other trainable parameters or options");
    std::int64_t place = 0;
    for (const Piece& piece : found->second) {
      require(!piece.whole || piece.tensor->shape == shape, "ERR_CHECKPOINT", piece.file->path(), ": ", name,
              ": expected shape ", shape, ", got ", piece.tensor->shape);
      require(piece.begin == place, "ERR_CHECKPOINT", piece.file->path(), ": ", name,
              ": expected a part from element ", place, " on, got one from ", piece.begin,
              ": a file is missing, or there is one too many");
      place = piece.end;
    }
    require(place == shape.numel(), "ERR_CHECKPOINT", path(), ": ", name, ": expected ", shape.numel(),
            " elements, got ", place, ": a file is missing, or it was written for another model");
    return found->second;
  }

 private:
  void add(const io::TensorFile& file, const io::FileTensor& tensor) {
    const std::size_t mark = tensor.name.rfind('@');
    const bool whole = mark == std::string::npos;
    const std::int64_t begin = whole ? 0 : whole_number(std::string_view(tensor.name).substr(mark + 1));
    const bool good = begin >= 0 && begin <= kMostElements && (whole || tensor.shape.rank() == 1);
    require(good, "ERR_CHECKPOINT", file.path(), ": ", tensor.name,
            ": expected a flat part that begins at an element, got shape ", tensor.shape);
    states_[tensor.name.substr(0, mark)].push_back(
        {begin, begin + tensor.shape.numel(), whole, &tensor, &file});
  }

  std::vector<std::shared_ptr<io::TensorFile>> files_;
  std::map<std::string, std::vector<Piece>> states_;
  std::int64_t steps_ = 0;
};

/// Elements [begin, end) on the host.
std::vector<float> read_range(const std::vector<Piece>& pieces, std::int64_t begin, std::int64_t end) {
  std::vector<float> range(static_cast<std::size_t>(end - begin)), piece_values;
  for (const Piece& piece : pieces) {
    const std::int64_t first = std::max(begin, piece.begin), last = std::min(end, piece.end);
    if (first >= last) continue;
    float* const to = range.data() + (first - begin);
    if (!piece.whole) {
      io::read_rows(*piece.tensor, first - piece.begin, last - first, false, DType::f32, to);
      piece.file->release(*piece.tensor);
      continue;
    }
    piece_values.resize(static_cast<std::size_t>(piece.end));
    io::read_rows(*piece.tensor, 0, -1, false, DType::f32, piece_values.data());
    piece.file->release(*piece.tensor);
    std::copy_n(piece_values.data() + first, last - first, to);
  }
  return range;
}

}  // namespace

void Optimizer::for_each_state(const std::function<void(const State&)>& visit) const {
  for (const Entry& entry : entries_) {
    visit({entry.name + ".master", entry, entry.master});
    visit({entry.name + ".m", entry, entry.m});
    visit({entry.name + ".v", entry, entry.v});
    if (entry.average) visit({entry.name + ".average", entry, entry.average});
  }
}

void Optimizer::save(const std::string& path) const {
  require(!swapped_, "ERR_OPTION",
          "optimizer: the running average is in the weights' place; swap it back before saving");
  std::vector<io::TensorToWrite> tensors;
  for_each_state([&](const State& state) {
    const Entry& entry = state.entry;
    const bool whole = entry.end - entry.begin == entry.shape.numel();
    tensors.push_back({whole ? state.name : state.name + "@" + std::to_string(entry.begin), DType::f32,
                       whole ? entry.shape : state.tensor.shape(),
                       [tensor = state.tensor](std::byte* to) { backend_of(tensor).download(to, tensor); }});
  });
  io::write_safetensors(path, std::move(tensors), {{kStepsKey, std::to_string(steps_)}});
}

void Optimizer::load(std::span<const std::string> paths) {
  const StoredState stored(paths);
  // All of it is checked before any of it is taken: also what other ranks will read.
  const int states = options_.ema_decay > 0 ? 4 : 3;
  std::size_t wanted = 0;
  const auto check = [&](const std::string& name, const Shape& shape) {
    for (const char* state : {".master", ".m", ".v", ".average"}) {
      if (states == 4 || std::string_view(state) != ".average") stored.pieces(name + state, shape), ++wanted;
    }
  };
  if (sync_) {
    for (const TrainedPart& part : sync_->layout().parts) check(part.name, part.shape);
  } else {
    for (const Entry& entry : entries_) check(entry.name, entry.shape);
  }
  require(wanted == stored.size(), "ERR_CHECKPOINT", stored.path(), ": expected ", wanted, " tensors, got ",
          stored.size(), ": it was written with other trainable parameters or options");
  for_each_state([&](const State& state) {
    const Entry& entry = state.entry;
    const auto host = read_range(stored.pieces(state.name, entry.shape), entry.begin, entry.end);
    backend_of(state.tensor).upload(state.tensor, host.data());
  });
  write_values();
  steps_ = stored.steps();
  swapped_ = false;
}

}  // namespace danceflux::train
