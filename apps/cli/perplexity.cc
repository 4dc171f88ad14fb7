// rarefy perplexity: next-token loss after a dense context, dense and through policies, on the same tokens.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "arm_counters.h"
#include "arm_report.h"
#include "evaluation.h"
#include "failure.h"
#include "files.h"
#include "model_flags.h"
#include "passages.h"
#include "scoring.h"
#include "table.h"
#include "terminal.h"
#include "verbs.h"

namespace rarefy::cli {
namespace {

struct Flags {
  ModelFlags model;
  std::string file, output, resume, set;
  std::vector<std::string> policies;
  int32_t context = 16384;
  int32_t predict = 512;
  int32_t chunks = 1;
  bool json = false;
};

// Scores of one arm over all passages.
struct ArmScores {
  PassageScores tokens;           // of all passages
  std::vector<double> mean_loss;  // [num_passages] f64
  ArmCounters counters;
};

nlohmann::json evaluate(Engine& engine, const Flags& flags, const std::vector<Arm>& arms, const Passage& passage,
                        const std::string& label) {
  Session context = engine.new_session();
  prefill(context, {passage.context.begin(), passage.context.end() - 1}, label);
  std::vector<Session> sessions;
  for (const Arm& arm : arms) sessions.push_back(fork_for_arm(context, arm, flags.model.seed, flags.model.audit));

  const auto vocab_size = static_cast<size_t>(engine.model().config().vocab_size);
  std::vector<PassageScores> scores(arms.size());
  std::vector<float> dense(vocab_size), logits(vocab_size);  // [vocab_size] f32
  int32_t input = passage.context.back();
  // All arms move together, one token at a time: memory does not grow, and they meet the same machine.
  for (const int32_t target : passage.continuation) {
    timed_decode(sessions[0], input, &dense, nullptr);
    scores[0].add(dense, dense, target);
    for (size_t arm = 1; arm < arms.size(); ++arm) {
      timed_decode(sessions[arm], input, &logits, nullptr);
      scores[arm].add(dense, logits, target);
    }
    input = target;
  }
  nlohmann::json result = nlohmann::json::array();
  for (size_t arm = 0; arm < arms.size(); ++arm) {
    ArmCounters counters;
    counters.add(sessions[arm].stats());
    result.push_back({{"scores", scores[arm].to_json()}, {"counters", counters.to_json()}});
  }
  return result;
}

// Over passages when there are several, else over tokens, which are taken as independent.
MeanAndError loss_error(const ArmScores& arm) {
  return arm.mean_loss.size() > 1 ? mean_and_error(arm.mean_loss) : mean_and_error(arm.tokens.losses);
}

// Paired differences to dense.
std::vector<double> loss_gaps(const ArmScores& arm, const ArmScores& dense) {
  const bool by_passage = arm.mean_loss.size() > 1;
  std::vector<double> gaps = by_passage ? arm.mean_loss : arm.tokens.losses;
  const std::vector<double>& base = by_passage ? dense.mean_loss : dense.tokens.losses;
  for (size_t i = 0; i < gaps.size(); ++i) gaps[i] -= base[i];
  return gaps;
}

Interval mean_interval(const std::vector<double>& values) {  // [num_values] f64
  std::vector<std::pair<double, double>> pairs;
  for (const double value : values) pairs.emplace_back(value, 1.0);
  return bootstrap_ratio(pairs);
}

std::vector<ArmCounters> counters_of(const std::vector<ArmScores>& scores) {
  std::vector<ArmCounters> counters;
  for (const ArmScores& arm : scores) counters.push_back(arm.counters);
  return counters;
}

void write_json(Output& output, const ArmRun& run, const std::vector<ArmScores>& scores, int64_t context_tokens) {
  for (size_t i = 0; i < run.arms.size(); ++i) {
    const ArmScores& arm = scores[i];
    const MeanAndError loss = loss_error(arm), gap = mean_and_error(loss_gaps(arm, scores[0]));
    const Interval interval = mean_interval(loss_gaps(arm, scores[0]));
    nlohmann::ordered_json record = begin_arm_record(run, run.arms[i]);
    record["contexts"] = arm.mean_loss.size();
    record["context_tokens"] = context_tokens;
    record["scored_tokens"] = arm.tokens.losses.size();
    record["loss"] = mean_and_error(arm.tokens.losses).mean;
    record["loss_standard_error"] = loss.standard_error;
    record["loss_gap"] = mean_and_error(arm.tokens.losses).mean - mean_and_error(scores[0].tokens.losses).mean;
    record["loss_gap_standard_error"] = gap.standard_error;
    record["loss_gap_ci95"] = {interval.low, interval.high};
    record["standard_error_over"] = arm.mean_loss.size() > 1 ? "contexts" : "tokens";
    record["kl_mean"] = mean_and_error(arm.tokens.divergences).mean;
    record["kl_p99"] = quantile(arm.tokens.divergences, 0.99);
    record["kl_p999"] = quantile(arm.tokens.divergences, 0.999);
    record["same_top"] = arm.tokens.same_top_share();
    output.write(finish_arm_record(record, arm.counters));
  }
}

void write_table(Output& output, const std::vector<Arm>& arms, const std::vector<ArmScores>& scores,
                 int64_t context_tokens) {
  Table quality({"policy", "loss", "+-", "gap", "+-", "KL mean", "KL 99 %", "KL 99.9 %", "same top"});
  for (size_t i = 0; i < arms.size(); ++i) {
    const ArmScores& arm = scores[i];
    const MeanAndError gap = mean_and_error(loss_gaps(arm, scores[0]));
    const double loss = mean_and_error(arm.tokens.losses).mean;
    const std::string name = fit(arms[i].name, 24);
    const auto when = [&](bool shown, std::string text) { return shown ? text : std::string("-"); };
    quality.add_row({name, fmt::format("{:.4f}", loss), fmt::format("{:.4f}", loss_error(arm).standard_error),
                     when(i > 0, fmt::format("{:+.4f}", loss - mean_and_error(scores[0].tokens.losses).mean)),
                     when(i > 0, fmt::format("{:.4f}", gap.standard_error)),
                     when(i > 0, fmt::format("{:.4f}", mean_and_error(arm.tokens.divergences).mean)),
                     when(i > 0, fmt::format("{:.3f}", quantile(arm.tokens.divergences, 0.99))),
                     when(i > 0, fmt::format("{:.3f}", quantile(arm.tokens.divergences, 0.999))),
                     when(i > 0, fmt::format("{:.1f} %", 100.0 * arm.tokens.same_top_share()))});
  }
  const bool by_passage = scores[0].mean_loss.size() > 1;
  output.write(
      fmt::format("{} tokens after {} of {} tokens. Losses in nats per token; +- is one standard error\n"
                  "over {}, of the gap: over paired differences. Errors are root mean squares per head.\n\n",
                  format_count(static_cast<int64_t>(scores[0].tokens.losses.size())),
                  by_passage ? fmt::format("{} dense contexts", scores[0].mean_loss.size()) : "a dense context",
                  format_count(context_tokens), by_passage ? "contexts" : "tokens"));
  output.write(quality.text() + "\n" + cost_table(arms, counters_of(scores)) + policy_lines(arms));
}

void run(const Flags& flags) {
  const LoadedModel loaded = load_model(flags.model);
  const std::vector<Arm> arms = parse_arms(flags.policies, loaded.model->config());
  const std::vector<Passage> passages =
      read_passages({flags.file, flags.context, flags.predict, flags.chunks}, loaded.model->tokenizer());
  int64_t longest = 0, longest_continuation = 0, context_tokens = 0;
  for (const Passage& passage : passages) {
    const auto continuation = static_cast<int64_t>(passage.continuation.size());
    longest_continuation = std::max(longest_continuation, continuation);
    longest = std::max(longest, static_cast<int64_t>(passage.context.size()) + continuation);
    context_tokens += static_cast<int64_t>(passage.context.size());
  }
  context_tokens /= static_cast<int64_t>(passages.size());
  const int32_t ctx_size = choose_ctx_size(flags.model, loaded.model->config(), longest);
  const auto engine =
      make_engine(flags.model, loaded.model, ctx_size, static_cast<int32_t>(arms.size()), longest_continuation);
  Output output(flags.output);
  const ArmRun arm_run{"perplexity",
                       flags.file,
                       flags.set,
                       flags.resume,
                       &flags.model,
                       loaded.folder.filename().string(),
                       engine->options().kv_dtype,
                       arms};
  std::vector<std::string> ids;
  for (const Passage& passage : passages) ids.push_back(passage.id);
  std::vector<ArmScores> scores(arms.size());
  run_contexts(
      arm_run, {{"context", flags.context}, {"predict", flags.predict}}, ids,
      [&](size_t context, const std::string& label) { return evaluate(*engine, flags, arms, passages[context], label); },
      [&](const nlohmann::json& result) {
        std::string line;
        for (size_t arm = 0; arm < arms.size(); ++arm) {
          const PassageScores passage_scores = PassageScores::from_json(result.at(arm).at("scores"));
          scores[arm].tokens.add(passage_scores);
          scores[arm].mean_loss.push_back(mean_and_error(passage_scores.losses).mean);
          scores[arm].counters.add(ArmCounters::from_json(result.at(arm).at("counters")));
          line += fmt::format("  {} {:.4f}", fit(arms[arm].name, 20), scores[arm].mean_loss.back());
        }
        return line;
      });
  if (flags.json) {
    write_json(output, arm_run, scores, context_tokens);
  } else {
    write_table(output, arms, scores, context_tokens);
  }
  output.commit();
}

}  // namespace

void add_perplexity(CLI::App& parent) {
  auto flags = std::make_shared<Flags>();
  CLI::App* verb = add_verb(parent, "perplexity",
                            "Next-token loss after a dense context: dense, and through each policy.\n"
                            "All arms see the same tokens; the context is prefilled once and forked for each.",
                            "  rarefy perplexity -f text.txt --context 16384 --predict 512 --policy 50x --policy 100x");
  add_model_flags(*verb, flags->model);
  verb->add_option(
          "-f,--file", flags->file,
          "text file, UTF-8 (- is standard input), or NAME.jsonl with {\"context\", \"continuation\"} on each line")
      ->required()
      ->type_name("FILE");
  verb->add_option("--policy", flags->policies, "a policy to compare with dense; may be repeated")
      ->allow_extra_args(false)
      ->type_name("POLICY");
  verb->add_option("--context", flags->context, "tokens of each context of a text file (default 16384)")
      ->check(CLI::Range(2, 1 << 30))
      ->type_name("N");
  verb->add_option("-n,--predict", flags->predict, "tokens scored after each context, at most (default 512)")
      ->check(CLI::Range(1, 1 << 30))
      ->type_name("N");
  verb->add_option("--chunks", flags->chunks, "contexts (default 1; 0: as many as there are)")
      ->check(CLI::Range(0, 1 << 30))
      ->type_name("N");
  verb->add_option("--resume", flags->resume, "keep finished contexts in this file and go on from it")->type_name("FILE");
  verb->add_option("--set", flags->set, "name of the text in JSON results (default: the file's name)")->type_name("NAME");
  verb->add_flag("--json", flags->json, "write one JSON object a line instead of the table");
  verb->add_option("--output", flags->output, "write to this file instead of standard output")->type_name("FILE");
  verb->callback([flags] { run(*flags); });
}

}  // namespace rarefy::cli
