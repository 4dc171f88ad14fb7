// rarefy generate: continues a prompt, with the context dense and what is generated through a policy.
#include "rarefy/engine/generate.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>

#include "evaluation.h"
#include "failure.h"
#include "files.h"
#include "interrupt.h"
#include "model_flags.h"
#include "run_record.h"
#include "run_table.h"
#include "terminal.h"
#include "verbs.h"

namespace rarefy::cli {
namespace {

struct Flags {
  ModelFlags model;
  std::string file, prompt, policy = "dense", output;
  int32_t predict = 128;
  int32_t policy_tokens = 1;
  SamplerOptions sampler;
  bool ignore_eos = false;
  bool json = false;
};

std::vector<int32_t> read_prompt(const Flags& flags, const Tokenizer& tokenizer) {
  if (flags.file.empty() && flags.prompt.empty()) {
    fail(ExitCode::usage, "expected a prompt: -p TEXT, -f FILE, or both (the file comes first); -f - reads standard input");
  }
  const std::string text = flags.file.empty() ? std::string() : read_text(flags.file);
  const std::string where = flags.file.empty() ? "-p" : flags.prompt.empty() ? flags.file : flags.file + " and -p";
  std::vector<int32_t> tokens = encode_text(tokenizer, text + flags.prompt, true, where);
  if (tokens.empty()) fail(ExitCode::bad_input, where + ": expected at least one token of text, got none");
  return tokens;
}

// Writes complete characters as their last token comes.
class Writer {
 public:
  Writer(const Tokenizer& tokenizer, Output* output) : stream_(tokenizer), output_(output) {}

  void push(int32_t token) { write(unwrap(stream_.push(token))); }
  void finish() { write(stream_.flush()); }
  const std::string& text() const { return text_; }

 private:
  void write(const std::string& piece) {
    text_ += piece;
    if (output_ == nullptr || piece.empty()) return;
    output_->write(piece);
    output_->flush();
  }

  Tokenizer::Stream stream_;
  Output* output_;
  std::string text_;
};

void run(const Flags& flags) {
  const LoadedModel loaded = load_model(flags.model);
  const ModelConfig& config = loaded.model->config();
  const Policy policy = parse_policy(flags.policy, config);
  check_audit_fail(flags.model, policy.eps > 0.0);
  SamplerOptions sampler = flags.sampler;
  sampler.seed = flags.model.seed;
  check(Sampler::make(sampler).status(), ExitCode::usage);
  const std::vector<int32_t> prompt = read_prompt(flags, loaded.model->tokenizer());
  Output output(flags.output);

  // The prompt and one new token have to fit; what -n asks for beyond the model's limit just ends there.
  const auto length = static_cast<int64_t>(prompt.size());
  const int64_t wanted =
      std::min<int64_t>(length + flags.predict, std::max<int64_t>(length + 1, config.max_position_embeddings));
  const int32_t ctx_size = choose_ctx_size(flags.model, config, flags.model.ctx_size > 0 ? length + 1 : wanted);
  const auto engine = make_engine(flags.model, loaded.model, ctx_size, 0, 0);
  Session session = engine->new_session();
  session.set_seed(flags.model.seed);
  session.set_audit({.fraction = flags.model.audit});

  const size_t num_dense = prompt.size() - std::min<size_t>(prompt.size(), static_cast<size_t>(flags.policy_tokens));
  try {
    prefill(session, {prompt.begin(), prompt.begin() + static_cast<std::ptrdiff_t>(num_dense)}, "prefill");
  } catch (const Failure&) {
    if (interrupted()) fmt::print(stderr, "{}", run_table(session.stats(), {}));
    throw;
  }
  const RunStats prefill_stats = session.stats();
  session.reset_stats();
  check(session.set_policy(policy));

  GenerateOptions options;
  options.max_new_tokens = flags.predict;
  options.sampler = sampler;
  if (flags.ignore_eos) options.stop_token_ids = {-1};
  Writer writer(loaded.model->tokenizer(), flags.json ? nullptr : &output);
  const GenerateResult result = unwrap(generate(session, std::span(prompt).subspan(num_dense), options, [&](int32_t token) {
    writer.push(token);
    return !interrupted();
  }));
  writer.finish();
  const bool cancelled = result.reason == StopReason::cancelled;

  const RunStats& stats = session.stats();
  const std::string warning = sparsity_warning(policy, stats.traffic, session.length());
  if (flags.json) {
    nlohmann::ordered_json record = new_record("generate");
    record["model"] = loaded.folder.string();
    record["text"] = writer.text();
    record["tokens"] = result.tokens;
    record["stop_reason"] = stop_reason_text(result.reason);
    record["prompt_tokens"] = prompt.size();
    record["dense_prompt_tokens"] = num_dense;
    record["policy_resolved"] = policy.to_string();
    record["kv_dtype"] = to_string(engine->options().kv_dtype);
    record["prefill_tokens_per_second"] = prefill_stats.prefill_tokens_per_second();
    record["decode_tokens_per_second"] = stats.decode_tokens_per_second();
    record["stats"] = nlohmann::ordered_json::parse(stats.to_json());
    if (!warning.empty()) record["warning"] = warning;
    append_origin(record);
    output.write(record.dump() + "\n");
  } else {
    output.write("\n");
  }
  if (!cancelled || flags.output.empty()) output.commit();
  fmt::print(stderr, "\n{}", run_table(prefill_stats, stats));
  if (!warning.empty()) fmt::print(stderr, "rarefy: warning: {}\n", warning);
  if (result.reason == StopReason::context_full) {
    fmt::print(stderr, "rarefy: stopped because the context of {} tokens is full\n", ctx_size);
  }
  if (cancelled) fail(ExitCode::cancelled, "cancelled");
  fail_broken_promise(flags.model, stats.audit.promise);
}

}  // namespace

void add_generate(CLI::App& parent) {
  auto flags = std::make_shared<Flags>();
  CLI::App* verb = add_verb(parent, "generate",
                            "Continue a prompt, with dense or sparse attention.\n"
                            "The text goes to standard output, speed and error figures to standard error.",
                            "  rarefy generate -f document.txt -p 'Question: ...' -n 64 --policy 50x --audit 0.05");
  add_model_flags(*verb, flags->model);
  add_audit_fail_flag(*verb, flags->model);
  verb->add_option("-f,--file", flags->file, "text file, UTF-8; - is standard input")->type_name("FILE");
  verb->add_option("-p,--prompt", flags->prompt, "text; after that of -f when both are given")->type_name("TEXT");
  verb->add_option("-n,--predict", flags->predict, "tokens to generate (default 128)")
      ->check(CLI::Range(1, 1 << 30))
      ->type_name("N");
  add_policy_flags(*verb, flags->policy, flags->policy_tokens);
  add_sampling_flags(*verb, flags->sampler);
  verb->add_flag("--ignore-eos", flags->ignore_eos, "go on past the model's stop tokens");
  verb->add_flag("--json", flags->json, "write one JSON object instead of the text");
  verb->add_option("--output", flags->output, "write to this file instead of standard output")->type_name("FILE");
  verb->callback([flags] { run(*flags); });
}

}  // namespace rarefy::cli
