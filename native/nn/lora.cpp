#include "nn/lora.h"

#include <cmath>
#include <set>

#include "core/error.h"
#include "nn/layers.h"

namespace danceflux::nn {
namespace {

bool names_layer(const std::string& target, const std::string& layer) {
  return layer == target || layer.ends_with("." + target);
}

void for_each_linear(Module& model, const std::function<void(const std::string&, Linear&)>& visit) {
  model.walk({}, [&](const std::string& name, Module& module) {
    if (auto* linear = dynamic_cast<Linear*>(&module)) visit(name, *linear);
  });
}

/// What is to be done to one stored layer.
struct Plan {
  Linear* linear;
  std::vector<std::size_t> parts;
};

/// Throws before anything was changed, so that a refused request leaves the model alone.
std::vector<Plan> plan_adapters(Module& model, const LoraConfig& config, std::vector<std::string>& adapted) {
  std::vector<Plan> plans;
  std::set<std::string> unused(config.targets.begin(), config.targets.end());
  for_each_linear(model, [&](const std::string& name, Linear& linear) {
    require(!linear.has_adapters(), "ERR_LORA", "lora: expected a model without adapters, got some on \"",
            name, "\"");
    Plan plan{&linear, {}};
    for (std::size_t i = 0; i < linear.part_list().size(); ++i) {
      const std::string layer = join_names(name, linear.part_list()[i].name);
      bool chosen = false;
      for (const std::string& target : config.targets) {
        if (!names_layer(target, layer)) continue;
        chosen = true;
        unused.erase(target);
      }
      if (!chosen) continue;
      plan.parts.push_back(i);
      adapted.push_back(layer);
    }
    if (!plan.parts.empty()) plans.push_back(std::move(plan));
  });
  require(unused.empty(), "ERR_LORA", "lora: expected targets that name linear layers of the model, got \"",
          unused.empty() ? std::string() : *unused.begin(), "\"");
  return plans;
}

void initialise(Module& model, const NamedParameter& named, const LoraConfig& config,
                const UniformFill& uniform) {
  std::vector<float> values(static_cast<std::size_t>(named.shape.numel()), 0.0f);
  if (named.name.ends_with("lora_A.weight")) {
    uniform(values, config.seed, named.name);
    const auto bound = static_cast<float>(1 / std::sqrt(static_cast<double>(named.shape[1])));
    for (float& value : values) value *= bound;
  }
  model.load(named.name, DType::f32, values.data(), values.size());
}

}  // namespace

bool is_lora_name(const std::string& name) {
  return name.ends_with(".lora_A.weight") || name.ends_with(".lora_B.weight");
}

std::vector<std::string> add_lora(Module& model, const LoraConfig& config, const UniformFill& uniform) {
  require(config.rank > 0, "ERR_LORA", "lora: expected a rank of at least 1, got ", config.rank);
  require(!config.targets.empty(), "ERR_LORA", "lora: expected at least one target, got none");
  model.device();
  std::vector<std::string> adapted;
  const float scale = config.alpha / static_cast<float>(config.rank);
  for (const Plan& plan : plan_adapters(model, config, adapted)) {
    plan.linear->add_adapters(plan.parts, config.rank, scale);
  }
  for (const NamedParameter& named : model.named_parameters()) {
    if (is_lora_name(named.name)) initialise(model, named, config, uniform);
  }
  return adapted;
}

void remove_lora(Module& model) {
  for_each_linear(model, [](const std::string&, Linear& linear) { linear.remove_adapters(); });
}

void merge_lora(Module& model) {
  for_each_linear(model, [](const std::string&, Linear& linear) { linear.merge_adapters(); });
}

}  // namespace danceflux::nn
