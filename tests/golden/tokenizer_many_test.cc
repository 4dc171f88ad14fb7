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

struct Kind {
  const char* name;
  bool has_long_texts;
};

class TokenizerMany : public ::testing::TestWithParam<Kind> {
 protected:
  void SetUp() override {
    const auto folder = std::filesystem::path(RAREFY_SOURCE_DIR) / "tests" / "golden" / "tokenizers";
    const std::string name = GetParam().name;
    auto loaded = Tokenizer::load(folder / (name + ".tokenizer.json"));
    ASSERT_TRUE(loaded) << loaded.status().message();
    tokenizer_.emplace(*std::move(loaded));
    std::ifstream tokenizer_file(folder / (name + ".tokenizer.json")), fragments_file(folder / "fragments.json");
    const Json tokenizer_json = Json::parse(tokenizer_file);
    std::map<int32_t, std::string> added;
    for (const Json& token : tokenizer_json.at("added_tokens")) added[token.at("id")] = token.at("content");
    std::vector<std::string> contents;
    for (const auto& [id, content] : added) contents.push_back(content);
    texts_.emplace(Json::parse(fragments_file), contents);
    std::ifstream hashes_file(folder / (name + ".hashes"));
    for (std::string hash; hashes_file >> hash;) hashes_.push_back(static_cast<uint32_t>(std::stoul(hash, nullptr, 16)));
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

  std::optional<Tokenizer> tokenizer_;
  std::optional<test::TokenTexts> texts_;
  std::vector<uint32_t> hashes_;  // of all texts; of the results of each; of those of the long texts
};

TEST_P(TokenizerMany, EqualsTokenizersOnRandomTexts) {
  ASSERT_GE(hashes_.size(), kNumTexts + 1);
  test::PartsHash all_texts;
  for (std::size_t i = 0; i < kNumTexts; ++i) all_texts.add(texts_->random_text(i));
  ASSERT_EQ(all_texts.value(), hashes_[0]) << "the texts differ from those of token_texts.py";
  int num_shown = 0;
  for (std::size_t i = 0; i < kNumTexts; ++i) {
    std::string shown;
    if (hash(texts_->random_text(i), shown) == hashes_[1 + i]) continue;
    ADD_FAILURE() << "text " << i << ": " << shown;
    if (++num_shown == 10) break;
  }
}

TEST_P(TokenizerMany, EqualsTokenizersOnLinesOfAMegabyte) {
  if (!GetParam().has_long_texts) GTEST_SKIP() << "for the five families";
  const auto long_texts = texts_->long_texts();
  ASSERT_EQ(hashes_.size(), 1 + kNumTexts + long_texts.size());
  for (std::size_t i = 0; i < long_texts.size(); ++i) {
    std::string shown;
    EXPECT_EQ(hash(long_texts[i], shown), hashes_[1 + kNumTexts + i]) << "long text " << i << " " << shown;
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, TokenizerMany,
                         ::testing::Values(Kind{"llama3", true}, Kind{"qwen2", true}, Kind{"qwen35", true},
                                           Kind{"ministral", true}, Kind{"gemma3", true}, Kind{"awkward", false},
                                           Kind{"fallback", false}, Kind{"gpt2", false}, Kind{"cased", false},
                                           Kind{"characters", false}),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace rarefy
