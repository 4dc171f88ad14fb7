#include "ref/delta_net.h"

#include <cmath>

namespace rarefy::ref {
namespace {

double silu(double x) { return x / (1.0 + std::exp(-x)); }

}  // namespace

std::vector<double> causal_conv_silu(const float* x, const float* weight, const float* before, int64_t num_rows,
                                     int64_t num_channels, int32_t num_taps) {
  std::vector<double> out(static_cast<size_t>(num_rows * num_channels));
  for (int64_t row = 0; row < num_rows; ++row) {
    for (int64_t channel = 0; channel < num_channels; ++channel) {
      double sum = 0.0;
      for (int32_t tap = 0; tap < num_taps; ++tap) {
        const int64_t at = row - num_taps + 1 + tap;
        double value = 0.0;
        if (at >= 0) {
          value = x[at * num_channels + channel];
        } else if (before != nullptr) {
          value = before[(at + num_taps - 1) * num_channels + channel];
        }
        sum += value * weight[tap * num_channels + channel];
      }
      out[row * num_channels + channel] = silu(sum);
    }
  }
  return out;
}

std::vector<double> l2_normalise(double factor, const float* x, int64_t num_rows, int64_t dim) {
  std::vector<double> out(static_cast<size_t>(num_rows * dim));
  for (int64_t row = 0; row < num_rows; ++row) {
    double sum = 0.0;
    for (int64_t i = 0; i < dim; ++i) sum += double{x[row * dim + i]} * x[row * dim + i];
    for (int64_t i = 0; i < dim; ++i) out[row * dim + i] = factor * x[row * dim + i] / std::sqrt(sum + 1e-6);
  }
  return out;
}

std::vector<double> delta_rule(const DeltaRule& rule, std::vector<double>& state) {
  const int64_t key_dim = rule.key_head_dim, value_dim = rule.value_head_dim;
  const int32_t values_per_key = rule.num_value_heads / rule.num_key_heads;
  std::vector<double> out(static_cast<size_t>(rule.num_rows * rule.num_value_heads * value_dim));
  for (int64_t row = 0; row < rule.num_rows; ++row) {
    for (int32_t head = 0; head < rule.num_value_heads; ++head) {
      const float* q = rule.q + (row * rule.num_key_heads + head / values_per_key) * key_dim;
      const float* k = rule.k + (row * rule.num_key_heads + head / values_per_key) * key_dim;
      const float* v = rule.v + (row * rule.num_value_heads + head) * value_dim;
      const double decay = std::exp(double{rule.log_decay[row * rule.num_value_heads + head]});
      const double beta = rule.beta[row * rule.num_value_heads + head];
      double* s = state.data() + head * key_dim * value_dim;
      for (int64_t i = 0; i < key_dim * value_dim; ++i) s[i] *= decay;
      for (int64_t j = 0; j < value_dim; ++j) {
        double remembered = 0.0;
        for (int64_t i = 0; i < key_dim; ++i) remembered += s[i * value_dim + j] * k[i];
        const double delta = beta * (v[j] - remembered);
        double sum = 0.0;
        for (int64_t i = 0; i < key_dim; ++i) {
          s[i * value_dim + j] += k[i] * delta;
          sum += s[i * value_dim + j] * q[i];
        }
        out[(row * rule.num_value_heads + head) * value_dim + j] = sum;
      }
    }
  }
  return out;
}

std::vector<double> gated_rms_norm(const float* x, const float* weight, const float* gate, double epsilon, int64_t num_rows,
                                   int64_t dim) {
  std::vector<double> out(static_cast<size_t>(num_rows * dim));
  for (int64_t row = 0; row < num_rows; ++row) {
    double sum = 0.0;
    for (int64_t i = 0; i < dim; ++i) sum += double{x[row * dim + i]} * x[row * dim + i];
    const double scale = 1.0 / std::sqrt(sum / static_cast<double>(dim) + epsilon);
    for (int64_t i = 0; i < dim; ++i) {
      out[row * dim + i] = double{weight[i]} * x[row * dim + i] * scale * silu(gate[row * dim + i]);
    }
  }
  return out;
}

}  // namespace rarefy::ref
