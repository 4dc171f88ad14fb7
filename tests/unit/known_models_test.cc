// The table of known models against figures that were worked out elsewhere: published parameter totals, and cache sizes by hand.
#include "rarefy/model/known_models.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>

namespace rarefy {
namespace {

TEST(KnownModels, AreTwentyAndSpares) {
  std::set<std::string_view> ids;
  std::map<std::string_view, int32_t> per_family;
  int32_t spares = 0;
  for (const KnownModel& model : known_models()) {
    EXPECT_TRUE(ids.insert(model.id).second) << model.id;
    if (model.spare) {
      ++spares;
    } else {
      ++per_family[model.family];
      EXPECT_EQ(spares, 0) << "spares come last";
    }
    EXPECT_EQ(model.num_q_heads % model.num_kv_heads, 0) << model.id;
    EXPECT_EQ(model.num_linear_value_heads > 0, model.family == "qwen3_5") << model.id;
    EXPECT_EQ(model.sliding_window > 0, model.family == "gemma3") << model.id;
  }
  EXPECT_EQ(known_models().size(), 22u);
  EXPECT_EQ(spares, 2);
  EXPECT_EQ(per_family, (std::map<std::string_view, int32_t>{
                            {"llama", 3}, {"qwen2", 5}, {"qwen3_5", 5}, {"gemma3", 4}, {"ministral3", 3}}));
}

TEST(KnownModels, ParametersAreThePublishedTotals) {
  // As published, in billions, with half a unit of the last digit.
  const struct {
    const char* name;
    double total, half_digit;
  } published[] = {{"Llama-3.2-1B-Instruct", 1.24, 0.005}, {"Llama-3.2-3B-Instruct", 3.21, 0.005},
                   {"Llama-3.1-8B-Instruct", 8.03, 0.005}, {"Qwen2.5-0.5B-Instruct", 0.494, 0.0005},
                   {"Qwen2.5-1.5B-Instruct", 1.54, 0.005}, {"Qwen2.5-3B-Instruct", 3.09, 0.005},
                   {"Qwen2.5-7B-Instruct", 7.62, 0.005},   {"Qwen2.5-14B-Instruct", 14.8, 0.05},
                   {"Qwen2.5-32B-Instruct", 32.8, 0.05},   {"Qwen2.5-72B-Instruct", 72.7, 0.05},
                   {"gemma-3-1b-it", 1.0, 0.005}};
  for (const auto& [name, total, half_digit] : published) {
    const KnownModel* model = find_known_model(name);
    ASSERT_NE(model, nullptr) << name;
    EXPECT_NEAR(static_cast<double>(model->num_parameters()) / 1e9, total, half_digit) << name;
  }
}

TEST(KnownModels, CacheSizesByHand) {
  const KnownModel& llama = *find_known_model("meta-llama/Llama-3.1-8B-Instruct");
  EXPECT_EQ(llama.kv_bytes_per_token(DType::bf16), 32 * 8 * 128 * 2 * 2);
  EXPECT_EQ(llama.kv_bytes_per_token(DType::f32), 32 * 8 * 128 * 2 * 4);
  EXPECT_EQ(llama.fixed_bytes(DType::bf16), 0);
  EXPECT_EQ(llama.weight_bytes() - llama.step_weight_bytes(), int64_t{2} * 128256 * 4096);
  EXPECT_EQ(llama.break_even_kv_len(DType::bf16), 122532);  // 16.06e9 / 131072
  const KnownModel& gemma = *find_known_model("GEMMA-3-27B-IT");
  EXPECT_EQ(gemma.num_full_layers(), 10);
  EXPECT_EQ(gemma.kv_bytes_per_token(DType::bf16), 10 * 16 * 128 * 2 * 2);
  EXPECT_EQ(gemma.fixed_bytes(DType::bf16), int64_t{52} * 1024 * 16 * 128 * 2 * 2);
  const KnownModel& qwen = *find_known_model("Qwen/Qwen3.5-0.8B");
  EXPECT_EQ(qwen.num_full_layers(), 6);
  EXPECT_EQ(qwen.kv_bytes_per_token(DType::bf16), 6 * 2 * 256 * 2 * 2);
  EXPECT_EQ(qwen.fixed_bytes(DType::bf16), 18 * 4 * (16 * 128 * 128 + 3 * 6144));
  EXPECT_EQ(find_known_model("Llama"), nullptr);
}

}  // namespace
}  // namespace rarefy
