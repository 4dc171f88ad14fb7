// Gemma 3, text part: sandwich norms, norms of q and k, five layers with a sliding window for each one with full attention, and
// a rotation of its own for each of the two kinds.
#include <cmath>

#include "model/families/family.h"
#include "model/rope_config.h"

namespace rarefy::model {
namespace {

constexpr int32_t kMaxWindow = 1 << 30;
constexpr double kMaxScale = 1e6;

Status read_special(const Json& decoder, ModelConfig& config) {
  Fields fields(decoder);
  const int32_t pattern = fields.integer("sliding_window_pattern", 6, 1, kMaxWindow);
  config.sliding_window = fields.integer("sliding_window", 4096, 1, kMaxWindow);
  config.attention_scale =
      static_cast<float>(1.0 / std::sqrt(fields.number("query_pre_attn_scalar", 256.0, 1e-6, kMaxScale)));
  config.attention_soft_cap = static_cast<float>(fields.number("attn_logit_softcapping", 0.0, 1e-3, kMaxScale));
  config.final_soft_cap = static_cast<float>(fields.number("final_logit_softcapping", 0.0, 1e-3, kMaxScale));
  if (fields.boolean("use_bidirectional_attention", false)) {
    return Status::unsupported(
        "expected use_bidirectional_attention false (a decoder), got true; embedding models are not supported");
  }
  RAREFY_RETURN_IF_ERROR(fields.status());
  RAREFY_RETURN_IF_ERROR(read_layer_kinds(decoder, config, [&](int32_t layer) {
    return (layer + 1) % pattern == 0 ? LayerKind::full_attention : LayerKind::sliding_attention;
  }));
  RAREFY_RETURN_IF_ERROR(read_rope(decoder, {.layer_type = "full_attention", .theta = 1e6}, config, config.rope));
  // The window's rotation is never scaled by the rope_scaling of older files.
  return read_rope(
      decoder,
      {.layer_type = "sliding_attention", .theta_key = "rope_local_base_freq", .theta = 1e4, .ignores_rope_scaling = true},
      config, config.local_rope);
}

}  // namespace

const Family gemma3_family = {.name = "gemma3",
                              .model_type = "gemma3_text",
                              .wrapper_type = "gemma3",
                              .architecture = "Gemma3ForCausalLM",
                              .vocab_size = 262208,
                              .hidden_size = 2304,
                              .intermediate_size = 9216,
                              .num_hidden_layers = 26,
                              .num_attention_heads = 8,
                              .num_key_value_heads = 4,
                              .head_dim = 256,
                              .max_position_embeddings = 131072,
                              .bos_token_id = 2,
                              .eos_token_id = 1,
                              .activation_key = "hidden_activation",
                              .blocks = {.norm_adds_one = true,
                                         .query_key_norm = true,
                                         .sandwich_norms = true,
                                         .scaled_embedding = true,
                                         .activation = Activation::gelu_tanh},
                              .read_special = read_special};

}  // namespace rarefy::model
