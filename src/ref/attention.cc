#include "ref/attention.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace rarefy::ref {
namespace {

// The first token that a query sees which is the last of `visible` tokens.
int32_t first_visible(int32_t visible, int32_t sliding_window) {
  return sliding_window > 0 ? std::max(0, visible - sliding_window) : 0;
}

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// One query row against its tokens.
struct Row {
  const PagedKvView* kv = nullptr;
  int32_t sequence = 0, kv_head = 0;
  int64_t q_offset = 0;
  const void* q = nullptr;  // [num_rows, head_dim] q_dtype
  DType q_dtype = DType::f32;
  double scale = 1.0, soft_cap = 0.0;
  double sink = -kInfinity;           // logit that enters the denominator only
  std::vector<int32_t> tokens;        // [num_tokens] i32
  const float* log_weight = nullptr;  // [num_tokens] f32; nullable = all zero
};

void compute_row(const Row& row, int64_t index, AttentionResult& result) {
  const PagedKvView& kv = *row.kv;
  const auto head_dim = static_cast<size_t>(kv.head_dim);
  const size_t num_tokens = row.tokens.size();
  const double key_scale = kv.key_scales != nullptr ? kv.key_scales[row.kv_head] : 1.0;
  const double value_scale = kv.value_scales != nullptr ? kv.value_scales[row.kv_head] : 1.0;
  std::vector<double> logits(num_tokens);
  double maximum = row.sink, logit_scale = 0.0;
  for (size_t i = 0; i < num_tokens; ++i) {
    const int64_t offset = kv.row_offset(row.sequence, row.tokens[i], row.kv_head);
    double dot = 0.0, magnitude = 0.0;
    for (size_t d = 0; d < head_dim; ++d) {
      const double product =
          static_cast<double>(load_as_float(row.q, row.q_dtype, row.q_offset + static_cast<int64_t>(d))) * key_scale *
          load_as_float(kv.keys, kv.dtype, offset + static_cast<int64_t>(d));
      dot += product;
      magnitude += std::abs(product);
    }
    double logit = row.scale * dot;
    if (row.soft_cap > 0.0) logit = row.soft_cap * std::tanh(logit / row.soft_cap);
    logits[i] = logit + (row.log_weight != nullptr ? row.log_weight[i] : 0.0);
    maximum = std::max(maximum, logits[i]);
    logit_scale = std::max(logit_scale, std::abs(row.scale) * magnitude);
  }

  double* out = result.out.data() + static_cast<size_t>(index) * head_dim;
  double* condition = result.condition.data() + static_cast<size_t>(index) * head_dim;
  result.logit_scale[static_cast<size_t>(index)] = logit_scale;
  result.lse[static_cast<size_t>(index)] = maximum;  // -inf: nothing to attend to
  if (maximum == -kInfinity) return;

  // Everything below is relative to exp(maximum).
  double denominator = std::exp(row.sink - maximum);
  for (size_t i = 0; i < num_tokens; ++i) {
    const int64_t offset = kv.row_offset(row.sequence, row.tokens[i], row.kv_head);
    const double c = std::exp(logits[i] - maximum);
    denominator += c;
    for (size_t d = 0; d < head_dim; ++d) {
      const double v = value_scale * load_as_float(kv.values, kv.dtype, offset + static_cast<int64_t>(d));
      out[d] += c * v;
      condition[d] += c * std::abs(v);
    }
  }
  double out_norm2 = 0.0;
  for (size_t d = 0; d < head_dim; ++d) {
    out[d] /= denominator;
    condition[d] /= denominator;
    out_norm2 += out[d] * out[d];
  }
  result.lse[static_cast<size_t>(index)] = maximum + std::log(denominator);

  double variance = 0.0, out_variance = 0.0, spread_scale = 0.0;
  for (size_t i = 0; i < num_tokens && row.log_weight != nullptr; ++i) {
    const double c = std::exp(logits[i] - maximum);
    const double w = c * c * -std::expm1(-static_cast<double>(row.log_weight[i]));
    if (w == 0.0) continue;
    const int64_t offset = kv.row_offset(row.sequence, row.tokens[i], row.kv_head);
    double distance2 = 0.0, norm2 = 0.0;
    for (size_t d = 0; d < head_dim; ++d) {
      const double v = value_scale * load_as_float(kv.values, kv.dtype, offset + static_cast<int64_t>(d));
      distance2 += (v - out[d]) * (v - out[d]);
      norm2 += v * v;
    }
    variance += w;
    out_variance += w * distance2;
    spread_scale += w * (norm2 + out_norm2);
  }
  result.rel_std[static_cast<size_t>(index)] = std::sqrt(variance) / denominator;
  if (spread_scale > 0.0) {
    result.spread_scale[static_cast<size_t>(index)] = spread_scale / (denominator * denominator * out_norm2);
  }
  if (out_variance > 0.0) {
    result.out_rel_std[static_cast<size_t>(index)] = std::sqrt(out_variance / out_norm2) / denominator;
  }
}

AttentionResult make_result(int64_t num_rows, int32_t head_dim) {
  const auto rows = static_cast<size_t>(num_rows);
  const size_t elements = rows * static_cast<size_t>(head_dim);
  return {std::vector<double>(elements), std::vector<double>(rows), std::vector<double>(rows), std::vector<double>(rows),
          std::vector<double>(elements), std::vector<double>(rows), std::vector<double>(rows)};
}

}  // namespace

AttentionResult decode_attention(DecodeOp op, const DecodeProblem& problem, const DecodeArgs& args) {
  const int32_t group = problem.num_q_heads / problem.num_kv_heads;
  const int64_t num_rows = int64_t{args.batch} * problem.num_queries * problem.num_q_heads;
  AttentionResult result = make_result(num_rows, problem.head_dim);
  for (int64_t index = 0; index < num_rows; ++index) {
    const auto head = static_cast<int32_t>(index % problem.num_q_heads);
    const auto query = static_cast<int32_t>(index / problem.num_q_heads % problem.num_queries);
    Row row;
    row.kv = &args.kv;
    row.sequence = static_cast<int32_t>(index / problem.num_q_heads / problem.num_queries);
    row.kv_head = head / group;
    row.q = args.q;
    row.q_dtype = problem.q_dtype;
    row.q_offset = index * problem.head_dim;
    row.scale = args.scale;
    row.soft_cap = problem.logit_soft_cap;
    if (problem.sink_logit) row.sink = args.sink_logits[head];

    const int32_t visible = args.kv.kv_lens[row.sequence] - problem.num_queries + query + 1;
    const int32_t list = problem.scope == ListScope::kv_head ? row.kv_head : head;
    const int64_t list_index = int64_t{row.sequence} * args.index.num_lists + list;
    const int32_t count = op == DecodeOp::dense ? kAllTokens : args.index.counts[list_index];
    std::vector<float> weights;
    if (count == kAllTokens) {
      for (int32_t token = first_visible(visible, problem.sliding_window); token < visible; ++token) {
        row.tokens.push_back(token);
      }
    } else {
      const int64_t first = list_index * args.index.max_selected;
      for (int64_t i = first; i < first + count; ++i) {
        if (args.index.token_ids[i] >= visible) continue;
        row.tokens.push_back(args.index.token_ids[i]);
        if (args.index.log_weight != nullptr) weights.push_back(args.index.log_weight[i]);
      }
      if (args.index.log_weight != nullptr) row.log_weight = weights.data();
    }
    compute_row(row, index, result);
  }
  return result;
}

AttentionResult prefill_attention(const PrefillProblem& problem, const PrefillArgs& args) {
  const int32_t group = problem.num_q_heads / problem.num_kv_heads;
  const int64_t num_rows = int64_t{args.num_new} * problem.num_q_heads;
  AttentionResult result = make_result(num_rows, problem.head_dim);
  for (int64_t index = 0; index < num_rows; ++index) {
    Row row;
    row.kv = &args.kv;
    row.kv_head = static_cast<int32_t>(index % problem.num_q_heads) / group;
    row.q = args.q;
    row.q_dtype = problem.q_dtype;
    row.q_offset = index * problem.head_dim;
    row.scale = args.scale;
    row.soft_cap = problem.logit_soft_cap;
    const auto visible = static_cast<int32_t>(args.kv.kv_lens[0] - args.num_new + index / problem.num_q_heads + 1);
    for (int32_t token = first_visible(visible, problem.sliding_window); token < visible; ++token) {
      row.tokens.push_back(token);
    }
    compute_row(row, index, result);
  }
  return result;
}

}  // namespace rarefy::ref
