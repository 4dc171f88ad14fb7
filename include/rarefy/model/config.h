// ModelConfig: the architecture of a checkpoint as data, read from a Hugging Face config.json of either generation
// (top-level rope_theta / rope_scaling / torch_dtype, or rope_parameters / dtype) plus generation_config.json.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "rarefy/core/dtype.h"
#include "rarefy/core/status.h"

namespace rarefy {

// Rotary position embedding, already resolved to one inverse frequency per pair of components.
struct RopeConfig {
  std::string type = "default";  // default, linear, llama3, yarn
  double theta = 10000.0;
  int32_t rotary_dim = 0;                // components that rotate; the rest pass through
  std::vector<float> inverse_frequency;  // [rotary_dim / 2] f32
  float attention_factor = 1.0f;         // multiplies cos and sin (YaRN)
};

// What a layer mixes tokens with, and so which kind of cache it needs.
enum class LayerKind : int32_t {
  full_attention = 0,     // sees every earlier token; the only kind that context sparsity applies to
  sliding_attention = 1,  // sees the last `sliding_window` tokens
  linear_attention = 2,   // gated DeltaNet: a state of fixed size instead of a cache
};
std::string_view to_string(LayerKind kind);  // as in config.json: "full_attention"

enum class Activation : int32_t { silu = 0, gelu_tanh = 1 };

// The blocks that a family's layers are made of. Each is one decision of the forward pass; a family is a combination.
struct LayerBlocks {
  bool norm_adds_one = false;     // RMS norms multiply by 1 + weight (but the gated norm of linear layers: by weight)
  bool query_key_norm = false;    // RMS norm of each head of q and k before the rotation
  bool sandwich_norms = false;    // further norms on what attention and MLP add to the residual stream
  bool output_gate = false;       // q_proj yields a gate for each query; attention's output is multiplied by its sigmoid
  bool scaled_embedding = false;  // the embedding times sqrt(hidden_size)
  Activation activation = Activation::silu;
};

// Sizes of a linear-attention (gated DeltaNet) layer.
struct LinearAttentionConfig {
  int32_t num_key_heads = 0;
  int32_t num_value_heads = 0;  // a multiple of num_key_heads
  int32_t key_head_dim = 0;
  int32_t value_head_dim = 0;
  int32_t conv_kernel = 0;  // tokens that the convolution sees, the current one included

  int64_t key_width() const { return int64_t{num_key_heads} * key_head_dim; }
  int64_t value_width() const { return int64_t{num_value_heads} * value_head_dim; }
  int64_t conv_width() const { return 2 * key_width() + value_width(); }
  int64_t conv_state_floats() const { return (conv_kernel - 1) * conv_width(); }
  // What a sequence keeps for one layer, f32: [num_value_heads, key_head_dim, value_head_dim], then the inputs of the
  // convolution at the last positions, [conv_kernel - 1, conv_width].
  int64_t state_floats() const { return value_width() * key_head_dim + conv_state_floats(); }
};

struct ModelConfig {
  std::string architecture;  // the family: "llama", "qwen2", "gemma3", "ministral3", "qwen3_5"
  int32_t vocab_size = 0;
  int32_t hidden_size = 0;
  int32_t intermediate_size = 0;
  int32_t num_layers = 0;
  std::vector<LayerKind> layers;  // one kind for each of num_layers
  int32_t num_q_heads = 0;
  int32_t num_kv_heads = 0;
  int32_t head_dim = 0;
  float rms_norm_eps = 1e-6f;
  bool attention_bias = false;  // biases on q, k, v
  bool output_bias = false;     // bias on o
  bool mlp_bias = false;
  LayerBlocks blocks;
  LinearAttentionConfig linear;          // zero without linear layers
  int32_t sliding_window = 0;            // tokens that a sliding layer sees, the current one included; 0 without
  int32_t max_position_embeddings = 0;   // longest context; what YaRN extends it to where that is more
  float attention_scale = 0.0f;          // multiplies q . k; head_dim^-1/2 unless the family says otherwise
  float attention_soft_cap = 0.0f;       // c > 0: scores s become c tanh(s / c)
  float final_soft_cap = 0.0f;           // the same for logits
  float query_temperature_beta = 0.0f;   // q at position p times 1 + beta ln(1 + floor(p / query_temperature_tokens))
  int32_t query_temperature_tokens = 0;  // the original context length
  RopeConfig rope;                       // of full-attention layers
  RopeConfig local_rope;                 // of sliding layers
  DType checkpoint_dtype = DType::bf16;
  int32_t bos_token_id = -1;  // -1 = none
  std::vector<int32_t>
      stop_token_ids;  // [num_stop_tokens] i32; union of config, generation_config and (in Model::load) tokenizer_config
  // Ids that stand for images and the like in a checkpoint of several inputs, whose text part alone is used.
  std::vector<int32_t> media_token_ids;  // [num_media_tokens] i32

  // Layers of one kind, ascending.
  std::vector<int32_t> layers_of(LayerKind kind) const;  // [count] i32

  // Bytes of keys and values one cached token takes over all full-attention layers.
  int64_t kv_bytes_per_token(DType kv_dtype) const;
  // Bytes that do not grow with the context, per sequence: a full window of every sliding layer, and the states of linear
  // layers.
  int64_t window_bytes(DType kv_dtype) const;
  int64_t state_bytes() const;

  // `folder` holds config.json and, optionally, generation_config.json and tokenizer_config.json.
  static Expected<ModelConfig> load(const std::filesystem::path& folder);
  static Expected<ModelConfig> parse(std::string_view config_json);
};

}  // namespace rarefy
