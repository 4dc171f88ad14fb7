// Compares with the `tokenizers` package on 10,000 texts for each kind of tokenizer, and on lines of a megabyte for the five
// families: hashes of what the package does, made by tests/golden/make_tokenizer_fixtures.py. To see what it does with a text:
//
//   python3 tests/golden/make_tokenizer_fixtures.py tests/golden/tokenizers --show NAME INDEX
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "rarefy/model/tokenizer.h"
#include "tests/support/token_texts.h"

namespace rarefy {
namespace {

using Json = nlohmann::json;
constexpr std::size_t kNumTexts = 10000;

class TokenizerMany : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    const auto folder = std::filesystem::path(RAREFY_SOURCE_DIR) / "tests" / "golden" / "tokenizers";
    const std::string name = GetParam();
    tokenizer_file_ = folder / (name + ".tokenizer.json");
    load({});
    std::ifstream tokenizer_file(tokenizer_file_), fragments_file(folder / "fragments.json");
    tokenizer_json_ = Json::parse(tokenizer_file);
    std::map<int32_t, std::string> added;
    for (const Json& token : tokenizer_json_.at("added_tokens")) added[token.at("id")] = token.at("content");
    std::vector<std::string> contents;
    contents.reserve(added.size());
    for (const auto& [id, content] : added) contents.push_back(content);
    texts_.emplace(Json::parse(fragments_file), contents);
    std::ifstream hashes_file(folder / (name + ".hashes"));
    for (std::string hash; hashes_file >> hash;) hashes_.push_back(static_cast<uint32_t>(std::stoul(hash, nullptr, 16)));
  }

  void load(const TokenizerOptions& options) {
    auto loaded = Tokenizer::load(tokenizer_file_, options);
    ASSERT_TRUE(loaded) << loaded.status().message();
    tokenizer_.emplace(*std::move(loaded));
  }

  void expect_equal_on_random_texts() const {
    int num_shown = 0;
    for (std::size_t i = 0; i < kNumTexts && num_shown < 10; ++i) {
      std::string shown;
      if (hash(texts_->random_text(i), shown) == hashes_[1 + i]) continue;
      ADD_FAILURE() << "text " << i << ": " << shown;
      ++num_shown;
    }
  }

  // The results of one text; the value that the package's have when they are equal.
  uint32_t hash(const std::string& text, std::string& shown) const {
    const auto ids = tokenizer_->encode(text), plain = tokenizer_->encode(text, {.parse_special = false});
    if (!ids || !plain) {
      shown = (!ids ? ids : plain).status().message();
      return 0;
    }
    const std::string decoded = tokenizer_->decode(*ids).value(), skipped = tokenizer_->decode(*ids, true).value();
    test::PartsHash parts;
    parts.add(*ids);
    parts.add(*plain);
    parts.add(decoded);
    parts.add(skipped);
    if (text.size() < 1000) shown = Json({text, *ids, *plain, decoded, skipped}).dump(-1, ' ', true);
    return parts.value();
  }

  std::filesystem::path tokenizer_file_;
  Json tokenizer_json_;
  std::optional<Tokenizer> tokenizer_;
  std::optional<test::TokenTexts> texts_;
  std::vector<uint32_t> hashes_;  // of all texts; of the results of each; of those of the long texts
};

class TokenizerFamilies : public TokenizerMany {};
class TokenizerKnownPatterns : public TokenizerMany {};

TEST_P(TokenizerMany, EqualsTokenizersOnRandomTexts) {
  ASSERT_GE(hashes_.size(), kNumTexts + 1);
  test::PartsHash all_texts;
  for (std::size_t i = 0; i < kNumTexts; ++i) all_texts.add(texts_->random_text(i));
  ASSERT_EQ(all_texts.value(), hashes_[0]) << "the texts differ from those of token_texts.py";
  expect_equal_on_random_texts();
}

TEST_P(TokenizerFamilies, EqualsTokenizersOnLinesOfAMegabyte) {
  const auto long_texts = texts_->long_texts();
  ASSERT_EQ(hashes_.size(), 1 + kNumTexts + long_texts.size());
  for (std::size_t i = 0; i < long_texts.size(); ++i) {
    std::string shown;
    EXPECT_EQ(hash(long_texts[i], shown), hashes_[1 + kNumTexts + i]) << "long text " << i << " " << shown;
  }
}

// The known patterns are matched by hand. In brackets they are unknown, and the regular-expression engine must give the same.
TEST_P(TokenizerKnownPatterns, TheRegexEngineEqualsTokenizersToo) {
  const auto pattern = tokenizer_json_.at("/pre_tokenizer/pretokenizers/0/pattern/Regex"_json_pointer).get<std::string>();
  load({.split_pattern = "(?:" + pattern + ")"});
  expect_equal_on_random_texts();
}

std::string kind_name(const ::testing::TestParamInfo<const char*>& info) { return info.param; }
INSTANTIATE_TEST_SUITE_P(Kinds, TokenizerMany,
                         ::testing::Values("llama3", "qwen2", "qwen35", "ministral", "gemma3", "awkward", "fallback",
                                           "gpt2", "cased", "characters"),
                         kind_name);
INSTANTIATE_TEST_SUITE_P(Kinds, TokenizerFamilies, ::testing::Values("llama3", "qwen2", "qwen35", "ministral", "gemma3"),
                         kind_name);
INSTANTIATE_TEST_SUITE_P(Kinds, TokenizerKnownPatterns, ::testing::Values("llama3", "qwen2", "qwen35", "ministral"),
                         kind_name);

}  // namespace
}  // namespace rarefy
