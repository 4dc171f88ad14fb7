#include "model/tokenizer/known_patterns.h"

#include "model/tokenizer/character_class.h"
#include "model/tokenizer/utf8.h"

namespace rarefy::model::tokenizer {
namespace {

enum class Contractions { none, any_case, lower_case };
enum class Words {
  after_any,    // letters, and one character before them that is no newline, letter or number
  after_space,  // letters, and one space before them
  cased,        // as after_any, but ending where upper case follows lower case
};

// What the known patterns differ in.
struct Rules {
  Contractions contractions;
  Words words;
  bool marks_in_words;
  int max_numbers;          // in one piece; 0: any number, and one space before them
  bool lines;               // newlines end a piece of white space and of symbols
  bool slash_ends_symbols;  // slashes go with the newlines after symbols
};

class Cursor {
 public:
  explicit Cursor(std::string_view text) : text_(text) {}

  struct Look {
    CharacterClass what;
    std::size_t next;  // where the next character starts
  };
  Look look(std::size_t at) const {
    if (at >= text_.size()) return {kEndOfText, at};
    const auto byte = static_cast<uint8_t>(text_[at]);
    if (byte < 0x80) return {kAsciiClasses[byte], at + 1};
    const Utf8Step step = utf8_step(text_.substr(at));
    return {character_class(step.code_point), at + step.num_bytes};
  }
  CharacterClass what(std::size_t at) const { return look(at).what; }

  // The end of the run of characters of these classes that starts at `at`.
  std::size_t run(std::size_t at, CharacterClass classes) const {
    for (Look c = look(at); c.what & classes; c = look(at)) at = c.next;
    return at;
  }
  std::size_t run_without(std::size_t at, CharacterClass classes) const {
    for (Look c = look(at); !(c.what & (classes | kEndOfText)); c = look(at)) at = c.next;
    return at;
  }
  char byte(std::size_t at) const { return at < text_.size() ? text_[at] : '\0'; }
  std::size_t size() const { return text_.size(); }

 private:
  std::string_view text_;
};

// Bytes of 's 't 're 've 'm 'll 'd at `at`; 0 when there is none.
std::size_t contraction(const Cursor& cursor, std::size_t at, bool any_case) {
  const auto letter = [&](std::size_t i) {
    const char c = cursor.byte(at + i);
    return any_case && c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  };
  const char first = letter(1);
  if (first == 's' || first == 't' || first == 'm' || first == 'd') return 2;
  const char second = letter(2);
  if (((first == 'r' || first == 'v') && second == 'e') || (first == 'l' && second == 'l')) return 3;
  // U+017F is an s in another case.
  return any_case && first == '\xc5' && second == '\xbf' ? 3 : 0;
}

constexpr CharacterClass kAnyCase = kOtherLetter | kMark;
constexpr CharacterClass kUpperRun = kUpperLetter | kAnyCase, kLowerRun = kLowerLetter | kAnyCase;

// The end of `upper* lower+` at `at`, or `at` when it does not match there.
std::size_t upper_then_lower(const Cursor& cursor, std::size_t at) {
  std::size_t end = at, last_lower = at;  // of the upper run; of it up to a character that is of both
  for (Cursor::Look c = cursor.look(end); c.what & kUpperRun; c = cursor.look(end)) {
    end = c.next;
    if (c.what & kAnyCase) last_lower = end;
  }
  const std::size_t lower_end = cursor.run(end, kLowerRun);
  return lower_end > end ? lower_end : last_lower;
}

std::size_t cased_word(const Cursor& cursor, std::size_t at, Cursor::Look first) {
  const bool may_precede = !(first.what & (kNewline | kLetter | kNumber));
  if (may_precede) {
    const std::size_t end = upper_then_lower(cursor, first.next);
    if (end > first.next) return end;
  }
  if (const std::size_t end = upper_then_lower(cursor, at); end > at) return end;
  if (may_precede) {
    const std::size_t end = cursor.run(first.next, kUpperRun);
    if (end > first.next) return end;
  }
  return cursor.run(at, kUpperRun);
}

template <Rules R>
std::size_t word(const Cursor& cursor, std::size_t at, Cursor::Look first) {
  if constexpr (R.words == Words::cased) return cased_word(cursor, at, first);
  constexpr CharacterClass kWord = R.marks_in_words ? kLetter | kMark : kLetter;
  if (first.what & kWord) return cursor.run(first.next, kWord);
  const bool may_precede = R.words == Words::after_any ? !(first.what & (kNewline | kNumber)) : cursor.byte(at) == ' ';
  if (!may_precede) return at;
  const std::size_t end = cursor.run(first.next, kWord);
  return end > first.next ? end : at;
}

template <Rules R>
std::size_t numbers(const Cursor& cursor, std::size_t at, Cursor::Look first) {
  if constexpr (R.max_numbers == 0) {
    if (first.what & kNumber) return cursor.run(first.next, kNumber);
    if (cursor.byte(at) != ' ') return at;
    const std::size_t end = cursor.run(first.next, kNumber);
    return end > first.next ? end : at;
  }
  for (int i = 0; i < R.max_numbers; ++i) {
    const Cursor::Look c = cursor.look(at);
    if (!(c.what & kNumber)) break;
    at = c.next;
  }
  return at;
}

template <Rules R>
std::size_t symbols(const Cursor& cursor, std::size_t at) {
  constexpr CharacterClass kOther = kSpace | kLetter | kNumber | (R.marks_in_words ? kMark : 0);
  const std::size_t start = cursor.byte(at) == ' ' ? at + 1 : at;
  std::size_t end = cursor.run_without(start, kOther);
  if (end == start) return at;
  if constexpr (R.lines) {
    for (char c = cursor.byte(end); c == '\r' || c == '\n' || (R.slash_ends_symbols && c == '/'); c = cursor.byte(end))
      ++end;
  }
  return end;
}

// White space: up to its last newline; or, without one, all of it at the end of the text and else all but the last character,
// which belongs to what follows.
template <Rules R>
std::size_t white_space(const Cursor& cursor, std::size_t at) {
  std::size_t end = at, last = at, line_end = at;
  for (Cursor::Look c = cursor.look(end); c.what & kSpace; c = cursor.look(end)) {
    last = end;
    end = c.next;
    if (c.what & kNewline) line_end = end;
  }
  if (R.lines && line_end > at) return line_end;
  return end == cursor.size() || last == at ? end : last;
}

template <Rules R>
std::size_t piece_end(std::string_view text, std::size_t at) {
  const Cursor cursor(text);
  if (R.contractions != Contractions::none && text[at] == '\'') {
    const std::size_t size = contraction(cursor, at, R.contractions == Contractions::any_case);
    if (size > 0) return at + size;
  }
  const Cursor::Look first = cursor.look(at);
  if (const std::size_t end = word<R>(cursor, at, first); end > at) return end;
  if (const std::size_t end = numbers<R>(cursor, at, first); end > at) return end;
  if (const std::size_t end = symbols<R>(cursor, at); end > at) return end;
  return white_space<R>(cursor, at);
}

constexpr Rules kGpt2 = {Contractions::lower_case, Words::after_space, false, 0, false, false};
constexpr Rules kLlama3 = {Contractions::any_case, Words::after_any, false, 3, true, false};
constexpr Rules kQwen2 = {Contractions::any_case, Words::after_any, false, 1, true, false};
constexpr Rules kQwen35 = {Contractions::any_case, Words::after_any, true, 1, true, false};
constexpr Rules kMinistral = {Contractions::none, Words::cased, false, 1, true, true};

}  // namespace

PieceEnd known_pattern(std::string_view pattern) {
  if (pattern == kGpt2Pattern) return piece_end<kGpt2>;
  if (pattern == kLlama3Pattern) return piece_end<kLlama3>;
  if (pattern == kQwen2Pattern) return piece_end<kQwen2>;
  if (pattern == kQwen35Pattern) return piece_end<kQwen35>;
  if (pattern == kMinistralPattern) return piece_end<kMinistral>;
  return nullptr;
}

}  // namespace rarefy::model::tokenizer
