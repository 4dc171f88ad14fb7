#include "passages.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "evaluation.h"
#include "failure.h"
#include "files.h"
#include "questions.h"
#include "terminal.h"

namespace rarefy::cli {
namespace {

std::vector<Passage> cut_text(const PassageOptions& options, const Tokenizer& tokenizer) {
  const std::vector<int32_t> text = encode_text(tokenizer, read_text(options.file), false, options.file);
  const std::vector<int32_t> begin = encode_text(tokenizer, "", true, options.file);  // special tokens, if any
  const int64_t context = options.context - static_cast<int64_t>(begin.size());
  if (context < 1)
    fail(ExitCode::usage, fmt::format("context: expected at least {} tokens, got {}", begin.size() + 1, options.context));
  const int64_t length = context + options.predict;
  const int64_t fit = static_cast<int64_t>(text.size()) / length;
  const int64_t count = options.chunks == 0 ? fit : options.chunks;
  if (fit < std::max<int64_t>(1, count)) {
    fail(
        ExitCode::bad_input,
        fmt::format("{}: expected {} tokens for {} x ({} of context + {} after it), got {}; ask for less or give more text",
                    options.file, format_count(std::max<int64_t>(1, count) * length), std::max<int64_t>(1, count),
                    options.context, options.predict, format_count(static_cast<int64_t>(text.size()))));
  }
  std::vector<Passage> passages;
  for (int64_t i = 0; i < count; ++i) {
    Passage passage;
    passage.id = fmt::format("{}#{}", options.file, i);
    const auto at = text.begin() + i * length;
    passage.context = begin;
    passage.context.insert(passage.context.end(), at, at + context);
    passage.continuation.assign(at + context, at + length);
    passages.push_back(std::move(passage));
  }
  return passages;
}

std::vector<Passage> read_lines(const PassageOptions& options, const Tokenizer& tokenizer) {
  std::vector<Passage> passages;
  for (const auto& [where, line] : read_json_lines(options.file)) {
    Passage passage;
    passage.id = line.value("id", where);
    passage.context = encode_text(tokenizer, required_text(line, "context", where), true, where);
    passage.continuation = encode_text(tokenizer, required_text(line, "continuation", where), false, where);
    const int64_t limit = std::min<int64_t>(line.value("continuation_tokens", options.predict), options.predict);
    if (static_cast<int64_t>(passage.continuation.size()) > limit) passage.continuation.resize(static_cast<size_t>(limit));
    passages.push_back(std::move(passage));
    if (options.chunks > 0 && static_cast<int32_t>(passages.size()) == options.chunks) break;
  }
  return passages;
}

}  // namespace

std::vector<Passage> read_passages(const PassageOptions& options, const Tokenizer& tokenizer) {
  return options.file.ends_with(".jsonl") ? read_lines(options, tokenizer) : cut_text(options, tokenizer);
}

}  // namespace rarefy::cli
