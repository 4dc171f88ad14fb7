#include "replay_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "layer_list.h"
#include "run_record.h"
#include "table.h"
#include "terminal.h"

namespace rarefy::cli {
namespace {

constexpr double kZ95 = 1.96;  // two-sided 95 % quantile of the normal distribution

ReplaySummary::Errors summarize_errors(const std::vector<double>& values) {
  ReplaySummary::Errors errors;
  errors.mean = mean_and_error(values).mean;
  double squares = 0.0;
  for (const double value : values) squares += value * value;
  errors.rms = values.empty() ? 0.0 : std::sqrt(squares / static_cast<double>(values.size()));
  errors.p50 = quantile(values, 0.5);
  errors.p95 = quantile(values, 0.95);
  errors.p99 = quantile(values, 0.99);
  errors.max = quantile(values, 1.0);
  return errors;
}

void put_errors(nlohmann::ordered_json& record, const std::string& name, const ReplaySummary::Errors& errors) {
  record[name + "_mean"] = errors.mean;
  record[name + "_rms"] = errors.rms;
  record[name + "_p50"] = errors.p50;
  record[name + "_p95"] = errors.p95;
  record[name + "_p99"] = errors.p99;
  record[name + "_max"] = errors.max;
}

}  // namespace

std::string ReplayScope::title() const {
  const std::string first = std::filesystem::path(files.front()).filename().string();
  return files.size() == 1 ? first : fmt::format("{} and {} more", first, files.size() - 1);
}

int32_t ReplayScope::shortest_kv_len() const { return *std::min_element(positions.begin(), positions.end()) + 1; }
int32_t ReplayScope::longest_kv_len() const { return *std::max_element(positions.begin(), positions.end()) + 1; }

ReplaySummary summarize(std::string name, bool stored, Policy policy, ReplayArm arm) {
  ReplaySummary summary;
  summary.name = std::move(name);
  summary.stored = stored;
  summary.policy = std::move(policy);
  std::vector<double> error, exact_error, estimated, mass, recall, overlap, selected;
  std::vector<std::pair<std::vector<double>, std::vector<double>>> by_layer;
  std::vector<int32_t> layers;
  for (const ReplayRow& row : arm.rows) {
    if (std::find(layers.begin(), layers.end(), row.layer) == layers.end()) layers.push_back(row.layer);
  }
  std::sort(layers.begin(), layers.end());
  by_layer.resize(layers.size());
  for (const ReplayRow& row : arm.rows) {
    error.push_back(row.error);
    exact_error.push_back(row.exact_error);
    mass.push_back(row.mass);
    recall.push_back(row.recall);
    overlap.push_back(row.overlap);
    selected.push_back(row.num_selected);
    auto& layer = by_layer[static_cast<size_t>(std::lower_bound(layers.begin(), layers.end(), row.layer) - layers.begin())];
    layer.first.push_back(row.error);
    layer.second.push_back(row.exact_error);
    if (row.estimated_error <= 0.0) continue;
    estimated.push_back(row.estimated_error);
    ++summary.certificate_pairs;
    if (row.error <= kZ95 * row.estimated_error) ++summary.certificate_covered;
  }
  summary.error = summarize_errors(error);
  summary.exact_error = summarize_errors(exact_error);
  summary.estimated_error = summarize_errors(estimated);
  for (const auto& [errors, exact] : by_layer) {
    summary.layer_error.push_back(summarize_errors(errors));
    summary.layer_exact_error.push_back(summarize_errors(exact));
  }
  summary.mass = mean_and_error(mass).mean;
  summary.recall = mean_and_error(recall).mean;
  summary.overlap = mean_and_error(overlap).mean;
  summary.num_selected = mean_and_error(selected).mean;
  summary.arm = std::move(arm);
  return summary;
}

std::string replay_json(const ReplayScope& scope, const ReplaySummary& arm) {
  nlohmann::ordered_json record = new_record("replay");
  record["capture"] = scope.title();
  record["captures"] = scope.files.size();
  record["model"] = scope.origin("model");
  record["checkpoint"] = scope.origin("checkpoint");
  record["capture_commit"] = scope.origin("commit");
  record["policy"] = arm.name;
  record["policy_resolved"] = arm.arm.policy;
  record["selector"] = arm.selector();
  record["spend"] = arm.spend();
  record["kv_dtype"] = to_string(scope.info.kv_dtype);
  record["kv_len"] = scope.longest_kv_len();
  record["layers"] = format_layers(scope.layers);
  record["steps"] = scope.positions.size();
  record["seeds"] = scope.num_seeds;
  record["pairs"] = arm.arm.rows.size();
  record["num_selected"] = arm.num_selected;
  record["density"] = arm.arm.traffic.density();
  record["sparsity"] = 1.0 / arm.arm.traffic.density();
  record["bytes_ratio"] = arm.arm.traffic.bytes_ratio();
  record["index_bytes"] = arm.arm.traffic.index_bytes;
  put_errors(record, "error", arm.error);
  put_errors(record, "exact_error", arm.exact_error);
  record["mass"] = arm.mass;
  record["recall_of_exact"] = arm.recall;
  record["overlap"] = arm.overlap;
  record["certificate_pairs"] = arm.certificate_pairs;
  if (arm.certificate_pairs > 0) {
    put_errors(record, "estimated_error", arm.estimated_error);
    record["certificate_covered"] =
        static_cast<double>(arm.certificate_covered) / static_cast<double>(arm.certificate_pairs);
  }
  for (size_t i = 0; i < scope.layers.size(); ++i) {
    record["by_layer"].push_back({{"layer", scope.layers[i]},
                                  {"bytes_ratio", arm.arm.layers[i].bytes_ratio()},
                                  {"error_p50", arm.layer_error[i].p50},
                                  {"error_p95", arm.layer_error[i].p95},
                                  {"exact_error_p50", arm.layer_exact_error[i].p50},
                                  {"exact_error_p95", arm.layer_exact_error[i].p95}});
  }
  append_origin(record);
  return record.dump() + "\n";
}

std::string replay_table(const ReplayScope& scope, const std::vector<ReplaySummary>& arms) {
  Table errors({"policy", "density", "bytes_ratio", "error 50 %", "95 %", "99 %", "max", "exact 50 %", "95 %"});
  Table lists({"policy", "tokens", "mass", "recall", "overlap", "estimated 50 %", "within 1.96"});
  for (const ReplaySummary& arm : arms) {
    const std::string name = fit(arm.name, 32);
    const auto figure = [](double value) { return fmt::format("{:.4f}", value); };
    errors.add_row({name, figure(arm.arm.traffic.density()), figure(arm.arm.traffic.bytes_ratio()), figure(arm.error.p50),
                    figure(arm.error.p95), figure(arm.error.p99), figure(arm.error.max), figure(arm.exact_error.p50),
                    figure(arm.exact_error.p95)});
    const bool certified = arm.certificate_pairs > 0;
    lists.add_row({name, fmt::format("{:.0f}", arm.num_selected), figure(arm.mass), figure(arm.recall), figure(arm.overlap),
                   certified ? figure(arm.estimated_error.p50) : "-",
                   certified ? fmt::format("{:.1f} %", 100.0 * static_cast<double>(arm.certificate_covered) /
                                                           static_cast<double>(arm.certificate_pairs))
                             : "-"});
  }
  std::string text = fmt::format(
      "{}: {} steps at {} to {} cached tokens, layers {}, {} query heads{}\n"
      "Errors are audited: |out - dense| / |dense| of each head, dense in double precision. exact: the best\n"
      "tokens by true probability, as many as the policy took, nothing sampled.\n\n",
      scope.title(), scope.positions.size(), format_count(scope.shortest_kv_len()), format_count(scope.longest_kv_len()),
      format_layers(scope.layers), scope.info.num_q_heads,
      scope.num_seeds > 1 ? fmt::format(", {} seeds", scope.num_seeds) : "");
  text += errors.text() + "\n" + lists.text();
  text +=
      "\ntokens, mass, recall, overlap: means. mass: dense attention probability of the selected tokens; recall:\n"
      "share of a head's best tokens that were selected; overlap: Jaccard index with the group's best tokens.\n"
      "estimated: the certificate (out_rel_std); within 1.96: audited error <= 1.96 of it, about 95 % when it holds.\n";
  for (const ReplaySummary& arm : arms) {
    if (!arm.stored) text += fmt::format("{}{} = {}\n", &arm == &arms.front() ? "\n" : "", arm.name, arm.arm.policy);
  }
  return text;
}

}  // namespace rarefy::cli
