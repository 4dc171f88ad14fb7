#include "model/family.h"

#include <array>

namespace rarefy::model {
namespace {

constexpr std::array kFamilies = {
    // Llama 2 and 3.x
    Family{.model_type = "llama",
           .architecture = "LlamaForCausalLM",
           .vocab_size = 32000,
           .hidden_size = 4096,
           .intermediate_size = 11008,
           .num_hidden_layers = 32,
           .num_attention_heads = 32,
           .num_key_value_heads = 0,
           .max_position_embeddings = 2048,
           .rms_norm_eps = 1e-6,
           .bos_token_id = 1,
           .eos_token_id = 2,
           .reads_head_dim = true,
           .qkv_bias = BiasRule::from_config,
           .output_bias = BiasRule::from_config,
           .mlp_bias = BiasRule::from_config},
    // Qwen2 and Qwen2.5
    Family{.model_type = "qwen2",
           .architecture = "Qwen2ForCausalLM",
           .vocab_size = 151936,
           .hidden_size = 4096,
           .intermediate_size = 22016,
           .num_hidden_layers = 32,
           .num_attention_heads = 32,
           .num_key_value_heads = 32,
           .max_position_embeddings = 32768,
           .rms_norm_eps = 1e-6,
           .bos_token_id = -1,
           .eos_token_id = -1,
           .reads_head_dim = false,
           .qkv_bias = BiasRule::always,
           .output_bias = BiasRule::never,
           .mlp_bias = BiasRule::never},
};

}  // namespace

std::span<const Family> families() { return kFamilies; }

const Family* find_family(std::string_view model_type, std::string_view architecture) {
  for (const Family& family : kFamilies) {
    if (model_type.empty() ? architecture == family.architecture : model_type == family.model_type) return &family;
  }
  return nullptr;
}

std::string supported_model_types() {
  std::string names;
  for (const Family& family : kFamilies) names += (names.empty() ? "" : ", ") + std::string(family.model_type);
  return names;
}

}  // namespace rarefy::model
