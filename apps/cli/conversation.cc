#include "conversation.h"

#include <fmt/format.h>

#include <algorithm>

#include "evaluation.h"
#include "failure.h"
#include "interrupt.h"

namespace rarefy::cli {

Conversation::Conversation(std::shared_ptr<Engine> engine, ChatTemplate chat_template, ConversationOptions options)
    : engine_(std::move(engine)),
      template_(std::move(chat_template)),
      options_(std::move(options)),
      session_(new_session()) {
  reset();
}

Session Conversation::new_session() const {
  Session session = engine_->new_session();
  session.set_seed(options_.seed);
  session.set_audit({.fraction = options_.audit});
  check(session.set_policy(options_.policy), ExitCode::usage);
  return session;
}

void Conversation::reset() {
  session_ = new_session();
  earlier_ = {};
  cached_.clear();
  cached_text_.clear();
  messages_.clear();
  if (!options_.system.empty()) messages_.push_back({.role = "system", .content = options_.system});
}

RunStats Conversation::stats() const {
  RunStats stats = session_.stats();
  stats.merge(earlier_);
  return stats;
}

std::vector<int32_t> Conversation::encode(const std::string& rendered, int32_t& num_kept) const {
  const Tokenizer& tokenizer = engine_->model().tokenizer();
  std::vector<int32_t> tokens;
  // The template has written special tokens itself. Where only text was added, the tokens of the answer stay as they were
  // drawn: encoding their text again may give others.
  if (!cached_text_.empty() && rendered.starts_with(cached_text_)) {
    tokens = cached_;
    const std::vector<int32_t> added =
        encode_text(tokenizer, rendered.substr(cached_text_.size()), false, "the conversation");
    tokens.insert(tokens.end(), added.begin(), added.end());
  } else {
    tokens = encode_text(tokenizer, rendered, false, "the conversation");
  }
  if (tokens.empty()) fail(ExitCode::bad_input, "expected a prompt of at least one token from the chat template, got none");
  // The last token is read in any case: its logits begin the answer.
  const auto [end, unused] = std::mismatch(tokens.begin(), tokens.end() - 1, cached_.begin(), cached_.end());
  num_kept = static_cast<int32_t>(end - tokens.begin());
  return tokens;
}

void Conversation::forget_after(int32_t num_tokens) {
  if (num_tokens == session_.length()) return;
  if (!session_.truncate(num_tokens).ok()) {
    // A cache that cannot go back to this place is read anew.
    earlier_.merge(session_.stats());
    session_ = new_session();
  }
  cached_.resize(static_cast<size_t>(session_.length()));
  cached_text_.clear();
}

Turn Conversation::answer(const std::string& rendered, const std::function<void(const std::string& piece)>& on_text) {
  Turn turn;
  const std::vector<int32_t> tokens = encode(rendered, turn.kept_tokens);
  turn.prompt_tokens = static_cast<int32_t>(tokens.size());
  const int32_t ctx_size = engine_->options().ctx_size;
  if (turn.prompt_tokens + 1 > ctx_size) {
    fail(ExitCode::bad_input,
         fmt::format("the conversation needs a context of {} tokens, there are {}; /reset begins anew, -c makes room",
                     turn.prompt_tokens + 1, ctx_size));
  }
  turn.forgotten_tokens = session_.length() - turn.kept_tokens;
  forget_after(turn.kept_tokens);
  turn.kept_tokens = session_.length();
  turn.read_tokens = turn.prompt_tokens - turn.kept_tokens;

  const auto num_dense = std::max<std::ptrdiff_t>(turn.kept_tokens, turn.prompt_tokens - options_.policy_tokens);
  Tokenizer::Stream stream(engine_->model().tokenizer());
  const auto show = [&](const std::string& piece) {
    turn.text += piece;
    if (!piece.empty()) on_text(piece);
  };
  GenerateResult result;
  try {
    prefill(session_, {tokens.begin() + turn.kept_tokens, tokens.begin() + num_dense}, "reading");
    result = unwrap(generate(session_, std::span(tokens).subspan(static_cast<size_t>(num_dense)), options_.generate,
                             [&](int32_t token) {
                               show(unwrap(stream.push(token)));
                               return !interrupted();
                             }));
  } catch (...) {
    // What was read of the prompt stays; tokens of an answer that failed do not.
    cached_ = tokens;
    forget_after(std::min(session_.length(), turn.prompt_tokens));
    cached_.resize(static_cast<size_t>(session_.length()));
    cached_text_.clear();
    throw;
  }
  show(stream.flush());
  turn.reason = result.reason;
  turn.new_tokens = static_cast<int32_t>(result.tokens.size());

  // The last token of an answer that did not end by itself has not been read.
  cached_ = tokens;
  cached_.insert(cached_.end(), result.tokens.begin(), result.tokens.end());
  cached_.resize(static_cast<size_t>(session_.length()));
  const std::vector<int32_t> answered(cached_.begin() + turn.prompt_tokens, cached_.end());
  cached_text_ = rendered + unwrap(engine_->model().tokenizer().decode(answered));
  return turn;
}

Turn Conversation::ask(const std::string& message, const std::function<void(const std::string& piece)>& on_text) {
  messages_.push_back({.role = "user", .content = message});
  try {
    Turn turn = answer(unwrap(template_.render(messages_, options_.chat), ExitCode::bad_input), on_text);
    messages_.push_back({.role = "assistant", .content = turn.text});
    return turn;
  } catch (...) {
    messages_.pop_back();
    throw;
  }
}

}  // namespace rarefy::cli
