// Qwen2 and Qwen2.5: biases on q, k and v; some base models with a sliding window in their upper layers.
#include "model/families/family.h"
#include "model/rope_config.h"

namespace rarefy::model {
namespace {

constexpr int32_t kMaxWindow = 1 << 30;

Status read_special(const Json& decoder, ModelConfig& config) {
  Fields fields(decoder);
  const bool windows = fields.boolean("use_sliding_window", false);
  const int32_t window = fields.integer("sliding_window", 4096, 1, kMaxWindow);
  const int32_t first_windowed = fields.integer("max_window_layers", 28, 0, kMaxWindow);
  RAREFY_RETURN_IF_ERROR(fields.status());
  // A null window means none; a missing one takes the default.
  if (windows && (fields.has("sliding_window") || !decoder.contains("sliding_window"))) config.sliding_window = window;
  RAREFY_RETURN_IF_ERROR(read_layer_kinds(decoder, config, [&](int32_t layer) {
    return config.sliding_window > 0 && layer >= first_windowed ? LayerKind::sliding_attention : LayerKind::full_attention;
  }));
  RAREFY_RETURN_IF_ERROR(read_rope(decoder, {}, config, config.rope));
  config.local_rope = config.rope;
  return {};
}

}  // namespace

const Family qwen2_family = {.name = "qwen2",
                             .model_type = "qwen2",
                             .wrapper_type = "",
                             .architecture = "Qwen2ForCausalLM",
                             .vocab_size = 151936,
                             .hidden_size = 4096,
                             .intermediate_size = 22016,
                             .num_hidden_layers = 32,
                             .num_attention_heads = 32,
                             .num_key_value_heads = 32,
                             .max_position_embeddings = 32768,
                             .reads_head_dim = false,
                             .qkv_bias = BiasRule::always,
                             .output_bias = BiasRule::never,
                             .blocks = {},
                             .read_special = read_special};

}  // namespace rarefy::model
