// Means, quantiles and intervals of evaluation results. Plain functions.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

namespace rarefy::cli {

struct MeanAndError {
  double mean = 0.0;
  double standard_error = 0.0;  // 0 for fewer than two values
};
MeanAndError mean_and_error(const std::vector<double>& values);  // [num_values] f64

// Smallest value that at least a share p of the values do not exceed; 0 when there are none.
double quantile(std::vector<double> values, double p);  // [num_values] f64
double median(const std::vector<double>& values);       // [num_values] f64

struct Interval {
  double low = 0.0, high = 0.0;
};
// 95 % score interval of a proportion (Wilson, 1927).
Interval wilson(int64_t right, int64_t total);

// 95 % interval of sum(numerator) / sum(denominator) by resampling the pairs 4,000 times with a fixed seed. Draws whose
// denominator is 0 are left out.
Interval bootstrap_ratio(const std::vector<std::pair<double, double>>& pairs);

}  // namespace rarefy::cli
