// rarefy recall: exact answers to questions about dense contexts, dense and through policies.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>

#include "arm_counters.h"
#include "arm_report.h"
#include "evaluation.h"
#include "failure.h"
#include "files.h"
#include "model_flags.h"
#include "questions.h"
#include "statistics.h"
#include "table.h"
#include "terminal.h"
#include "verbs.h"

namespace rarefy::cli {
namespace {

struct Flags {
  ModelFlags model;
  std::string file, output, resume, set;
  std::vector<std::string> policies;
  int32_t contexts = 0;
  int32_t questions = 0;
  bool json = false;
};

struct RecallContext {
  std::string id;
  std::vector<int32_t> tokens;  // [num_tokens] i32
  std::vector<Question> questions;
};

std::vector<RecallContext> read_contexts(const Flags& flags, const Tokenizer& tokenizer) {
  std::vector<RecallContext> contexts;
  for (const auto& [where, line] : read_json_lines(flags.file)) {
    RecallContext context;
    context.id = line.value("id", where);
    context.tokens = encode_text(tokenizer, required_text(line, "context", where), true, where);
    context.questions = parse_questions(line.value("questions", nlohmann::json()), tokenizer, where);
    if (flags.questions > 0 && static_cast<size_t>(flags.questions) < context.questions.size()) {
      context.questions.resize(static_cast<size_t>(flags.questions));
    }
    contexts.push_back(std::move(context));
    if (static_cast<int32_t>(contexts.size()) == flags.contexts) break;
  }
  return contexts;
}

struct ArmRecall {
  std::vector<std::vector<bool>> right;  // by context and question
  ArmCounters counters;

  int64_t num_right() const {
    int64_t count = 0;
    for (const auto& context : right) count += std::count(context.begin(), context.end(), true);
    return count;
  }
  int64_t num_questions() const {
    int64_t count = 0;
    for (const auto& context : right) count += static_cast<int64_t>(context.size());
    return count;
  }
};

nlohmann::json evaluate(Engine& engine, const Flags& flags, const std::vector<Arm>& arms, const RecallContext& context,
                        const std::string& label) {
  Session prefilled = engine.new_session();
  prefill(prefilled, context.tokens, label);
  std::vector<Session> sessions;
  for (const Arm& arm : arms) sessions.push_back(fork_for_arm(prefilled, arm, flags.model.seed, flags.model.audit));
  std::vector<std::vector<bool>> right(arms.size());
  std::vector<ArmCounters> counters(arms.size());
  for (const Question& question : context.questions) {
    for (size_t arm = 0; arm < arms.size(); ++arm) {
      Session session = sessions[arm].fork();
      right[arm].push_back(ask(session, question.text_tokens, question.answer_tokens, true, nullptr).right);
      counters[arm].add(session.stats());
    }
  }
  nlohmann::json result = nlohmann::json::array();
  for (size_t arm = 0; arm < arms.size(); ++arm) {
    result.push_back({{"right", right[arm]}, {"counters", counters[arm].to_json()}});
  }
  return result;
}

// Right answers of the arm over right answers of dense, resampled over contexts when there are enough of them.
struct Ratio {
  double value = 0.0;
  Interval interval;
  const char* over = "questions";
};

Ratio ratio_to_dense(const ArmRecall& arm, const ArmRecall& dense) {
  constexpr size_t kEnoughContexts = 10;
  Ratio ratio;
  std::vector<std::pair<double, double>> pairs;
  const bool by_context = arm.right.size() >= kEnoughContexts;
  for (size_t i = 0; i < arm.right.size(); ++i) {
    double right = 0.0, dense_right = 0.0;
    for (size_t j = 0; j < arm.right[i].size(); ++j) {
      right += arm.right[i][j] ? 1.0 : 0.0;
      dense_right += dense.right[i][j] ? 1.0 : 0.0;
      if (!by_context) pairs.emplace_back(arm.right[i][j] ? 1.0 : 0.0, dense.right[i][j] ? 1.0 : 0.0);
    }
    if (by_context) pairs.emplace_back(right, dense_right);
  }
  if (by_context) ratio.over = "contexts";
  ratio.value = dense.num_right() > 0 ? static_cast<double>(arm.num_right()) / static_cast<double>(dense.num_right()) : 0.0;
  ratio.interval = bootstrap_ratio(pairs);
  return ratio;
}

std::vector<ArmCounters> counters_of(const std::vector<ArmRecall>& results) {
  std::vector<ArmCounters> counters;
  for (const ArmRecall& arm : results) counters.push_back(arm.counters);
  return counters;
}

void write_json(Output& output, const ArmRun& run, const std::vector<ArmRecall>& results, int64_t context_tokens) {
  for (size_t i = 0; i < run.arms.size(); ++i) {
    const ArmRecall& arm = results[i];
    const Interval interval = wilson(arm.num_right(), arm.num_questions());
    const Ratio ratio = ratio_to_dense(arm, results[0]);
    nlohmann::ordered_json record = begin_arm_record(run, run.arms[i]);
    record["contexts"] = arm.right.size();
    record["context_tokens"] = context_tokens;
    record["questions"] = arm.num_questions();
    record["right"] = arm.num_right();
    record["recall"] = static_cast<double>(arm.num_right()) / static_cast<double>(arm.num_questions());
    record["recall_ci95"] = {interval.low, interval.high};
    record["ratio_to_dense"] = ratio.value;
    record["ratio_ci95"] = {ratio.interval.low, ratio.interval.high};
    record["ratio_resampled_over"] = ratio.over;
    output.write(finish_arm_record(record, arm.counters));
  }
}

void write_table(Output& output, const std::vector<Arm>& arms, const std::vector<ArmRecall>& results,
                 int64_t context_tokens) {
  Table quality({"policy", "right", "recall", "95 % interval", "of dense", "95 % interval"});
  for (size_t i = 0; i < arms.size(); ++i) {
    const ArmRecall& arm = results[i];
    const Interval interval = wilson(arm.num_right(), arm.num_questions());
    const Ratio ratio = ratio_to_dense(arm, results[0]);
    const std::string name = fit(arms[i].name, 24);
    const auto when = [&](bool shown, std::string text) { return shown ? text : std::string("-"); };
    quality.add_row({name, fmt::format("{} of {}", arm.num_right(), arm.num_questions()),
                     fmt::format("{:.3f}", static_cast<double>(arm.num_right()) / static_cast<double>(arm.num_questions())),
                     fmt::format("{:.3f} .. {:.3f}", interval.low, interval.high),
                     when(i > 0, fmt::format("{:.3f}", ratio.value)),
                     when(i > 0, fmt::format("{:.3f} .. {:.3f}", ratio.interval.low, ratio.interval.high))});
  }
  output.write(
      fmt::format("{} questions about {} contexts of {} tokens; an answer counts when every token is right.\n"
                  "Intervals: Wilson; of the ratio to dense: paired bootstrap over {}.\n"
                  "Errors are root mean squares per head.\n\n",
                  format_count(results[0].num_questions()), results[0].right.size(), format_count(context_tokens),
                  ratio_to_dense(results[0], results[0]).over));
  output.write(quality.text() + "\n" + cost_table(arms, counters_of(results)) + policy_lines(arms));
}

void run(const Flags& flags) {
  const LoadedModel loaded = load_model(flags.model);
  const std::vector<Arm> arms = parse_arms(flags.policies, loaded.model->config());
  check_audit_fail(flags.model, std::any_of(arms.begin(), arms.end(), [](const Arm& arm) { return arm.policy.eps > 0.0; }));
  const std::vector<RecallContext> contexts = read_contexts(flags, loaded.model->tokenizer());
  int64_t longest_context = 0, longest_question = 0, context_tokens = 0;
  for (const RecallContext& context : contexts) {
    longest_context = std::max(longest_context, static_cast<int64_t>(context.tokens.size()));
    context_tokens += static_cast<int64_t>(context.tokens.size());
    for (const Question& question : context.questions) {
      longest_question =
          std::max(longest_question, static_cast<int64_t>(question.text_tokens.size() + question.answer_tokens.size()));
    }
  }
  context_tokens /= static_cast<int64_t>(contexts.size());
  const int32_t ctx_size = choose_ctx_size(flags.model, loaded.model->config(), longest_context + longest_question);
  const auto engine =
      make_engine(flags.model, loaded.model, ctx_size, static_cast<int32_t>(arms.size()) + 1, longest_question);
  Output output(flags.output);
  const ArmRun arm_run{"recall",
                       flags.file,
                       flags.set,
                       flags.resume,
                       &flags.model,
                       loaded.folder.filename().string(),
                       engine->options().kv_dtype,
                       arms};
  std::vector<std::string> ids;
  for (const RecallContext& context : contexts) ids.push_back(context.id);
  std::vector<ArmRecall> results(arms.size());
  run_contexts(
      arm_run, {{"questions", flags.questions}}, ids,
      [&](size_t context, const std::string& label) { return evaluate(*engine, flags, arms, contexts[context], label); },
      [&](const nlohmann::json& result) {
        std::string line;
        for (size_t arm = 0; arm < arms.size(); ++arm) {
          results[arm].right.push_back(result.at(arm).at("right").get<std::vector<bool>>());
          results[arm].counters.add(ArmCounters::from_json(result.at(arm).at("counters")));
          line +=
              fmt::format("  {} {}/{}", fit(arms[arm].name, 20), results[arm].num_right(), results[arm].num_questions());
        }
        return line + " so far";
      });
  if (flags.json) {
    write_json(output, arm_run, results, context_tokens);
  } else {
    write_table(output, arms, results, context_tokens);
  }
  output.commit();
  for (const ArmRecall& arm : results) fail_broken_promise(flags.model, arm.counters.promise);
}

}  // namespace

void add_recall(CLI::App& parent) {
  auto flags = std::make_shared<Flags>();
  CLI::App* verb = add_verb(parent, "recall",
                            "Exact answers to questions about long contexts: dense, and through each policy.\n"
                            "Only the context is dense; questions and answers go through the policy.",
                            "  rarefy recall -f questions.jsonl --policy 50x --json --output recall.jsonl");
  add_model_flags(*verb, flags->model);
  add_audit_fail_flag(*verb, flags->model);
  verb->add_option("-f,--file", flags->file,
                   "{\"context\", \"questions\": [{\"question\", \"answer\"}]} on each line; - is standard input")
      ->required()
      ->type_name("FILE.jsonl");
  verb->add_option("--policy", flags->policies, "a policy to compare with dense; may be repeated")
      ->allow_extra_args(false)
      ->type_name("POLICY");
  verb->add_option("--contexts", flags->contexts, "use the first N contexts only (0: all)")
      ->check(CLI::Range(0, 1 << 30))
      ->type_name("N");
  verb->add_option("--questions", flags->questions, "ask the first N questions of a context only (0: all)")
      ->check(CLI::Range(0, 1 << 30))
      ->type_name("N");
  verb->add_option("--resume", flags->resume, "keep finished contexts in this file and go on from it")->type_name("FILE");
  verb->add_option("--set", flags->set, "name of the questions in JSON results (default: the file's name)")
      ->type_name("NAME");
  verb->add_flag("--json", flags->json, "write one JSON object a line instead of the table");
  verb->add_option("--output", flags->output, "write to this file instead of standard output")->type_name("FILE");
  verb->callback([flags] { run(*flags); });
}

}  // namespace rarefy::cli
