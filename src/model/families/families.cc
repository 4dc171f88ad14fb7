#include <array>

#include "model/families/family.h"

namespace rarefy::model {
namespace {

constexpr std::array<const Family*, 5> kFamilies = {&llama_family, &qwen2_family, &gemma3_family, &ministral3_family,
                                                    &qwen35_family};

const LayerKind* find_kind(std::string_view name) {
  static constexpr std::array kKinds = {LayerKind::full_attention, LayerKind::sliding_attention,
                                        LayerKind::linear_attention};
  for (const LayerKind& kind : kKinds) {
    if (to_string(kind) == name) return &kind;
  }
  return nullptr;
}

}  // namespace

std::span<const Family* const> families() { return kFamilies; }

const Family* find_family(std::string_view model_type, std::string_view architecture) {
  for (const Family* family : kFamilies) {
    if (model_type.empty() ? architecture == family->architecture : model_type == family->model_type) return family;
  }
  return nullptr;
}

const Family* find_wrapped_family(std::string_view model_type) {
  for (const Family* family : kFamilies) {
    if (!family->wrapper_type.empty() && model_type == family->wrapper_type) return family;
  }
  return nullptr;
}

std::string supported_model_types() {
  std::string names;
  for (const Family* family : kFamilies) names += (names.empty() ? "" : ", ") + std::string(family->model_type);
  return names;
}

Status read_layer_types(const Json& decoder, ModelConfig& config) {
  const Json* types = Fields(decoder).find("layer_types");
  if (types == nullptr) return {};
  if (!types->is_array()) return Status::invalid_argument("expected layer_types to be a list, got " + brief_value(*types));
  if (types->size() != config.layers.size()) {
    return Status::invalid_argument("expected layer_types to have num_hidden_layers = " +
                                    std::to_string(config.num_layers) + " entries, got " + std::to_string(types->size()));
  }
  for (std::size_t layer = 0; layer < types->size(); ++layer) {
    const Json& type = (*types)[layer];
    const LayerKind* kind = type.is_string() ? find_kind(type.get<std::string>()) : nullptr;
    if (kind == nullptr) {
      return Status::unsupported("expected full_attention, sliding_attention or linear_attention for every layer, got " +
                                 brief_value(type) + " in layer_types");
    }
    config.layers[layer] = *kind;
  }
  return {};
}

}  // namespace rarefy::model
