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
          const double term = double{factors[round + static_cast<size_t>(first) + static_cast<size_t>(j)]} *
                              in[static_cast<size_t>(first) + static_cast<size_t>(j)];
          sum += std::popcount(static_cast<uint32_t>(i & j)) % 2 == 0 ? term : -term;
        }
        out[static_cast<size_t>(first) + static_cast<size_t>(i)] = sum;
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

std::vector<double> centroid_dots(const float* x, int32_t dim, const float* centroids, int32_t count) {
  std::vector<double> dots(static_cast<size_t>(count), 0.0);
  for (int32_t i = 0; i < dim * count; ++i)
    dots[static_cast<size_t>(i % count)] += double{x[i / count]} * double{centroids[i]};
  return dots;
}

std::vector<double> centroid_distances(const float* x, int32_t dim, const float* centroids, int32_t count) {
  std::vector<double> distances(static_cast<size_t>(count), 0.0);
  for (int32_t i = 0; i < dim * count; ++i) {
    const double difference = double{x[i / count]} - double{centroids[i]};
    distances[static_cast<size_t>(i % count)] += difference * difference;
  }
  return distances;
}

double collision_score(const float* q, const float* mean, int32_t head_dim, double longest, int32_t count,
                       int32_t num_signs, int32_t num_tables) {
  double square = 0.0, offset = 0.0;
  for (int32_t dim = 0; dim < head_dim; ++dim) {
    square += double{q[dim]} * double{q[dim]};
    offset += double{q[dim]} * double{mean[dim]};
  }
  const double probability = std::pow((count + 0.5) / (num_tables + 1.0), 1.0 / num_signs);
  return offset + std::sqrt(square) * longest * std::cos(std::acos(-1.0) * (1.0 - probability));
}

double soft_collision_score(const float* q, int32_t head_dim, const float* planes, const std::vector<int32_t>& ids,
                            int32_t num_signs, double temperature) {
  const double root = std::sqrt(static_cast<double>(head_dim));
  double total = 0.0;
  for (size_t table = 0; table < ids.size(); ++table) {
    std::vector<double> h;
    for (int32_t j = 0; j < num_signs; ++j) {
      const float* plane = planes + (static_cast<int64_t>(table) * num_signs + j) * head_dim;  // [head_dim] f32
      double sum = 0.0;
      for (int32_t dim = 0; dim < head_dim; ++dim) sum += double{plane[dim]} * double{q[dim]} * root;
      h.push_back(std::tanh(sum) / root);
    }
    std::vector<double> corners;
    for (int32_t corner = 0; corner < 1 << num_signs; ++corner) {
      double sum = 0.0;
      for (int32_t j = 0; j < num_signs; ++j)
        sum += (corner >> j & 1) != 0 ? h[static_cast<size_t>(j)] : -h[static_cast<size_t>(j)];
      corners.push_back(sum / temperature);
    }
    total += std::exp(corners[static_cast<size_t>(ids[table])] -
                      log_sum_exp(corners.data(), static_cast<int64_t>(corners.size())));
  }
  return std::log(total);
}

LineFit fit_line(const std::vector<double>& x, const std::vector<double>& y) {
  const auto n = static_cast<double>(x.size());
  const double sum_x = std::accumulate(x.begin(), x.end(), 0.0), sum_y = std::accumulate(y.begin(), y.end(), 0.0);
  const double sum_xx = std::inner_product(x.begin(), x.end(), x.begin(), 0.0);
  const double sum_xy = std::inner_product(x.begin(), x.end(), y.begin(), 0.0);
  LineFit line;
  const double determinant = n * sum_xx - sum_x * sum_x;
  if (n >= 3 && determinant > 0.0) line.slope = std::max(0.0, (n * sum_xy - sum_x * sum_y) / determinant);
  line.intercept = (sum_y - line.slope * sum_x) / n;
  for (size_t i = 0; i < x.size() && n >= 3; ++i) {
    line.residual_variance += std::pow(y[i] - line.intercept - line.slope * x[i], 2) / (n - 2);
  }
  return line;
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
    if (problem.draw == Draw::flat) {
      a = 0.0;
    } else if (problem.floor > 0.0) {
      a = std::log((1.0 - problem.floor) * std::exp(a) + problem.floor / num_tokens);
    }
  }
  for (int32_t i = 0; i < num_tokens; ++i) {
    const double u = token_uniform(problem.key, static_cast<uint32_t>(problem.first_token + i));
    const double gumbel = -std::log(u < 1.0 ? -std::log1p(-u) : 32.0 * std::log(2.0));
    result.keys.push_back(mixed[i] + (problem.draw == Draw::gumbel ? gumbel : -std::log(u)));
  }

  std::vector<double> weight(scores.size(), -1.0);  // [num_tokens] f64; negative = not taken
  if (problem.num_top > 0) {
    double total = 0.0, sum = 0.0;
    for (const double score : scores) total += std::exp(score);
    const std::vector<int32_t> order = descending(scores);
    for (int32_t i = 0; i < std::min(problem.num_top, num_tokens); ++i) {
      weight[order[i]] = 0.0;
      result.top_cut = scores[order[i]];
      sum += std::exp(scores[order[i]]);
      if (problem.top_p > 0.0 && sum > problem.top_p * total) break;
    }
  }
  if (problem.num_random > 0 && problem.draw == Draw::systematic) {
    const int64_t n = num_tokens, b = problem.num_random;
    const bool takes_all = problem.num_top + b >= n;
    const int64_t offset = static_cast<int64_t>(std::floor(token_hash(problem.key, 0xffffffffu) * 0x1p-32 * num_tokens));
    for (double& of_token : weight) of_token = takes_all ? 0.0 : of_token;
    for (int64_t hit = 0; hit < b; ++hit) {
      double& of_token = weight[static_cast<size_t>((offset + hit * n) / b)];
      if (of_token < 0.0) of_token = std::log(static_cast<double>(n) / static_cast<double>(b));
    }
  } else if (problem.num_random > 0) {
    std::vector<int32_t> rest;
    for (int32_t i : descending(result.keys)) {
      if (weight[i] < 0.0) rest.push_back(i);
    }
    const auto num_rest = static_cast<int32_t>(rest.size());
    if (num_rest > problem.num_random) result.tau = result.keys[rest[problem.num_random]];
    for (int32_t i = 0; i < std::min(problem.num_random, num_rest); ++i) {
      const double excess = mixed[rest[i]] - result.tau;
      double& of_token = weight[rest[i]];
      if (problem.draw == Draw::flat) {
        of_token = std::log(static_cast<double>(num_rest) / std::min(problem.num_random, num_rest));
      } else if (problem.draw == Draw::gumbel) {
        of_token = -std::log(-std::expm1(-std::exp(std::min(excess, 700.0))));
      } else {
        of_token = std::max(0.0, -excess);
      }
    }
  }
  for (int32_t i = 0; i < num_tokens; ++i) {
    if (weight[i] < 0.0) continue;
    result.token_ids.push_back(problem.first_token + i);
    result.log_weight.push_back(std::max(0.0, weight[i]));
  }
  return result;
}

}  // namespace rarefy::ref
