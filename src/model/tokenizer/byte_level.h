// The byte-level alphabet: every byte has one printable character, so that a vocabulary of strings can hold any bytes.
// Printable Latin-1 bytes stand for themselves, the other 68 for U+0100 onwards in order. Free functions without state.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace rarefy::model::tokenizer {

// Appends the printable characters of the bytes of `text`.
void append_byte_characters(std::string_view text, std::string& out);

// Appends the bytes that the characters of `token` stand for; the token's own bytes when any character stands for none.
void append_bytes_of_token(std::string_view token, std::string& out);

}  // namespace rarefy::model::tokenizer
