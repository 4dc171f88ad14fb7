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

struct ModelConfig {
  std::string architecture;  // "llama", "qwen2"
  int32_t vocab_size = 0;
  int32_t hidden_size = 0;
  int32_t intermediate_size = 0;
  int32_t num_layers = 0;
  int32_t num_q_heads = 0;
  int32_t num_kv_heads = 0;
  int32_t head_dim = 0;
  float rms_norm_eps = 1e-6f;
  bool attention_bias = false;  // biases on q, k, v
  bool output_bias = false;     // bias on o
  bool mlp_bias = false;
  int32_t max_position_embeddings = 0;
  float attention_scale = 0.0f;  // multiplies q . k; head_dim^-1/2 unless the family says otherwise
  RopeConfig rope;
  DType checkpoint_dtype = DType::bf16;
  int32_t bos_token_id = -1;  // -1 = none
  std::vector<int32_t>
      stop_token_ids;  // [num_stop_tokens] i32; union of config, generation_config and (in Model::load) tokenizer_config

  // Bytes of keys and values one cached token takes over all layers.
  int64_t kv_bytes_per_token(DType kv_dtype) const;

  // `folder` holds config.json and, optionally, generation_config.json and tokenizer_config.json.
  static Expected<ModelConfig> load(const std::filesystem::path& folder);
  static Expected<ModelConfig> parse(std::string_view config_json);
};

}  // namespace rarefy
