// What each family's config.json means: keys of its own, defaults, both generations.
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <string>

#include "rarefy/model/config.h"

namespace rarefy {
namespace {

using Json = nlohmann::json;

ModelConfig parse(const Json& json) {
  auto config = ModelConfig::parse(json.dump());
  if (!config) throw std::runtime_error(config.status().to_string());
  return *std::move(config);
}

void expect_failure(const Json& json, StatusCode code, std::initializer_list<std::string_view> parts) {
  const auto config = ModelConfig::parse(json.dump());
  ASSERT_FALSE(config) << json.dump();
  EXPECT_EQ(config.status().code(), code) << config.status().to_string();
  for (const std::string_view part : parts) {
    EXPECT_NE(config.status().message().find(part), std::string::npos)
        << "no '" << part << "' in: " << config.status().to_string();
  }
}

void expect_frequencies(const RopeConfig& rope, double theta, double divisor) {
  ASSERT_EQ(rope.inverse_frequency.size(), static_cast<size_t>(rope.rotary_dim / 2));
  for (size_t j = 0; j < rope.inverse_frequency.size(); ++j) {
    const double expected = std::pow(theta, -2.0 * static_cast<double>(j) / rope.rotary_dim) / divisor;
    EXPECT_NEAR(rope.inverse_frequency[j] / expected, 1.0, 1e-6) << j;
  }
}

// The 4B wrapper as published leans on defaults.
const Json kGemma4b = Json::parse(R"({
  "architectures": ["Gemma3ForConditionalGeneration"], "boi_token_index": 255999, "eoi_token_index": 256000,
  "eos_token_id": [1, 106], "image_token_index": 262144, "mm_tokens_per_image": 256, "model_type": "gemma3",
  "text_config": {"hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34,
                  "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024},
  "torch_dtype": "bfloat16", "vision_config": {"hidden_size": 1152, "model_type": "siglip_vision_model"}})");

TEST(Gemma3Config, WrapperWithDefaults) {
  const ModelConfig config = parse(kGemma4b);
  EXPECT_EQ(config.architecture, "gemma3");
  EXPECT_EQ(config.vocab_size, 262208);
  EXPECT_EQ(config.num_q_heads, 8);
  EXPECT_EQ(config.num_kv_heads, 4);
  EXPECT_EQ(config.head_dim, 256);
  EXPECT_EQ(config.sliding_window, 1024);
  EXPECT_FLOAT_EQ(config.attention_scale, 1.0f / 16.0f);
  EXPECT_EQ(config.attention_soft_cap, 0.0f);
  EXPECT_EQ(config.blocks.activation, Activation::gelu_tanh);
  EXPECT_TRUE(config.blocks.norm_adds_one && config.blocks.query_key_norm && config.blocks.sandwich_norms &&
              config.blocks.scaled_embedding);
  EXPECT_FALSE(config.blocks.output_gate);
  EXPECT_EQ(config.layers_of(LayerKind::full_attention), (std::vector<int32_t>{5, 11, 17, 23, 29}));
  EXPECT_EQ(config.layers_of(LayerKind::sliding_attention).size(), 29u);
  expect_frequencies(config.rope, 1e6, 8.0);
  expect_frequencies(config.local_rope, 1e4, 1.0);  // never scaled
  EXPECT_EQ(config.stop_token_ids, (std::vector<int32_t>{1, 106}));
  EXPECT_EQ(config.bos_token_id, 2);
  EXPECT_EQ(config.media_token_ids, std::vector<int32_t>{262144});
  EXPECT_EQ(config.kv_bytes_per_token(DType::bf16), 20480);
  EXPECT_EQ(config.window_bytes(DType::bf16), int64_t{29} * 1024 * 4096);
  EXPECT_EQ(config.state_bytes(), 0);
  Json untyped = kGemma4b;  // the wrapper's type tells the decoder's
  untyped["text_config"].erase("model_type");
  EXPECT_EQ(parse(untyped).architecture, "gemma3");
}

TEST(Gemma3Config, BothGenerationsMeanTheSame) {
  const Json common = {
      {"model_type", "gemma3_text"}, {"num_hidden_layers", 6}, {"query_pre_attn_scalar", 168}, {"head_dim", 128}};
  Json old_style = common, new_style = common;
  old_style.update({{"rope_theta", 5e5},
                    {"rope_local_base_freq", 2e4},
                    {"rope_scaling", {{"factor", 4.0}, {"type", "linear"}}},
                    {"sliding_window_pattern", 3}});
  new_style["rope_parameters"] = {{"full_attention", {{"rope_type", "linear"}, {"factor", 4.0}, {"rope_theta", 5e5}}},
                                  {"sliding_attention", {{"rope_type", "default"}, {"rope_theta", 2e4}}}};
  for (const char* kind : {"sliding_attention", "sliding_attention", "full_attention"})
    new_style["layer_types"].push_back(kind);
  for (int i = 0; i < 3; ++i) new_style["layer_types"].push_back(new_style["layer_types"][static_cast<size_t>(i)]);
  const ModelConfig a = parse(old_style), b = parse(new_style);
  EXPECT_EQ(a.layers, b.layers);
  EXPECT_EQ(a.rope.inverse_frequency, b.rope.inverse_frequency);
  EXPECT_EQ(a.local_rope.inverse_frequency, b.local_rope.inverse_frequency);
  expect_frequencies(a.rope, 5e5, 4.0);
  expect_frequencies(a.local_rope, 2e4, 1.0);
  EXPECT_FLOAT_EQ(a.attention_scale, 1.0f / std::sqrt(168.0f));
}

TEST(Gemma3Config, Caps) {
  const ModelConfig config =
      parse({{"model_type", "gemma3_text"}, {"attn_logit_softcapping", 50.0}, {"final_logit_softcapping", 30.0}});
  EXPECT_EQ(config.attention_soft_cap, 50.0f);
  EXPECT_EQ(config.final_soft_cap, 30.0f);
  const auto bad = StatusCode::invalid_argument;
  expect_failure({{"model_type", "gemma3_text"}, {"attn_logit_softcapping", -1.0}}, bad, {"attn_logit_softcapping"});
  expect_failure({{"model_type", "gemma3_text"}, {"query_pre_attn_scalar", 0}}, bad, {"query_pre_attn_scalar"});
  expect_failure({{"model_type", "gemma3_text"}, {"sliding_window", 0}}, bad, {"sliding_window"});
  expect_failure({{"model_type", "gemma3_text"}, {"sliding_window_pattern", 0}}, bad, {"sliding_window_pattern"});
  expect_failure({{"model_type", "gemma3_text"}, {"use_bidirectional_attention", true}}, StatusCode::unsupported,
                 {"use_bidirectional_attention"});
  expect_failure({{"model_type", "gemma3_text"}, {"hidden_activation", "relu"}}, StatusCode::unsupported, {"'relu'"});
}

TEST(Ministral3Config, DefaultsAndTemperature) {
  const ModelConfig config = parse({{"model_type", "mistral3"}, {"text_config", {{"model_type", "ministral3"}}}});
  EXPECT_EQ(config.architecture, "ministral3");
  EXPECT_EQ(config.num_layers, 34);
  EXPECT_EQ(config.max_position_embeddings, 262144);
  EXPECT_EQ(config.rope.type, "yarn");
  EXPECT_EQ(config.rope.theta, 1e6);
  EXPECT_EQ(config.rope.attention_factor, 1.0f);  // both magnitudes are equal
  EXPECT_FLOAT_EQ(config.query_temperature_beta, 0.1f);
  EXPECT_EQ(config.query_temperature_tokens, 16384);
  EXPECT_EQ(config.layers_of(LayerKind::full_attention).size(), 34u);
  EXPECT_FALSE(config.attention_bias || config.output_bias || config.mlp_bias);

  Json json = {{"model_type", "ministral3"}, {"sliding_window", 4096}, {"max_position_embeddings", 8192}};
  json["rope_parameters"] = {{"rope_type", "yarn"}, {"rope_theta", 1e9}, {"factor", 16.0}, {"llama_4_scaling_beta", 0.2}};
  const ModelConfig windowed = parse(json);
  EXPECT_EQ(windowed.layers_of(LayerKind::sliding_attention).size(), 34u);
  EXPECT_EQ(windowed.sliding_window, 4096);
  EXPECT_EQ(windowed.query_temperature_tokens, 8192);
  EXPECT_EQ(windowed.rope.inverse_frequency, windowed.local_rope.inverse_frequency);
  json["rope_parameters"]["llama_4_scaling_beta"] = -1.0;
  expect_failure(json, StatusCode::invalid_argument, {"llama_4_scaling_beta"});
}

TEST(Qwen35Config, WrapperWithDefaults) {
  Json json = Json::parse(R"({"model_type": "qwen3_5", "image_token_id": 248056, "video_token_id": 248057,
    "text_config": {"model_type": "qwen3_5_text", "max_position_embeddings": 262144,
      "rope_parameters": {"mrope_interleaved": true, "mrope_section": [11, 11, 10], "rope_type": "default", "rope_theta": 1e7}}})");
  const ModelConfig config = parse(json);
  EXPECT_EQ(config.architecture, "qwen3_5");
  EXPECT_EQ(config.layers_of(LayerKind::full_attention), (std::vector<int32_t>{3, 7, 11, 15, 19, 23, 27, 31}));
  EXPECT_EQ(config.layers_of(LayerKind::linear_attention).size(), 24u);
  EXPECT_EQ(config.rope.rotary_dim, 64);
  expect_frequencies(config.rope, 1e7, 1.0);
  EXPECT_TRUE(config.blocks.output_gate && config.blocks.norm_adds_one && config.blocks.query_key_norm);
  EXPECT_EQ(config.linear.conv_width(), 8192);
  EXPECT_EQ(config.linear.state_floats(), 32 * 128 * 128 + 3 * 8192);
  EXPECT_EQ(config.kv_bytes_per_token(DType::bf16), 32768);
  EXPECT_EQ(config.state_bytes(), int64_t{24} * 4 * (32 * 128 * 128 + 3 * 8192));
  EXPECT_EQ(config.media_token_ids, (std::vector<int32_t>{248056, 248057}));
  json["text_config"]["full_attention_interval"] = 2;
  EXPECT_EQ(parse(json).layers_of(LayerKind::full_attention).size(), 16u);
}

TEST(Qwen35Config, InconsistentSizesAreRefused) {
  const auto config = [](std::string_view key, const Json& value) {
    Json json = {{"model_type", "qwen3_5_text"}};
    json[std::string(key)] = value;
    return json;
  };
  const auto bad = StatusCode::invalid_argument;
  expect_failure(config("linear_num_value_heads", 24), bad, {"24", "16", "multiple"});
  expect_failure(config("linear_key_head_dim", 100), StatusCode::unsupported, {"100", "16"});
  expect_failure(config("linear_conv_kernel_dim", 1), bad, {"linear_conv_kernel_dim"});
  expect_failure(config("full_attention_interval", 0), bad, {"full_attention_interval"});
  expect_failure(config("partial_rotary_factor", 0.001), bad, {"partial_rotary_factor"});
  expect_failure(config("layer_types", std::vector<std::string>(32, "sliding_attention")), bad, {"sliding_window"});
}

TEST(Qwen2Config, WindowsInUpperLayers) {
  const Json base = {
      {"model_type", "qwen2"}, {"use_sliding_window", true}, {"num_hidden_layers", 4}, {"max_window_layers", 3}};
  const ModelConfig config = parse(base);
  EXPECT_EQ(config.layers_of(LayerKind::sliding_attention), std::vector<int32_t>{3});
  EXPECT_EQ(config.sliding_window, 4096);
  Json none = base;
  none["sliding_window"] = nullptr;
  EXPECT_TRUE(parse(none).layers_of(LayerKind::sliding_attention).empty());
  none["use_sliding_window"] = false;
  none["sliding_window"] = 128;
  EXPECT_TRUE(parse(none).layers_of(LayerKind::sliding_attention).empty());
}

// The model card's way to longer contexts: max_position_embeddings stays, the rope settings change.
TEST(Qwen2Config, YarnExtendsTheContext) {
  Json json = {{"model_type", "qwen2"}};
  json["rope_scaling"] = {{"type", "yarn"}, {"factor", 4.0}, {"original_max_position_embeddings", 32768}};
  EXPECT_EQ(parse(json).max_position_embeddings, 131072);
  EXPECT_EQ(parse({{"model_type", "qwen2"}}).max_position_embeddings, 32768);
}

}  // namespace
}  // namespace rarefy
