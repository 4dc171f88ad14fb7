// rarefy chat: a conversation with a chat model. The cache is kept from turn to turn.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>

#include "conversation.h"
#include "evaluation.h"
#include "failure.h"
#include "files.h"
#include "interrupt.h"
#include "line_reader.h"
#include "model_flags.h"
#include "run_table.h"
#include "terminal.h"
#include "verbs.h"

namespace rarefy::cli {
namespace {

constexpr int32_t kDefaultCtxSize = 32768;
constexpr const char* kCommands =
    "/stats   speed, density, bytes_ratio and errors of the conversation so far\n"
    "/reset   forget the conversation and begin anew\n"
    "/help    this list\n"
    "/quit    leave; so does the end of the input (Ctrl-D)\n"
    "A backslash at the end of a line goes on with the next one; // begins a message\n"
    "with a slash. Ctrl-C stops the answer.\n";

struct Flags {
  ModelFlags model;
  std::string file, system, chat_template, tools_file, variables, policy = "dense";
  int32_t predict = 1024;
  int32_t policy_tokens = 1;
  SamplerOptions sampler;
  bool json = false;
};

// The template of the model's folder, or the one of --chat-template: a file, or the text itself.
ChatTemplate read_template(const Flags& flags, const std::filesystem::path& folder) {
  if (flags.chat_template.empty()) {
    auto chat = ChatTemplate::load(folder);
    if (!chat && chat.status().code() == StatusCode::not_found) {
      fail(ExitCode::bad_input, chat.status().message() +
                                    "; name a chat model with -m, give a template with --chat-template, or "
                                    "use rarefy generate");
    }
    return unwrap(std::move(chat), ExitCode::bad_input);
  }
  const std::string& text = flags.chat_template;
  std::error_code ignored;
  const bool is_text = text.find("{{") != std::string::npos || text.find("{%") != std::string::npos;
  if (!is_text && !std::filesystem::exists(text, ignored)) {
    fail(ExitCode::usage, fmt::format("--chat-template: expected a file or the text of a template, got '{}'", text));
  }
  return unwrap(ChatTemplate::parse(is_text ? text : read_text(text),
                                    unwrap(ChatTemplate::load_special_tokens(folder), ExitCode::bad_input)),
                ExitCode::bad_input);
}

class Chat {
 public:
  Chat(const Flags& flags, Conversation conversation, std::string document)
      : json_(flags.json),
        conversation_(std::move(conversation)),
        document_(std::move(document)),
        unread_document_(document_) {}

  void run() {
    const bool interactive = stdin_is_terminal();
    if (interactive) fmt::print(stderr, "/help lists the commands.\n");
    LineReader lines;
    std::string line;
    for (bool stopped_before = false;;) {
      const LineReader::Outcome outcome = lines.read("> ", line);
      if (terminated()) fail(ExitCode::cancelled, "cancelled");
      if (outcome == LineReader::Outcome::end) break;
      if (outcome == LineReader::Outcome::interrupted) {
        if (!interactive || stopped_before) fail(ExitCode::cancelled, "cancelled");
        fmt::print(stderr, "\nCtrl-C again, Ctrl-D or /quit leaves.\n");
        clear_interrupt();
        stopped_before = true;
        continue;
      }
      stopped_before = false;
      if (line.find_first_not_of(" \t\n") == std::string::npos) continue;
      if (line.starts_with('/') && !line.starts_with("//")) {
        if (!command(line)) break;
      } else {
        answer(line.starts_with("//") ? line.substr(1) : line, interactive);
      }
    }
    if (interactive) fmt::print(stderr, "\n");
    output_.commit();
  }

 private:
  // False to leave.
  bool command(std::string line) {
    line.erase(line.find_last_not_of(" \t") + 1);
    if (line == "/quit" || line == "/exit") return false;
    if (line == "/help") {
      fmt::print(stderr, "{}", kCommands);
    } else if (line == "/reset") {
      conversation_.reset();
      unread_document_ = document_;
    } else if (line == "/stats") {
      const RunStats stats = conversation_.stats();
      const std::string warning = sparsity_warning(conversation_.policy(), stats.traffic, conversation_.length());
      output_.write(json_ ? stats.to_json() + "\n" : run_table(stats, stats));
      if (!json_) output_.write(fmt::format("  {:<18}{} tokens\n", "cache", format_count(conversation_.length())));
      output_.flush();
      if (!warning.empty()) fmt::print(stderr, "rarefy: warning: {}\n", warning);
    } else {
      fmt::print(stderr, "rarefy: expected /stats, /reset, /help or /quit, got '{}'; // begins a message with a slash\n",
                 line);
    }
    return true;
  }

  void answer(const std::string& message, bool interactive) {
    const std::string whole = unread_document_.empty() ? message : unread_document_ + "\n\n" + message;
    try {
      const Turn turn = conversation_.ask(whole, [&](const std::string& piece) {
        if (json_) return;
        output_.write(piece);
        output_.flush();
      });
      unread_document_.clear();
      write_turn(turn);
    } catch (const Failure& failure) {
      const bool stopped = failure.code == ExitCode::cancelled && !terminated();
      // At a terminal there is a next try; a script has to know.
      if (!stopped && (!interactive || failure.code != ExitCode::bad_input)) throw;
      fmt::print(stderr, "rarefy: {}\n", stopped ? "stopped while reading; the message is forgotten" : failure.message);
    }
    if (terminated()) fail(ExitCode::cancelled, "cancelled");
    clear_interrupt();
  }

  void write_turn(const Turn& turn) {
    if (json_) {
      const nlohmann::ordered_json record = {{"turn", ++num_turns_},
                                             {"text", turn.text},
                                             {"new_tokens", turn.new_tokens},
                                             {"stop_reason", stop_reason_text(turn.reason)},
                                             {"prompt_tokens", turn.prompt_tokens},
                                             {"kept_tokens", turn.kept_tokens},
                                             {"read_tokens", turn.read_tokens},
                                             {"forgotten_tokens", turn.forgotten_tokens}};
      output_.write(record.dump() + "\n");
    } else {
      output_.write("\n");
    }
    output_.flush();
    if (turn.forgotten_tokens > 0) {
      fmt::print(stderr, "rarefy: the template rewrote earlier messages: {} of {} cached tokens kept, {} read\n",
                 format_count(turn.kept_tokens), format_count(turn.kept_tokens + turn.forgotten_tokens),
                 format_count(turn.read_tokens));
    }
    if (turn.reason == StopReason::cancelled) fmt::print(stderr, "rarefy: answer stopped\n");
    if (turn.reason == StopReason::context_full) {
      fmt::print(stderr, "rarefy: the context is full; /reset begins anew, -c makes room\n");
    }
  }

  bool json_;
  Conversation conversation_;
  std::string document_;
  std::string unread_document_;  // comes before the next message; empty once it has been read
  int32_t num_turns_ = 0;
  Output output_;
};

void run(const Flags& flags) {
  // The template first: weights can take a while.
  ChatTemplate chat_template =
      read_template(flags, flags.model.model.empty() ? shipped_model() : std::filesystem::path(flags.model.model));
  ConversationOptions options;
  options.chat.variables_json = flags.variables;
  if (!flags.tools_file.empty()) options.chat.tools_json = read_text(flags.tools_file);
  const std::string document = flags.file.empty() ? std::string() : read_text(flags.file);
  options.system = flags.system;
  options.policy_tokens = flags.policy_tokens;
  options.generate.max_new_tokens = flags.predict;
  options.generate.sampler = flags.sampler;
  options.generate.sampler.seed = options.seed = flags.model.seed;
  options.audit = flags.model.audit;
  check(Sampler::make(options.generate.sampler).status(), ExitCode::usage);

  const LoadedModel loaded = load_model(flags.model);
  const ModelConfig& config = loaded.model->config();
  options.policy = parse_policy(flags.policy, config);
  const int32_t ctx_size = choose_ctx_size(
      flags.model, config, flags.model.ctx_size > 0 ? 1 : std::min(kDefaultCtxSize, config.max_position_embeddings));
  Conversation conversation(make_engine(flags.model, loaded.model, ctx_size, 0, 0), std::move(chat_template),
                            std::move(options));
  Chat(flags, std::move(conversation), document).run();
}

}  // namespace

void add_chat(CLI::App& parent) {
  auto flags = std::make_shared<Flags>();
  CLI::App* verb = add_verb(parent, "chat",
                            "Talk to a chat model; each line of standard input is a message.\n"
                            "The cache is kept from turn to turn: only what is new is read. The checkpoint\n"
                            "that ships with rarefy is no chat model: name one with -m.",
                            "  rarefy chat -m MODEL --system 'Answer briefly.' --policy 50x\n"
                            "  echo 'What is this about?' | rarefy chat -m MODEL -f document.txt --policy 50x\n\n"
                            "Commands in place of a message: /stats /reset /help /quit");
  add_model_flags(*verb, flags->model);
  verb->get_option("--ctx-size")->description("longest conversation in tokens (default: the model's, up to 32768)");
  verb->add_option("-f,--file", flags->file, "text file, UTF-8, that comes before the first message")->type_name("FILE");
  verb->add_option("--system", flags->system, "the system message")->type_name("TEXT");
  verb->add_option("--chat-template", flags->chat_template,
                   "a template in place of the model's own: a file, or its text (docs/guide/chat.md)")
      ->type_name("TEMPLATE");
  verb->add_option("--tools", flags->tools_file, "JSON file with an array of tools, for templates that show them")
      ->type_name("FILE");
  verb->add_option("--variables", flags->variables,
                   "JSON object of variables of the template, as {\"enable_thinking\": false}")
      ->type_name("JSON");
  verb->add_option("-n,--predict", flags->predict, "longest answer in tokens (default 1024)")
      ->check(CLI::Range(1, 1 << 30))
      ->type_name("N");
  add_policy_flags(*verb, flags->policy, flags->policy_tokens);
  add_sampling_flags(*verb, flags->sampler);
  verb->add_flag("--json", flags->json, "write one JSON object for each answer");
  verb->callback([flags] { run(*flags); });
}

}  // namespace rarefy::cli
