// Resolves the rotary-embedding settings of a config.json, of either generation, to one inverse frequency per pair of
// components and an attention factor. Types: default, linear, llama3, yarn.
#pragma once

#include <string_view>

#include "model/json_file.h"
#include "rarefy/core/status.h"
#include "rarefy/model/config.h"

namespace rarefy::model {

// Where a family keeps the settings of one kind of layer, and what stands for missing keys.
struct RopeSource {
  std::string_view layer_type = "";           // key of nested rope_parameters; empty: one set for all layers
  std::string_view theta_key = "rope_theta";  // at the top level of older files
  double theta = 10000.0;
  double partial_rotary_factor = 1.0;
  bool allows_partial = false;                // whether a partial_rotary_factor other than 1 is known to the family
  bool ignores_rope_scaling = false;          // the rope_scaling of older files is meant for other layers
  const Json* settings_if_missing = nullptr;  // where the file has neither rope_scaling nor rope_parameters
};

// The object that holds the settings; an empty object when the file has none. `decoder` and `source` outlive it.
const Json* find_rope_settings(const Json& decoder, const RopeSource& source);

// `decoder` is the decoder's object. YaRN raises config.max_position_embeddings to factor times the original context where
// that is more. Pre: config.head_dim is even and positive, max_position_embeddings positive.
Status read_rope(const Json& decoder, const RopeSource& source, ModelConfig& config, RopeConfig& rope);

}  // namespace rarefy::model
