#include "rarefy/select/explain.h"

#include <fmt/format.h>

#include <numeric>

#include "rarefy/select/registry.h"

namespace rarefy {

Expected<PolicyExplanation> explain_policy(const Policy& policy, const SelectorShape& shape, int32_t kv_len,
                                           std::vector<int32_t> layers) {
  if (kv_len < 1) return Status::invalid_argument(fmt::format("policy: expected at least 1 cached token, got {}", kv_len));
  RAREFY_RETURN_IF_ERROR(policy.check(shape.num_layers));
  PolicyExplanation result;
  result.policy = policy.to_string();
  result.kv_len = kv_len;
  result.row_bytes_per_token = 2.0 * shape.head_dim * static_cast<double>(size_of(shape.kv_dtype));
  if (!policy.dense) {
    RAREFY_ASSIGN_OR_RETURN(const auto selector, make_selector(policy.index, shape));
    result.index_bytes_per_token = selector->bytes_per_token();
    if (!policy.total.is_fraction && policy.total.value > kv_len) {
      return Status::invalid_argument(
          fmt::format("policy: total={} asks for more tokens than the {} there are; lower total or use dense",
                      static_cast<int64_t>(policy.total.value), kv_len));
    }
  }
  double density_sum = 0.0, bytes_sum = 0.0, fallback_sum = 0.0;
  if (layers.empty()) {
    layers.resize(static_cast<size_t>(shape.num_layers));
    std::iota(layers.begin(), layers.end(), 0);
  }
  for (const int32_t layer : layers) {
    LayerExplanation one;
    one.layer = layer;
    one.dense = policy.layer_is_dense(layer, kv_len);
    if (!one.dense) {
      one.budget = split_budget(policy, layer, kv_len);
      one.max_tokens = policy.max_tokens(layer, kv_len);
      one.density = static_cast<double>(one.budget.total) / kv_len;
      one.bytes_ratio = one.density + result.index_bytes_per_token / result.row_bytes_per_token;
    }
    density_sum += one.density;
    bytes_sum += one.bytes_ratio;
    fallback_sum += one.bytes_ratio + (one.dense ? 0.0 : 1.0);
    result.layers.push_back(one);
  }
  result.density = density_sum / static_cast<double>(layers.size());
  result.bytes_ratio = bytes_sum / static_cast<double>(layers.size());
  if (policy.eps > 0.0) result.fallback_bytes_ratio = fallback_sum / static_cast<double>(layers.size());
  return result;
}

}  // namespace rarefy
