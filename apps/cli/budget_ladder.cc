#include "budget_ladder.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "evaluation.h"
#include "failure.h"
#include "interrupt.h"
#include "terminal.h"

namespace rarefy::cli {
namespace {

constexpr double kLowestDensity = 0.0025, kHighestDensity = 0.25;
constexpr double kFewestTokens = 16.0;

double root(double squares, int64_t count) {
  return count > 0 ? std::sqrt(squares / static_cast<double>(count)) : 0.0;
}

// Three digits: finer differences are below what was measured.
Budget budget_of(const Policy& base, double density, int32_t kv_len) {
  if (!base.total.is_fraction) return {false, std::max(1.0, std::round(density * kv_len))};
  return {true, std::stod(fmt::format("{:.3g}", density))};
}

}  // namespace

void LayerRung::add(const RunStats& stats, int32_t layer, int32_t num_kv_heads) {
  const auto at = static_cast<size_t>(layer);
  const LayerStats& one = stats.layers.at(at);
  traffic.add(one.traffic);
  estimated_count += one.estimated_error.count();
  estimated_squares += one.estimated_error.mean_square() * static_cast<double>(one.estimated_error.count());
  if (at >= stats.audit.layer_error.size()) return;
  const QuantileSketch& error = stats.audit.layer_error[at];
  audited_count += error.count();
  audited_squares += error.mean_square() * static_cast<double>(error.count());
  const size_t num_q_heads = stats.audit.head_error.size() / stats.audit.layer_error.size();
  kv_head_squares.resize(static_cast<size_t>(num_kv_heads));
  for (size_t head = 0; head < num_q_heads; ++head) {
    const QuantileSketch& one_head = stats.audit.head_error[at * num_q_heads + head];
    kv_head_squares[head * static_cast<size_t>(num_kv_heads) / num_q_heads] +=
        one_head.mean_square() * static_cast<double>(one_head.count());
  }
}

double LayerRung::audited_rms() const { return root(audited_squares, audited_count); }
double LayerRung::estimated_rms() const { return root(estimated_squares, estimated_count); }

std::vector<BudgetCurve> BudgetLadder::curves(ErrorSource source, int num_steps) const {
  std::vector<BudgetCurve> result;
  for (const std::vector<LayerRung>& layer : rungs) {
    std::vector<BudgetPoint> points;
    for (size_t i = 0; i < layer.size(); ++i) {
      const double error = source == ErrorSource::audited ? layer[i].audited_rms() : layer[i].estimated_rms();
      points.push_back({densities[i], layer[i].traffic.bytes_ratio(), error * error});
    }
    result.push_back(make_curve(std::move(points), num_steps));
  }
  return result;
}

std::vector<BudgetCurve> BudgetLadder::kv_head_curves(int num_steps) const {
  std::vector<BudgetCurve> result;
  for (const std::vector<LayerRung>& layer : rungs) {
    const size_t num_kv_heads = layer.front().kv_head_squares.size();
    for (size_t kv_head = 0; kv_head < num_kv_heads; ++kv_head) {
      std::vector<BudgetPoint> points;
      for (size_t i = 0; i < layer.size(); ++i) {
        const double share = static_cast<double>(layer[i].audited_count) / static_cast<double>(num_kv_heads);
        points.push_back({densities[i], layer[i].traffic.bytes_ratio(), layer[i].kv_head_squares[kv_head] / share});
      }
      result.push_back(make_curve(std::move(points), num_steps));
    }
  }
  return result;
}

std::vector<double> ladder_densities(int32_t kv_len, int32_t count) {
  const double low = std::max(kLowestDensity, kFewestTokens / kv_len);
  std::vector<double> densities;
  for (int32_t i = 0; i < count; ++i) {
    densities.push_back(low * std::pow(kHighestDensity / low, static_cast<double>(i) / (count - 1)));
  }
  return densities;
}

Policy with_density(const Policy& base, double density, int32_t kv_len) {
  Policy policy = base;
  policy.total = budget_of(base, density, kv_len);
  return policy;
}

Policy with_densities(const Policy& base, const std::vector<int32_t>& layers, const std::vector<double>& densities,
                      int32_t kv_len) {
  Policy policy = base;
  policy.overrides.clear();
  // The budget that most layers have stands for all.
  std::map<double, int32_t> votes;
  for (const double density : densities) {
    if (density < 1.0) ++votes[budget_of(base, density, kv_len).value];
  }
  if (votes.empty()) return Policy{};
  const auto common = std::max_element(votes.begin(), votes.end(), [](const auto& a, const auto& b) { return a.second < b.second; });
  policy.total.value = common->first;
  std::vector<LayerOverride> totals;
  const auto extend = [](std::vector<LayerOverride>& list, LayerOverride one) {
    if (!list.empty() && list.back().last_layer + 1 == one.first_layer && list.back().total == one.total) {
      list.back().last_layer = one.last_layer;
    } else {
      list.push_back(one);
    }
  };
  for (size_t i = 0; i < layers.size(); ++i) {
    LayerOverride one;
    one.first_layer = one.last_layer = layers[i];
    one.dense = densities[i] >= 1.0;
    if (one.dense) {
      extend(policy.overrides, one);
      continue;
    }
    one.total = budget_of(base, densities[i], kv_len);
    if (one.total != policy.total) extend(totals, one);
  }
  policy.overrides.insert(policy.overrides.end(), totals.begin(), totals.end());
  return policy;
}

void measure_passage(Engine& engine, const LadderOptions& options, const Passage& passage, const std::string& label,
                     BudgetLadder& ladder) {
  Session context = engine.new_session();
  prefill(context, {passage.context.begin(), passage.context.end() - 1}, label);
  const auto kv_len = static_cast<int32_t>(passage.context.size());
  if (options.channels != nullptr) options.channels->add(context, passage.continuation);
  ProgressBar bar(label + ", budgets");
  const auto steps = static_cast<int64_t>(passage.continuation.size());
  const auto total = static_cast<int64_t>(options.densities.size()) * steps;
  int64_t done = 0;
  for (size_t rung = 0; rung < options.densities.size(); ++rung) {
    const Arm arm{"", with_density(options.base, options.densities[rung], kv_len)};
    Session session = fork_for_arm(context, arm, options.seed, options.audit ? 1.0 : 0.0);
    int32_t input = passage.context.back();
    for (const int32_t next : passage.continuation) {
      check(session.decode(input, nullptr));
      check_interrupt();
      bar.update(++done, total);
      input = next;
    }
    for (size_t layer = 0; layer < ladder.layers.size(); ++layer) {
      ladder.rungs[layer][rung].add(session.stats(), ladder.layers[layer],
                                    engine.model().config().num_kv_heads);
    }
  }
}

}  // namespace rarefy::cli
