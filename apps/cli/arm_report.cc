#include "arm_report.h"

#include <fmt/format.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "resume_file.h"
#include "run_record.h"
#include "run_table.h"
#include "table.h"
#include "terminal.h"

namespace rarefy::cli {
namespace {

double ms_per_token(const ArmCounters& counters) {
  return 1e3 * counters.decode_seconds / static_cast<double>(counters.decode_tokens);
}

}  // namespace

void run_contexts(const ArmRun& run, const nlohmann::json& options, const std::vector<std::string>& ids,
                  const std::function<nlohmann::json(size_t context, const std::string& label)>& evaluate,
                  const std::function<std::string(const nlohmann::json& result)>& take) {
  nlohmann::json description = options;
  description["bench"] = run.bench;
  description["model"] = run.model_name;
  description["file"] = std::filesystem::path(run.file).filename().string();
  description["policies"] = nlohmann::json::array();
  for (const Arm& arm : run.arms) description["policies"].push_back(arm.policy.to_string());
  description["seed"] = run.model->seed;
  description["audit"] = run.model->audit;
  description["kv_dtype"] = to_string(run.kv_dtype);
  ResumeFile resume(run.resume, description);
  for (size_t i = 0; i < ids.size(); ++i) {
    const std::string label = fmt::format("context {} of {}", i + 1, ids.size());
    const nlohmann::json* known = resume.find(ids[i]);
    const nlohmann::json result = known != nullptr ? *known : evaluate(i, label);
    if (known == nullptr) resume.append(ids[i], result);
    fmt::print(stderr, "{}:{}\n", label, take(result));
  }
}

nlohmann::ordered_json begin_arm_record(const ArmRun& run, const Arm& arm) {
  nlohmann::ordered_json record = new_record(run.bench);
  record["model"] = run.model_name;
  record["set"] = run.set.empty() ? std::filesystem::path(run.file).filename().string() : run.set;
  record["policy"] = arm.name;
  record["policy_resolved"] = arm.policy.to_string();
  record["kv_dtype"] = to_string(run.kv_dtype);
  return record;
}

std::string finish_arm_record(nlohmann::ordered_json& record, const ArmCounters& counters) {
  counters.describe(record);
  record["ms_per_token"] = ms_per_token(counters);
  append_origin(record);
  return record.dump() + "\n";
}

std::string cost_table(const std::vector<Arm>& arms, const std::vector<ArmCounters>& counters) {
  Table table({"policy", "density", "bytes_ratio", "error, estimated", "error, audited", "ms/token"});
  const auto when = [](int64_t count, double value) { return count > 0 ? fmt::format("{:.3f}", value) : std::string("-"); };
  for (size_t i = 0; i < arms.size(); ++i) {
    const ArmCounters& one = counters[i];
    table.add_row({fit(arms[i].name, 24), fmt::format("{:.4f}", one.traffic.density()),
                   fmt::format("{:.4f}", one.traffic.bytes_ratio()), when(one.estimated_count, one.estimated_rms()),
                   when(one.audited_count, one.audited_rms()), fmt::format("{:.2f}", ms_per_token(one))});
  }
  std::string text = table.text();
  for (size_t i = 0; i < arms.size(); ++i) {
    if (counters[i].lists.total() > 0) text += fmt::format("{}: {}\n", arms[i].name, lists_text(counters[i].lists));
    if (counters[i].promise.pairs > 0)
      text += fmt::format("{}, audited: {}\n", arms[i].name, promise_text(counters[i].promise));
  }
  return text;
}

std::string policy_lines(const std::vector<Arm>& arms) {
  std::string text;
  for (size_t i = 1; i < arms.size(); ++i)
    text += fmt::format("{}{} = {}\n", i == 1 ? "\n" : "", arms[i].name, arms[i].policy.to_string());
  return text;
}

}  // namespace rarefy::cli
