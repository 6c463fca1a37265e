// Attention as cuDNN can be told of it. B images, H heads, Lq and Lk tokens of queries and keys, K head
// width.
#pragma once
#include "backend/cuda/dnn_graph.h"

namespace danceflux::cuda {

/// unified: one operation for all of it. composite: the products, sums and exponentials that it is made of;
/// the engines that fuse them know attention by that pattern.
enum class AttentionWay : std::uint8_t { unified, composite };
enum class AttentionPass : std::uint8_t { forward, backward };

/// What there is to choose by.
struct AttentionOffer {
  std::size_t version;  // of cuDNN
  int capability;       // of the device, its major number
  bool repeatable;      // wanted: the same bits again
  std::int64_t queries, keys;
};
/// Whether this cuDNN has a way, and is known to do it right.
bool has_way(AttentionWay way, AttentionPass pass, const AttentionOffer& offer);

/// q, out [B, Lq, H, K], k, v [B, Lk, H, K], lse [B, H, Lq]; the gradients have the shapes of what they are
/// of.
struct AttentionTensors {
  const Tensor &q, &k, &v, &out, &lse;
  const Tensor *dout = nullptr, *dq = nullptr, *dk = nullptr, *dv = nullptr;
};

/// A graph of `images` of these, and how to start its plan.
struct AttentionGraph {
  DnnGraph graph;
  /// f32 memory that the plan wants beside the call's tensors, as [B, H, Lq, 1 or K].
  bool needs_row_sums = false, needs_dq_sums = false;
};
/// A plan of it is given q, k, v, out, lse, the scale; backward dout, dq, dk, dv as well; then the number one
/// and the row sums, then the sums of dq, where they are needed.
AttentionGraph attention_graph(AttentionWay way, AttentionPass pass, const AttentionTensors& tensors,
                               std::int64_t images, bool repeatable);

}  // namespace danceflux::cuda
