// Arbitrary template texts: parsing gives a template or one error, rendering gives text or one error within the limits, never a
// crash. An input is the template, or the template, a NUL byte and the JSON of a message. Seeds: tests/golden/templates/*.jinja.
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "rarefy/model/chat_template.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, std::size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const std::size_t end = input.find('\0');
  const auto chat = rarefy::ChatTemplate::parse(input.substr(0, end), {{"bos_token", "<s>"}, {"eos_token", "</s>"}});
  if (!chat) {
    if (chat.status().message().empty()) __builtin_trap();
    return 0;
  }
  rarefy::ChatMessage messages[] = {
      {.role = "system", .content = "Be brief."},
      {.role = "user",
       .content = " caf\xc3\xa9 \xf0\x9f\x98\x80\n",
       .extra_json = R"({"name": "n", "list": [1, 2.5, null, true]})"},
      {.role = "assistant",
       .extra_json = R"({"content": null, "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]})"},
      {.role = "user", .content = "x"}};
  if (end != std::string_view::npos) messages[3].extra_json = input.substr(end + 1);
  rarefy::ChatOptions options;
  options.tools_json = R"([{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}])";
  options.now = 1700000000;
  options.limits = {.max_steps = 20'000, .max_output_bytes = 100'000, .max_value_bytes = 500'000};
  const auto text = chat->render(messages, options);
  if (!text && text.status().message().empty()) __builtin_trap();
  if (text && text->size() > 100'000) __builtin_trap();
  return 0;
}
