#include "rarefy/model/config.h"

#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <string>

#include "model/config_reader.h"
#include "tests/support/model_folder.h"

namespace rarefy {
namespace {

using Json = nlohmann::json;

// Llama 3.1 8B as published.
const Json kLlama = Json::parse(R"({
  "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0, "bos_token_id": 128000,
  "eos_token_id": [128001, 128008, 128009], "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
  "intermediate_size": 14336, "max_position_embeddings": 131072, "mlp_bias": false, "model_type": "llama",
  "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
  "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
                   "rope_type": "llama3"},
  "rope_theta": 500000.0, "tie_word_embeddings": false, "torch_dtype": "bfloat16", "transformers_version": "4.42.3",
  "use_cache": true, "vocab_size": 128256})");

// Qwen2.5 7B as published.
const Json kQwen = Json::parse(R"({
  "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151645,
  "hidden_act": "silu", "hidden_size": 3584, "initializer_range": 0.02, "intermediate_size": 18944,
  "max_position_embeddings": 32768, "max_window_layers": 28, "model_type": "qwen2", "num_attention_heads": 28,
  "num_hidden_layers": 28, "num_key_value_heads": 4, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": 131072,
  "tie_word_embeddings": false, "torch_dtype": "bfloat16", "transformers_version": "4.43.1", "use_cache": true,
  "use_sliding_window": false, "vocab_size": 152064})");

ModelConfig parse(const Json& json) {
  auto config = ModelConfig::parse(json.dump());
  if (!config) throw std::runtime_error(config.status().to_string());
  return *std::move(config);
}

Json with(Json json, std::string_view key, const Json& value) {
  json[std::string(key)] = value;
  return json;
}
Json without(Json json, std::string_view key) {
  json.erase(std::string(key));
  return json;
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

TEST(ModelConfig, Llama31) {
  const ModelConfig config = parse(kLlama);
  EXPECT_EQ(config.architecture, "llama");
  EXPECT_EQ(config.vocab_size, 128256);
  EXPECT_EQ(config.hidden_size, 4096);
  EXPECT_EQ(config.intermediate_size, 14336);
  EXPECT_EQ(config.num_layers, 32);
  EXPECT_EQ(config.num_q_heads, 32);
  EXPECT_EQ(config.num_kv_heads, 8);
  EXPECT_EQ(config.head_dim, 128);
  EXPECT_FLOAT_EQ(config.rms_norm_eps, 1e-5f);
  EXPECT_FALSE(config.attention_bias || config.output_bias || config.mlp_bias);
  EXPECT_EQ(config.max_position_embeddings, 131072);
  EXPECT_FLOAT_EQ(config.attention_scale, 1.0f / std::sqrt(128.0f));
  EXPECT_EQ(config.bos_token_id, 128000);
  EXPECT_EQ(config.stop_token_ids, (std::vector<int32_t>{128001, 128008, 128009}));
  EXPECT_EQ(config.kv_bytes_per_token(DType::bf16), 131072);
  // Components up to 28 keep their frequency, those from 35 are divided by 8 (specification, section 1.3).
  ASSERT_EQ(config.rope.inverse_frequency.size(), 64u);
  EXPECT_EQ(config.rope.type, "llama3");
  EXPECT_EQ(config.rope.attention_factor, 1.0f);
  for (int j = 0; j < 64; ++j) {
    const double base = std::pow(500000.0, -2.0 * j / 128);
    const double ratio = config.rope.inverse_frequency[j] / base;
    if (j <= 28) {
      EXPECT_NEAR(ratio, 1.0, 1e-6) << j;
    } else if (j >= 35) {
      EXPECT_NEAR(ratio, 0.125, 1e-6) << j;
    } else {
      EXPECT_TRUE(ratio > 0.126 && ratio < 0.999) << j;
    }
  }
}

TEST(ModelConfig, Qwen25) {
  const ModelConfig config = parse(kQwen);
  EXPECT_EQ(config.architecture, "qwen2");
  EXPECT_EQ(config.head_dim, 128);
  EXPECT_TRUE(config.attention_bias);
  EXPECT_FALSE(config.output_bias || config.mlp_bias);
  EXPECT_EQ(config.kv_bytes_per_token(DType::bf16), 57344);
  EXPECT_EQ(config.stop_token_ids, std::vector<int32_t>{151645});
  EXPECT_EQ(config.rope.type, "default");
  for (int j = 0; j < 64; ++j) EXPECT_NEAR(config.rope.inverse_frequency[j] / std::pow(1e6, -2.0 * j / 128), 1.0, 1e-6);
  // Qwen2 has no head_dim key; one that is there means nothing.
  EXPECT_EQ(parse(with(kQwen, "head_dim", 64)).head_dim, 128);
}

TEST(ModelConfig, BothGenerationsMeanTheSame) {
  for (const Json& old_style : {kLlama, kQwen}) {
    Json rope = old_style.value("rope_scaling", Json::object());
    rope["rope_theta"] = old_style.at("rope_theta");
    if (!rope.contains("rope_type")) rope["rope_type"] = "default";
    Json new_style = without(without(without(old_style, "rope_theta"), "rope_scaling"), "torch_dtype");
    new_style["rope_parameters"] = rope;
    new_style["dtype"] = "bfloat16";
    const ModelConfig a = parse(old_style), b = parse(new_style);
    EXPECT_EQ(a.rope.inverse_frequency, b.rope.inverse_frequency);
    EXPECT_EQ(a.rope.theta, b.rope.theta);
    EXPECT_EQ(a.rope.type, b.rope.type);
    EXPECT_EQ(a.checkpoint_dtype, b.checkpoint_dtype);
  }
}

TEST(ModelConfig, YarnFrequencies) {
  // r = 128, o = 16384: theta 1e6 gives low 20 and high 37, theta 1e9 low 13 and high 25 (specification, section 1.3).
  for (const auto& [theta, low, high] : {std::tuple{1e6, 20, 37}, {1e9, 13, 25}}) {
    Json json = without(kQwen, "rope_theta");
    json["rope_parameters"] = {
        {"rope_type", "yarn"}, {"rope_theta", theta}, {"factor", 16.0}, {"original_max_position_embeddings", 16384}};
    const ModelConfig config = parse(json);
    for (int j = 0; j < 64; ++j) {
      const double ramp = std::clamp((j - low) / static_cast<double>(high - low), 0.0, 1.0);
      const double expected = std::pow(theta, -2.0 * j / 128) * (ramp / 16.0 + 1.0 - ramp);
      EXPECT_NEAR(config.rope.inverse_frequency[j] / expected, 1.0, 1e-6) << theta << " " << j;
    }
    EXPECT_NEAR(config.rope.attention_factor, 0.1 * std::log(16.0) + 1.0, 1e-6);
  }
}

TEST(ModelConfig, YarnAttentionFactor) {
  const auto factor = [](Json extra) {
    extra.update({{"type", "yarn"}, {"factor", 4.0}, {"original_max_position_embeddings", 32768}});
    return parse(with(kQwen, "rope_scaling", extra)).rope.attention_factor;
  };
  EXPECT_NEAR(factor(Json::object()), 1.1386294, 1e-6);
  EXPECT_NEAR(factor({{"attention_factor", 1.5}}), 1.5, 1e-6);
  EXPECT_NEAR(factor({{"mscale", 1.0}, {"mscale_all_dim", 1.0}}), 1.0, 1e-6);
  EXPECT_NEAR(factor({{"mscale", 2.0}, {"mscale_all_dim", 1.0}}), 1.2772589 / 1.1386294, 1e-6);
  EXPECT_NEAR(factor({{"mscale", 2.0}, {"mscale_all_dim", 0.0}}), 1.1386294, 1e-6);
}

TEST(ModelConfig, LinearRope) {
  const ModelConfig config = parse(with(kQwen, "rope_scaling", {{"type", "linear"}, {"factor", 8.0}}));
  for (int j = 0; j < 64; ++j)
    EXPECT_NEAR(config.rope.inverse_frequency[j] * 8.0 / std::pow(1e6, -2.0 * j / 128), 1.0, 1e-6);
}

TEST(ModelConfig, MissingKeysTakeTheDefaultsOfTheFamily) {
  const ModelConfig llama = parse({{"model_type", "llama"}});
  EXPECT_EQ(llama.vocab_size, 32000);
  EXPECT_EQ(llama.num_kv_heads, 32);
  EXPECT_EQ(llama.max_position_embeddings, 2048);
  EXPECT_EQ(llama.bos_token_id, 1);
  EXPECT_EQ(llama.stop_token_ids, std::vector<int32_t>{2});
  EXPECT_EQ(llama.rope.theta, 10000.0);
  const ModelConfig narrow =
      parse({{"architectures", {"LlamaForCausalLM"}}, {"num_attention_heads", 16}, {"num_key_value_heads", nullptr}});
  EXPECT_EQ(narrow.num_kv_heads, 16);
  const ModelConfig qwen = parse({{"model_type", "qwen2"}});
  EXPECT_EQ(qwen.intermediate_size, 22016);
  EXPECT_EQ(qwen.bos_token_id, -1);
  EXPECT_TRUE(qwen.stop_token_ids.empty());
  EXPECT_TRUE(parse(with(kLlama, "bos_token_id", nullptr)).bos_token_id == -1);  // null is none, not missing
}

TEST(ModelConfig, LlamaOptions) {
  EXPECT_EQ(parse(with(kLlama, "head_dim", 64)).head_dim, 64);
  const ModelConfig biased = parse(with(with(kLlama, "attention_bias", true), "mlp_bias", true));
  EXPECT_TRUE(biased.attention_bias && biased.output_bias && biased.mlp_bias);
}

TEST(ModelConfig, TextConfigIsTheDecoder) {
  const ModelConfig config = parse({{"model_type", "llava"}, {"eos_token_id", 7}, {"text_config", kLlama}});
  EXPECT_EQ(config.hidden_size, 4096);
  EXPECT_EQ(config.stop_token_ids, (std::vector<int32_t>{128001, 128008, 128009, 7}));
}

TEST(ModelConfig, UnknownArchitecturesNameWhatIsSupported) {
  expect_failure(with(kLlama, "model_type", "gpt2"), StatusCode::unsupported, {"llama, qwen2, gemma3_text", "'gpt2'"});
  expect_failure({{"architectures", {"BertModel"}}}, StatusCode::unsupported, {"llama, qwen2, gemma3_text", "'BertModel'"});
  expect_failure(Json::object(), StatusCode::unsupported, {"llama, qwen2, gemma3_text", "neither"});
  expect_failure({{"model_type", "x"}, {"text_config", {{"model_type", "mistral"}}}}, StatusCode::unsupported,
                 {"'mistral'", "gemma3_text, ministral3, qwen3_5_text"});
  expect_failure({{"model_type", "mistral3"}, {"text_config", Json::object()}}, StatusCode::unsupported,
                 {"without model_type", "'mistral3'"});
  expect_failure({{"model_type", "gemma3"}}, StatusCode::unsupported, {"text_config", "'gemma3'"});
}

TEST(ModelConfig, MixturesOfExpertsAreRefused) {
  const auto unsupported = StatusCode::unsupported;
  expect_failure({{"model_type", "qwen3_5_moe"}, {"text_config", {{"model_type", "qwen3_5_moe_text"}}}}, unsupported,
                 {"mixture of experts", "router", "'qwen3_5_moe_text'"});
  expect_failure(with(kLlama, "num_local_experts", 8), unsupported, {"mixture of experts", "router"});
  expect_failure({{"model_type", "deepseek"}, {"n_routed_experts", 64}}, unsupported, {"mixture of experts"});
}

TEST(ModelConfig, WhatWouldChangeTheComputationIsRefused) {
  expect_failure(with(kLlama, "hidden_act", "gelu"), StatusCode::unsupported, {"'gelu'"});
  expect_failure(with(kLlama, "quantization_config", {{"quant_method", "awq"}}), StatusCode::unsupported,
                 {"quantised", "'awq'", "fp8"});
  expect_failure(with(kLlama, "quantization_config", Json::object()), StatusCode::unsupported, {"unnamed"});
  expect_failure(with(kLlama, "quantization_config", 4), StatusCode::invalid_argument, {"object"});
  EXPECT_TRUE(ModelConfig::parse(with(kLlama, "quantization_config", {{"quant_method", "fp8"}}).dump()));
  expect_failure(with(kQwen, "layer_types", std::vector<std::string>(28, "sliding_attention")),
                 StatusCode::invalid_argument, {"sliding_attention", "use_sliding_window"});
  expect_failure(with(kQwen, "layer_types", std::vector<std::string>(28, "linear_attention")), StatusCode::unsupported,
                 {"linear_attention", "qwen2"});
  expect_failure(with(kQwen, "layer_types", std::vector<std::string>(28, "chunked_attention")), StatusCode::unsupported,
                 {"chunked_attention"});
  expect_failure(with(kQwen, "layer_types", {"full_attention"}), StatusCode::invalid_argument, {"28", "1"});
  expect_failure(with(kLlama, "rope_scaling", {{"rope_type", "longrope"}}), StatusCode::unsupported,
                 {"'longrope'", "yarn"});
  expect_failure(with(kLlama, "partial_rotary_factor", 0.5), StatusCode::unsupported, {"partial_rotary_factor"});
  expect_failure(with(without(kQwen, "rope_theta"), "rope_parameters", {{"full_attention", {{"rope_theta", 1e6}}}}),
                 StatusCode::unsupported, {"full_attention"});
}

TEST(ModelConfig, InconsistentValuesAreRefused) {
  const auto bad = StatusCode::invalid_argument;
  expect_failure(with(kLlama, "num_key_value_heads", 5), bad, {"32", "5", "multiple"});
  expect_failure(with(kLlama, "num_attention_heads", 24), bad, {"4096", "24", "multiple"});
  expect_failure(with(kLlama, "head_dim", 127), bad, {"even", "127"});
  for (const char* key : {"vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                          "num_key_value_heads", "max_position_embeddings"}) {
    expect_failure(with(kLlama, key, 0), bad, {key, "got 0"});
    expect_failure(with(kLlama, key, -4), bad, {key, "got -4"});
    expect_failure(with(kLlama, key, 1e30), bad, {key});
    expect_failure(with(kLlama, key, 4000000000000000000), bad, {key});
    expect_failure(with(kLlama, key, "many"), bad, {key, "\"many\""});
    expect_failure(with(kLlama, key, 32.0), bad, {key, "whole number"});
    expect_failure(with(kLlama, key, Json::array({32})), bad, {key});
  }
  expect_failure(with(kLlama, "rms_norm_eps", -1.0), bad, {"rms_norm_eps"});
  expect_failure(with(kLlama, "attention_bias", 1), bad, {"attention_bias", "true or false"});
  expect_failure(with(kLlama, "eos_token_id", 128256), bad, {"eos_token_id", "128256"});
  expect_failure(with(kLlama, "eos_token_id", "end"), bad, {"eos_token_id"});
  expect_failure(with(kLlama, "eos_token_id", {1, -2}), bad, {"eos_token_id"});
  expect_failure(with(kLlama, "bos_token_id", 200000), bad, {"bos_token_id"});
  expect_failure(with(kLlama, "model_type", 3), bad, {"model_type"});
}

TEST(ModelConfig, RopeParametersAreChecked) {
  const auto bad = StatusCode::invalid_argument;
  const auto rope = [](Json settings) { return with(kLlama, "rope_scaling", settings); };
  expect_failure(rope("yarn"), bad, {"object"});
  expect_failure(with(kLlama, "rope_theta", 0.0), bad, {"rope_theta"});
  expect_failure(with(kLlama, "rope_theta", "1e6"), bad, {"rope_theta"});
  expect_failure(rope({{"type", "linear"}, {"factor", 0.0}}), bad, {"factor"});
  expect_failure(rope({{"type", "linear"}, {"factor", -8}}), bad, {"factor"});
  expect_failure(rope({{"type", 5}}), bad, {"type"});
  expect_failure(rope({{"rope_type", "llama3"}, {"factor", 8.0}, {"low_freq_factor", 4.0}, {"high_freq_factor", 4.0}}), bad,
                 {"high_freq_factor"});
  expect_failure(rope({{"rope_type", "llama3"}, {"factor", 8.0}, {"original_max_position_embeddings", 0}}), bad,
                 {"original_max_position_embeddings"});
  expect_failure(rope({{"rope_type", "yarn"}, {"factor", 4.0}, {"beta_fast", 1.0}, {"beta_slow", 2.0}}), bad,
                 {"beta_fast"});
  expect_failure(rope({{"rope_type", "yarn"}, {"factor", 4.0}, {"attention_factor", -1.0}}), bad, {"attention_factor"});
  expect_failure(rope({{"rope_type", "yarn"}, {"factor", 4.0}, {"rope_theta", 1.0}}), bad, {"rope_theta"});
}

TEST(ModelConfig, NotJson) {
  for (const char* text : {"", "{", "[]", "null", "{\"model_type\": \"llama\",}", "{\"a\":1,\"a\":2}", "\xff"}) {
    const auto config = ModelConfig::parse(text);
    ASSERT_FALSE(config) << text;
    EXPECT_EQ(config.status().code(), StatusCode::data_loss) << config.status().to_string();
  }
}

TEST(GenerationConfig, StopIdsAreAUnion) {
  ModelConfig config = parse(kQwen);
  ASSERT_TRUE(model::apply_generation_config(R"({"eos_token_id": [151645, 151643], "bos_token_id": 1})", config).ok());
  EXPECT_EQ(config.stop_token_ids, (std::vector<int32_t>{151645, 151643}));
  EXPECT_EQ(config.bos_token_id, 151643);  // config.json has one already
  EXPECT_TRUE(model::apply_generation_config(R"({"temperature": 0.7, "eos_token_id": null})", config).ok());
  for (const char* wrong :
       {"{", "[]", R"({"eos_token_id": "x"})", R"({"eos_token_id": 99999999})", R"({"eos_token_id": 1e40})"}) {
    EXPECT_FALSE(model::apply_generation_config(wrong, config).ok()) << wrong;
  }
}

TEST(ModelConfig, LoadsAFolder) {
  const testing::TemporaryFolder folder;
  EXPECT_EQ(ModelConfig::load(folder.path() / "nowhere").status().code(), StatusCode::not_found);
  EXPECT_EQ(ModelConfig::load(folder.path()).status().code(), StatusCode::not_found);
  folder.write("config.json", kQwen.dump());
  folder.write("generation_config.json", R"({"eos_token_id": 151643})");
  const auto config = ModelConfig::load(folder.path());
  ASSERT_TRUE(config) << config.status().to_string();
  EXPECT_EQ(config->stop_token_ids, (std::vector<int32_t>{151645, 151643}));
  folder.write("generation_config.json", "{");
  const auto broken = ModelConfig::load(folder.path());
  ASSERT_FALSE(broken);
  EXPECT_NE(broken.status().message().find("generation_config.json"), std::string::npos);
  EXPECT_NE(ModelConfig::load(folder.path() / "config.json").status().message().find("something else"), std::string::npos);
}

TEST(SpecialTokens, AreReadInBothForms) {
  const testing::TemporaryFolder folder;
  ASSERT_TRUE(model::read_special_tokens(folder.path()));
  folder.write("tokenizer_config.json", R"({"bos_token": null, "eos_token": {"content": "<|im_end|>", "special": true}})");
  auto tokens = model::read_special_tokens(folder.path());
  ASSERT_TRUE(tokens);
  EXPECT_EQ(tokens->bos, "");
  EXPECT_EQ(tokens->eos, "<|im_end|>");
  folder.write("tokenizer_config.json", R"({"bos_token": "<s>", "eos_token": 7})");
  tokens = model::read_special_tokens(folder.path());
  ASSERT_TRUE(tokens);
  EXPECT_EQ(tokens->bos, "<s>");
  EXPECT_EQ(tokens->eos, "");
  folder.write("tokenizer_config.json", "no");
  EXPECT_FALSE(model::read_special_tokens(folder.path()));
}

}  // namespace
}  // namespace rarefy
