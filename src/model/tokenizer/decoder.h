// Decoder: the bytes that a token string stands for, token by token, so that text can be decoded as a stream. Bytes that are no
// UTF-8 are replaced at the end, by the caller. A plain value.
#pragma once

#include <string>
#include <string_view>

#include "model/json_file.h"
#include "rarefy/core/status.h"

namespace rarefy::model::tokenizer {

struct Decoder {
  bool byte_level = false;     // a token's characters stand for bytes; else for themselves
  std::string_view separator;  // between tokens: a space when the file has no decoder

  void append(std::string_view token, std::string& bytes) const;
};

// Kinds: ByteLevel, Fuse, Sequence; null joins the tokens with spaces.
Expected<Decoder> parse_decoder(const Json& value, std::string_view place);

}  // namespace rarefy::model::tokenizer
