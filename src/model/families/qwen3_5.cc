// Qwen3.5, dense: three layers of gated DeltaNet for each one with gated full attention, whose rotation covers a part of the
// head.
#include "model/families/family.h"
#include "model/rope_config.h"

namespace rarefy::model {
namespace {

constexpr int32_t kMaxHeads = 1024;
constexpr int32_t kMaxKernel = 16;

Status read_linear(const Json& decoder, LinearAttentionConfig& linear) {
  Fields fields(decoder);
  linear.num_key_heads = fields.integer("linear_num_key_heads", 16, 1, kMaxHeads);
  linear.num_value_heads = fields.integer("linear_num_value_heads", 32, 1, kMaxHeads);
  linear.key_head_dim = fields.integer("linear_key_head_dim", 128, 16, 256);
  linear.value_head_dim = fields.integer("linear_value_head_dim", 128, 16, 256);
  linear.conv_kernel = fields.integer("linear_conv_kernel_dim", 4, 2, kMaxKernel);
  RAREFY_RETURN_IF_ERROR(fields.status());
  if (linear.num_value_heads % linear.num_key_heads != 0) {
    return Status::invalid_argument("expected linear_num_value_heads to be a multiple of linear_num_key_heads, got " +
                                    std::to_string(linear.num_value_heads) + " and " +
                                    std::to_string(linear.num_key_heads));
  }
  if (linear.key_head_dim % 16 != 0 || linear.value_head_dim % 16 != 0) {
    return Status::unsupported("expected linear_key_head_dim and linear_value_head_dim to be multiples of 16, got " +
                               std::to_string(linear.key_head_dim) + " and " + std::to_string(linear.value_head_dim));
  }
  return {};
}

Status read_special(const Json& decoder, ModelConfig& config) {
  Fields fields(decoder);
  const int32_t interval = fields.integer("full_attention_interval", 4, 1, 1 << 20);
  RAREFY_RETURN_IF_ERROR(fields.status());
  RAREFY_RETURN_IF_ERROR(read_layer_kinds(decoder, config, [&](int32_t layer) {
    return (layer + 1) % interval == 0 ? LayerKind::full_attention : LayerKind::linear_attention;
  }));
  RAREFY_RETURN_IF_ERROR(read_linear(decoder, config.linear));
  // The three position axes of mrope_section are equal for text: an ordinary rotation.
  return read_rope(decoder, {.partial_rotary_factor = 0.25, .allows_partial = true}, config, config.rope);
}

}  // namespace

const Family qwen35_family = {.name = "qwen3_5",
                              .model_type = "qwen3_5_text",
                              .wrapper_type = "qwen3_5",
                              .architecture = "Qwen3_5ForCausalLM",
                              .vocab_size = 248320,
                              .hidden_size = 4096,
                              .intermediate_size = 12288,
                              .num_hidden_layers = 32,
                              .num_attention_heads = 16,
                              .num_key_value_heads = 4,
                              .head_dim = 256,
                              .max_position_embeddings = 32768,
                              .blocks = {.norm_adds_one = true, .query_key_norm = true, .output_gate = true},
                              .read_special = read_special};

}  // namespace rarefy::model
