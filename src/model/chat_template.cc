#include "rarefy/model/chat_template.h"

#include <new>

#include "model/jinja/interpreter.h"
#include "model/jinja/json_values.h"
#include "model/jinja/parser.h"
#include "model/json_file.h"
#include "model/tokenizer/utf8.h"

namespace rarefy {
namespace {

using model::Json;
using model::jinja::Budget;
using model::jinja::Value;

// The longest published template has 20 KB.
constexpr std::size_t kMaxTemplateBytes = std::size_t{1} << 20;

Status to_status(const model::jinja::TemplateError& error, int32_t line) {
  const int32_t place = error.line > 0 ? error.line : line;
  const std::string where = place > 0 ? "chat template, line " + std::to_string(place) + ": " : "chat template: ";
  return {error.code, where + error.message};
}

Value message_value(const ChatMessage& message, std::size_t index, Budget& budget) {
  using model::jinja::make_string;
  const std::string where = "message " + std::to_string(index);
  for (const std::string* text : {&message.role, &message.content}) {
    if (const auto offset = model::tokenizer::first_malformed_byte(*text)) {
      model::jinja::fail(where + ": expected text in UTF-8, got a malformed sequence at byte " + std::to_string(*offset));
    }
  }
  std::vector<std::pair<Value, Value>> members;
  const bool is_whole = message.role.empty() && message.content.empty() && !message.extra_json.empty();
  if (!is_whole) members.emplace_back(make_string(&budget, "role"), make_string(&budget, message.role));
  if (!is_whole) members.emplace_back(make_string(&budget, "content"), make_string(&budget, message.content));
  if (!message.extra_json.empty()) {
    const Value extra = model::jinja::parse_json_value(message.extra_json, where, budget);
    if (!extra.is(model::jinja::Kind::dict)) model::jinja::fail(where + ": expected a JSON object of further members");
    if (is_whole) return extra;
    for (const auto& [key, value] : extra.dict().items) {
      if (key.text() == "role" || key.text() == "content") {
        members[key.text() == "role" ? 0 : 1].second = value;
      } else {
        members.emplace_back(key, value);
      }
    }
  }
  return model::jinja::make_dict(&budget, std::move(members));
}

}  // namespace

class ChatTemplate::Impl {
 public:
  Impl(model::jinja::Tree tree_in, SpecialTokens tokens_in) : tree(std::move(tree_in)), tokens(std::move(tokens_in)) {}

  void set_variables(std::span<const ChatMessage> messages, const ChatOptions& options, Budget& budget,
                     model::jinja::Interpreter& run) const;

  model::jinja::Tree tree;
  SpecialTokens tokens;
};

void ChatTemplate::Impl::set_variables(std::span<const ChatMessage> messages, const ChatOptions& options, Budget& budget,
                                       model::jinja::Interpreter& run) const {
  using model::jinja::Kind;
  const auto optional_json = [&](const std::string& json, const char* name, Kind kind, const char* expected) {
    Value value = Value::None{};
    if (!json.empty()) value = model::jinja::parse_json_value(json, name, budget);
    if (!value.is(kind) && !value.is(Kind::none)) model::jinja::fail(std::string(name) + ": expected a JSON " + expected);
    return value;
  };
  for (const auto& [name, text] : tokens) run.set_variable(name, model::jinja::make_string(&budget, text));
  std::vector<Value> list;
  for (std::size_t i = 0; i < messages.size(); ++i) list.push_back(message_value(messages[i], i, budget));
  run.set_variable("messages", model::jinja::make_list(&budget, model::jinja::ListObject::Form::list, std::move(list)));
  run.set_variable("tools", optional_json(options.tools_json, "tools", Kind::list, "array"));
  run.set_variable("documents", Value::None{});
  run.set_variable("add_generation_prompt", Value(options.add_generation_prompt));
  const Value variables = optional_json(options.variables_json, "variables", Kind::dict, "object");
  if (!variables.is(Kind::dict)) return;
  for (const auto& [name, value] : variables.dict().items) run.set_variable(name.text(), value);
}

ChatTemplate::ChatTemplate(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
ChatTemplate::ChatTemplate(ChatTemplate&&) noexcept = default;
ChatTemplate& ChatTemplate::operator=(ChatTemplate&&) noexcept = default;
ChatTemplate::~ChatTemplate() = default;

Expected<ChatTemplate> ChatTemplate::parse(std::string_view source, SpecialTokens special_tokens) {
  if (source.size() > kMaxTemplateBytes) {
    return Status::invalid_argument("chat template: expected at most " + std::to_string(kMaxTemplateBytes) +
                                    " bytes, got " + std::to_string(source.size()));
  }
  if (const auto offset = model::tokenizer::first_malformed_byte(source)) {
    return Status::invalid_argument("chat template: expected UTF-8, got a malformed sequence at byte " +
                                    std::to_string(*offset));
  }
  try {
    return ChatTemplate(std::make_unique<Impl>(model::jinja::parse_template(source), std::move(special_tokens)));
  } catch (const model::jinja::TemplateError& error) {
    return to_status(error, 0);
  } catch (const std::bad_alloc&) {
    return Status::resource_exhausted("chat template: out of memory");
  }
}

Expected<std::string> ChatTemplate::render(std::span<const ChatMessage> messages, const ChatOptions& options) const {
  Budget budget(options.limits);
  try {
    model::jinja::Interpreter run(impl_->tree, budget, options.now);
    try {
      impl_->set_variables(messages, options, budget, run);
      return run.run();
    } catch (const model::jinja::TemplateError& error) {
      return to_status(error, run.line());
    }
  } catch (const std::bad_alloc&) {
    return Status::resource_exhausted("chat template: out of memory");
  }
}

}  // namespace rarefy
