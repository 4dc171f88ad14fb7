#include "engine/exact_attention.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>

#include "rarefy/core/device.h"

namespace rarefy {
namespace {

// Eight sums, so that the compiler can keep them in vectors. `a` [count] f32, `b` [count] f32
double dot(const float* a, const float* b, int32_t count) {
  constexpr int32_t kLanes = 8;
  std::array<double, kLanes> sums{};
  int32_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int32_t lane = 0; lane < kLanes; ++lane)
      sums[lane] += static_cast<double>(a[i + lane]) * static_cast<double>(b[i + lane]);
  }
  for (; i < count; ++i) sums[0] += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  return std::accumulate(sums.begin(), sums.end(), 0.0);
}

// Tokens by falling value, and the place of each. `values` [count] f64, `order` [count] i32, `ranks` [count] i32
void rank_tokens(const double* values, int32_t count, int32_t* order, int32_t* ranks) {
  std::iota(order, order + count, 0);
  std::stable_sort(order, order + count, [&](int32_t a, int32_t b) { return values[a] > values[b]; });
  for (int32_t place = 0; place < count; ++place) ranks[order[place]] = place;
}

}  // namespace

double relative_error(const double* got, const double* exact, int32_t head_dim) {
  double difference = 0.0, norm = 0.0;
  for (int32_t dim = 0; dim < head_dim; ++dim) {
    difference += (got[dim] - exact[dim]) * (got[dim] - exact[dim]);
    norm += exact[dim] * exact[dim];
  }
  return norm > 0.0 ? std::sqrt(difference / norm) : 0.0;
}

const double* ExactAttention::out(int32_t head) const { return out_.data() + int64_t{head} * head_dim_; }

double ExactAttention::probability(int32_t head, int32_t token) const {
  return std::exp(logits_[index(head, token)] - lse_[static_cast<std::size_t>(head)]);
}

void ExactAttention::widen(const PagedKvView& kv, const void* pool, std::vector<float>& rows) const {
  rows.resize(static_cast<std::size_t>(num_kv_heads_) * kv_len_ * head_dim_);
#pragma omp parallel for schedule(static) num_threads(num_threads())
  for (int32_t token = 0; token < kv_len_; ++token) {
    for (int32_t head = 0; head < num_kv_heads_; ++head) {
      float* row = rows.data() + (int64_t{head} * kv_len_ + token) * head_dim_;
      const int64_t offset = kv.row_offset(0, token, head);
      for (int32_t dim = 0; dim < head_dim_; ++dim) row[dim] = load_as_float(pool, kv.dtype, offset + dim);
    }
  }
}

void ExactAttention::attend_head(const ExactProblem& problem, const float* q, int32_t head) {
  const int64_t rows = int64_t{head / group_} * kv_len_ * head_dim_;
  double* logits = logits_.data() + int64_t{head} * kv_len_;
  double largest = -std::numeric_limits<double>::infinity();
  for (int32_t token = 0; token < kv_len_; ++token) {
    double logit = dot(q + int64_t{head} * head_dim_, keys_.data() + rows + int64_t{token} * head_dim_, head_dim_);
    logit *= static_cast<double>(problem.scale);
    const double cap = problem.logit_soft_cap;
    if (cap > 0.0) logit = cap * std::tanh(logit / cap);
    logits[token] = logit;
    largest = std::max(largest, logit);
  }
  double sum = 0.0;
  double* out = out_.data() + int64_t{head} * head_dim_;
  std::fill(out, out + head_dim_, 0.0);
  for (int32_t token = 0; token < kv_len_; ++token) {
    const double weight = std::exp(logits[token] - largest);
    const float* value = values_.data() + rows + int64_t{token} * head_dim_;
    sum += weight;
    for (int32_t dim = 0; dim < head_dim_; ++dim) out[dim] += weight * static_cast<double>(value[dim]);
  }
  for (int32_t dim = 0; dim < head_dim_; ++dim) out[dim] /= sum;
  lse_[static_cast<std::size_t>(head)] = largest + std::log(sum);
}

void ExactAttention::compute(const ExactProblem& problem, const float* q, const PagedKvView& kv) {
  kv_len_ = kv.kv_lens[0];
  head_dim_ = kv.head_dim;
  num_kv_heads_ = kv.num_kv_heads;
  group_ = problem.num_q_heads / num_kv_heads_;
  widen(kv, kv.keys, keys_);
  widen(kv, kv.values, values_);
  const auto num_tokens = static_cast<std::size_t>(kv_len_);
  logits_.resize(num_tokens * problem.num_q_heads);
  lse_.resize(static_cast<std::size_t>(problem.num_q_heads));
  out_.resize(static_cast<std::size_t>(problem.num_q_heads) * head_dim_);
  head_ranks_.resize(logits_.size());
  group_order_.resize(num_tokens * num_kv_heads_);
  group_ranks_.resize(group_order_.size());
#pragma omp parallel num_threads(num_threads())
  {
    std::vector<int32_t> order(num_tokens);   // [kv_len] i32
    std::vector<double> largest(num_tokens);  // [kv_len] f64; log probability
#pragma omp for schedule(dynamic)
    for (int32_t head = 0; head < problem.num_q_heads; ++head) {
      attend_head(problem, q, head);
      const int64_t row = int64_t{head} * kv_len_;
      rank_tokens(logits_.data() + row, kv_len_, order.data(), head_ranks_.data() + row);
    }
#pragma omp for schedule(dynamic)
    for (int32_t kv_head = 0; kv_head < num_kv_heads_; ++kv_head) {
      for (int32_t token = 0; token < kv_len_; ++token) {
        double best = -std::numeric_limits<double>::infinity();
        for (int32_t head = kv_head * group_; head < (kv_head + 1) * group_; ++head)
          best = std::max(best, logits_[index(head, token)] - lse_[static_cast<std::size_t>(head)]);
        largest[static_cast<std::size_t>(token)] = best;
      }
      const int64_t row = int64_t{kv_head} * kv_len_;
      rank_tokens(largest.data(), kv_len_, group_order_.data() + row, group_ranks_.data() + row);
    }
  }
}

double ExactAttention::truncation_error(int32_t head, int32_t count) const {
  const int32_t kv_head = head / group_;
  const int32_t* order = group_order_.data() + int64_t{kv_head} * kv_len_;
  std::vector<double> sums(static_cast<std::size_t>(head_dim_));  // [head_dim] f64
  double sum = 0.0;
  for (int32_t i = 0; i < count; ++i) {
    const double weight = probability(head, order[i]);
    const float* value = values_.data() + (int64_t{kv_head} * kv_len_ + order[i]) * head_dim_;
    sum += weight;
    for (int32_t dim = 0; dim < head_dim_; ++dim) sums[dim] += weight * static_cast<double>(value[dim]);
  }
  if (sum > 0.0) {
    for (double& value : sums) value /= sum;
  }
  return relative_error(sums.data(), out(head), head_dim_);
}

}  // namespace rarefy
