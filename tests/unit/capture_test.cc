// Captures: what is written is read back, and every kind of bad file is refused with its reason.
#include "rarefy/engine/capture.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "tests/support/capture_files.h"
#include "tests/support/model_folder.h"

namespace rarefy {
namespace {

using testing::CaptureData;
using testing::small_capture;
using testing::TemporaryFolder;

class CaptureTest : public ::testing::Test {
 protected:
  Expected<Capture> load(const std::string& bytes) {
    folder_.write("capture.safetensors", bytes);
    return Capture::load(folder_.path() / "capture.safetensors");
  }
  void expect_refused(const std::string& bytes, const std::string& part) {
    const auto capture = load(bytes);
    ASSERT_FALSE(capture) << "expected a refusal with '" << part << "'";
    EXPECT_NE(capture.status().message().find(part), std::string::npos) << capture.status().to_string();
    EXPECT_NE(capture.status().message().find("capture.safetensors"), std::string::npos) << capture.status().to_string();
  }

  TemporaryFolder folder_;
};

TEST_F(CaptureTest, ReadsWhatWasWritten) {
  const CaptureData data = small_capture(1);
  const auto capture = load(data.bytes());
  ASSERT_TRUE(capture) << capture.status().to_string();
  EXPECT_EQ(capture->info().layers, data.info.layers);
  EXPECT_EQ(capture->info().num_layers, 3);
  EXPECT_EQ(capture->info().attention_scale, data.info.attention_scale);
  EXPECT_EQ(capture->info().origin.at("model"), "drawn");
  EXPECT_TRUE(std::equal(data.tokens.begin(), data.tokens.end(), capture->tokens().begin(), capture->tokens().end()));
  EXPECT_TRUE(
      std::equal(data.positions.begin(), data.positions.end(), capture->positions().begin(), capture->positions().end()));
  std::vector<float> queries(4 * 32), rows(2 * 2 * 32);  // [num_q_heads, head_dim] f32; [2, num_kv_heads, head_dim] f32
  for (int32_t slot = 0; slot < 2; ++slot) {
    capture->read_queries(slot, 2, queries.data());
    for (size_t i = 0; i < queries.size(); ++i) EXPECT_EQ(queries[i], data.queries[slot][2 * queries.size() + i]);
    capture->read_keys(slot, 7, 2, rows.data());
    for (size_t i = 0; i < rows.size(); ++i) EXPECT_EQ(rows[i], to_float(data.keys[slot][7 * 64 + i]));
    capture->read_values(slot, 298, 2, rows.data());
    for (size_t i = 0; i < rows.size(); ++i) EXPECT_EQ(rows[i], to_float(data.values[slot][298 * 64 + i]));
  }
}

TEST_F(CaptureTest, RefusesDamagedFiles) {
  const std::string bytes = small_capture(2).bytes();
  expect_refused("", "safetensors");
  expect_refused(bytes.substr(0, 20), "truncated");
  expect_refused(bytes.substr(0, bytes.size() - 1), "truncated");
  expect_refused(bytes + "x", "end with its last tensor");
  EXPECT_EQ(Capture::load(folder_.path() / "nowhere.safetensors").status().code(), StatusCode::not_found);
}

TEST_F(CaptureTest, RefusesNumbersThatAreNotFinite) {
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    CaptureData keys = small_capture(3);
    keys.keys[1][64 * 5 + 40] = to_bfloat16(bad);
    expect_refused(keys.bytes(), "tensor 'layers.2.keys': expected finite numbers, got " +
                                     std::string(std::isnan(bad) ? "NaN" : "an infinity") + " in row 5, head 1");
    CaptureData values = small_capture(3);
    values.values[0].back() = to_bfloat16(bad);
    expect_refused(values.bytes(), "layers.0.values");
    CaptureData queries = small_capture(3);
    queries.queries[0][0] = bad;
    expect_refused(queries.bytes(), "layers.0.queries");
  }
}

TEST_F(CaptureTest, RefusesEmptyCaptures) {
  CaptureData no_layers = small_capture(4);
  no_layers.info.layers.clear();
  no_layers.queries.clear();
  expect_refused(no_layers.bytes(), "empty");
  CaptureData no_steps = small_capture(4, 300, 0);
  expect_refused(no_steps.bytes(), "empty");
}

TEST_F(CaptureTest, RefusesShapesAndPositionsThatDoNotFit) {
  CaptureData late = small_capture(5);
  late.positions[2] = 300;
  expect_refused(late.bytes(), "expected ascending positions below kv_len 300, got 300 at step 2");
  CaptureData twice = small_capture(5);
  twice.positions[1] = twice.positions[0];
  expect_refused(twice.bytes(), "ascending");

  // A header that says something else than the tensors.
  const auto with = [](const std::string& from, const std::string& to) {
    std::string bytes = small_capture(5).bytes();
    const size_t at = bytes.find(from);
    EXPECT_NE(at, std::string::npos) << from;
    EXPECT_EQ(from.size(), to.size());
    return bytes.replace(at, from.size(), to);
  };
  expect_refused(with(R"("head_dim":"32")", R"("head_dim":"64")"),
                 "tensor 'layers.0.queries': expected f32[3, 4, 64], got F32[3, 4, 32]");
  expect_refused(with(R"("num_kv_heads":"2")", R"("num_kv_heads":"3")"), "multiple");
  expect_refused(with(R"("kv_dtype":"bf16")", R"("kv_dtype":"f16 ")"), "f16");
  expect_refused(with(R"("kv_dtype":"bf16")", R"("kv_dtxxx":"bf16")"), "expected 'kv_dtype' in __metadata__");
  expect_refused(with(R"("rarefy-capture-1")", R"("rarefy-capture-9")"), "rarefy-capture-9");
  expect_refused(with(R"("num_layers":"3")", R"("num_layers":"2")"), "num_layers");
  expect_refused(with(R"("num_layers":"3")", R"("num_layers":"x")"), "num_layers");
  expect_refused(with("layers.2.values", "layers.2.walues"), "layers.2.values");
}

TEST_F(CaptureTest, TellsModelsApart) {
  const CaptureInfo info = small_capture(6).info;
  ModelConfig config;
  config.architecture = "llama";
  config.num_layers = 3;
  config.num_q_heads = 4;
  config.num_kv_heads = 2;
  config.head_dim = 32;
  config.attention_scale = 0.25f;
  EXPECT_TRUE(info.check_model(config).ok()) << info.check_model(config).to_string();
  config.num_layers = 4;
  EXPECT_NE(info.check_model(config).message().find("expected num_layers 4, got 3"), std::string::npos);
  config.num_layers = 3;
  config.attention_scale = 0.5f;
  EXPECT_NE(info.check_model(config).message().find("attention_scale 0.5, got 0.25"), std::string::npos);
  config.attention_scale = 0.25f;
  config.architecture = "gemma3";
  EXPECT_NE(info.check_model(config).message().find("gemma3"), std::string::npos);
}

}  // namespace
}  // namespace rarefy
