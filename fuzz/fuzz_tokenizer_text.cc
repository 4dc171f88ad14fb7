// Arbitrary text through each kind of tokenizer: encoding and decoding never crash, a stream gives what decoding gives, text comes
// back where nothing changes it, and patterns matched by hand cut where the regular-expression engine cuts. The first byte of an
// input picks the kind; malformed UTF-8 must be refused. Reads tests/golden/tokenizers of the source tree.
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "model/tokenizer/known_patterns.h"
#include "model/tokenizer/regex.h"
#include "model/tokenizer/utf8.h"
#include "rarefy/model/tokenizer.h"

namespace {

namespace mt = rarefy::model::tokenizer;

void require(bool holds) {
  if (!holds) __builtin_trap();
}

struct Kind {
  const char* name;
  bool is_lossless;  // decoding gives the text again, but for U+2581 where it is a space
};
constexpr Kind kKinds[] = {{"llama3", true}, {"qwen2", false},     {"qwen35", false},   {"ministral", true},
                           {"gemma3", true}, {"awkward", false},   {"fallback", false}, {"gpt2", false},
                           {"cased", false}, {"characters", false}};
constexpr std::string_view kPatterns[] = {mt::kGpt2Pattern, mt::kLlama3Pattern, mt::kQwen2Pattern, mt::kQwen35Pattern,
                                          mt::kMinistralPattern};

const rarefy::Tokenizer& tokenizer(std::size_t kind) {
  static const std::vector<rarefy::Tokenizer> tokenizers = [] {
    std::vector<rarefy::Tokenizer> all;
    for (const Kind& k : kKinds) {
      const std::string path = RAREFY_SOURCE_DIR "/tests/golden/tokenizers/" + std::string(k.name) + ".tokenizer.json";
      all.push_back(*rarefy::Tokenizer::load(path));
    }
    return all;
  }();
  return tokenizers[kind];
}

void check_pattern(std::size_t which, std::string_view text) {
  static const std::vector<mt::Regex> regexes = [] {
    std::vector<mt::Regex> all;
    for (const std::string_view pattern : kPatterns) all.push_back(*mt::Regex::compile(pattern));
    return all;
  }();
  static mt::RegexScratch scratch = *mt::RegexScratch::make();
  std::vector<mt::Range> matches;
  require(regexes[which].find_all(text, scratch, matches).ok());
  const mt::PieceEnd piece_end = mt::known_pattern(kPatterns[which]);
  std::size_t at = 0;
  for (const mt::Range& match : matches) {
    require(match.begin == at && piece_end(text, at) == match.end);
    at = match.end;
  }
  require(at == text.size());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const std::size_t kind = data[0] % std::size(kKinds);
  const std::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
  const rarefy::Tokenizer& subject = tokenizer(kind);
  const bool is_utf8 = !mt::first_malformed_byte(text);
  if (is_utf8) check_pattern(data[0] / std::size(kKinds) % std::size(kPatterns), text);
  for (const bool parse_special : {true, false}) {
    const rarefy::EncodeOptions options = {.add_special_tokens = false, .parse_special = parse_special};
    const auto ids = subject.encode(text, options);
    require(ids.has_value() == is_utf8);
    if (!ids) return 0;
    const std::string whole = subject.decode(*ids).value();
    require(!mt::first_malformed_byte(whole));
    rarefy::Tokenizer::Stream stream(subject, /*skip_special_tokens=*/false);
    std::string parts;
    for (const int32_t id : *ids) {
      const std::string part = stream.push(id).value();
      require(!mt::first_malformed_byte(part));
      parts += part;
    }
    require(parts + stream.flush() == whole);
    if (kKinds[kind].is_lossless && (kind != 4 || text.find("\xe2\x96\x81") == std::string_view::npos)) {
      require(whole == text && subject.encode(whole, options).value() == *ids);
    }
  }
  // Ids that no text has.
  std::vector<int32_t> ids;
  for (const char c : text) {
    const auto id = static_cast<int32_t>(static_cast<uint8_t>(c) * 3u % static_cast<uint32_t>(subject.vocab_size()));
    if (subject.id_to_token(id)) ids.push_back(id);
  }
  require(!mt::first_malformed_byte(subject.decode(ids).value()));
  return 0;
}
