#include "ref/select.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>

namespace rarefy::ref {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Positions of `values` from the largest down, ties by position.
std::vector<int32_t> descending(const std::vector<double>& values) {
  std::vector<int32_t> order(values.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return values[a] > values[b]; });
  return order;
}

}  // namespace

Scores exact_scores(const float* q, const float* keys, int64_t num_keys, int32_t head_dim) {
  Scores result;
  for (int64_t key = 0; key < num_keys; ++key) {
    double value = 0.0, magnitude = 0.0;
    for (int32_t dim = 0; dim < head_dim; ++dim) {
      const double product = double{q[dim]} * double{keys[key * head_dim + dim]};
      value += product;
      magnitude += std::abs(product);
    }
    result.value.push_back(value);
    result.magnitude.push_back(magnitude);
  }
  return result;
}

std::vector<double> rotate(const float* x, const std::vector<float>& factors, const std::vector<int32_t>& block_sizes) {
  const int32_t head_dim = std::accumulate(block_sizes.begin(), block_sizes.end(), 0);
  std::vector<double> out(x, x + head_dim);
  for (size_t round = 0; round < factors.size(); round += static_cast<size_t>(head_dim)) {
    const std::vector<double> in = out;
    int32_t first = 0;
    for (int32_t size : block_sizes) {
      for (int32_t i = 0; i < size; ++i) {
        double sum = 0.0;
        for (int32_t j = 0; j < size; ++j) {
          const double term = double{factors[round + static_cast<size_t>(first + j)]} * in[static_cast<size_t>(first + j)];
          sum += std::popcount(static_cast<uint32_t>(i & j)) % 2 == 0 ? term : -term;
        }
        out[static_cast<size_t>(first + i)] = sum;
      }
      first += size;
    }
  }
  return out;
}

double page_bound(const float* q, const double* minima, const double* maxima, int32_t head_dim) {
  double sum = 0.0;
  for (int32_t dim = 0; dim < head_dim; ++dim) sum += std::max(double{q[dim]} * minima[dim], double{q[dim]} * maxima[dim]);
  return sum;
}

double log_sum_exp(const double* values, int64_t count) {
  double largest = -kInfinity;
  for (int64_t i = 0; i < count; ++i) largest = std::max(largest, values[i]);
  if (!std::isfinite(largest)) return largest;
  double sum = 0.0;
  for (int64_t i = 0; i < count; ++i) sum += std::exp(values[i] - largest);
  return largest + std::log(sum);
}

std::vector<double> group_scores(const std::vector<std::vector<double>>& scores, const std::vector<double>& log_sums) {
  std::vector<double> result(scores.at(0).size(), -kInfinity);
  for (size_t query = 0; query < scores.size(); ++query) {
    for (size_t i = 0; i < result.size(); ++i) result[i] = std::max(result[i], scores[query][i] - log_sums[query]);
  }
  return result;
}

SpendResult spend(const SpendProblem& problem, const std::vector<double>& scores) {
  const auto num_tokens = static_cast<int32_t>(scores.size());
  SpendResult result;
  result.top_cut = result.tau = -kInfinity;
  std::vector<double> mixed = scores;
  for (double& a : mixed) {
    if (problem.flat) {
      a = 0.0;
    } else if (problem.floor > 0.0) {
      a = std::log((1.0 - problem.floor) * std::exp(a) + problem.floor / num_tokens);
    }
  }
  for (int32_t i = 0; i < num_tokens; ++i) {
    const double u = token_uniform(problem.key, static_cast<uint32_t>(problem.first_token + i));
    result.keys.push_back(mixed[i] - std::log(u));
  }

  std::vector<double> weight(scores.size(), -1.0);  // [num_tokens] f64; negative = not taken
  if (problem.num_top > 0) {
    const std::vector<int32_t> order = descending(scores);
    for (int32_t i = 0; i < std::min(problem.num_top, num_tokens); ++i) {
      weight[order[i]] = 0.0;
      result.top_cut = scores[order[i]];
    }
  }
  if (problem.num_random > 0) {
    std::vector<int32_t> rest;
    for (int32_t i : descending(result.keys)) {
      if (weight[i] < 0.0) rest.push_back(i);
    }
    const auto num_rest = static_cast<int32_t>(rest.size());
    if (num_rest > problem.num_random) result.tau = result.keys[rest[problem.num_random]];
    for (int32_t i = 0; i < std::min(problem.num_random, num_rest); ++i) {
      const double flat_weight = std::log(static_cast<double>(num_rest) / std::min(problem.num_random, num_rest));
      weight[rest[i]] = problem.flat ? flat_weight : std::max(0.0, result.tau - mixed[rest[i]]);
    }
  }
  for (int32_t i = 0; i < num_tokens; ++i) {
    if (weight[i] < 0.0) continue;
    result.token_ids.push_back(problem.first_token + i);
    result.log_weight.push_back(weight[i]);
  }
  return result;
}

}  // namespace rarefy::ref
