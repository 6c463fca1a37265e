// Forwards: of the reference backend against numbers that PyTorch 2.13 gives, of every device against the
// reference backend.
#include <algorithm>
#include <set>

#include "backend/registry.h"
#include "harness.h"
#include "op_readers.h"
#include "op_rows.h"
#include "reference_backend.h"
#include "wrapped_backend.h"

namespace danceflux::test {
namespace {

void compare(Complaints& complaints, const OpCase& row, const std::string& device, const Columns& got,
             const Columns& wanted, double allowed) {
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    const double error = error_of(got.at(i), wanted[i]);
    if (!(error <= allowed)) {
      complaints.add(row.name, " on ", device, ", result ", i, ": expected an error of ", allowed,
                     " or less, got ", error);
    }
  }
}

/// Image `b` of every batched input, the others as they are.
std::vector<Tensor> image_of(const OpCase& row, std::span<const Tensor> inputs, std::int64_t b) {
  std::vector<Tensor> single;
  for (std::size_t i = 0; i < inputs.size(); ++i)
    single.push_back(row.inputs[i].batched ? inputs[i].narrow(0, b, 1) : inputs[i]);
  return single;
}

std::int64_t batch_size(const OpCase& row) {
  for (const OpInput& input : row.inputs) {
    if (input.batched) return input.shape[0];
  }
  return 0;
}

}  // namespace

TEST("ops: every device agrees with the reference backend") {
  const auto reference = std::make_shared<ReferenceBackend>();
  const auto devices = test_devices();
  Complaints complaints;
  for (const OpCase& row : all_cases()) {
    if (row.size != Size::test) continue;
    const Columns wanted = forward_values(*reference, row);
    for (const auto& [name, device] : devices) {
      if (!takes(*device, row)) continue;
      complaints.during(row.name + " on " + name, [&, &device = device, &name = name] {
        const double allowed = forward_tolerance(row.family, row.activations) + result_rounding(*device, row);
        compare(complaints, row, name, forward_values(*device, row), wanted, allowed);
      });
    }
  }
  complaints.finish();
}

TEST("ops: an image's result does not depend on the others in its batch") {
  Complaints complaints;
  for (const auto& [name, device] : test_devices()) {
    for (const OpCase& row : all_cases()) {
      if (row.size != Size::test || !takes(*device, row)) continue;
      complaints.during(row.name + " on " + name, [&, &device = device, &name = name] {
        const auto inputs = make_inputs(*device, row);
        const auto together = row.forward(inputs);
        for (std::int64_t b = 0; b < batch_size(row); ++b) {
          const auto alone = row.forward(image_of(row, inputs, b));
          for (std::size_t i = 0; i < alone.size(); ++i) {
            if (ops::to_host(alone[i]) == ops::to_host(together[i].narrow(0, b, 1))) continue;
            complaints.add(row.name, " on ", name, ": expected the same bits for image ", b, " alone");
          }
        }
      });
    }
  }
  complaints.finish();
}

TEST("ops: results and gradients have the same bits for every number of threads") {
  Complaints complaints;
  for (const auto& [name, device] : test_devices()) {
    if (!name.starts_with("cpu/")) continue;
    for (const int threads : {1, 3, 5}) {
      const auto other =
          open_backend("cpu", 0, label("{\"threads\":", threads, ", \"isa\": \"" + name.substr(4) + "\"}"));
      for (const OpCase& row : op_cases()) {
        if (row.size != Size::test) continue;
        const bool same =
            forward_values(*other, row) == forward_values(*device, row) &&
            (!row.differentiable || gradient_values(*other, row) == gradient_values(*device, row));
        if (!same)
          complaints.add(row.name, " on ", name, ": expected the same bits with ", threads,
                         " threads as with 2");
      }
    }
  }
  complaints.finish();
}

TEST("ops: no kernel writes past its tensors or reads what was never written") {
  for (const auto& [name, inner] : test_devices()) {
    if (!name.starts_with("cpu/") && !name.ends_with("/emulated"))
      continue;  // the guards are read by the host
    const auto device = std::make_shared<WrappedBackend>(inner, true);
    Complaints complaints;
    for (const OpCase& row : all_cases()) {
      if (row.size != Size::test || !takes(*device, row)) continue;
      bool same = forward_values(*device, row) == forward_values(*inner, row);
      if (row.differentiable) same = same && gradient_values(*device, row) == gradient_values(*inner, row);
      if (!same) complaints.add(row.name, " on ", name, ": expected the same bits in memory of NaN");
      if (device->overruns) complaints.add(row.name, " on ", name, ": ", device->overruns, " damaged guards");
      device->overruns = 0;
    }
    complaints.finish();
  }
}

TEST("ops: the table has each name once and every shortcut") {
  std::set<std::string> names, shortcuts;
  for (const OpCase& row : op_cases()) {
    if (!names.insert(row.name).second)
      fail_at(__FILE__, __LINE__, "expected names that differ, got two rows \"", row.name, '"');
    shortcuts.insert(row.shortcut);
    shortcuts.insert(row.shortcut_backward);
  }
  for (const std::string& shortcut : shortcut_names()) {
    if (!shortcuts.contains(shortcut))
      fail_at(__FILE__, __LINE__, "expected a row for the shortcut ", shortcut);
  }
}

}  // namespace danceflux::test
