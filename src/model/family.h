// Family: what distinguishes one model family from another, as data. Supporting a family whose layers have these parts means
// adding one entry to the table in family.cc; the config reader, the weight loader and the forward pass are the same for all.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace rarefy::model {

// Where a linear layer's bias comes from.
enum class BiasRule : int32_t { never = 0, from_config = 1, always = 2 };

struct Family {
  std::string_view model_type;    // config.json: "llama"
  std::string_view architecture;  // config.json, where model_type is missing: "LlamaForCausalLM"

  // Values of keys that config.json leaves out: the defaults of the family's config class in transformers.
  int32_t vocab_size;
  int32_t hidden_size;
  int32_t intermediate_size;
  int32_t num_hidden_layers;
  int32_t num_attention_heads;
  int32_t num_key_value_heads;  // 0 = num_attention_heads
  int32_t max_position_embeddings;
  double rms_norm_eps;
  int32_t bos_token_id;  // -1 = none
  int32_t eos_token_id;  // -1 = none

  bool reads_head_dim;   // else head_dim = hidden_size / num_attention_heads, whatever the file says
  BiasRule qkv_bias;     // from_config: attention_bias
  BiasRule output_bias;  // from_config: attention_bias
  BiasRule mlp_bias;     // from_config: mlp_bias
};

std::span<const Family> families();
// Null when unknown.
const Family* find_family(std::string_view model_type, std::string_view architecture);
// "llama, qwen2"
std::string supported_model_types();

}  // namespace rarefy::model
