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
  require(config->kv_bytes_per_token(rarefy::DType::f32) > 0);
  if (divider != std::string_view::npos) {
    (void)rarefy::model::apply_generation_config(text.substr(divider + 1), *config).ok();
  }
  require(config->bos_token_id < config->vocab_size);
  for (const int32_t id : config->stop_token_ids) require(id >= 0 && id < config->vocab_size);
  return 0;
}
