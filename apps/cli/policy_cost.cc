#include "policy_cost.h"

#include "rarefy/select/registry.h"

namespace rarefy::cli {

Expected<PolicyCost> policy_cost(const Policy& policy, const SelectorShape& shape, int32_t kv_len) {
  RAREFY_RETURN_IF_ERROR(policy.check(shape.num_layers));
  double index_bytes_per_token = 0.0;
  if (!policy.dense) {
    RAREFY_ASSIGN_OR_RETURN(auto selector, make_selector(policy.index, shape));
    index_bytes_per_token = selector->bytes_per_token();
  }
  const double row_bytes = 2.0 * shape.head_dim * static_cast<double>(size_of(shape.kv_dtype));
  PolicyCost cost;
  for (int32_t layer = 0; layer < shape.num_layers; ++layer) {
    LayerCost layer_cost;
    layer_cost.dense = policy.dense || policy.layer_is_dense(layer, kv_len);
    layer_cost.tokens.total = kv_len;
    if (!layer_cost.dense) {
      layer_cost.tokens = split_budget(policy, layer, kv_len);
      layer_cost.index_bytes = index_bytes_per_token * kv_len;
    }
    cost.row_bytes += shape.num_kv_heads * row_bytes * layer_cost.tokens.total;
    cost.index_bytes += shape.num_kv_heads * layer_cost.index_bytes;
    cost.dense_bytes += shape.num_kv_heads * row_bytes * kv_len;
    cost.tokens_read += static_cast<double>(shape.num_kv_heads) * layer_cost.tokens.total;
    cost.tokens_cached += static_cast<double>(shape.num_kv_heads) * kv_len;
    cost.layers.push_back(layer_cost);
  }
  return cost;
}

}  // namespace rarefy::cli
