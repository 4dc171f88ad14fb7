// Ministral 3: Llama's layers with YaRN and a query temperature that grows with the position.
#include <algorithm>

#include "model/families/family.h"
#include "model/rope_config.h"

namespace rarefy::model {
namespace {

constexpr int32_t kMaxTokens = 1 << 30;
constexpr double kMaxBeta = 1e3;

// What the family's config class puts in place of missing rope settings.
Json default_rope() {
  return {{"rope_type", "yarn"},        {"rope_theta", 1e6}, {"factor", 16.0}, {"original_max_position_embeddings", 16384},
          {"beta_fast", 32.0},          {"beta_slow", 1.0},  {"mscale", 1.0},  {"mscale_all_dim", 1.0},
          {"llama_4_scaling_beta", 0.1}};
}

Status read_special(const Json& decoder, ModelConfig& config) {
  Fields fields(decoder);
  if (fields.has("sliding_window")) {
    config.sliding_window = fields.integer("sliding_window", 0, 1, kMaxTokens);
    std::fill(config.layers.begin(), config.layers.end(), LayerKind::sliding_attention);
  }
  RAREFY_RETURN_IF_ERROR(fields.status());
  RAREFY_RETURN_IF_ERROR(read_layer_types(decoder, config));
  const Json defaults = default_rope();
  const RopeSource source{.settings_if_missing = &defaults};
  RAREFY_RETURN_IF_ERROR(read_rope(decoder, source, config, config.rope));
  config.local_rope = config.rope;

  Fields rope(*find_rope_settings(decoder, source));
  config.query_temperature_beta = static_cast<float>(rope.number("llama_4_scaling_beta", 0.0, 0.0, kMaxBeta));
  config.query_temperature_tokens =
      rope.integer("original_max_position_embeddings", config.max_position_embeddings, 1, kMaxTokens);
  return rope.status();
}

}  // namespace

const Family ministral3_family = {.name = "ministral3",
                                  .model_type = "ministral3",
                                  .wrapper_type = "",  // mistral3 wraps other decoders too: the text_config has to say
                                  .architecture = "Ministral3ForCausalLM",
                                  .vocab_size = 131072,
                                  .hidden_size = 4096,
                                  .intermediate_size = 14336,
                                  .num_hidden_layers = 34,
                                  .num_attention_heads = 32,
                                  .num_key_value_heads = 8,
                                  .head_dim = 128,
                                  .max_position_embeddings = 262144,
                                  .rms_norm_eps = 1e-5,
                                  .bos_token_id = 1,
                                  .eos_token_id = 2,
                                  .qkv_bias = BiasRule::never,
                                  .output_bias = BiasRule::never,
                                  .blocks = {},
                                  .read_special = read_special};

}  // namespace rarefy::model
