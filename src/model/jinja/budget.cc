#include "model/jinja/budget.h"

namespace rarefy::model::jinja {

void fail(std::string message, StatusCode code) { throw TemplateError{code, std::move(message), 0}; }

void Budget::write(std::size_t num_bytes) {
  work(num_bytes);
  written_ += static_cast<int64_t>(num_bytes);
  if (written_ > limits_.max_output_bytes) {
    fail("expected at most " + std::to_string(limits_.max_output_bytes) +
             " bytes of text, got more; the template writes without end, or the conversation is too long",
         StatusCode::resource_exhausted);
  }
}

void Budget::refuse_steps() const {
  fail("expected at most " + std::to_string(limits_.max_steps) +
           " steps, got more; the template loops without end, or the conversation is too long",
       StatusCode::resource_exhausted);
}

void Budget::refuse_bytes() const {
  fail("expected values of at most " + std::to_string(limits_.max_value_bytes) +
           " bytes, got more; the template grows its values without end, or the conversation is too long",
       StatusCode::resource_exhausted);
}

void Text::append(std::size_t count, std::string_view piece) {
  if (piece.empty() || count == 0) return;
  if (count > static_cast<std::size_t>(budget_.limits().max_value_bytes)) budget_.expect(count);
  budget_.expect(text_.size() + count * piece.size());
  budget_.work(count * piece.size());
  budget_.step(static_cast<int64_t>(count / 8));
  text_.reserve(text_.size() + count * piece.size());
  for (std::size_t i = 0; i < count; ++i) text_ += piece;
}

}  // namespace rarefy::model::jinja
