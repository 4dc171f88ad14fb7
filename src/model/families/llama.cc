// Llama 2 and 3.x.
#include "model/families/family.h"
#include "model/rope_config.h"

namespace rarefy::model {
namespace {

Status read_special(const Json& decoder, ModelConfig& config) {
  RAREFY_RETURN_IF_ERROR(read_layer_types(decoder, config));
  return read_rope(decoder, {}, config, config.rope);
}

}  // namespace

const Family llama_family = {.name = "llama",
                             .model_type = "llama",
                             .wrapper_type = "",
                             .architecture = "LlamaForCausalLM",
                             .vocab_size = 32000,
                             .hidden_size = 4096,
                             .intermediate_size = 11008,
                             .num_hidden_layers = 32,
                             .num_attention_heads = 32,
                             .max_position_embeddings = 2048,
                             .bos_token_id = 1,
                             .eos_token_id = 2,
                             .mlp_bias = BiasRule::from_config,
                             .blocks = {},
                             .read_special = read_special};

}  // namespace rarefy::model
