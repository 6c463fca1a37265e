// What collectives must compute, on any engine: exact integers with zero tolerance, and the order of sums.
#pragma once
#include <string>
#include <vector>

#include "ranks.h"

namespace danceflux::test {

inline constexpr DType kDTypes[] = {DType::f32, DType::bf16, DType::f16};

/// An integer that sums over 8 ranks without rounding in any dtype.
float number(std::int64_t i, int rank);
std::vector<float> numbers(std::int64_t count, int rank, std::int64_t from = 0);
/// Those of `ranks` ranks, reduced.
std::vector<float> reduced(std::int64_t count, int ranks, CollectiveReduce op, std::int64_t from = 0);
/// Bit for bit.
void check_same(const std::vector<float>& got, const std::vector<float>& wanted, const std::string& what);

// Each makes tensors with margins, calls, and checks every element. `count` is that of the smaller tensor.
void check_all_reduce(const Rank& rank, std::int64_t count, DType dtype, CollectiveReduce op);
void check_reduce_scatter(const Rank& rank, std::int64_t count, DType dtype, CollectiveReduce op,
                          bool in_place);
void check_all_gather(const Rank& rank, std::int64_t count, DType dtype, bool in_place);
void check_broadcast(const Rank& rank, std::int64_t count, DType dtype, int root);
/// Every collective on every size and dtype.
void check_everything(const Rank& rank, const std::vector<std::int64_t>& counts);
/// Numbers whose sum depends on the order, against the pairwise tree of ReduceArgs.
void check_tree(const Rank& rank, DType dtype, std::int64_t count);

}  // namespace danceflux::test
