// rarefy calibrate: budgets per layer from errors measured on a text; writes a policy file.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cmath>
#include <memory>
#include <nlohmann/json.hpp>

#include "budget_allocation.h"
#include "budget_ladder.h"
#include "evaluation.h"
#include "failure.h"
#include "files.h"
#include "model_flags.h"
#include "passages.h"
#include "run_record.h"
#include "table.h"
#include "terminal.h"
#include "verbs.h"

namespace rarefy::cli {
namespace {

constexpr int kCurveSteps = 480;            // 1 % of the budget a step from 0.25 % to 25 %
constexpr int32_t kFewestContextTokens = 128;

struct Flags {
  ModelFlags model;
  std::string file, policy = "50x", source = "audited", output, channels, set;
  double error = 0.0, bytes_ratio = 0.0;  // one of them
  int32_t context = 16384, steps = 128, chunks = 1, budgets = 12;
  bool json = false;
};

// What was asked for, and what one budget for all layers does about it.
struct Result {
  BudgetChoice choice;             // a budget for each layer
  BudgetChoice same_bytes;         // one budget that reads no more
  BudgetChoice same_error;         // one budget that errs no more
  std::vector<double> densities;   // [num_layers] f64; of `choice`
  double same_bytes_density = 1.0, same_error_density = 1.0;
  Policy policy;
};

Policy read_base(const Flags& flags, const ModelConfig& config) {
  Policy base = parse_policy(flags.policy, config);
  if (base.dense) fail(ExitCode::usage, "--policy: expected a sparse policy whose budgets can be set, got dense");
  if (!base.overrides.empty()) {
    fail(ExitCode::usage,
         "--policy: expected no dense_layers= and no total@L=, which are what calibrate finds; leave them out");
  }
  return base;
}

int32_t check_passages(const Flags& flags, const std::vector<Passage>& passages, const Policy& base) {
  int64_t context_tokens = 0;
  for (const Passage& passage : passages) {
    const auto tokens = static_cast<int64_t>(passage.context.size());
    if (tokens < std::max(kFewestContextTokens, base.min_kv_len)) {
      fail(ExitCode::bad_input,
           fmt::format("{}: expected a context of at least {} tokens (min={} of the policy), got {}; give a longer text",
                       passage.id, std::max(kFewestContextTokens, base.min_kv_len), base.min_kv_len, tokens));
    }
    if (passage.continuation.empty()) {
      fail(ExitCode::bad_input, fmt::format("{}: expected tokens after the context, got none", passage.id));
    }
    context_tokens += tokens;
  }
  if (passages.empty()) fail(ExitCode::bad_input, fmt::format("{}: expected a context, got none", flags.file));
  return static_cast<int32_t>(context_tokens / static_cast<int64_t>(passages.size()));
}

Result choose(const Flags& flags, const BudgetLadder& ladder, const Policy& base, int32_t kv_len) {
  const ErrorSource source = flags.source == "audited" ? ErrorSource::audited : ErrorSource::estimated;
  const std::vector<BudgetCurve> curves = ladder.curves(source, kCurveSteps);
  const BudgetChoice smallest = describe_choice(curves, std::vector<size_t>(curves.size(), 0));
  if (source == ErrorSource::estimated && smallest.error < 1e-9) {
    fail(ExitCode::usage, fmt::format("--from estimated: spend={} has no certificate; use --from audited", to_string(base.spend)));
  }
  Result result;
  if (flags.error > 0.0) {
    result.choice = least_bytes(curves, flags.error);
  } else {
    if (smallest.bytes_ratio > flags.bytes_ratio) {
      fail(ExitCode::usage,
           fmt::format("--bytes-ratio: the index and the smallest budgets tried read {:.4f}, more than {:g}; ask for more, or "
                       "use a smaller index",
                       smallest.bytes_ratio, flags.bytes_ratio));
    }
    result.choice = least_error(curves, flags.bytes_ratio);
  }
  std::vector<size_t> largest;
  for (const BudgetCurve& curve : curves) largest.push_back(curve.size() > 1 ? curve.size() - 2 : 0);
  if (result.choice.bytes_ratio >= 1.0) {
    const BudgetChoice most = describe_choice(curves, largest);
    fail(ExitCode::usage, fmt::format("no budget satisfies this: with {:.0f} % of the tokens in every layer the error is {:.4f} at "
                                      "bytes_ratio {:.3f}; raise --error, or decode densely",
                                      100.0 * ladder.densities.back(), most.error, most.bytes_ratio));
  }
  for (size_t layer = 0; layer < curves.size(); ++layer) {
    result.densities.push_back(curves[layer][result.choice.points[layer]].density);
  }
  result.same_bytes = single_least_error(curves, result.choice.bytes_ratio);
  result.same_error = single_least_bytes(curves, result.choice.error);
  result.same_bytes_density = curves[0][result.same_bytes.points[0]].density;
  result.same_error_density = curves[0][result.same_error.points[0]].density;
  result.policy = with_densities(base, ladder.layers, result.densities, kv_len);
  return result;
}

std::string policy_file(const Flags& flags, const Result& result, const std::string& model, int32_t kv_len) {
  return fmt::format(
      "# rarefy calibrate: {}, {} after {} tokens of {} in {} passages\n"
      "# {} error {:.4f} (root mean square over layers, heads and steps) at bytes_ratio {:.4f};\n"
      "# one budget for all layers: error {:.4f} at the same bytes, bytes_ratio {:.4f} at the same error\n"
      "{}\n",
      model, flags.steps, kv_len, flags.file, flags.chunks, flags.source, result.choice.error, result.choice.bytes_ratio,
      result.same_bytes.error, result.same_error.bytes_ratio, result.policy.to_string());
}

void write_table(Output& output, const Flags& flags, const BudgetLadder& ladder, const Result& result, int32_t kv_len) {
  std::vector<std::string> head = {"budget"};
  for (const double density : ladder.densities) head.push_back(fmt::format("{:.3g} %", 100.0 * density));
  Table measured(head);
  for (size_t layer = 0; layer < ladder.layers.size(); ++layer) {
    std::vector<std::string> cells = {fmt::format("layer {}", ladder.layers[layer])};
    for (const LayerRung& rung : ladder.rungs[layer]) {
      cells.push_back(fmt::format("{:.3f}", flags.source == "audited" ? rung.audited_rms() : rung.estimated_rms()));
    }
    measured.add_row(cells);
  }
  Table chosen({"layer", "total", "tokens"});
  for (size_t layer = 0; layer < ladder.layers.size(); ++layer) {
    const bool dense = result.densities[layer] >= 1.0;
    chosen.add_row({fmt::format("{}", ladder.layers[layer]), dense ? "dense" : fmt::format("{:.3g}", result.densities[layer]),
                    format_count(std::lround(result.densities[layer] * kv_len))});
  }
  const auto percent = [](double from, double to) { return 100.0 * (1.0 - to / from); };
  output.write(fmt::format(
      "Errors of attention outputs, {}: root mean squares over heads and steps.\n\n{}\n"
      "Budgets at a context of {} tokens:\n\n{}\n"
      "policy             {}\n"
      "error, {}{}{:.4f}\n"
      "bytes_ratio        {:.4f}\n\n"
      "One budget for all layers\n"
      "  of the same bytes: total={:.3g}, error {:.4f} ({:.0f} % more)\n"
      "  of the same error: total={:.3g}, bytes_ratio {:.4f} (calibrated reads {:.1f} % less)\n",
      flags.source, measured.text(), format_count(kv_len), chosen.text(), result.policy.to_string(), flags.source,
      std::string(12 - flags.source.size(), ' '), result.choice.error, result.choice.bytes_ratio, result.same_bytes_density,
      result.same_bytes.error, -percent(result.choice.error, result.same_bytes.error), result.same_error_density,
      result.same_error.bytes_ratio, percent(result.same_error.bytes_ratio, result.choice.bytes_ratio)));
}

void write_json(Output& output, const Flags& flags, const BudgetLadder& ladder, const Result& result, const Policy& base,
                const std::string& model, DType kv_dtype, int32_t kv_len) {
  nlohmann::ordered_json record = new_record("calibrate");
  record["model"] = model;
  record["set"] = flags.set.empty() ? flags.file.substr(flags.file.find_last_of('/') + 1) : flags.set;
  record["policy"] = base.to_string();
  record["policy_resolved"] = result.policy.to_string();
  record["kv_dtype"] = to_string(kv_dtype);
  record["contexts"] = flags.chunks;
  record["context_tokens"] = kv_len;
  record["steps"] = flags.steps;
  record["error_label"] = flags.source;
  if (flags.error > 0.0) record["target_error"] = flags.error;
  if (flags.bytes_ratio > 0.0) record["target_bytes_ratio"] = flags.bytes_ratio;
  record["error"] = result.choice.error;
  record["bytes_ratio"] = result.choice.bytes_ratio;
  record["single_same_bytes_total"] = result.same_bytes_density;
  record["single_same_bytes_error"] = result.same_bytes.error;
  record["single_same_error_total"] = result.same_error_density;
  record["single_same_error_bytes_ratio"] = result.same_error.bytes_ratio;
  record["bytes_saved_share"] = 1.0 - result.choice.bytes_ratio / result.same_error.bytes_ratio;
  if (flags.source == "audited") {
    record["per_kv_head_bytes_ratio"] = least_bytes(ladder.kv_head_curves(kCurveSteps), result.choice.error).bytes_ratio;
  }
  record["densities"] = ladder.densities;
  for (size_t layer = 0; layer < ladder.layers.size(); ++layer) {
    nlohmann::ordered_json one = {{"layer", ladder.layers[layer]}, {"total", result.densities[layer]}};
    for (const LayerRung& rung : ladder.rungs[layer]) {
      if (rung.audited_count > 0) one["audited_error"].push_back(rung.audited_rms());
      one["estimated_error"].push_back(rung.estimated_rms());
      one["bytes_ratio"].push_back(rung.traffic.bytes_ratio());
    }
    record["layers"].push_back(one);
  }
  append_origin(record);
  output.write(record.dump() + "\n");
}

void run(Flags flags) {
  if ((flags.error > 0.0) == (flags.bytes_ratio > 0.0)) {
    fail(ExitCode::usage, "expected one target, --error E or --bytes-ratio R");
  }
  const LoadedModel loaded = load_model(flags.model);
  const ModelConfig& config = loaded.model->config();
  const Policy base = read_base(flags, config);
  // Before the work: a place that cannot be written is known at once.
  Output policy_output(flags.output), channel_output(flags.channels);
  Output output;
  const std::vector<Passage> passages =
      read_passages({flags.file, flags.context, flags.steps, flags.chunks}, loaded.model->tokenizer());
  const int32_t kv_len = check_passages(flags, passages, base);
  flags.chunks = static_cast<int32_t>(passages.size());

  int64_t longest = 0;
  for (const Passage& passage : passages) {
    longest = std::max(longest, static_cast<int64_t>(passage.context.size() + passage.continuation.size()));
  }
  const auto engine =
      make_engine(flags.model, loaded.model, choose_ctx_size(flags.model, config, longest), 2, flags.steps);
  BudgetLadder ladder;
  ladder.layers = config.layers_of(LayerKind::full_attention);
  ladder.densities = ladder_densities(kv_len, flags.budgets);
  ladder.rungs.assign(ladder.layers.size(), std::vector<LayerRung>(ladder.densities.size()));
  ChannelImportance channels(config);
  const LadderOptions options{base, ladder.densities, flags.model.seed, flags.source == "audited",
                              flags.channels.empty() ? nullptr : &channels};
  for (size_t i = 0; i < passages.size(); ++i) {
    measure_passage(*engine, options, passages[i], fmt::format("passage {} of {}", i + 1, passages.size()), ladder);
  }

  const Result result = choose(flags, ladder, base, kv_len);
  const std::string model = loaded.folder.filename().string();
  if (flags.json) {
    write_json(output, flags, ladder, result, base, model, engine->options().kv_dtype, kv_len);
  } else {
    write_table(output, flags, ladder, result, kv_len);
  }
  if (!flags.output.empty()) {
    policy_output.write(policy_file(flags, result, model, kv_len));
    policy_output.commit();
  }
  if (!flags.channels.empty()) {
    channel_output.write(channels.to_json().dump() + "\n");
    channel_output.commit();
  }
  output.commit();
}

}  // namespace

void add_calibrate(CLI::App& parent) {
  auto flags = std::make_shared<Flags>();
  CLI::App* verb = add_verb(parent, "calibrate",
                            "Budgets per layer from errors measured on a text: the least bytes at a target error, or\n"
                            "the least error at given bytes. The policy file goes into any --policy as @FILE.",
                            "  rarefy calibrate -f text.txt --policy 50x --error 0.1 -o calibrated.policy\n"
                            "  rarefy perplexity -f other.txt --policy 50x --policy @calibrated.policy --audit 1");
  add_model_flags(*verb, flags->model);
  verb->remove_option(verb->get_option("--audit"));  // every step is
  verb->add_option("-f,--file", flags->file,
                   "text file, UTF-8 (- is standard input), or NAME.jsonl with {\"context\", \"continuation\"} on each line")
      ->required()
      ->type_name("FILE");
  verb->add_option("--policy", flags->policy, "everything but the budgets (default 50x)")->type_name("POLICY");
  verb->add_option("--error", flags->error, "least bytes at this error: root mean square over layers, heads and steps")
      ->check(CLI::Range(1e-6, 1e6))
      ->type_name("E");
  verb->add_option("--bytes-ratio", flags->bytes_ratio, "least error at this share of the bytes of dense attention")
      ->check(CLI::Range(1e-6, 1.0))
      ->type_name("R");
  verb->add_option("--from", flags->source,
                   "errors that count: audited (default, against dense attention) or estimated (certificates; faster)")
      ->check(CLI::IsMember({"audited", "estimated"}))
      ->type_name("LABEL");
  verb->add_option("--context,--tokens", flags->context, "tokens of each context of a text file (default 16384)")
      ->check(CLI::Range(2, 1 << 30))
      ->type_name("N");
  verb->add_option("--steps", flags->steps, "tokens decoded after each context, at every budget (default 128)")
      ->check(CLI::Range(1, 1 << 30))
      ->type_name("N");
  verb->add_option("--chunks", flags->chunks, "contexts (default 1; 0: as many as there are)")
      ->check(CLI::Range(0, 1 << 30))
      ->type_name("N");
  verb->add_option("--budgets", flags->budgets, "budgets tried, from 0.25 % to 25 % of the tokens (default 12)")
      ->check(CLI::Range(2, 64))
      ->type_name("N");
  verb->add_option("--set", flags->set, "name of the text in JSON results (default: the file's name)")->type_name("NAME");
  verb->add_flag("--json", flags->json, "write one JSON object instead of the tables");
  verb->add_option("-o,--output", flags->output, "write the policy to this file")->type_name("FILE");
  verb->add_option("--channels", flags->channels,
                   "write the channels of each head by importance to this file, for Double Sparsity")
      ->type_name("FILE");
  verb->callback([flags] { run(*flags); });
}

}  // namespace rarefy::cli
