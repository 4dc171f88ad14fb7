// Family: what distinguishes one model family from another. The config reader, the weight loader and the forward pass are the
// same for all; a family states the names it goes by, the defaults of its keys, the blocks its layers are made of, and reads
// the keys that only it has. Supporting a further family that is made of known blocks means one file in this folder, one line
// in families.cc, and a case of the golden fixtures.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "model/config_fields.h"
#include "model/json_file.h"
#include "rarefy/core/status.h"
#include "rarefy/model/config.h"

namespace rarefy::model {

// Where a linear layer's bias comes from.
enum class BiasRule : int32_t { never = 0, from_config = 1, always = 2 };

struct Family {
  std::string_view name;          // ModelConfig::architecture
  std::string_view model_type;    // of the decoder in config.json: "gemma3_text"
  std::string_view wrapper_type;  // of a checkpoint with more inputs than text: "gemma3"; empty = none
  std::string_view architecture;  // where model_type is missing: "Gemma3ForCausalLM"

  // Values of keys that config.json leaves out: the defaults of the family's config class in transformers.
  int32_t vocab_size = 0;
  int32_t hidden_size = 0;
  int32_t intermediate_size = 0;
  int32_t num_hidden_layers = 0;
  int32_t num_attention_heads = 0;
  int32_t num_key_value_heads = 0;  // 0 = num_attention_heads
  int32_t head_dim = 0;             // 0 = hidden_size / num_attention_heads
  int32_t max_position_embeddings = 0;
  double rms_norm_eps = 1e-6;
  int32_t bos_token_id = -1;  // -1 = none
  int32_t eos_token_id = -1;  // -1 = none

  bool reads_head_dim = true;                    // else head_dim is the default, whatever the file says
  BiasRule qkv_bias = BiasRule::from_config;     // from_config: attention_bias
  BiasRule output_bias = BiasRule::from_config;  // from_config: attention_bias
  BiasRule mlp_bias = BiasRule::never;           // from_config: mlp_bias
  std::string_view activation_key = "hidden_act";
  LayerBlocks blocks;  // its activation is the default of activation_key

  // Reads what is special: layer kinds, RoPE, scales, caps, sizes of linear layers. `config` holds all sizes and
  // attention_scale = head_dim^-1/2; one full-attention kind for every layer and head_dim rotating components are set already.
  Status (*read_special)(const Json& decoder, ModelConfig& config) = nullptr;
};

std::span<const Family* const> families();
// The family whose decoder has this model_type, or else this architecture; null when unknown.
const Family* find_family(std::string_view model_type, std::string_view architecture);
// The family whose wrapper has this model_type; null when unknown.
const Family* find_wrapped_family(std::string_view model_type);
// "llama, qwen2, ..."
std::string supported_model_types();

extern const Family llama_family, qwen2_family, gemma3_family, ministral3_family, qwen35_family;

// --- Shared by several families ---------------------------------------------------------------------------------------

// Replaces the kinds of layers by what layer_types says, where the key is there.
Status read_layer_types(const Json& decoder, ModelConfig& config);
// The same; without the key, layer i is `kind_of(i)`.
template <typename KindOf>
Status read_layer_kinds(const Json& decoder, ModelConfig& config, const KindOf& kind_of) {
  for (int32_t layer = 0; layer < config.num_layers; ++layer)
    config.layers[static_cast<std::size_t>(layer)] = kind_of(layer);
  return read_layer_types(decoder, config);
}

}  // namespace rarefy::model
