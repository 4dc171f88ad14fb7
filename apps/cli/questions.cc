#include "questions.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "evaluation.h"
#include "failure.h"

namespace rarefy::cli {

std::string required_text(const nlohmann::json& object, const std::string& key, const std::string& where) {
  const auto found = object.is_object() ? object.find(key) : object.end();
  if (found == object.end() || !found->is_string() || found->get_ref<const std::string&>().empty()) {
    fail(ExitCode::bad_input, fmt::format("{}: expected \"{}\" with some text, got {}", where, key,
                                          found == object.end() ? "nothing" : found->dump()));
  }
  return found->get<std::string>();
}

std::vector<Question> parse_questions(const nlohmann::json& array, const Tokenizer& tokenizer, const std::string& where) {
  if (!array.is_array() || array.empty()) {
    fail(ExitCode::bad_input, where + R"(: expected a list of {"question": ..., "answer": ...})");
  }
  std::vector<Question> questions;
  for (const nlohmann::json& entry : array) {
    const std::string here = fmt::format("{}, question {}", where, questions.size() + 1);
    Question question;
    question.text = required_text(entry, "question", here);
    question.answer = required_text(entry, "answer", here);
    question.text_tokens = encode_text(tokenizer, question.text, false, here);
    question.answer_tokens = encode_text(tokenizer, " " + question.answer, false, here);
    questions.push_back(std::move(question));
  }
  return questions;
}

}  // namespace rarefy::cli
