#include "budget_allocation.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace rarefy::cli {
namespace {

constexpr double kTiny = 1e-24;   // a squared error of nothing, for logarithms
constexpr double kSlack = 1e-12;  // relative; sums in another order

// Points of the lower convex hull of (bytes_ratio, squared_error), first and last included.
std::vector<size_t> hull_of(const BudgetCurve& curve) {
  std::vector<size_t> hull;
  const auto slope = [&](size_t from, size_t to) {
    return (curve[to].squared_error - curve[from].squared_error) / (curve[to].bytes_ratio - curve[from].bytes_ratio);
  };
  for (size_t i = 0; i < curve.size(); ++i) {
    while (hull.size() > 1 && slope(hull[hull.size() - 2], hull.back()) >= slope(hull.back(), i)) hull.pop_back();
    hull.push_back(i);
  }
  return hull;
}

// A choice under construction: sums over layers.
struct Sums {
  double bytes = 0.0, squares = 0.0;
};

class Allocator {
 public:
  explicit Allocator(const std::vector<BudgetCurve>& curves)
      : curves_(curves), points_(curves.size(), 0), at_(curves.size(), 0) {
    for (const BudgetCurve& curve : curves) {
      hulls_.push_back(hull_of(curve));
      sums_.bytes += curve.front().bytes_ratio;
      sums_.squares += curve.front().squared_error;
    }
  }

  const Sums& sums() const { return sums_; }
  std::vector<size_t> points() const { return points_; }

  // Moves the layer that gains most per byte to its next hull point, among those whose move `fits`; false when there is none.
  template <typename Fits>
  bool advance(const Fits& fits) {
    size_t best = curves_.size();
    double best_gain = 0.0;
    for (size_t layer = 0; layer < curves_.size(); ++layer) {
      if (at_[layer] + 1 >= hulls_[layer].size()) continue;
      const auto [bytes, squares] = change(layer, hulls_[layer][at_[layer] + 1]);
      const double gain = -squares / bytes;
      if ((best == curves_.size() || gain > best_gain) && fits(Sums{sums_.bytes + bytes, sums_.squares + squares})) {
        best = layer;
        best_gain = gain;
      }
    }
    if (best == curves_.size()) return false;
    move(best, hulls_[best][++at_[best]]);
    return true;
  }

  // Single steps on the curves, `step` points at a time, in the layer where they do most of what `gain` counts.
  template <typename Fits, typename Gain>
  void fill(int step, const Fits& fits, const Gain& gain) {
    while (true) {
      size_t best = curves_.size();
      double best_gain = 0.0;
      for (size_t layer = 0; layer < curves_.size(); ++layer) {
        const auto to = static_cast<std::ptrdiff_t>(points_[layer]) + step;
        if (to < 0 || to >= static_cast<std::ptrdiff_t>(curves_[layer].size())) continue;
        const auto [bytes, squares] = change(layer, static_cast<size_t>(to));
        const double one = gain(Sums{bytes, squares});
        if (one > best_gain && fits(Sums{sums_.bytes + bytes, sums_.squares + squares})) {
          best = layer;
          best_gain = one;
        }
      }
      if (best == curves_.size()) return;
      move(best, points_[best] + static_cast<size_t>(static_cast<std::ptrdiff_t>(step)));
    }
  }

 private:
  Sums change(size_t layer, size_t to) const {
    const BudgetPoint &from = curves_[layer][points_[layer]], &next = curves_[layer][to];
    return {next.bytes_ratio - from.bytes_ratio, next.squared_error - from.squared_error};
  }
  void move(size_t layer, size_t to) {
    const auto [bytes, squares] = change(layer, to);
    sums_.bytes += bytes;
    sums_.squares += squares;
    points_[layer] = to;
  }

  const std::vector<BudgetCurve>& curves_;
  std::vector<std::vector<size_t>> hulls_;  // [num_layers][points]
  std::vector<size_t> points_;              // [num_layers]
  std::vector<size_t> at_;                  // [num_layers]; place on the hull
  Sums sums_;
};

// Values that fall: runs that rise are replaced by their mean (pool adjacent violators).
void pool_rising(std::vector<double>& values) {  // values [num_points] f64
  std::vector<std::pair<double, size_t>> pools;  // mean, count
  for (const double value : values) {
    pools.emplace_back(value, 1);
    while (pools.size() > 1 && pools[pools.size() - 2].first < pools.back().first) {
      const auto [mean, count] = pools.back();
      pools.pop_back();
      auto& [before, before_count] = pools.back();
      before = (before * static_cast<double>(before_count) + mean * static_cast<double>(count)) /
               static_cast<double>(before_count + count);
      before_count += count;
    }
  }
  size_t at = 0;
  for (const auto& [mean, count] : pools) {
    for (size_t i = 0; i < count; ++i) values[at++] = mean;
  }
}

}  // namespace

BudgetCurve make_curve(std::vector<BudgetPoint> measured, int num_steps) {
  std::vector<double> logs;  // [num_points] f64
  logs.reserve(measured.size());
  for (const BudgetPoint& point : measured) logs.push_back(std::log(std::max(point.squared_error, kTiny)));
  pool_rising(logs);
  BudgetCurve curve;
  const double low = std::log(measured.front().density), high = std::log(measured.back().density);
  size_t segment = 0;
  for (int step = 0; step <= num_steps; ++step) {
    const double at = low + (high - low) * step / num_steps;
    while (segment + 2 < measured.size() && std::log(measured[segment + 1].density) <= at) ++segment;
    const BudgetPoint &left = measured[segment], &right = measured[segment + 1];
    const double share =
        std::clamp((at - std::log(left.density)) / (std::log(right.density) - std::log(left.density)), 0.0, 1.0);
    BudgetPoint point;
    point.density = std::exp(at);
    // Rows grow with the density, the index does not: straight in density itself.
    point.bytes_ratio = left.bytes_ratio + (right.bytes_ratio - left.bytes_ratio) * (point.density - left.density) /
                                               (right.density - left.density);
    point.squared_error = std::exp(logs[segment] + share * (logs[segment + 1] - logs[segment]));
    if (point.bytes_ratio < 1.0) curve.push_back(point);
  }
  curve.push_back({1.0, 1.0, 0.0});
  return curve;
}

BudgetChoice describe_choice(const std::vector<BudgetCurve>& curves, std::vector<size_t> points) {
  BudgetChoice choice;
  double bytes = 0.0, squares = 0.0;
  for (size_t layer = 0; layer < curves.size(); ++layer) {
    bytes += curves[layer][points[layer]].bytes_ratio;
    squares += curves[layer][points[layer]].squared_error;
  }
  choice.points = std::move(points);
  choice.bytes_ratio = bytes / static_cast<double>(curves.size());
  choice.error = std::sqrt(squares / static_cast<double>(curves.size()));
  return choice;
}

BudgetChoice least_bytes(const std::vector<BudgetCurve>& curves, double error) {
  const double allowed = error * error * static_cast<double>(curves.size()) * (1.0 + kSlack);
  Allocator allocator(curves);
  while (allocator.sums().squares > allowed && allocator.advance([](const Sums&) { return true; })) {
  }
  allocator.fill(
      -1, [&](const Sums& after) { return after.squares <= allowed; }, [](const Sums& change) { return -change.bytes; });
  return describe_choice(curves, allocator.points());
}

BudgetChoice least_error(const std::vector<BudgetCurve>& curves, double bytes_ratio) {
  const double allowed = bytes_ratio * static_cast<double>(curves.size()) * (1.0 + kSlack);
  Allocator allocator(curves);
  const auto fits = [&](const Sums& after) { return after.bytes <= allowed; };
  while (allocator.advance(fits)) {
  }
  allocator.fill(1, fits, [](const Sums& change) { return -change.squares; });
  return describe_choice(curves, allocator.points());
}

namespace {

BudgetChoice single(const std::vector<BudgetCurve>& curves, size_t point) {
  return describe_choice(curves, std::vector<size_t>(curves.size(), point));
}

size_t shortest(const std::vector<BudgetCurve>& curves) {
  size_t result = curves.front().size();
  for (const BudgetCurve& curve : curves) result = std::min(result, curve.size());
  return result;
}

}  // namespace

BudgetChoice single_least_bytes(const std::vector<BudgetCurve>& curves, double error) {
  const size_t end = shortest(curves);
  size_t point = 0;
  while (point + 1 < end && single(curves, point).error > error * (1.0 + kSlack)) ++point;
  return single(curves, point);
}

BudgetChoice single_least_error(const std::vector<BudgetCurve>& curves, double bytes_ratio) {
  const size_t end = shortest(curves);
  size_t point = 0;
  while (point + 1 < end && single(curves, point + 1).bytes_ratio <= bytes_ratio * (1.0 + kSlack)) ++point;
  return single(curves, point);
}

}  // namespace rarefy::cli
