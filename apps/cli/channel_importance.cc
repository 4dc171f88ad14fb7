#include "channel_importance.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numeric>

#include "failure.h"
#include "interrupt.h"

namespace rarefy::cli {

ChannelImportance::ChannelImportance(const ModelConfig& config)
    : config_(config),
      queries_(static_cast<size_t>(config.num_layers) * config.num_kv_heads * config.head_dim),
      keys_(queries_.size()) {}

double* ChannelImportance::sums(std::vector<double>& from, int32_t layer, int32_t kv_head) const {
  return from.data() + (int64_t{layer} * config_.num_kv_heads + kv_head) * config_.head_dim;
}

void ChannelImportance::add_query(int32_t layer, const float* q) {
  const int32_t group = config_.num_q_heads / config_.num_kv_heads;
  for (int32_t head = 0; head < config_.num_q_heads; ++head) {
    double* to = sums(queries_, layer, head / group);
    for (int32_t dim = 0; dim < config_.head_dim; ++dim) to[dim] += std::abs(q[int64_t{head} * config_.head_dim + dim]);
  }
}

void ChannelImportance::add_keys(const Session& session, int32_t layer) {
  const PagedKvView kv = unwrap(session.cached(layer));
  for (int32_t kv_head = 0; kv_head < config_.num_kv_heads; ++kv_head) {
    double* to = sums(keys_, layer, kv_head);
    for (int32_t token = 0; token < session.length(); ++token) {
      const int64_t row = kv.row_offset(0, token, kv_head);
      for (int32_t dim = 0; dim < config_.head_dim; ++dim) to[dim] += std::abs(load_as_float(kv.keys, kv.dtype, row + dim));
    }
  }
}

void ChannelImportance::add(const Session& context, const std::vector<int32_t>& tokens) {
  Session session = context.fork();
  check(session.set_policy({}));
  session.set_query_observer([this](int32_t layer, int64_t, const float* q) { add_query(layer, q); });
  for (const int32_t token : tokens) {
    check(session.decode(token, nullptr));
    check_interrupt();
  }
  for (const int32_t layer : config_.layers_of(LayerKind::full_attention)) add_keys(session, layer);
}

nlohmann::ordered_json ChannelImportance::to_json() const {
  nlohmann::ordered_json layers = nlohmann::ordered_json::array();
  for (int32_t layer = 0; layer < config_.num_layers; ++layer) {
    nlohmann::ordered_json heads = nlohmann::ordered_json::array();
    const bool full = config_.layers[static_cast<size_t>(layer)] == LayerKind::full_attention;
    for (int32_t kv_head = 0; full && kv_head < config_.num_kv_heads; ++kv_head) {
      const int64_t first = (int64_t{layer} * config_.num_kv_heads + kv_head) * config_.head_dim;
      const auto importance = [&](int32_t dim) {
        return queries_[static_cast<size_t>(first + dim)] * keys_[static_cast<size_t>(first + dim)];
      };
      std::vector<int32_t> order(static_cast<size_t>(config_.head_dim));
      std::iota(order.begin(), order.end(), 0);
      std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return importance(a) > importance(b); });
      heads.push_back(order);
    }
    layers.push_back(heads);
  }
  return {{"head_dim", config_.head_dim}, {"layers", layers}};
}

}  // namespace rarefy::cli
