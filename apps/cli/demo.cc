// rarefy demo: reads a long real text with facts planted in it and answers questions about them, dense and sparse.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>

#include "evaluation.h"
#include "failure.h"
#include "files.h"
#include "model_flags.h"
#include "questions.h"
#include "run_record.h"
#include "run_table.h"
#include "statistics.h"
#include "table.h"
#include "terminal.h"
#include "verbs.h"

namespace rarefy::cli {
namespace {

struct Flags {
  ModelFlags model;
  std::string data, policy = "50x";
  int32_t questions = 20;
  int32_t max_tokens = 0;
  bool json = false;
};

struct Material {
  std::vector<int32_t> context;  // [num_tokens] i32
  std::vector<Question> questions;
};

// The end of the text when it is cut, with questions whose answers are still in it.
Material read_material(const Flags& flags, const std::filesystem::path& folder, const Tokenizer& tokenizer) {
  const std::string text_file = (folder / "demo_context.txt").string();
  const std::string question_file = (folder / "demo_questions.json").string();
  Material material;
  material.context = encode_text(tokenizer, read_text(text_file), true, text_file);
  std::vector<Question> questions =
      parse_questions(nlohmann::json::parse(read_text(question_file), nullptr, false), tokenizer, question_file);
  const size_t limit = flags.max_tokens > 0 ? static_cast<size_t>(flags.max_tokens) : material.context.size();
  if (limit < material.context.size()) {
    const size_t num_special = encode_text(tokenizer, "", true, text_file).size();
    const auto cut = material.context.begin() + static_cast<std::ptrdiff_t>(num_special);
    material.context.erase(cut,
                           cut + static_cast<std::ptrdiff_t>(material.context.size() - std::max(limit, num_special + 1)));
    const std::string rest = unwrap(tokenizer.decode(material.context), ExitCode::bad_input);
    std::erase_if(questions, [&](const Question& question) { return rest.find(question.answer) == std::string::npos; });
    if (questions.empty())
      fail(ExitCode::usage, "--max-tokens: no question is about what is left of the text; allow more tokens");
  }
  if (static_cast<size_t>(flags.questions) < questions.size()) questions.resize(static_cast<size_t>(flags.questions));
  material.questions = std::move(questions);
  return material;
}

// One side of the comparison.
struct Side {
  Arm arm;
  Session session;  // the context, forked for every question
  int32_t right = 0;
  std::vector<double> seconds;  // [num_steps] f64; decode steps
  RunStats stats;
  std::string shown;  // the answer to the current question

  double ms_per_token() const { return 1e3 * median(seconds); }
};

void answer_question(Side& side, const Question& question, const Tokenizer& tokenizer) {
  Session session = side.session.fork();
  const Answer answer = ask(session, question.text_tokens, question.answer_tokens, false, &side.seconds);
  side.right += answer.right ? 1 : 0;
  side.stats.merge(session.stats());
  const std::string text = one_line(unwrap(tokenizer.decode(answer.tokens)));
  const bool utf8 = locale_is_utf8();
  side.shown = fit(text.starts_with(' ') ? text.substr(1) : text, 12) +
               (answer.right ? (utf8 ? " ✓" : " ok") : (utf8 ? " ✗" : " --"));
}

std::string padded(const std::string& text, int32_t width) {
  return text + std::string(static_cast<size_t>(std::max(0, width - display_width(text))), ' ');
}

// "Question: what is the code of the smooth feather? Answer:" without its frame.
std::string short_question(const std::string& text) {
  std::string line = one_line(text);
  if (line.starts_with("Question: ")) line = line.substr(10);
  if (line.ends_with(" Answer:")) line.resize(line.size() - 8);
  return line;
}

std::string closing_table(const Side& dense, const Side& sparse) {
  const auto bytes_per_token = [](const Side& side) {
    const Traffic& traffic = side.stats.traffic;
    return format_bytes(static_cast<double>(traffic.row_bytes + traffic.index_bytes) /
                        static_cast<double>(std::max<int64_t>(1, side.stats.decode_tokens)));
  };
  const auto error = [](const QuantileSketch& sketch) {
    return sketch.count() > 0 ? fmt::format("{:.3f} / {:.3f}", sketch.quantile(0.5), sketch.quantile(0.95))
                              : std::string("-");
  };
  Table table({"", "dense", fit(sparse.arm.name, 24)});
  table.add_row({"right answers", std::to_string(dense.right), std::to_string(sparse.right)});
  table.add_row({"ms per token, whole step (median)", fmt::format("{:.2f}", dense.ms_per_token()),
                 fmt::format("{:.2f}", sparse.ms_per_token())});
  table.add_row({"KV and index bytes read per token", bytes_per_token(dense), bytes_per_token(sparse)});
  table.add_row({"density (share of cached tokens)", fmt::format("{:.4f}", dense.stats.traffic.density()),
                 fmt::format("{:.4f}", sparse.stats.traffic.density())});
  table.add_row({"bytes_ratio (index included)", fmt::format("{:.4f}", dense.stats.traffic.bytes_ratio()),
                 fmt::format("{:.4f}", sparse.stats.traffic.bytes_ratio())});
  table.add_row({"error, estimated (median / 95 %)", "-", error(sparse.stats.estimated_error)});
  table.add_row({"error, audited (median / 95 %)", "0", error(sparse.stats.audit.error)});
  return table.text();
}

std::string last_line(const Flags& flags, const Material& material, const Side& dense, const Side& sparse) {
  std::string policy = flags.policy;
  std::replace(policy.begin(), policy.end(), ' ', ',');
  return fmt::format(
      "demo: tokens={} questions={} dense={} sparse={} policy={} bytes_ratio={:.3f} dense_ms_per_token={:.2f} "
      "sparse_ms_per_token={:.2f}\n",
      material.context.size(), material.questions.size(), dense.right, sparse.right, policy,
      sparse.stats.traffic.bytes_ratio(), dense.ms_per_token(), sparse.ms_per_token());
}

nlohmann::ordered_json to_record(const Flags& flags, const Material& material, const Engine& engine, const Side& dense,
                                 const Side& sparse) {
  nlohmann::ordered_json record = new_record("demo");
  record["tokens"] = material.context.size();
  record["questions"] = material.questions.size();
  record["dense"] = dense.right;
  record["sparse"] = sparse.right;
  record["policy"] = flags.policy;
  record["policy_resolved"] = sparse.arm.policy.to_string();
  record["kv_dtype"] = to_string(engine.options().kv_dtype);
  record["bytes_ratio"] = sparse.stats.traffic.bytes_ratio();
  record["density"] = sparse.stats.traffic.density();
  record["dense_ms_per_token"] = dense.ms_per_token();
  record["sparse_ms_per_token"] = sparse.ms_per_token();
  record["sparse_stats"] = nlohmann::ordered_json::parse(sparse.stats.to_json());
  append_origin(record);
  return record;
}

void run(const Flags& flags) {
  const LoadedModel loaded = load_model(flags.model);
  const ModelConfig& config = loaded.model->config();
  const Tokenizer& tokenizer = loaded.model->tokenizer();
  const Arm sparse_arm{flags.policy, parse_policy(flags.policy, config)};
  const std::filesystem::path folder = flags.data.empty() ? loaded.folder / "eval" : std::filesystem::path(flags.data);
  const Material material = read_material(flags, folder, tokenizer);
  int64_t longest = 0;
  for (const Question& question : material.questions) {
    longest = std::max(longest, static_cast<int64_t>(question.text_tokens.size() + question.answer_tokens.size()));
  }
  const auto num_tokens = static_cast<int64_t>(material.context.size());
  const int32_t ctx_size = choose_ctx_size(flags.model, config, num_tokens + longest);
  const auto engine = make_engine(flags.model, loaded.model, ctx_size, 3, longest);

  Output output;
  std::string report;
  const auto say = [&](const std::string& text) {
    report += text;
    if (flags.json) return;
    output.write(text);
    output.flush();
  };
  say(fmt::format("Model    {}: {} layers, {} query heads, {} KV heads, head_dim {}; {}\n",
                  loaded.folder.filename().string(), config.num_layers, config.num_q_heads, config.num_kv_heads,
                  config.head_dim, loaded.model->compute_name()));
  say(fmt::format("Text     {} tokens of {}, with facts planted in it\n", format_count(num_tokens),
                  fit((folder.filename() / "demo_context.txt").string(), 40)));
  say(fmt::format("Machine  {}\n\n", device_name()));
  Session context = engine->new_session();
  say("Reading it densely, once ...\n");
  prefill(context, material.context, "reading");
  say(fmt::format("Read in {} ({:.0f} tokens/s).\n", format_seconds(context.stats().prefill_seconds),
                  context.stats().prefill_tokens_per_second()));
  Side dense{{"dense", Policy{}}, fork_for_arm(context, {"dense", Policy{}}, flags.model.seed, 0.0), 0, {}, {}, {}};
  Side sparse{sparse_arm, fork_for_arm(context, sparse_arm, flags.model.seed, flags.model.audit), 0, {}, {}, {}};
  sparse.stats.policy = sparse_arm.policy.to_string();
  say(fmt::format("Questions and answers are decoded token by token, dense and with {}:\n  {}\n\n", flags.policy,
                  sparse.stats.policy));

  int32_t answer_width = 8;  // room for the title
  for (const Question& question : material.questions) {
    answer_width = std::clamp(display_width(question.answer) + 2, answer_width, 15);
  }
  const int32_t question_width = std::clamp(terminal_columns() - 8 - 3 * (answer_width + 2), 20, 60);
  say(fmt::format("       {}  {}  {}  sparse\n", padded("question", question_width), padded("expected", answer_width),
                  padded("dense", answer_width)));
  for (size_t i = 0; i < material.questions.size(); ++i) {
    const Question& question = material.questions[i];
    // Taking turns at being first: neither side always finds the cache as the other left it.
    answer_question(i % 2 == 0 ? dense : sparse, question, tokenizer);
    answer_question(i % 2 == 0 ? sparse : dense, question, tokenizer);
    say(fmt::format("{:>3}/{:<2} {}  {}  {}  {}\n", i + 1, material.questions.size(),
                    padded(fit(short_question(question.text), question_width), question_width),
                    padded(fit(question.answer, answer_width), answer_width), padded(dense.shown, answer_width),
                    sparse.shown));
  }
  say("\n" + closing_table(dense, sparse) + "\n");
  const std::string warning = sparsity_warning(sparse_arm.policy, sparse.stats.traffic, context.length());
  if (!warning.empty()) fmt::print(stderr, "rarefy: warning: {}\n", warning);
  say(last_line(flags, material, dense, sparse));
  if (flags.json) {
    nlohmann::ordered_json record = to_record(flags, material, *engine, dense, sparse);
    record["report"] = report;
    output.write(record.dump() + "\n");
  }
  output.commit();
  const auto asked = static_cast<double>(material.questions.size());
  if (dense.right < 0.5 * asked || sparse.right < 0.9 * dense.right) {
    fail(ExitCode::below_expectation,
         fmt::format(
             "expected dense to answer half of the questions or more, and {} to keep 90 % of these; got {} and {} of {}",
             flags.policy, dense.right, sparse.right, material.questions.size()));
  }
}

}  // namespace

void add_demo(CLI::App& parent) {
  auto flags = std::make_shared<Flags>();
  flags->model.audit = 0.02;
  CLI::App* verb = add_verb(parent, "demo",
                            "Answer questions about a long real text, dense and sparse, side by side.\n"
                            "Only the text is read densely; questions and answers go through the policy.",
                            "  rarefy demo\n"
                            "  rarefy demo --questions 2 --max-tokens 2048      a quick look");
  add_model_flags(*verb, flags->model);
  verb->add_option("--data", flags->data, "folder with demo_context.txt and demo_questions.json (default: MODEL/eval)")
      ->type_name("FOLDER");
  verb->add_option("--policy", flags->policy, "the sparse side (default 50x)")->type_name("POLICY");
  verb->add_option("--questions", flags->questions, "questions to ask, at most (default 20)")
      ->check(CLI::Range(1, 1 << 30))
      ->type_name("N");
  verb->add_option("--max-tokens", flags->max_tokens, "use only the last N tokens of the text (0: all)")
      ->check(CLI::Range(0, 1 << 30))
      ->type_name("N");
  verb->add_flag("--json", flags->json, "write one JSON object instead of the report, which is its field \"report\"");
  verb->callback([flags] { run(*flags); });
}

}  // namespace rarefy::cli
