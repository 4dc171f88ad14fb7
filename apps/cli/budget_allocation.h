// Spreads a budget over layers: from curves of error against bytes, one per layer, to the choice that reads least at a target
// error, or errs least at given bytes. Plain functions.
//
// The error of a choice is the root mean square over layers, its bytes are the mean over layers (layers of a model are alike), so
// both are sums, and points on the lower convex hull of each curve, taken in order of slope, are optimal wherever they land on the
// target (Everett, Operations Research 11(3), 1963). What is left between two points is filled from the curves themselves.
#pragma once

#include <cstddef>
#include <vector>

namespace rarefy::cli {

// One budget of one layer.
struct BudgetPoint {
  double density = 1.0;
  double bytes_ratio = 1.0;    // (rows + index) / what dense attention reads in this layer
  double squared_error = 0.0;  // mean square of relative output errors
};
// Ascending in density and bytes, falling in error; the last point is the dense layer.
using BudgetCurve = std::vector<BudgetPoint>;

// A curve through measured points (ascending in density, at least two): errors are made to fall by pooling neighbours that do not,
// and interpolated as straight lines of logarithms in `num_steps` equal steps of ln(density). Dense comes last.
BudgetCurve make_curve(std::vector<BudgetPoint> measured, int num_steps);

struct BudgetChoice {
  std::vector<std::size_t> points;  // [num_layers]; of each layer's curve
  double bytes_ratio = 1.0;
  double error = 0.0;
};

// The choice `points` of these curves, with its figures.
BudgetChoice describe_choice(const std::vector<BudgetCurve>& curves, std::vector<std::size_t> points);
// Reads least among choices with at most this error; with every layer dense, if need be.
BudgetChoice least_bytes(const std::vector<BudgetCurve>& curves, double error);
// Errs least among choices with at most this bytes_ratio; the first points when nothing fits.
BudgetChoice least_error(const std::vector<BudgetCurve>& curves, double bytes_ratio);

// The same for one budget in all layers. Pre: curves on one grid of densities, as make_curve() gives.
BudgetChoice single_least_bytes(const std::vector<BudgetCurve>& curves, double error);
BudgetChoice single_least_error(const std::vector<BudgetCurve>& curves, double bytes_ratio);

}  // namespace rarefy::cli
