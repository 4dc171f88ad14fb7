// Chat templates: from messages to the text a chat model was trained on, by the template in its folder.
//
//   Expected<ChatTemplate> chat = ChatTemplate::load(folder);
//   const ChatMessage messages[] = {{.role = "user", .content = "Hello"}};
//   Expected<std::string> prompt = chat->render(messages);
//   tokenizer.encode(*prompt, {.add_special_tokens = false});     // the template has written the begin-of-text token itself
//
// Templates are written in a subset of Jinja (docs/guide/chat.md), read and run here as `transformers` does. They are data from
// outside: they reach nothing but the messages, and steps, memory, output and nesting are limited.
//
// A ChatTemplate is immutable and may be used from several threads.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "rarefy/core/status.h"

namespace rarefy {

struct ChatMessage {
  std::string role = {};     // "system", "user", "assistant", "tool", or what the template knows
  std::string content = {};  // UTF-8
  // A JSON object of further members, for instance {"tool_calls": [...]}; empty = none. A member `role` or `content` in it
  // stands in place of the one above, so that content may also be a list of blocks or null. With role and content empty it is
  // the whole message.
  std::string extra_json = {};
};

// What one rendering may cost. A step is one node evaluated, or 128 bytes looked at or copied.
struct ChatTemplateLimits {
  int64_t max_steps = 1'000'000;
  int64_t max_output_bytes = 8 << 20;  // all text written, also inside macros
  int64_t max_value_bytes = 24 << 20;  // values that live at a time, messages included
};

struct ChatOptions {
  bool add_generation_prompt = true;  // end with the beginning of an answer
  std::string tools_json = {};        // a JSON array of tool descriptions; empty = none
  std::string variables_json = {};    // a JSON object of further variables, for instance {"enable_thinking": false}
  // What strftime_now() shows, in seconds since 1970 of the clock on the wall; unset = now, local time.
  std::optional<int64_t> now = {};
  ChatTemplateLimits limits = {};
};

class ChatTemplate {
 public:
  // Names of special tokens (bos_token, eos_token, ...) and their texts, which templates see as variables.
  using SpecialTokens = std::map<std::string, std::string>;

  // The template of a model folder: chat_template.jinja, else `chat_template` of tokenizer_config.json (a text, or a list of
  // named ones), else that of chat_template.json. `name` picks one of several: "default", "tool_use", ...
  // not_found when the folder has none: it is no chat model.
  static Expected<ChatTemplate> load(const std::filesystem::path& folder, std::string_view name = "default");
  // The special tokens that a folder's tokenizer_config.json names.
  static Expected<SpecialTokens> load_special_tokens(const std::filesystem::path& folder);
  // A template from its text. Errors name the line and the reason.
  static Expected<ChatTemplate> parse(std::string_view source, SpecialTokens special_tokens = {});

  ChatTemplate(ChatTemplate&&) noexcept;
  ChatTemplate& operator=(ChatTemplate&&) noexcept;
  ~ChatTemplate();

  // Errors: invalid_argument when the template refuses the conversation (raise_exception) or fails on it, resource_exhausted
  // when a limit is reached, unsupported for what is not offered; each with line and reason.
  Expected<std::string> render(std::span<const ChatMessage> messages, const ChatOptions& options = {}) const;

  class Impl;
  explicit ChatTemplate(std::unique_ptr<Impl> impl);

 private:
  std::unique_ptr<Impl> impl_;
};

}  // namespace rarefy
