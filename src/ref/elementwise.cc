#include "ref/elementwise.h"

#include <cmath>
#include <numbers>

namespace rarefy::ref {

std::vector<double> rms_norm(const float* x, const float* weight, double epsilon, int64_t num_rows, int64_t dim) {
  std::vector<double> out(static_cast<size_t>(num_rows * dim));
  for (int64_t row = 0; row < num_rows; ++row) {
    double sum = 0.0;
    for (int64_t i = 0; i < dim; ++i) sum += double{x[row * dim + i]} * x[row * dim + i];
    const double scale = 1.0 / std::sqrt(sum / static_cast<double>(dim) + epsilon);
    for (int64_t i = 0; i < dim; ++i) out[row * dim + i] = double{weight[i]} * x[row * dim + i] * scale;
  }
  return out;
}

std::vector<double> rope(const float* x, int64_t x_row_stride, const float* inverse_frequency, double attention_factor,
                         int64_t first_position, int64_t num_rows, int32_t num_heads, int32_t head_dim,
                         int32_t rotary_dim) {
  std::vector<double> out(static_cast<size_t>(num_rows * num_heads * head_dim));
  const int32_t half = rotary_dim / 2;
  for (int64_t row = 0; row < num_rows; ++row) {
    for (int32_t head = 0; head < num_heads; ++head) {
      const float* from = x + row * x_row_stride + int64_t{head} * head_dim;
      double* to = out.data() + (row * num_heads + head) * head_dim;
      for (int32_t j = 0; j < head_dim; ++j) to[j] = from[j];
      for (int32_t j = 0; j < half; ++j) {
        const double angle = static_cast<double>(first_position + row) * inverse_frequency[j];
        const double cos = attention_factor * std::cos(angle), sin = attention_factor * std::sin(angle);
        to[j] = from[j] * cos - from[j + half] * sin;
        to[j + half] = from[j + half] * cos + from[j] * sin;
      }
    }
  }
  return out;
}

std::vector<double> silu_mul(const float* gate_up, int64_t num_rows, int64_t dim) {
  std::vector<double> out(static_cast<size_t>(num_rows * dim));
  for (int64_t row = 0; row < num_rows; ++row) {
    for (int64_t i = 0; i < dim; ++i) {
      const double gate = gate_up[row * 2 * dim + i], up = gate_up[row * 2 * dim + dim + i];
      out[row * dim + i] = gate / (1.0 + std::exp(-gate)) * up;
    }
  }
  return out;
}

std::vector<double> gelu_tanh_mul(const float* gate_up, int64_t num_rows, int64_t dim) {
  std::vector<double> out(static_cast<size_t>(num_rows * dim));
  for (int64_t row = 0; row < num_rows; ++row) {
    for (int64_t i = 0; i < dim; ++i) {
      const double z = gate_up[row * 2 * dim + i], up = gate_up[row * 2 * dim + dim + i];
      const double u = std::sqrt(2.0 / std::numbers::pi) * (z + 0.044715 * z * z * z);
      out[row * dim + i] = 0.5 * z * (1.0 + std::tanh(u)) * up;
    }
  }
  return out;
}

std::vector<double> sigmoid_mul(const float* gate, const float* value, int64_t count) {
  std::vector<double> out(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) out[i] = double{value[i]} / (1.0 + std::exp(-double{gate[i]}));
  return out;
}

std::vector<double> soft_cap(const float* x, double cap, int64_t count) {
  std::vector<double> out(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) out[i] = cap * std::tanh(x[i] / cap);
  return out;
}

std::vector<double> matmul(const float* x, const float* weight, const float* bias, int64_t num_rows, int64_t in_dim,
                           int64_t out_dim, std::vector<double>* magnitude) {
  std::vector<double> out(static_cast<size_t>(num_rows * out_dim));
  if (magnitude != nullptr) magnitude->assign(out.size(), 0.0);
  for (int64_t row = 0; row < num_rows; ++row) {
    for (int64_t n = 0; n < out_dim; ++n) {
      double sum = bias != nullptr ? bias[n] : 0.0;
      double scale = std::abs(sum);
      for (int64_t k = 0; k < in_dim; ++k) {
        const double term = double{x[row * in_dim + k]} * weight[n * in_dim + k];
        sum += term;
        scale += std::abs(term);
      }
      out[row * out_dim + n] = sum;
      if (magnitude != nullptr) (*magnitude)[row * out_dim + n] = scale;
    }
  }
  return out;
}

}  // namespace rarefy::ref
