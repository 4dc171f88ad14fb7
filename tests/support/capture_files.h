// Small captures of drawn numbers, and the file they would be in, right or wrong.
#pragma once

#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "rarefy/engine/capture.h"

namespace rarefy::testing {

struct CaptureData {
  CaptureInfo info;
  std::vector<int32_t> tokens, positions;           // [kv_len] i32; [num_steps] i32
  std::vector<std::vector<float>> queries;          // [num_captured][num_steps, num_q_heads, head_dim] f32
  std::vector<std::vector<BFloat16>> keys, values;  // [num_captured][kv_len, num_kv_heads, head_dim] bf16

  std::string bytes() const {
    std::string file = *capture_header(info);
    const auto put = [&](const auto& numbers) {
      file.append(reinterpret_cast<const char*>(numbers.data()), numbers.size() * sizeof(numbers[0]));
    };
    put(tokens);
    put(positions);
    for (size_t slot = 0; slot < queries.size(); ++slot) {
      put(queries[slot]);
      put(keys[slot]);
      put(values[slot]);
    }
    return file;
  }
};

// Two of three layers, two query heads for each of two KV heads; steps at the last positions.
inline CaptureData small_capture(uint32_t seed, int32_t kv_len = 300, int32_t num_steps = 3, float spread = 1.0f) {
  CaptureData data;
  data.info.model_type = "llama";
  data.info.num_layers = 3;
  data.info.num_q_heads = 4;
  data.info.num_kv_heads = 2;
  data.info.head_dim = 32;
  data.info.kv_dtype = DType::bf16;
  data.info.attention_scale = 0.25f;
  data.info.layers = {0, 2};
  data.info.kv_len = kv_len;
  data.info.num_steps = num_steps;
  data.info.origin = {{"model", "drawn"}};
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, spread);
  for (int32_t i = 0; i < kv_len; ++i) data.tokens.push_back(i % 17);
  for (int32_t i = 0; i < num_steps; ++i) data.positions.push_back(kv_len - num_steps + i);
  for (size_t slot = 0; slot < data.info.layers.size(); ++slot) {
    std::vector<float> queries(static_cast<size_t>(num_steps) * 4 * 32);
    std::vector<BFloat16> keys(static_cast<size_t>(kv_len) * 2 * 32), values(keys.size());
    for (float& value : queries) value = normal(random);
    for (BFloat16& value : keys) value = to_bfloat16(normal(random));
    for (BFloat16& value : values) value = to_bfloat16(normal(random));
    data.queries.push_back(std::move(queries));
    data.keys.push_back(std::move(keys));
    data.values.push_back(std::move(values));
  }
  return data;
}

}  // namespace rarefy::testing
