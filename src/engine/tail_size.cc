#include "engine/tail_size.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "cpu/select/key_rows.h"
#include "rarefy/engine/stats.h"

namespace rarefy {

TailSize tail_size(const TailProblem& problem) {
  TailSize result;
  const auto dim = static_cast<size_t>(problem.head_dim), group = static_cast<size_t>(problem.group);
  const double e = problem.eps / (2.0 + problem.eps), z = normal_quantile(1.0 - problem.delta / 4.0);
  std::vector<double> sum(group), squares(group);                          // [group] f64; of r
  std::vector<double> value_sum(group * dim), value_squares(group * dim);  // [group, head_dim] f64; of r v
  std::vector<float> key(dim), value(dim);                                 // [head_dim] f32
  const auto element_bytes = static_cast<int64_t>(size_of(problem.kv.dtype));
  double residual = 0.0;
  for (int32_t i = 0; i < problem.count; ++i) {
    if (!(problem.log_weight[i] > 0.0f)) continue;
    ++result.first;
    residual = std::exp(double{problem.log_weight[i]});  // n / b, the same for all
    const int64_t offset = element_bytes * problem.kv.row_offset(0, problem.token_ids[i], problem.kv_head);
    cpu::rows_to_float(static_cast<const std::byte*>(problem.kv.keys) + offset, problem.kv.dtype, problem.head_dim, 1,
                       problem.head_dim, key.data());
    cpu::rows_to_float(static_cast<const std::byte*>(problem.kv.values) + offset, problem.kv.dtype, problem.head_dim, 1,
                       problem.head_dim, value.data());
    for (size_t head = 0; head < group; ++head) {
      double logit = 0.0;
      for (size_t d = 0; d < dim; ++d) logit += double{problem.q[head * dim + d]} * key[d];
      logit *= problem.scale;
      if (problem.logit_soft_cap > 0.0f) logit = problem.logit_soft_cap * std::tanh(logit / problem.logit_soft_cap);
      const double r = std::exp(logit - problem.lse[head]);
      sum[head] += r;
      squares[head] += r * r;
      for (size_t d = 0; d < dim; ++d) {
        value_sum[head * dim + d] += r * value[d];
        value_squares[head * dim + d] += r * value[d] * r * value[d];
      }
    }
  }
  if (result.first == 0) return result;  // everything is in the list
  residual *= result.first;
  const double count = result.first;
  if (result.first < 2) {
    result.tokens = std::numeric_limits<double>::infinity();
    return result;
  }
  const auto variance = [&](double total, double total_squares) {
    return std::max(0.0, (total_squares - total * total / count) / (count - 1.0));
  };
  for (size_t head = 0; head < group; ++head) {
    double norm = 0.0, of_values = 0.0;
    for (size_t d = 0; d < dim; ++d) {
      norm += double{problem.out[head * dim + d]} * problem.out[head * dim + d];
      of_values += variance(value_sum[head * dim + d], value_squares[head * dim + d]);
    }
    const double factor = z * residual / e;
    const double needed = factor * factor * std::max(variance(sum[head], squares[head]), of_values / norm);
    const double without_replacement = std::isfinite(needed) ? needed * residual / (needed + residual) : residual;
    result.tokens = std::max(result.tokens, without_replacement);
  }
  return result;
}

}  // namespace rarefy
