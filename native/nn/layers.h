// The layers that the models are made of. Parameters carry the checkpoint's names (weight, bias).
//
// Legend: B batch, L tokens, D width, C channels, V vocabulary; in, out: widths of a linear layer.
#pragma once
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "nn/module.h"
#include "ops/ops.h"

namespace danceflux::nn {

/// x [..., in] -> [..., out], out = x weight^T + bias. One stored weight [out, in] may be published as
/// several parts, each with the rows of one checkpoint layer; low-rank adapters (nn/lora.h) belong to parts.
class Linear : public Module {
 public:
  struct Part {
    std::string name;  // "attn.to_q"; empty when there is only one
    std::int64_t rows;
  };

  Linear(Module& parent, std::string name, std::int64_t in, std::int64_t out, bool bias = true);
  Linear(Module& parent, std::vector<Part> parts, std::int64_t in, bool bias = true);

  Tensor operator()(const Tensor& x) const;
  /// f(linear(x))
  Tensor activated(UnaryOp f, const Tensor& x) const;
  /// One tensor [..., rows] per part: views of one product.
  std::vector<Tensor> parts(const Tensor& x) const;

  const std::vector<Part>& part_list() const { return parts_; }
  std::int64_t in_width() const { return in_; }

  /// y_part += scale * (x A^T) B^T for the chosen parts. The A of all of them [parts * rank, in] are one
  /// stored tensor. Throws ERR_LORA if there are adapters already, ERR_DEVICE before materialize(). Values
  /// are uninitialised.
  void add_adapters(const std::vector<std::size_t>& chosen, int rank, float scale);
  void remove_adapters();
  /// Adds the adapters' effect to the weight itself and removes them. The weight keeps its storage dtype.
  void merge_adapters();
  bool has_adapters() const { return a_ != nullptr; }

 private:
  struct Adapter {
    std::size_t part;
    std::shared_ptr<Parameter> b;  // [rows, rank]
  };
  std::vector<Tensor> parts_inside(const Tensor& x) const;
  void add_adapter_effects(std::vector<Tensor>& outputs, const Tensor& x) const;

  std::vector<Part> parts_;
  std::int64_t in_;
  std::shared_ptr<Parameter> weight_, bias_;
  std::shared_ptr<Parameter> a_;  // [adapters * rank, in]
  std::vector<Adapter> adapters_;
  int rank_ = 0;
  float scale_ = 1;
};

/// x [..., D], with weight and bias [D].
class LayerNorm : public Module {
 public:
  LayerNorm(Module& parent, std::string name, std::int64_t width, float eps);
  Tensor operator()(const Tensor& x) const;

 private:
  std::shared_ptr<Parameter> weight_, bias_;
  float eps_;
};

/// x [..., D], with weight [D]: x / sqrt(mean(x^2) + eps) * weight.
class RmsNorm : public Module {
 public:
  RmsNorm(Module& parent, std::string name, std::int64_t width, float eps);
  Tensor operator()(const Tensor& x) const;
  /// rope(norm(x)); x [B, L, H, D], cos and sin [L, D/2].
  Tensor rotated(const Tensor& x, const Tensor& cos, const Tensor& sin) const;

 private:
  std::shared_ptr<Parameter> weight_;
  float eps_;
};

/// x [B, C, ...], with weight and bias [C].
class GroupNorm : public Module {
 public:
  GroupNorm(Module& parent, std::string name, std::int64_t channels, int groups, float eps);
  Tensor operator()(const Tensor& x) const;
  /// silu(norm(x))
  Tensor silu(const Tensor& x) const;

 private:
  std::shared_ptr<Parameter> weight_, bias_;
  int groups_;
  float eps_;
};

/// x [B, in, h, w] -> [B, out, oh, ow], weight [out, in, kernel, kernel].
class Conv2d : public Module {
 public:
  Conv2d(Module& parent, std::string name, std::int64_t in, std::int64_t out, int kernel,
         const ConvArgs& args, bool bias = true);
  Tensor operator()(const Tensor& x) const;

 private:
  std::shared_ptr<Parameter> weight_, bias_;
  ConvArgs args_;
};

/// Token ids on the host, [batch, length] row-major.
struct TokenIds {
  std::span<const std::int32_t> values;
  std::int64_t batch = 1, length = 0;
};

/// Rows of a table [V, D].
class Embedding : public Module {
 public:
  Embedding(Module& parent, std::string name, std::int64_t rows, std::int64_t width);
  /// [batch, length, D]. Throws ERR_SHAPE when an id is not a row.
  Tensor operator()(const TokenIds& ids) const;
  /// The first `count` rows, [count, D].
  Tensor first(std::int64_t count) const;

 private:
  std::shared_ptr<Parameter> weight_;
};

}  // namespace danceflux::nn
