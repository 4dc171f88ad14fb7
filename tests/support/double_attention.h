// DoubleAttention: an AttentionSink that keeps all keys and values in double and attends to every earlier token (in sliding
// layers: to those in the window) by plain loops, and the states of linear layers, so that a test of the forward pass depends on no attention kernel and no cache.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "rarefy/model/model.h"

namespace rarefy::testing {

class DoubleAttention : public AttentionSink {
 public:
  explicit DoubleAttention(const ModelConfig& config)
      : config_(config), keys_(config.num_layers), values_(config.num_layers), states_(config.num_layers) {}

  Expected<LayerState> state(int32_t layer) override {
    std::vector<float>& state = states_[layer];
    const bool fresh = state.empty();
    state.resize(static_cast<size_t>(config_.linear.state_floats()));
    return LayerState{fresh ? nullptr : state.data(), state.data()};
  }

  Status attend(int32_t layer, int32_t num_tokens, const float* q, const float* k, const float* v, float* out) override {
    const int64_t kv_width = int64_t{config_.num_kv_heads} * config_.head_dim;
    std::vector<double>& keys = keys_[layer];
    std::vector<double>& values = values_[layer];
    const int64_t before = static_cast<int64_t>(keys.size()) / kv_width;
    keys.insert(keys.end(), k, k + num_tokens * kv_width);
    values.insert(values.end(), v, v + num_tokens * kv_width);
    const int32_t group = config_.num_q_heads / config_.num_kv_heads;
    for (int64_t row = 0; row < num_tokens; ++row) {
      for (int32_t head = 0; head < config_.num_q_heads; ++head) {
        const int64_t at = (row * config_.num_q_heads + head) * config_.head_dim;
        const int64_t visible = before + row + 1;
        const bool windowed = config_.layers[layer] == LayerKind::sliding_attention;
        const int64_t first = windowed ? std::max<int64_t>(0, visible - config_.sliding_window) : 0;
        const int64_t offset = first * kv_width + int64_t{head / group} * config_.head_dim;
        attend_one(q + at, keys.data() + offset, values.data() + offset, visible - first, kv_width, out + at);
      }
    }
    return {};
  }

 private:
  void attend_one(const float* q, const double* keys, const double* values, int64_t kv_len, int64_t stride,
                  float* out) const {
    std::vector<double> logits(kv_len);
    double largest = -1e300, sum = 0.0;
    for (int64_t t = 0; t < kv_len; ++t) {
      double dot = 0.0;
      for (int32_t i = 0; i < config_.head_dim; ++i) dot += q[i] * keys[t * stride + i];
      logits[t] = dot * config_.attention_scale;
      const double cap = config_.attention_soft_cap;
      if (cap > 0.0) logits[t] = cap * std::tanh(logits[t] / cap);
      largest = std::max(largest, logits[t]);
    }
    for (double& logit : logits) sum += logit = std::exp(logit - largest);
    for (int32_t i = 0; i < config_.head_dim; ++i) {
      double value = 0.0;
      for (int64_t t = 0; t < kv_len; ++t) value += logits[t] * values[t * stride + i];
      out[i] = static_cast<float>(value / sum);
    }
  }

  ModelConfig config_;
  std::vector<std::vector<double>> keys_;    // [num_layers][kv_len, num_kv_heads, head_dim] f64
  std::vector<std::vector<double>> values_;  // [num_layers][kv_len, num_kv_heads, head_dim] f64
  std::vector<std::vector<float>> states_;   // [num_layers][state_floats] f32; empty before the first token
};

}  // namespace rarefy::testing
