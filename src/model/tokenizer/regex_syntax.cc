#include "model/tokenizer/regex_syntax.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <utility>

#include "model/json_file.h"
#include "model/tokenizer/unicode_additions.h"

namespace rarefy::model::tokenizer {
namespace {

// Members of a PCRE2 character class, without the brackets.
constexpr std::string_view kWhiteSpace =
    R"(\x09-\x0d\x20\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000})";
constexpr std::string_view kHexDigits = "0-9A-Fa-f";
// What belongs to words beside letters, marks and digits: connectors, letters that are symbols by category (circled, squared),
// and, for no reason but history, the superscripts and fractions of Latin-1.
constexpr std::string_view kOtherWord =
    R"(\p{Pc}\x{b2}\x{b3}\x{b9}\x{bc}-\x{be}\x{24b6}-\x{24e9}\x{1f130}-\x{1f149}\x{1f150}-\x{1f169}\x{1f170}-\x{1f189})";

constexpr std::array<std::string_view, 37> kCategories = {
    "C",  "Cc", "Cf", "Cn", "Co", "Cs", "L",  "Ll", "Lm", "Lo", "Lt", "Lu", "M",  "Mc", "Me", "Mn", "N",  "Nd", "Nl",
    "No", "P",  "Pc", "Pd", "Pe", "Pf", "Pi", "Po", "Ps", "S",  "Sc", "Sk", "Sm", "So", "Z",  "Zl", "Zp", "Zs"};
constexpr std::array<std::pair<std::string_view, std::string_view>, 7> kLongNames = {{{"Letter", "L"},
                                                                                      {"Mark", "M"},
                                                                                      {"Number", "N"},
                                                                                      {"Punctuation", "P"},
                                                                                      {"Symbol", "S"},
                                                                                      {"Separator", "Z"},
                                                                                      {"Other", "C"}}};

std::string category_members(std::string_view category) {
  std::string members = "\\p{";
  members += category;
  members += '}';
  for (const UnicodeAddition& a : kUnicodeAdditions) {
    if (!std::string_view(a.category).starts_with(category)) continue;
    char range[40];
    std::snprintf(range, sizeof(range), a.first == a.last ? "\\x{%x}" : "\\x{%x}-\\x{%x}", a.first, a.last);
    members += range;
  }
  return members;
}

std::string word_members() {
  return category_members("L") + category_members("M") + category_members("Nd") + category_members("Nl") +
         std::string(kOtherWord);
}

class Translator {
 public:
  explicit Translator(std::string_view pattern) : pattern_(pattern) {}

  Expected<std::string> run() {
    while (at_ < pattern_.size()) {
      const char c = pattern_[at_];
      Status status;
      if (c == '\\') {
        status = escape();
      } else if (in_class_) {
        status = class_character(c);
      } else if (c == '[') {
        status = open_class();
      } else if (c == '(') {
        status = open_group();
      } else if (c == '{') {
        status = interval();
      } else {
        copy(1);
      }
      RAREFY_RETURN_IF_ERROR(status);
    }
    if (in_class_) return refuse("[", "a closing ']'");
    return std::move(out_);
  }

 private:
  char peek(std::size_t ahead) const { return at_ + ahead < pattern_.size() ? pattern_[at_ + ahead] : '\0'; }
  void copy(std::size_t count) {
    out_ += pattern_.substr(at_, count);
    at_ += std::min(count, pattern_.size() - at_);
  }
  void replace(std::size_t count, std::string_view text) {
    out_ += text;
    at_ += count;
  }
  Status refuse(std::string_view what, std::string_view expected) const {
    return Status::unsupported("regular expression: expected " + std::string(expected) + ", got '" + brief(what) +
                               "' at byte " + std::to_string(at_) + " of '" + brief(pattern_) + "'");
  }

  // Writes a set of characters at a place where the pattern has an escape of `count` bytes.
  Status put_set(std::size_t count, std::string_view members, bool negated) {
    if (in_class_ && negated) {
      return refuse(pattern_.substr(at_, count), "no negated escape inside a character class");
    }
    if (!in_class_) out_ += negated ? "[^" : "[";
    replace(count, members);
    if (!in_class_) out_ += ']';
    return {};
  }

  Status escape() {
    const char c = peek(1);
    switch (c) {
      case 's': return put_set(2, kWhiteSpace, false);
      case 'S': return put_set(2, kWhiteSpace, true);
      case 'd': return put_set(2, category_members("Nd"), false);
      case 'D': return put_set(2, category_members("Nd"), true);
      case 'w': return put_set(2, word_members(), false);
      case 'W': return put_set(2, word_members(), true);
      case 'h': return put_set(2, kHexDigits, false);
      case 'H': return put_set(2, kHexDigits, true);
      case 'v': replace(2, "\\x0b"); return {};
      case 'b':
      case 'B': return word_boundary(c == 'B');
      case 'p':
      case 'P': return property();
      default: break;
    }
    const bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
    constexpr std::string_view kSame = "aefnrtxAzZGKR";
    if (c == '\0' && at_ + 1 >= pattern_.size()) return refuse("\\", "a character after the last backslash");
    if (letter && kSame.find(c) == std::string_view::npos) {
      return refuse(pattern_.substr(at_, 2), "an escape this translation knows");
    }
    copy(2);
    return {};
  }

  Status word_boundary(bool negated) {
    if (in_class_) return refuse(pattern_.substr(at_, 2), "no \\b inside a character class");
    const std::string members = word_members();
    const auto look = [&](std::string_view opening) {
      out_ += opening;
      out_ += members;
      out_ += "])";
    };
    out_ += "(?:";
    look("(?<=[");
    look(negated ? "(?=[" : "(?![");
    out_ += '|';
    look("(?<![");
    look(negated ? "(?![" : "(?=[");
    replace(2, ")");
    return {};
  }

  // \p{Name}, \p{^Name}, \P{Name}: a general category, or else a script.
  Status property() {
    const std::size_t close = pattern_.find('}', at_);
    if (peek(2) != '{' || close == std::string_view::npos) return refuse(pattern_.substr(at_, 3), "\\p{Name}");
    std::string_view name = pattern_.substr(at_ + 3, close - at_ - 3);
    bool negated = peek(1) == 'P';
    if (name.starts_with('^')) {
      negated = !negated;
      name.remove_prefix(1);
    }
    for (const auto& [long_name, short_name] : kLongNames) {
      if (name == long_name) name = short_name;
    }
    const std::size_t count = close + 1 - at_;
    if (std::find(kCategories.begin(), kCategories.end(), name) != kCategories.end()) {
      // "Unassigned" and "other" lose the additions that are neither.
      const bool shrinks = name == "C" || name == "Cn";
      if (shrinks)
        return refuse(pattern_.substr(at_, count), "a category other than C and Cn, which depend on the Unicode version");
      return put_set(count, category_members(name), negated);
    }
    const bool plain = !name.empty() && std::all_of(name.begin(), name.end(), [](char c) {
      return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
    });
    if (!plain) return refuse(pattern_.substr(at_, count), "the name of a general category or a script");
    // Scripts proper; PCRE2's short form means script extensions.
    std::string members = "\\p{sc:";
    members += name;
    members += '}';
    return put_set(count, members, negated);
  }

  Status open_class() {
    in_class_ = true;
    copy(peek(1) == '^' ? 2 : 1);
    if (peek(0) == ']') return refuse("[]", "an escaped ']' at the start of a character class");
    return {};
  }

  Status class_character(char c) {
    if (c == '[') return refuse("[", "no nested sets or POSIX brackets in a character class (write \\[ for the character)");
    if (c == '&' && peek(1) == '&') return refuse("&&", "no intersection in a character class");
    if (c == ']') in_class_ = false;
    copy(1);
    return {};
  }

  Status open_group() {
    if (peek(1) == '*') return refuse("(*", "no verbs");
    if (peek(1) != '?') {
      copy(1);
      return {};
    }
    const std::string_view rest = pattern_.substr(at_ + 2);
    for (const std::string_view opening : {":", "=", "!", ">", "<=", "<!"}) {
      if (rest.starts_with(opening)) {
        copy(2 + opening.size());
        return {};
      }
    }
    std::size_t i = 0;
    std::string flags;
    for (; i < rest.size() && (rest[i] == 'i' || rest[i] == 'm' || rest[i] == '-'); ++i)
      flags += rest[i] == 'm' ? 's' : rest[i];
    const char end = i < rest.size() ? rest[i] : '\0';
    // Flags that hold for the rest of a group also regroup its alternatives in Oniguruma, except at the very start.
    if (flags.empty() || (end != ':' && !(end == ')' && at_ == 0))) {
      return refuse(pattern_.substr(at_, 4),
                    "a group of the form (..), (?:..), (?=..), (?!..), (?<=..), (?<!..), (?>..), (?i:..)");
    }
    out_ += "(?";
    out_ += flags;
    replace(2 + i + 1, std::string_view(&end, 1));
    return {};
  }

  Status interval() {
    const std::size_t close = pattern_.find('}', at_);
    if (close == std::string_view::npos) {
      copy(1);
      return {};
    }
    if (peek(1) == ',') return refuse(pattern_.substr(at_, close + 1 - at_), "a lower bound: write {0,n}");
    if (close + 1 < pattern_.size() && pattern_[close + 1] == '+') {
      return refuse(pattern_.substr(at_, close + 2 - at_),
                    "no '+' after an interval, which repeats it in one dialect and not in the other");
    }
    copy(close + 1 - at_);
    return {};
  }

  std::string_view pattern_;
  std::size_t at_ = 0;
  bool in_class_ = false;
  std::string out_;
};

}  // namespace

Expected<std::string> to_pcre2_syntax(std::string_view pattern) { return Translator(pattern).run(); }

}  // namespace rarefy::model::tokenizer
