#include "statistics.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

namespace rarefy::cli {

MeanAndError mean_and_error(const std::vector<double>& values) {
  MeanAndError result;
  if (values.empty()) return result;
  const auto count = static_cast<double>(values.size());
  result.mean = std::accumulate(values.begin(), values.end(), 0.0) / count;
  if (values.size() < 2) return result;
  double squares = 0.0;
  for (const double value : values) squares += (value - result.mean) * (value - result.mean);
  result.standard_error = std::sqrt(squares / (count - 1.0) / count);
  return result;
}

double quantile(std::vector<double> values, double p) {
  if (values.empty()) return 0.0;
  const auto rank = static_cast<int64_t>(std::ceil(p * static_cast<double>(values.size())));
  const int64_t index = std::clamp<int64_t>(rank - 1, 0, static_cast<int64_t>(values.size()) - 1);
  std::nth_element(values.begin(), values.begin() + index, values.end());
  return values[static_cast<size_t>(index)];
}

double median(const std::vector<double>& values) { return quantile(values, 0.5); }

Interval wilson(int64_t right, int64_t total) {
  if (total == 0) return {0.0, 1.0};
  constexpr double kZ = 1.959964;
  const auto n = static_cast<double>(total);
  const double p = static_cast<double>(right) / n;
  const double scale = 1.0 + kZ * kZ / n;
  const double centre = (p + kZ * kZ / (2.0 * n)) / scale;
  const double half = kZ * std::sqrt(p * (1.0 - p) / n + kZ * kZ / (4.0 * n * n)) / scale;
  // At the ends the interval reaches the observed proportion exactly, rounding aside.
  return {right == 0 ? 0.0 : centre - half, right == total ? 1.0 : centre + half};
}

Interval bootstrap_ratio(const std::vector<std::pair<double, double>>& pairs) {
  constexpr int32_t kDraws = 4000;
  std::mt19937_64 random(20240607);
  std::vector<double> ratios;
  for (int32_t draw = 0; draw < kDraws && !pairs.empty(); ++draw) {
    double numerator = 0.0, denominator = 0.0;
    for (size_t i = 0; i < pairs.size(); ++i) {
      const auto& pair = pairs[random() % pairs.size()];
      numerator += pair.first;
      denominator += pair.second;
    }
    if (denominator > 0.0) ratios.push_back(numerator / denominator);
  }
  return {quantile(ratios, 0.025), quantile(ratios, 0.975)};
}

}  // namespace rarefy::cli
