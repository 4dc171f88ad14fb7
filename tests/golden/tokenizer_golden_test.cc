// Compares with the `tokenizers` package on the fixtures of tests/golden/make_tokenizer_fixtures.py.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "model/tokenizer/pre_tokenizer.h"
#include "model/tokenizer/regex.h"
#include "model/tokenizer/utf8.h"
#include "rarefy/model/tokenizer.h"

namespace rarefy {
namespace {

namespace mt = model::tokenizer;
using Json = nlohmann::json;
using Ids = std::vector<int32_t>;

const std::filesystem::path kFolder = std::filesystem::path(RAREFY_SOURCE_DIR) / "tests" / "golden" / "tokenizers";

std::vector<Json> read_lines(const std::string& name) {
  std::ifstream file(kFolder / name);
  std::vector<Json> lines;
  for (std::string line; std::getline(file, line);) lines.push_back(Json::parse(line));
  return lines;
}

struct Fixture {
  const char* name;
  std::size_t num_cases;
};

class TokenizerGolden : public ::testing::TestWithParam<Fixture> {
 protected:
  void SetUp() override {
    auto loaded = Tokenizer::load(kFolder / (std::string(GetParam().name) + ".tokenizer.json"));
    ASSERT_TRUE(loaded) << loaded.status().message();
    tokenizer_.emplace(*std::move(loaded));
    cases_ = read_lines(std::string(GetParam().name) + ".cases.jsonl");
    ASSERT_EQ(cases_.size(), GetParam().num_cases);
  }

  std::optional<Tokenizer> tokenizer_;
  std::vector<Json> cases_;
};

TEST_P(TokenizerGolden, EncodesAsTokenizersDoes) {
  for (const Json& row : cases_) {
    const auto text = row[0].get<std::string>();
    const auto ids = tokenizer_->encode(text);
    ASSERT_TRUE(ids) << ids.status().message() << " for " << row[0].dump();
    EXPECT_EQ(*ids, row[1].get<Ids>()) << row[0].dump(-1, ' ', true);
    const auto plain = tokenizer_->encode(text, {.parse_special = false});
    ASSERT_TRUE(plain) << plain.status().message();
    EXPECT_EQ(*plain, (row[2].is_null() ? row[1] : row[2]).get<Ids>())
        << "special tokens as text: " << row[0].dump(-1, ' ', true);
  }
}

TEST_P(TokenizerGolden, DecodesAsTokenizersDoes) {
  for (const Json& row : cases_) {
    const auto ids = row[1].get<Ids>();
    const Json& decoded = row[3].is_null() ? row[0] : row[3];
    const Json& skipped = row[4].is_null() ? decoded : row[4];
    EXPECT_EQ(tokenizer_->decode(ids).value(), decoded.get<std::string>());
    EXPECT_EQ(tokenizer_->decode(ids, true).value(), skipped.get<std::string>());
  }
  const auto random_ids = read_lines(std::string(GetParam().name) + ".decode.jsonl");
  ASSERT_EQ(random_ids.size(), 60u);
  for (const Json& row : random_ids) {
    EXPECT_EQ(tokenizer_->decode(row[0].get<Ids>()).value(), row[1].get<std::string>());
    EXPECT_EQ(tokenizer_->decode(row[0].get<Ids>(), true).value(), row[2].get<std::string>());
  }
}

TEST_P(TokenizerGolden, StreamGivesWholeCharactersThatAddUp) {
  auto rows = read_lines(std::string(GetParam().name) + ".decode.jsonl");
  for (Json& row : cases_) rows.push_back(Json::array({row[1]}));
  for (const bool skip : {false, true}) {
    Tokenizer::Stream stream(*tokenizer_, skip);
    for (const Json& row : rows) {
      std::string text;
      for (const int32_t id : row[0].get<Ids>()) {
        const auto part = stream.push(id);
        ASSERT_TRUE(part);
        EXPECT_FALSE(mt::first_malformed_byte(*part)) << "half a character";
        text += *part;
      }
      text += stream.flush();
      EXPECT_EQ(text, tokenizer_->decode(row[0].get<Ids>(), skip).value());
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Fixtures, TokenizerGolden,
                         ::testing::Values(Fixture{"llama3", 300}, Fixture{"qwen2", 300}, Fixture{"qwen35", 200},
                                           Fixture{"ministral", 200}, Fixture{"gemma3", 448}, Fixture{"awkward", 500},
                                           Fixture{"fallback", 400}, Fixture{"gpt2", 150}, Fixture{"cased", 150},
                                           Fixture{"characters", 120}),
                         [](const auto& info) { return std::string(info.param.name); });

// Every code point, every class: this is where Unicode versions and dialects differ.
TEST(TokenizerRegexGolden, ClassesHoldTheSameCodePoints) {
  std::ifstream file(kFolder / "classes.json");
  const Json classes = Json::parse(file);
  ASSERT_GE(classes.size(), 20u);
  std::string everything;
  std::vector<uint32_t> code_point_at;
  for (uint32_t c = 0; c < 0x110000; ++c) {
    if (c >= 0xd800 && c < 0xe000) continue;
    mt::append_utf8(c, everything);
    code_point_at.resize(everything.size(), c);
  }
  auto scratch = mt::RegexScratch::make();
  ASSERT_TRUE(scratch);
  for (const auto& [pattern, expected] : classes.items()) {
    const auto regex = mt::Regex::compile(pattern);
    ASSERT_TRUE(regex) << regex.status().message();
    std::vector<mt::Range> matches;
    ASSERT_TRUE(regex->find_all(everything, *scratch, matches).ok());
    std::vector<uint32_t> ranges;
    for (const mt::Range& match : matches) {
      const uint32_t c = code_point_at[match.begin];
      if (!ranges.empty() && ranges.back() + 1 == c) {
        ranges.back() = c;
      } else {
        ranges.insert(ranges.end(), {c, c});
      }
    }
    EXPECT_EQ(Json(ranges).dump(), expected.dump()) << pattern;
  }
}

TEST(TokenizerRegexGolden, SplitsAsTokenizersDoes) {
  class Collect final : public mt::PieceSink {
   public:
    Status accept(std::string_view piece) override {
      pieces.emplace_back(piece);
      return {};
    }
    std::vector<std::string> pieces;
  };
  auto scratch = mt::RegexScratch::make();
  ASSERT_TRUE(scratch);
  const auto rows = read_lines("splits.jsonl");
  ASSERT_GE(rows.size(), 500u);
  for (const Json& row : rows) {
    const Json split = {{"type", "Split"},
                        {"pattern", {{row[1].get<bool>() ? "Regex" : "String", row[0]}}},
                        {"behavior", row[2]},
                        {"invert", row[3]}};
    const auto steps = mt::parse_pre_tokenizers(split, "pre_tokenizer");
    ASSERT_TRUE(steps) << steps.status().message();
    Collect collect;
    const auto text = row[4].get<std::string>();
    ASSERT_TRUE(mt::pre_tokenize(*steps, text, *scratch, collect).ok());
    EXPECT_EQ(Json(collect.pieces).dump(), row[5].dump()) << row.dump();
  }
}

}  // namespace
}  // namespace rarefy
