// Any text as config.json, and after it as generation_config.json: no crash, and what is accepted is consistent.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "model/config_reader.h"
#include "rarefy/model/config.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  // Both files in one input, divided by the first NUL.
  const size_t divider = text.find('\0');
  auto config = rarefy::ModelConfig::parse(text.substr(0, divider));
  if (!config) return config.status().message().empty() ? std::abort(), 0 : 0;
  const auto require = [](bool condition) {
    if (!condition) std::abort();
  };
  require(config->num_layers > 0 && config->num_kv_heads > 0 && config->num_q_heads % config->num_kv_heads == 0);
  require(config->head_dim > 0 && config->rope.rotary_dim <= config->head_dim);
  require(config->rope.inverse_frequency.size() == static_cast<size_t>(config->rope.rotary_dim / 2));
  for (const float frequency : config->rope.inverse_frequency) require(std::isfinite(frequency) && frequency >= 0.0f);
  require(std::isfinite(config->rope.attention_factor) && config->attention_scale > 0.0f);
  require(config->layers.size() == static_cast<size_t>(config->num_layers));
  for (const rarefy::LayerKind kind : config->layers) {
    if (kind == rarefy::LayerKind::sliding_attention) {
      require(config->sliding_window > 0 && config->local_rope.rotary_dim > 0);
    } else if (kind == rarefy::LayerKind::linear_attention) {
      require(config->linear.state_floats() > 0 && config->linear.num_value_heads % config->linear.num_key_heads == 0);
    }
  }
  require(config->query_temperature_beta == 0.0f || config->query_temperature_tokens > 0);
  require(config->kv_bytes_per_token(rarefy::DType::f32) + config->window_bytes(rarefy::DType::f32) +
              config->state_bytes() >
          0);
  for (const int32_t id : config->media_token_ids) require(id >= 0 && id < config->vocab_size);
  if (divider != std::string_view::npos) {
    (void)rarefy::model::apply_generation_config(text.substr(divider + 1), *config).ok();
  }
  require(config->bos_token_id < config->vocab_size);
  for (const int32_t id : config->stop_token_ids) require(id >= 0 && id < config->vocab_size);
  return 0;
}
