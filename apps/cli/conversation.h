// A conversation with a chat model: the messages so far, and a session that holds as much of them as can be kept. Each turn
// renders all messages anew and reads only what the session does not hold yet.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "rarefy/engine/generate.h"
#include "rarefy/model/chat_template.h"

namespace rarefy::cli {

struct ConversationOptions {
  std::string system;         // empty = no system message
  GenerateOptions generate;   // limits and sampling of an answer
  int32_t policy_tokens = 1;  // last tokens of a prompt that go through the policy as well
  ChatOptions chat;           // tools and variables of the template
  Policy policy;
  uint64_t seed = 0;
  double audit = 0.0;
};

struct Turn {
  std::string text;
  StopReason reason = StopReason::stop_token;
  int32_t prompt_tokens = 0;     // of all messages
  int32_t kept_tokens = 0;       // of these, already in the cache
  int32_t read_tokens = 0;       // of these, read now
  int32_t forgotten_tokens = 0;  // were in the cache and are not in the new prompt
  int32_t new_tokens = 0;        // of the answer
};

class Conversation {
 public:
  Conversation(std::shared_ptr<Engine> engine, ChatTemplate chat_template, ConversationOptions options);

  // Answers one more message of the user. `on_text` gets the answer piece by piece, complete characters only; Ctrl-C ends the
  // answer early. Throws a Failure when there is no answer; the message is then forgotten. A Ctrl-C while the messages are read
  // is one with ExitCode::cancelled, and what was read stays in the cache.
  Turn ask(const std::string& message, const std::function<void(const std::string& piece)>& on_text);

  void reset();                                         // forgets all messages, the cache and the statistics
  RunStats stats() const;                               // of all turns since the last reset
  int32_t length() const { return session_.length(); }  // tokens in the cache
  const Policy& policy() const { return options_.policy; }

 private:
  Session new_session() const;
  // Tokens of the rendered messages, and how many of the first ones the cache holds.
  std::vector<int32_t> encode(const std::string& rendered, int32_t& num_kept) const;
  void forget_after(int32_t num_tokens);
  Turn answer(const std::string& rendered, const std::function<void(const std::string& piece)>& on_text);

  std::shared_ptr<Engine> engine_;
  ChatTemplate template_;
  ConversationOptions options_;
  Session session_;
  RunStats earlier_;  // of sessions that were given up
  std::vector<ChatMessage> messages_;
  std::vector<int32_t> cached_;  // [session_.length()] i32; the tokens in the cache
  std::string cached_text_;      // what they stand for; empty when that is not known
};

}  // namespace rarefy::cli
