// Rows by their number. V vocabulary, D width.
#include "ops/check.h"
#include "ops/ops.h"

namespace danceflux::ops {

Tensor embedding(const Tensor& table, const Tensor& ids, std::span<const std::int32_t> host_ids) {
  Backend& device = enter("embedding", table);
  check_same_device("embedding", table, ids);
  check_stored("embedding", "table", table);
  check_rank("embedding", "table [V, D]", table, 2);
  require(ids.dtype() == DType::i32, "ERR_DTYPE", "embedding: expected ids in i32, got ",
          name_of(ids.dtype()));
  require(ids.numel() == static_cast<std::int64_t>(host_ids.size()), "ERR_SHAPE", "embedding: expected ",
          ids.numel(), " host ids for ", ids.shape(), ", got ", host_ids.size());
  for (const std::int32_t id : host_ids) {
    require(id >= 0 && id < table.dim(0), "ERR_SHAPE", "embedding: expected ids from 0 to ", table.dim(0) - 1,
            ", got ", id);
  }
  Shape shape = ids.shape();
  shape.push_back(table.dim(1));
  const Tensor out = device.empty(shape, compute_dtype(device, table));
  const Tensor flat_ids = packed(ids).view({ids.numel()});
  device.gather_rows(out.view({ids.numel(), table.dim(1)}), table, flat_ids);
  observed("embedding", out);
  if (!tracked(table)) return out;
  return recorded("embedding", out, {table}, [flat_ids, shape = table.shape()](Gradients& gradients) {
    const Tensor dy = reshape(gradients.output(), {flat_ids.numel(), shape[1]});
    Backend& device = backend_of(dy);
    if (const Tensor sum = gradients.accumulator(0)) return device.scatter_add_rows(sum, dy, flat_ids);
    Tensor dtable = device.empty(shape);
    device.fill(dtable, 0);
    device.scatter_add_rows(dtable, dy, flat_ids);
    gradients.add(0, std::move(dtable));
  });
}

}  // namespace danceflux::ops
