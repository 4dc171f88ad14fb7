#include "rarefy/model/model.h"

#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "model/forward.h"
#include "rarefy/core/log.h"
#include "tests/support/double_attention.h"
#include "tests/support/model_folder.h"
#include "tests/support/tiny_checkpoint.h"

namespace rarefy {
namespace {

using testing::DoubleAttention;
using testing::safetensors_bytes;
using testing::TemporaryFolder;
using testing::TensorMap;
using testing::TinyCheckpoint;

constexpr int32_t kVocab = TinyCheckpoint::kVocabSize;

// A copy of a small checkpoint that a test may damage.
class ModelLoad : public ::testing::Test {
 protected:
  void SetUp() override {
    folder.copy_from(tiny.folder());
    tensors = testing::read_safetensors(folder.path() / "model.safetensors");
  }
  void write_tensors() { folder.write("model.safetensors", safetensors_bytes(tensors)); }
  void set_config(const std::string& key, const nlohmann::json& value) {
    auto config = nlohmann::json::parse(folder.read("config.json"));
    config[key] = value;
    folder.write("config.json", config.dump());
  }
  void expect_failure(StatusCode code, std::initializer_list<std::string_view> parts) {
    const auto model = Model::load(folder.path());
    ASSERT_FALSE(model);
    EXPECT_EQ(model.status().code(), code) << model.status().to_string();
    for (const std::string_view part : parts) {
      EXPECT_NE(model.status().message().find(part), std::string::npos)
          << "no '" << part << "' in: " << model.status().to_string();
    }
  }

  TinyCheckpoint tiny{{.num_q_heads = 4, .num_kv_heads = 2, .head_dim = 16}};
  TemporaryFolder folder;
  TensorMap tensors;
};

TEST_F(ModelLoad, GoodFolder) {
  const auto model = Model::load(folder.path(), {.compute = ComputeType::f32});
  ASSERT_TRUE(model) << model.status().to_string();
  EXPECT_EQ(model->config().architecture, "llama");
  EXPECT_EQ(model->config().checkpoint_dtype, DType::bf16);
  EXPECT_EQ(model->compute_name(), "f32");
  int64_t elements = 0;
  for (const auto& [name, tensor] : tensors) elements += static_cast<int64_t>(tensor.bytes.size() / 2);
  EXPECT_EQ(model->weight_bytes(), 4 * elements);  // tied: every tensor is read once
  const auto bf16 = Model::load(folder.path(), {.compute = ComputeType::bf16});
  ASSERT_TRUE(bf16);
  EXPECT_LT(bf16->weight_bytes(), model->weight_bytes() * 6 / 10);
  EXPECT_EQ(bf16->compute_name(), "bf16 weights, f32 accumulation");
}

TEST_F(ModelLoad, MissingFilesAreNamed) {
  for (const char* name : {"model.safetensors", "tokenizer.json", "config.json"}) {
    std::filesystem::remove(folder.path() / name);
    expect_failure(StatusCode::not_found, {name});
  }
}

TEST_F(ModelLoad, MissingTensorIsNamed) {
  for (const char* name :
       {"model.layers.1.self_attn.k_proj.weight", "model.layers.0.input_layernorm.weight", "model.norm.weight"}) {
    auto saved = tensors;
    tensors.erase(name);
    write_tensors();
    expect_failure(StatusCode::not_found, {name, "config.json"});
    tensors = saved;
  }
  tensors.erase("model.embed_tokens.weight");
  write_tensors();
  expect_failure(StatusCode::not_found, {"embedding", "model.embed_tokens.weight"});
}

TEST_F(ModelLoad, WrongShapesAreNamed) {
  auto& tensor = tensors.at("model.layers.1.mlp.down_proj.weight");
  ASSERT_EQ(tensor.shape, (std::vector<int64_t>{64, 96}));
  tensor.shape = {96, 64};
  write_tensors();
  expect_failure(StatusCode::data_loss, {"model.layers.1.mlp.down_proj.weight", "[64, 96]", "BF16[96, 64]"});
}

TEST_F(ModelLoad, ConfigOfAnotherModel) {
  set_config("num_hidden_layers", 1);
  expect_failure(StatusCode::data_loss, {"1 layers", "model.layers.1."});
  set_config("num_hidden_layers", 3);
  expect_failure(StatusCode::not_found, {"model.layers.2."});
  set_config("num_hidden_layers", 2);
  set_config("attention_bias", true);
  expect_failure(StatusCode::not_found, {"q_proj.bias"});
}

TEST_F(ModelLoad, WrongElementType) {
  tensors.at("model.layers.0.self_attn.q_proj.weight").dtype = "I16";
  write_tensors();
  expect_failure(StatusCode::unsupported, {"model.layers.0.self_attn.q_proj.weight", "I16"});
}

TEST_F(ModelLoad, Fp8NeedsItsScale) {
  const std::string name = "model.layers.0.self_attn.q_proj.weight";
  auto& tensor = tensors.at(name);
  tensor = {"F8_E4M3", tensor.shape, std::string(64 * 64, '\x38')};
  write_tensors();
  expect_failure(StatusCode::not_found, {name, "weight_scale_inv", "found none"});
  tensors[name + "_scale_inv"] = {"F32", {3, 1}, std::string(12, '\0')};
  write_tensors();
  expect_failure(StatusCode::data_loss, {name + "_scale_inv", "F32[3, 1]", "[64, 64]"});
  tensors[name + "_scale_inv"] = {"I32", {}, std::string(4, '\0')};
  write_tensors();
  expect_failure(StatusCode::not_found, {name + "_scale_inv", "I32"});
  for (const std::vector<int64_t>& shape : {std::vector<int64_t>{}, {1}, {2, 4}}) {
    const size_t count = shape.size() == 2 ? 8 : 1;
    std::string scales;
    for (size_t i = 0; i < count; ++i) scales.append("\x00\x00\x80\x3f", 4);  // 1.0
    tensors[name + "_scale_inv"] = {"F32", shape, scales};
    write_tensors();
    EXPECT_TRUE(Model::load(folder.path()));
  }
  // Only matrices may be in fp8.
  tensors.at("model.norm.weight") = {"F8_E4M3", {64}, std::string(64, '\x38')};
  write_tensors();
  expect_failure(StatusCode::unsupported, {"model.norm.weight", "F8_E4M3"});
}

TEST_F(ModelLoad, TruncatedFile) {
  const std::string whole = folder.read("model.safetensors");
  for (const size_t size : {size_t{0}, size_t{7}, size_t{100}, whole.size() / 2, whole.size() - 1}) {
    folder.write("model.safetensors", std::string_view(whole).substr(0, size));
    expect_failure(StatusCode::data_loss, {"model.safetensors"});
  }
}

TEST_F(ModelLoad, TokenizerLargerThanTheModel) {
  set_config("vocab_size", 250);
  set_config("eos_token_id", 2);
  set_config("bos_token_id", 1);
  expect_failure(StatusCode::invalid_argument, {"250", "258", "different models"});
}

TEST_F(ModelLoad, TokenizerWithoutTheNeededTokens) {
  folder.write("tokenizer_config.json", R"({"eos_token": "<|eot_id|>"})");
  expect_failure(StatusCode::not_found, {"<|eot_id|>", "tokenizer_config.json"});
}

TEST_F(ModelLoad, StopIdsFromTheTokenizersNames) {
  folder.write("tokenizer_config.json", R"({"bos_token": "<|end_of_text|>", "eos_token": "<|begin_of_text|>"})");
  const auto model = Model::load(folder.path());
  ASSERT_TRUE(model) << model.status().to_string();
  EXPECT_EQ(model->config().stop_token_ids, (std::vector<int32_t>{257, 256}));
  EXPECT_EQ(model->config().bos_token_id, 256);  // config.json has one already
}

TEST_F(ModelLoad, UnknownTensorsAreWarnedOf) {
  tensors["model.layers.0.self_attn.q_norm.weight"] = {"BF16", {16}, std::string(32, '\0')};
  tensors["model.layers.0.self_attn.q_proj.bias"] = {"BF16", {64}, std::string(128, '\0')};
  tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = {"F32", {8}, std::string(32, '\0')};
  write_tensors();
  std::string warnings;
  set_log_sink([&](LogLevel level, std::string_view text) {
    if (level == LogLevel::warning) warnings += std::string(text) + "\n";
  });
  EXPECT_TRUE(Model::load(folder.path()));
  set_log_sink({});
  EXPECT_NE(warnings.find("q_norm.weight"), std::string::npos);
  EXPECT_NE(warnings.find("q_proj.bias"), std::string::npos);
  EXPECT_EQ(warnings.find("inv_freq"), std::string::npos);
}

TEST_F(ModelLoad, IdsBeyondTheTokenizerAreNeverChosen) {
  // A table padded by six rows of large values, which would win.
  auto& table = tensors.at("model.embed_tokens.weight");
  table.shape[0] = kVocab + 6;
  table.bytes.append(6 * 64 * 2, '\x40');
  write_tensors();
  set_config("vocab_size", kVocab + 6);
  const auto model = Model::load(folder.path());
  ASSERT_TRUE(model) << model.status().to_string();
  DoubleAttention attention(model->config());
  ForwardScratch scratch;
  std::vector<float> logits(3 * (kVocab + 6), 0.0f);
  const std::vector<int32_t> tokens = {1, 2, 3};
  ASSERT_TRUE(model->forward(tokens, 0, attention, scratch, LogitRows::all, logits.data()).ok());
  for (size_t i = 0; i < logits.size(); ++i) {
    if (i % (kVocab + 6) < kVocab) {
      EXPECT_TRUE(std::isfinite(logits[i])) << i;
    } else {
      EXPECT_EQ(logits[i], -std::numeric_limits<float>::infinity()) << i;
    }
  }
}

TEST_F(ModelLoad, BiasesOfEveryLayerAreAdded) {
  set_config("attention_bias", true);
  set_config("mlp_bias", true);
  std::vector<std::string> projections;
  for (const auto& [name, tensor] : tensors) {
    if (name.ends_with("_proj.weight")) projections.push_back(name.substr(0, name.size() - 6));
  }
  for (const std::string& projection : projections) {
    const int64_t rows = tensors.at(projection + "weight").shape[0];
    tensors[projection + "bias"] = {"BF16", {rows}, std::string(rows * 2, '\0')};
  }
  const auto logits = [&] {
    write_tensors();
    auto model = Model::load(folder.path(), {.compute = ComputeType::f32});
    EXPECT_TRUE(model) << model.status().to_string();
    DoubleAttention attention(model->config());
    ForwardScratch scratch;
    std::vector<float> row(kVocab);
    const std::vector<int32_t> tokens = {5, 6, 7, 8};
    EXPECT_TRUE(model->forward(tokens, 0, attention, scratch, LogitRows::last, row.data()).ok());
    return row;
  };
  const auto before = logits();
  for (const std::string& projection : projections) {
    auto& bias = tensors.at(projection + "bias").bytes;
    for (size_t i = 0; i < bias.size(); i += 4) bias.replace(i, 2, "\x80\x3f");  // 1.0 in every second row
    EXPECT_NE(logits(), before) << projection;
    bias.assign(bias.size(), '\0');
  }
}

TEST_F(ModelLoad, ForwardRefusesWrongCalls) {
  const auto model = Model::load(folder.path());
  ASSERT_TRUE(model);
  DoubleAttention attention(model->config());
  ForwardScratch scratch;
  std::vector<float> logits(kVocab);
  const auto run = [&](std::vector<int32_t> tokens, int64_t position, float* out) {
    return model->forward(tokens, position, attention, scratch, LogitRows::last, out).code();
  };
  EXPECT_EQ(run({}, 0, logits.data()), StatusCode::invalid_argument);
  EXPECT_EQ(run({-1}, 0, logits.data()), StatusCode::invalid_argument);
  EXPECT_EQ(run({kVocab}, 0, logits.data()), StatusCode::invalid_argument);
  EXPECT_EQ(run({1}, -1, logits.data()), StatusCode::invalid_argument);
  EXPECT_EQ(run({1}, 0, nullptr), StatusCode::invalid_argument);
  EXPECT_EQ(run({1}, 0, logits.data()), StatusCode::ok);
}

// An attention that fails after some layers, as a full cache does.
class FailingAttention : public AttentionSink {
 public:
  Status attend(int32_t layer, int32_t, const float*, const float*, const float*, float*) override {
    return layer == 1 ? Status::resource_exhausted("no pages left") : Status();
  }
  Expected<LayerState> state(int32_t) override { return Status::unsupported("no states here"); }
};

TEST_F(ModelLoad, FailuresOfTheAttentionComeBack) {
  const auto model = Model::load(folder.path());
  ASSERT_TRUE(model);
  FailingAttention attention;
  ForwardScratch scratch;
  std::vector<float> logits(kVocab);
  const Status status = model->forward(std::vector<int32_t>{1}, 0, attention, scratch, LogitRows::last, logits.data());
  EXPECT_EQ(status.code(), StatusCode::resource_exhausted);
  EXPECT_EQ(status.message(), "no pages left");
}

TEST_F(ModelLoad, ScratchIsGrownOnceAndReused) {
  const auto model = Model::load(folder.path());
  ASSERT_TRUE(model);
  DoubleAttention attention(model->config());
  ForwardScratch scratch;
  std::vector<float> logits(kVocab);
  const std::vector<int32_t> many(40, 3);
  ASSERT_TRUE(model->forward(many, 0, attention, scratch, LogitRows::last, logits.data()).ok());
  const float* hidden = scratch.impl().hidden;
  for (int64_t position = 40; position < 50; ++position) {
    ASSERT_TRUE(model->forward(std::vector<int32_t>{3}, position, attention, scratch, LogitRows::last, logits.data()).ok());
    EXPECT_EQ(scratch.impl().hidden, hidden);
  }
}

// The same request gives the same bits whatever ran before with the same scratch.
TEST_F(ModelLoad, ForwardIsReproducible) {
  const auto model = Model::load(folder.path());
  ASSERT_TRUE(model);
  ForwardScratch used, fresh;
  const std::vector<int32_t> prompt = {9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 11, 12}, other(30, 200);
  std::vector<float> first(prompt.size() * kVocab), second(prompt.size() * kVocab);
  DoubleAttention a(model->config()), b(model->config()), c(model->config());
  ASSERT_TRUE(model->forward(other, 0, a, used, LogitRows::none, nullptr).ok());
  ASSERT_TRUE(model->forward(prompt, 0, b, used, LogitRows::all, first.data()).ok());
  ASSERT_TRUE(model->forward(prompt, 0, c, fresh, LogitRows::all, second.data()).ok());
  EXPECT_EQ(first, second);
}

}  // namespace
}  // namespace rarefy
