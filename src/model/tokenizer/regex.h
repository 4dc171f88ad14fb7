// Regex: a compiled regular expression (PCRE2, JIT where the machine has it) and the search for all its matches. A Regex is
// immutable and may be shared between threads; a RegexScratch belongs to one thread at a time.
#pragma once

#include <cstddef>
#include <memory>
#include <string_view>
#include <vector>

#include "rarefy/core/status.h"

struct pcre2_real_code_8;
struct pcre2_real_match_data_8;
struct pcre2_real_match_context_8;
struct pcre2_real_jit_stack_8;

namespace rarefy::model::tokenizer {

struct Range {
  std::size_t begin, end;  // bytes
};

// What a search needs to write to. One serves every Regex.
class RegexScratch {
 public:
  static Expected<RegexScratch> make();
  RegexScratch(RegexScratch&&) noexcept;
  ~RegexScratch();

 private:
  friend class Regex;
  RegexScratch() = default;
  pcre2_real_match_data_8* match_data_ = nullptr;
  pcre2_real_match_context_8* context_ = nullptr;
  pcre2_real_jit_stack_8* jit_stack_ = nullptr;
};

class Regex {
 public:
  // `pattern` is in the dialect of tokenizer.json, at most 64 KiB.
  static Expected<Regex> compile(std::string_view pattern);
  // Matches exactly this text.
  static Expected<Regex> literal(std::string_view text);

  Regex(Regex&&) noexcept = default;

  // Appends every match, left to right, in the order and with the treatment of empty matches of `tokenizers`. Gives up with an
  // error when one match needs more than kMatchLimit steps. Pre: text is UTF-8.
  Status find_all(std::string_view text, RegexScratch& scratch, std::vector<Range>& matches) const;

 private:
  Regex() = default;
  struct Free {
    void operator()(pcre2_real_code_8* code) const;
  };
  static Expected<Regex> compile_pcre2(std::string_view translated, std::string_view shown, bool literal);

  std::unique_ptr<pcre2_real_code_8, Free> code_;
  bool has_jit_ = false;
};

}  // namespace rarefy::model::tokenizer
