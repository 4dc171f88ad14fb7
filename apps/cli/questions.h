// Contexts with questions, as `recall` and `demo` read them. A question follows its context directly; its answer follows the
// question after one space.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "rarefy/model/tokenizer.h"

namespace rarefy::cli {

struct Question {
  std::string text, answer;
  std::vector<int32_t> text_tokens, answer_tokens;  // [num_tokens] i32
};

// `array` is [{"question": ..., "answer": ...}]; `where` is for messages. Fails with ExitCode::bad_input.
std::vector<Question> parse_questions(const nlohmann::json& array, const Tokenizer& tokenizer, const std::string& where);

// The string under `key`. Fails with ExitCode::bad_input.
std::string required_text(const nlohmann::json& object, const std::string& key, const std::string& where);

}  // namespace rarefy::cli
