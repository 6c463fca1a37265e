#include "ascend_double/ops/attention.h"

namespace ascend_double {
namespace {

constexpr std::int64_t kCompressed = 2048;  // side of the mask in the compressed sparse modes

void check_sizes(Plan& plan, AttentionInputs& inputs, std::int64_t heads) {
  AttentionSizes& s = inputs.sizes;
  s = {inputs.q.size(0), heads,           inputs.k.size(1), inputs.q.size(2), inputs.k.size(2),
       inputs.q.size(3), inputs.v.size(3)};
  plan.require(inputs.k.size(0) == s.batch && inputs.v.size(0) == s.batch,
               "batches of query, key and value differ");
  plan.require(inputs.v.size(1) == s.key_heads && inputs.v.size(2) == s.keys,
               "key and value differ in heads or length");
  plan.require(inputs.k.size(3) == s.width && s.value_width <= s.width, "head widths: expected q = k >= v");
  plan.require(s.width >= 1 && s.width <= 512, "head width %lld of at most 512",
               static_cast<long long>(s.width));
  plan.require(s.heads >= 1 && s.heads <= 256, "headNum %lld of at most 256",
               static_cast<long long>(s.heads));
  plan.require(s.key_heads > 0 && s.heads % s.key_heads == 0, "%lld heads over %lld heads of keys",
               static_cast<long long>(s.heads), static_cast<long long>(s.key_heads));
  plan.require(s.queries >= 1 && s.keys >= 1 && s.queries <= 1 << 20 && s.keys <= 1 << 20, "lengths 1 to 1M");
}

void check_bias(Plan& plan, const AttentionInputs& inputs) {
  if (!inputs.bias) return;
  const AttentionSizes& s = inputs.sizes;
  plan.require_type(inputs.bias, "realShift", inputs.q.dtype);
  const Dims& shape = inputs.bias.shape;
  plan.require(shape == Dims{s.batch, s.heads, s.queries, s.keys} ||
                   shape == Dims{1, s.heads, s.queries, s.keys} || shape == Dims{s.batch, s.heads, 1, s.keys},
               "realShift: %s for %lld heads of %lld by %lld", text_of(shape).c_str(),
               static_cast<long long>(s.heads), static_cast<long long>(s.queries),
               static_cast<long long>(s.keys));
}

void check_mask(Plan& plan, const AttentionInputs& inputs) {
  const AttentionSizes& s = inputs.sizes;
  const bool compressed = inputs.sparse_mode == 2 || inputs.sparse_mode == 3;
  plan.require(inputs.sparse_mode >= 0 && inputs.sparse_mode <= 3, "sparseMode %lld",
               static_cast<long long>(inputs.sparse_mode));
  plan.require(inputs.mask || inputs.sparse_mode == 0, "sparseMode %lld wants attenMask",
               static_cast<long long>(inputs.sparse_mode));
  if (!inputs.mask) return;
  const Dims& shape = inputs.mask.shape;
  if (compressed) {
    plan.require_shape(inputs.mask, "attenMask", {kCompressed, kCompressed});
    return;
  }
  plan.require(shape == Dims{s.batch, s.heads, s.queries, s.keys} ||
                   shape == Dims{s.batch, 1, s.queries, s.keys} || shape == Dims{1, 1, s.queries, s.keys} ||
                   shape == Dims{s.queries, s.keys},
               "attenMask: %s for %lld by %lld", text_of(shape).c_str(), static_cast<long long>(s.queries),
               static_cast<long long>(s.keys));
}

}  // namespace

Operand as_heads(Plan& plan, const Operand& operand, const std::string& layout, std::int64_t heads,
                 const char* which) {
  Operand view = operand;
  const auto axes = [&](std::initializer_list<std::size_t> order) {
    view.shape.clear();
    view.strides.clear();
    for (const std::size_t axis : order) {
      view.shape.push_back(operand.shape[axis]);
      view.strides.push_back(operand.strides[axis]);
    }
  };
  if (layout == "BNSD") {
    plan.require(operand.rank() == 4, "%s: expected [B, N, S, D]", which);
    return view;
  }
  if (layout == "BSND") {
    plan.require(operand.rank() == 4, "%s: expected [B, S, N, D]", which);
    axes({0, 2, 1, 3});
    return view;
  }
  plan.require(layout == "BSH" || layout == "SBH", "inputLayout %s: expected BSH, SBH, BSND or BNSD",
               layout.c_str());
  plan.require(operand.rank() == 3, "%s: expected rank 3 in layout %s", which, layout.c_str());
  plan.require(heads > 0 && operand.size(2) % heads == 0, "%s: H %lld in %lld heads", which,
               static_cast<long long>(operand.size(2)), static_cast<long long>(heads));
  const bool batch_first = layout == "BSH";
  const std::size_t b = batch_first ? 0 : 1, s = batch_first ? 1 : 0;
  const std::int64_t width = operand.size(2) / heads;
  view.shape = {operand.shape[b], heads, operand.shape[s], width};
  view.strides = {operand.strides[b], width * operand.strides[2], operand.strides[s], operand.strides[2]};
  return view;
}

AttentionInputs attention_inputs(Plan& plan, const AttentionArguments& arguments,
                                 const std::function<void(Plan&, const AttentionInputs&)>& between) {
  AttentionInputs inputs;
  const std::string layout = plan.text(arguments.layout, "inputLayout");
  const Operand q = plan.in(arguments.q, "query", kFloats, 3, 4),
                k = plan.in(arguments.k, "key", kFloats, 3, 4);
  const Operand v = plan.in(arguments.v, "value", kFloats, 3, 4);
  plan.require_type(k, "key", q.dtype);
  plan.require_type(v, "value", q.dtype);
  inputs.q = as_heads(plan, q, layout, arguments.heads, "query");
  plan.require(inputs.q.size(1) == arguments.heads, "headNum %lld, but query has %lld",
               static_cast<long long>(arguments.heads), static_cast<long long>(inputs.q.size(1)));
  // In the H layouts the width of a head is the query's.
  const bool joined = layout == "BSH" || layout == "SBH";
  const std::int64_t key_heads = joined ? k.size(2) / inputs.q.size(3) : 0;
  inputs.k = as_heads(plan, k, layout, key_heads, "key");
  inputs.v = as_heads(plan, v, layout, key_heads, "value");
  check_sizes(plan, inputs, arguments.heads);
  between(plan, inputs);
  inputs.bias = plan.optional(arguments.bias, "realShift", kFloats, 4, 4);
  const Operand drop = plan.optional(arguments.drop_mask, "dropMask", Types{ACL_UINT8, ACL_BOOL});
  const Operand padding = plan.optional(arguments.padding_mask, "paddingMask", kFloats);
  inputs.mask = plan.optional(arguments.mask, "attenMask", Types{ACL_BOOL, ACL_UINT8}, 2, 4);
  plan.require(!padding, "paddingMask is reserved: expected NULL");
  plan.require(arguments.keep_probability > 0 && arguments.keep_probability <= 1, "keepProb in (0, 1]");
  plan.require(!drop && arguments.keep_probability == 1,
               "the double has no dropout: expected keepProb 1 and no dropMask");
  plan.require(arguments.bias_type == 0 || arguments.bias_type == 1, "pseType %lld: the double has 0 and 1",
               static_cast<long long>(arguments.bias_type));
  plan.require(arguments.inner_precise >= 0 && arguments.inner_precise <= 2, "innerPrecise 0 to 2");
  inputs.scale = static_cast<float>(arguments.scale);
  inputs.bias_scaled = arguments.bias_type == 1;
  inputs.sparse_mode = arguments.sparse_mode;
  inputs.before = arguments.before;
  inputs.after = arguments.after;
  check_bias(plan, inputs);
  check_mask(plan, inputs);
  return inputs;
}

Scores::Scores(const Launch& launch, const AttentionInputs& inputs)
    : inputs_(inputs), bias_(load_optional(launch, inputs.bias)), mask_(load_optional(launch, inputs.mask)) {
  const auto step = [](const Operand& operand, int axis, std::int64_t behind) {
    return operand.rank() == 4 && operand.size(axis) > 1 ? behind : 0;
  };
  if (inputs.bias) {
    const std::int64_t keys = inputs.bias.size(3), area = inputs.bias.size(2) * keys;
    bias_steps_[0] = step(inputs.bias, 0, inputs.bias.size(1) * area);
    bias_steps_[1] = step(inputs.bias, 1, area);
    bias_steps_[2] = step(inputs.bias, 2, keys);
  }
  if (inputs.mask && inputs.mask.rank() == 4) {
    const std::int64_t area = inputs.mask.size(2) * inputs.mask.size(3);
    mask_steps_[0] = step(inputs.mask, 0, inputs.mask.size(1) * area);
    mask_steps_[1] = step(inputs.mask, 1, area);
  }
}

// What the sparse modes and the band of preTokens and nextTokens take away, besides attenMask.
bool Scores::masked(std::int64_t row, std::int64_t column) const {
  const AttentionSizes& s = inputs_.sizes;
  switch (inputs_.sparse_mode) {
    case 0:
      return column < row - inputs_.before || column > row + inputs_.after;
    case 2:
      return column > row;
    case 3:
      return column > row + s.keys - s.queries;
    default:
      return false;
  }
}

void Scores::compute(std::int64_t batch, std::int64_t head, const float* q, const float* k,
                     float* scores) const {
  const AttentionSizes& s = inputs_.sizes;
  gemm(s.queries, s.keys, s.width, {q, s.width, 1}, {k, 1, s.width}, scores, false);
  const float* bias = bias_.data() + batch * bias_steps_[0] + head * bias_steps_[1];
  const bool full = inputs_.mask && inputs_.sparse_mode < 2;
  const float* mask = full ? mask_.data() + batch * mask_steps_[0] + head * mask_steps_[1] : nullptr;
  for (std::int64_t row = 0; row < s.queries; ++row)
    for (std::int64_t column = 0; column < s.keys; ++column) {
      float& score = scores[row * s.keys + column];
      const float shift = inputs_.bias ? bias[row * bias_steps_[2] + column] : 0;
      score = inputs_.bias_scaled ? inputs_.scale * (score + shift) : inputs_.scale * score + shift;
      if (masked(row, column) || (mask && mask[row * s.keys + column] != 0))
        score = -std::numeric_limits<float>::infinity();
    }
}

}  // namespace ascend_double
