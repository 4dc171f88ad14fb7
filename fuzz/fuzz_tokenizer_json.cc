// Arbitrary tokenizer.json: parsing gives a tokenizer or one error, never a crash; a tokenizer encodes and decodes without one.
// An input is the file, or the file, a NUL byte and a text to encode. Seeds: tests/golden/tokenizers/*.tokenizer.json.
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "rarefy/model/tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, std::size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const std::size_t end = input.find('\0');
  const auto tokenizer = rarefy::Tokenizer::parse(input.substr(0, end));
  if (!tokenizer) {
    if (tokenizer.status().message().empty()) __builtin_trap();
    return 0;
  }
  std::string text = "It's <|a|>  12345 caf\xc3\xa9\r\n\n \xe4\xbd\xa0 e\xcc\x81 a-b";
  if (end != std::string_view::npos) text += input.substr(end + 1);
  for (const bool parse_special : {true, false}) {
    const auto ids = tokenizer->encode(text, {.parse_special = parse_special});
    if (!ids) continue;
    const auto whole = tokenizer->decode(*ids);
    if (!whole) __builtin_trap();
    rarefy::Tokenizer::Stream stream(*tokenizer, /*skip_special_tokens=*/false);
    std::string parts;
    for (const int32_t id : *ids) parts += stream.push(id).value();
    parts += stream.flush();
    if (parts != *whole) __builtin_trap();
  }
  return 0;
}
