#include "model/tokenizer/regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <string>
#include <utility>

#include "model/json_file.h"
#include "model/tokenizer/regex_syntax.h"
#include "model/tokenizer/utf8.h"

namespace rarefy::model::tokenizer {
namespace {

constexpr std::size_t kMaxPatternBytes = 64 << 10;
constexpr std::size_t kMaxTranslatedBytes = 1 << 20;
// The patterns of the known tokenizers need about as many steps as a match has characters; 1 MB of white space is the longest
// seen in practice.
constexpr uint32_t kMatchLimit = 10'000'000;
constexpr uint32_t kHeapLimitKib = 64 << 10;
constexpr std::size_t kJitStackStart = 32 << 10, kJitStackMax = 8 << 20;
constexpr uint32_t kMaxNesting = 100;

std::string pcre2_message(int code) {
  PCRE2_UCHAR text[128];
  return pcre2_get_error_message(code, text, sizeof(text)) < 0 ? "error " + std::to_string(code)
                                                               : reinterpret_cast<const char*>(text);
}

}  // namespace

Expected<RegexScratch> RegexScratch::make() {
  RegexScratch scratch;
  scratch.match_data_ = pcre2_match_data_create(1, nullptr);
  scratch.context_ = pcre2_match_context_create(nullptr);
  scratch.jit_stack_ = pcre2_jit_stack_create(kJitStackStart, kJitStackMax, nullptr);
  if (scratch.match_data_ == nullptr || scratch.context_ == nullptr) {
    return Status::resource_exhausted("out of memory for a regular-expression search");
  }
  pcre2_set_match_limit(scratch.context_, kMatchLimit);
  pcre2_set_heap_limit(scratch.context_, kHeapLimitKib);
  // Without a JIT there is no stack, and nothing to assign.
  if (scratch.jit_stack_ != nullptr) pcre2_jit_stack_assign(scratch.context_, nullptr, scratch.jit_stack_);
  return scratch;
}

RegexScratch::RegexScratch(RegexScratch&& other) noexcept
    : match_data_(std::exchange(other.match_data_, nullptr)),
      context_(std::exchange(other.context_, nullptr)),
      jit_stack_(std::exchange(other.jit_stack_, nullptr)) {}

RegexScratch::~RegexScratch() {
  pcre2_match_data_free(match_data_);
  pcre2_match_context_free(context_);
  if (jit_stack_ != nullptr) pcre2_jit_stack_free(jit_stack_);
}

void Regex::Free::operator()(pcre2_real_code_8* code) const { pcre2_code_free(code); }

Expected<Regex> Regex::compile(std::string_view pattern) {
  if (pattern.size() > kMaxPatternBytes) {
    return Status::unsupported("regular expression: expected at most " + std::to_string(kMaxPatternBytes) + " bytes, got " +
                               std::to_string(pattern.size()));
  }
  RAREFY_ASSIGN_OR_RETURN(const std::string translated, to_pcre2_syntax(pattern));
  return compile_pcre2(translated, pattern, /*literal=*/false);
}

Expected<Regex> Regex::literal(std::string_view text) { return compile_pcre2(text, text, /*literal=*/true); }

Expected<Regex> Regex::compile_pcre2(std::string_view translated, std::string_view shown, bool literal) {
  if (translated.size() > kMaxTranslatedBytes) {
    return Status::unsupported("regular expression '" + brief(shown) + "': too many character classes");
  }
  const std::unique_ptr<pcre2_compile_context, void (*)(pcre2_compile_context*)> context(
      pcre2_compile_context_create(nullptr), pcre2_compile_context_free);
  if (context == nullptr) return Status::resource_exhausted("out of memory for a regular expression");
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  pcre2_set_parens_nest_limit(context.get(), kMaxNesting);
  // In the dialect of tokenizer.json ^ and $ always mean lines.
  const uint32_t options = PCRE2_UTF | (literal ? PCRE2_LITERAL : PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C);
  int error = 0;
  PCRE2_SIZE offset = 0;
  Regex regex;
  regex.code_.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(), options, &error,
                                  &offset, context.get()));
  if (regex.code_ == nullptr) {
    return Status::data_loss("expected a regular expression that compiles, got '" + brief(shown) +
                             "': " + pcre2_message(error));
  }
  regex.has_jit_ = pcre2_jit_compile(regex.code_.get(), PCRE2_JIT_COMPLETE) == 0;
  return regex;
}

Status Regex::find_all(std::string_view text, RegexScratch& scratch, std::vector<Range>& matches) const {
  const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data());
  constexpr std::size_t kNone = ~std::size_t{0};
  std::size_t at = 0, last_match_end = kNone;
  while (at <= text.size()) {
    // The text is known to be UTF-8; checking it again for every match would make the search quadratic.
    const int rc =
        has_jit_
            ? pcre2_jit_match(code_.get(), subject, text.size(), at, 0, scratch.match_data_, scratch.context_)
            : pcre2_match(code_.get(), subject, text.size(), at, PCRE2_NO_UTF_CHECK, scratch.match_data_, scratch.context_);
    if (rc == PCRE2_ERROR_NOMATCH) break;
    if (rc < 0) {
      return Status::resource_exhausted("the tokenizer's regular expression gave up at byte " + std::to_string(at) +
                                        " of a piece of " + std::to_string(text.size()) + " bytes: " + pcre2_message(rc) +
                                        "; use a pattern that backtracks less");
    }
    const PCRE2_SIZE* ends = pcre2_get_ovector_pointer(scratch.match_data_);
    const Range match{ends[0], ends[1]};
    if (match.begin > match.end || match.begin < at) {
      return Status::unsupported("the tokenizer's regular expression moves the start of a match (\\K) backwards");
    }
    if (match.begin == match.end && match.end == last_match_end) {
      // An empty match right after another match does not count; try one character further.
      if (at == text.size()) break;
      at += utf8_step(text.substr(at)).num_bytes;
      continue;
    }
    at = last_match_end = match.end;
    matches.push_back(match);
  }
  return {};
}

}  // namespace rarefy::model::tokenizer
