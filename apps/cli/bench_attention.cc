// rarefy bench attention: dense decode, sparse decode with given indices, and whole selection steps, next to the read
// bandwidth of the machine, all measured in turns in one process from cold caches.
#include "bench_attention.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cmath>
#include <memory>
#include <nlohmann/json.hpp>

#include "failure.h"
#include "files.h"
#include "rarefy/core/device.h"
#include "run_record.h"
#include "statistics.h"
#include "table.h"
#include "verbs.h"

namespace rarefy::cli {
namespace {

struct Flags {
  std::vector<std::string> cases;
  std::string file, output;
  int32_t num_repeats = 50;
  int32_t threads = 0;
  bool json = false;
};

// The case of the project's targets.
constexpr const char* kDefaultCase =
    "num_q_heads=32 num_kv_heads=8 head_dim=128 kv_dtype=bf16 q_dtype=bf16 kv_len=32768 batch=1 sparsity=50 policy=50x";

struct Summary {
  double p10_us, median_us, p90_us, gb_per_s, bandwidth_share, speedup;
};

Summary summarize(const MeasuredArm& arm, const MeasuredArm& bandwidth, const MeasuredArm& dense) {
  Summary result{};
  result.p10_us = quantile(arm.time_us, 0.1);
  result.median_us = median(arm.time_us);
  result.p90_us = quantile(arm.time_us, 0.9);
  result.gb_per_s = arm.bytes / result.median_us / 1e3;
  result.bandwidth_share = result.gb_per_s / (bandwidth.bytes / median(bandwidth.time_us) / 1e3);
  result.speedup = median(dense.time_us) / result.median_us;
  return result;
}

void write_table(Output& output, const AttentionBenchCase& description, const std::vector<MeasuredArm>& arms,
                 int32_t num_repeats) {
  output.write(fmt::format("{}\n{}, {} runs of each in turns, caches cold\n\n", description.to_string(), device_name(),
                           num_repeats));
  Table table(
      {"what", "implementation", "tokens/list", "p10 us", "median us", "p90 us", "MB", "GB/s", "of bandwidth", "vs dense"});
  for (const MeasuredArm& arm : arms) {
    const Summary summary = summarize(arm, arms[0], arms[1]);
    const bool attention = arm.num_selected > 0;
    table.add_row({arm.op, arm.implementation, attention ? std::to_string(arm.num_selected) : "",
                   fmt::format("{:.1f}", summary.p10_us), fmt::format("{:.1f}", summary.median_us),
                   fmt::format("{:.1f}", summary.p90_us), fmt::format("{:.2f}", arm.bytes / 1e6),
                   fmt::format("{:.1f}", summary.gb_per_s), fmt::format("{:.0f} %", 100.0 * summary.bandwidth_share),
                   attention ? fmt::format("{:.2f}x", summary.speedup) : ""});
  }
  output.write(table.text());
  for (const MeasuredArm& arm : arms) {
    if (!arm.policy_resolved.empty()) output.write(fmt::format("policy: {}\n", arm.policy_resolved));
  }
  output.write("\n");
}

void write_json(Output& output, const AttentionBenchCase& description, const std::vector<MeasuredArm>& arms,
                int32_t num_repeats) {
  for (const MeasuredArm& arm : arms) {
    const Summary summary = summarize(arm, arms[0], arms[1]);
    nlohmann::ordered_json record = new_record("attention");
    record["op"] = arm.op;
    if (arm.num_selected > 0) {
      record["num_q_heads"] = description.num_q_heads;
      record["num_kv_heads"] = description.num_kv_heads;
      record["head_dim"] = description.head_dim;
      record["page_size"] = description.page_size;
      record["kv_len"] = description.kv_len;
      record["batch"] = description.batch;
      record["num_queries"] = 1;
      record["num_selected"] = arm.num_selected;
      record["sparsity"] = static_cast<double>(description.kv_len) / static_cast<double>(arm.num_selected);
      record["policy"] = arm.policy.empty() ? nlohmann::ordered_json(nullptr) : nlohmann::ordered_json(arm.policy);
      record["policy_resolved"] =
          arm.policy_resolved.empty() ? nlohmann::ordered_json(nullptr) : nlohmann::ordered_json(arm.policy_resolved);
      record["kv_dtype"] = to_string(description.kv_dtype);
      record["q_dtype"] = to_string(arm.q_dtype);
      record["implementation"] = arm.implementation;
    }
    record["num_repeats"] = num_repeats;
    record["p10_us"] = summary.p10_us;
    record["median_us"] = summary.median_us;
    record["p90_us"] = summary.p90_us;
    record["bytes"] = std::llround(arm.bytes);
    record["gb_per_s"] = summary.gb_per_s;
    record["bandwidth_share"] = summary.bandwidth_share;
    if (arm.num_selected > 0) record["speedup_over_dense"] = summary.speedup;
    append_origin(record);
    output.write(record.dump() + "\n");
  }
}

void run(const Flags& flags) {
  std::vector<AttentionBenchCase> cases;
  if (!flags.file.empty()) cases = parse_attention_cases(read_text(flags.file), flags.file);
  for (const std::string& text : flags.cases) cases.push_back(parse_attention_case(text, "--case"));
  if (cases.empty()) cases.push_back(parse_attention_case(kDefaultCase, "default case"));
  if (flags.threads > 0) set_num_threads(flags.threads);
  Output output(flags.output);
  for (const AttentionBenchCase& description : cases) {
    const std::vector<MeasuredArm> arms = measure_attention_case(description, flags.num_repeats);
    flags.json ? write_json(output, description, arms, flags.num_repeats)
               : write_table(output, description, arms, flags.num_repeats);
    output.flush();
  }
  output.commit();
}

}  // namespace

void add_bench_attention(CLI::App& bench) {
  auto flags = std::make_shared<Flags>();
  CLI::App* verb =
      add_verb(bench, "attention",
               "Dense and sparse decode attention, and whole steps of a policy, against the read bandwidth.\n"
               "Every case is one line of text; all arms of a case run in turns from cold caches.",
               "  rarefy bench attention --case 'kv_len=16384 num_q_heads=8 num_kv_heads=2 head_dim=64 policy=50x'\n"
               "  rarefy bench attention -f bench/cases/attention.txt -t 2 --json -o attention.jsonl");
  verb->add_option("--case", flags->cases,
                   "field=value pairs; may be repeated (default: the case of the project's targets)")
      ->allow_extra_args(false)
      ->type_name("TEXT");
  verb->add_option("-f,--file", flags->file, "cases, one a line")->type_name("FILE");
  verb->add_option("--repeats", flags->num_repeats, "timed runs of each arm (default 50)")
      ->check(CLI::Range(3, 100000))
      ->type_name("N");
  verb->add_option("-t,--threads", flags->threads, "CPU threads (default: all)")
      ->check(CLI::Range(1, 4096))
      ->type_name("N");
  verb->add_flag("--json", flags->json, "JSON lines instead of a table");
  verb->add_option("-o,--output", flags->output, "write here instead of standard output")->type_name("FILE");
  verb->callback([flags] { run(*flags); });
}

}  // namespace rarefy::cli
