// The patterns that are matched by hand against the regular-expression engine, and the shortcuts beside them against what they
// stand for.
#include "model/tokenizer/known_patterns.h"

#include <gtest/gtest.h>
#include <utf8proc.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "model/tokenizer/character_class.h"
#include "model/tokenizer/nfc.h"
#include "model/tokenizer/regex.h"
#include "model/tokenizer/utf8.h"

namespace rarefy::model::tokenizer {
namespace {

constexpr std::string_view kPatterns[] = {kGpt2Pattern, kLlama3Pattern, kQwen2Pattern, kQwen35Pattern, kMinistralPattern};

bool is_code_point(uint32_t c) { return c < 0x110000 && !(c >= 0xd800 && c < 0xe000); }

class KnownPatterns : public ::testing::TestWithParam<std::string_view> {
 protected:
  void SetUp() override {
    piece_end_ = known_pattern(GetParam());
    ASSERT_NE(piece_end_, nullptr);
    auto regex = Regex::compile(GetParam());
    ASSERT_TRUE(regex) << regex.status().message();
    regex_.emplace(*std::move(regex));
    auto scratch = RegexScratch::make();
    ASSERT_TRUE(scratch);
    scratch_.emplace(*std::move(scratch));
  }

  // Both must cut the text at the same places, and the engine must cover it.
  void expect_equal(const std::string& text) {
    std::vector<Range> matches;
    ASSERT_TRUE(regex_->find_all(text, *scratch_, matches).ok());
    std::size_t at = 0;
    for (const Range& match : matches) {
      ASSERT_EQ(match.begin, at) << nlohmann::json(text).dump(-1, ' ', true).substr(0, 300);
      const std::size_t end = piece_end_(text, at);
      ASSERT_EQ(end, match.end) << "at byte " << at << " of " << nlohmann::json(text).dump(-1, ' ', true).substr(0, 300);
      at = end;
    }
    ASSERT_EQ(at, text.size());
  }

  PieceEnd piece_end_ = nullptr;
  std::optional<Regex> regex_;
  std::optional<RegexScratch> scratch_;
};

// Each character next to each kind of neighbour: it shows in what class both put it.
TEST_P(KnownPatterns, EveryCodePoint) {
  constexpr uint32_t kBlock = 0x1000;
  for (const std::string_view before : {"", "A", " ", "'"}) {
    for (uint32_t first = 0; first < 0x110000; first += kBlock) {
      std::string text;
      for (uint32_t c = first; c < first + kBlock; ++c) {
        if (!is_code_point(c)) continue;
        text += before;
        append_utf8(c, text);
        text += c % 3 == 0 ? "b" : c % 3 == 1 ? " B" : "";
      }
      if (text.empty()) continue;
      expect_equal(text);
      if (HasFatalFailure()) return;
    }
  }
}

TEST_P(KnownPatterns, RandomTexts) {
  constexpr std::string_view kParts[] = {"a",
                                         "B",
                                         "bc",
                                         "DE",
                                         "s",
                                         "'",
                                         "'s",
                                         "'S",
                                         "'re",
                                         "'LL",
                                         "'v",
                                         "\xc5\xbf",
                                         "'\xc5\xbf",
                                         " ",
                                         "  ",
                                         "\t",
                                         "\n",
                                         "\r",
                                         "\r\n",
                                         "/",
                                         "//",
                                         ".",
                                         "-!",
                                         "1",
                                         "22",
                                         "333",
                                         "4444",
                                         "\xc2\xa0",
                                         "\xe2\x80\xa8",
                                         "\xe3\x80\x80",
                                         "\xc7\x85",
                                         "\xca\xb0",
                                         "\xc2\xaa",
                                         "\xe4\xbd\xa0",
                                         "\xc3\xa9",
                                         "\xcc\x81",
                                         "\xe0\xa4\xbf",
                                         "\xf0\x9f\x98\x80",
                                         "\xc2\xbd",
                                         "\xe1\xa0\x8e",
                                         "\xd0\x94",
                                         "\xd0\xb4"};
  const uint32_t seed = 11;
  std::mt19937 random(seed);
  for (int i = 0; i < 20000; ++i) {
    std::string text;
    const uint32_t num_parts = 1 + random() % 14, num_kinds = 2 + random() % std::size(kParts);
    for (uint32_t k = 0; k < num_parts; ++k) text += kParts[(random() % num_kinds * 7 + i) % std::size(kParts)];
    SCOPED_TRACE(i);
    expect_equal(text);
    if (HasFatalFailure()) return;
  }
}

TEST_P(KnownPatterns, LongRuns) {
  for (const std::string_view unit :
       {"a", "A", "Aa", "\xc2\xaa\x41", " ", "\n", " \n", "1", ".", "\xcc\x81", "'s", "\xc3\xa9"}) {
    for (const std::string_view end : {"", "x", ".", "\n"}) {
      std::string text;
      while (text.size() < 100000) text += unit;
      expect_equal(text + std::string(end));
      if (HasFatalFailure()) return;
    }
  }
}

std::string pattern_name(const ::testing::TestParamInfo<std::string_view>& info) {
  constexpr const char* kNames[] = {"Gpt2", "Llama3", "Qwen2", "Qwen35", "Ministral"};
  return kNames[info.index];
}
INSTANTIATE_TEST_SUITE_P(Patterns, KnownPatterns, ::testing::ValuesIn(kPatterns), pattern_name);

TEST(KnownPattern, OthersAreNotKnown) {
  EXPECT_EQ(known_pattern(""), nullptr);
  EXPECT_EQ(known_pattern(R"(\s+)"), nullptr);
  EXPECT_EQ(known_pattern(std::string(kLlama3Pattern) + "|x"), nullptr);
}

// classes.json says what the regular expressions of `tokenizers` hold, for every code point.
TEST(CharacterClasses, EqualTheClassesOfTokenizers) {
  std::ifstream file(std::filesystem::path(RAREFY_SOURCE_DIR) / "tests" / "golden" / "tokenizers" / "classes.json");
  const auto classes = nlohmann::json::parse(file);
  const std::pair<const char*, CharacterClass> cases[] = {{R"(\s)", kSpace},           {R"(\p{L})", kLetter},
                                                          {R"(\p{Ll})", kLowerLetter}, {R"(\p{M})", kMark},
                                                          {R"(\p{N})", kNumber},       {R"([\p{Lu}\p{Lt}\p{Lo}\p{M}])", 0}};
  for (const auto& [pattern, bits] : cases) {
    const auto ranges = classes.at(pattern).get<std::vector<uint32_t>>();
    std::size_t i = 0;
    for (uint32_t c = 0; c < 0x110000; ++c) {
      if (!is_code_point(c)) continue;
      while (i < ranges.size() && ranges[i + 1] < c) i += 2;
      const bool expected = i < ranges.size() && ranges[i] <= c;
      const CharacterClass what = character_class(c);
      if (bits != 0) {
        ASSERT_EQ((what & bits) != 0, expected) << pattern << " U+" << std::hex << c;
      } else if (expected) {  // Lm, which it lacks, is of the same bit as Lo
        ASSERT_TRUE(what & (kUpperLetter | kOtherLetter | kMark)) << pattern << " U+" << std::hex << c;
      }
    }
  }
}

TEST(Nfc, WhatStartsNormalizedDoes) {
  for (uint32_t c = 0; c < 0x110000; ++c) {
    if (!is_code_point(c)) continue;
    utf8proc_int32_t parts[8];
    int boundary = 0;
    const auto count =
        utf8proc_decompose_char(static_cast<utf8proc_int32_t>(c), parts, 8,
                                static_cast<utf8proc_option_t>(UTF8PROC_DECOMPOSE | UTF8PROC_STABLE), &boundary);
    ASSERT_GE(count, 1);
    if (starts_normalized(c)) {
      EXPECT_EQ(utf8proc_get_property(static_cast<utf8proc_int32_t>(c))->combining_class, 0) << std::hex << c;
      if (c < 0x300) continue;
      EXPECT_EQ(count, 1) << std::hex << c;
      EXPECT_EQ(parts[0], static_cast<utf8proc_int32_t>(c)) << std::hex << c;
      continue;
    }
    // Nothing composes with a character before it unless it is the later part of a decomposition.
    for (utf8proc_ssize_t i = 1; i < count; ++i) {
      EXPECT_FALSE(starts_normalized(static_cast<uint32_t>(parts[i]))) << std::hex << c;
    }
  }
}

// Where utf8proc and `tokenizers` agree: all but the characters of the next test.
TEST(Nfc, PartsGiveTheSameAsTheWhole) {
  const uint32_t seed = 12;
  std::mt19937 random(seed);
  const auto is_left_alone = [](uint32_t c) {
    return c == 0x11a7 || c == 0x9fe || c == 0xc3c || c == 0xd3b || c == 0xd3c || c == 0xeba;
  };
  for (int i = 0; i < 20000; ++i) {
    std::string text;
    for (uint32_t k = 0; k < 1 + random() % 12; ++k) {
      constexpr uint32_t kRanges[][2] = {{0x20, 0x180},    {0x20, 0x80},     {0x300, 0x370},    {0x1100, 0x1200},
                                         {0xac00, 0xac40}, {0x2010, 0x2070}, {0x900, 0xe00},    {0x3040, 0x30a0},
                                         {0x4e00, 0x4e10}, {0x1e00, 0x2000}, {0x1d150, 0x1d180}};
      const auto& range = kRanges[random() % std::size(kRanges)];
      const uint32_t c = range[0] + random() % (range[1] - range[0]);
      if (!is_left_alone(c)) append_utf8(c, text);
    }
    utf8proc_uint8_t* whole = utf8proc_NFC(reinterpret_cast<const utf8proc_uint8_t*>(text.c_str()));
    ASSERT_NE(whole, nullptr);
    EXPECT_EQ(to_nfc(text).value(), reinterpret_cast<const char*>(whole)) << "seed " << seed << ", text " << i;
    std::free(whole);
  }
}

// Expected: normalizers.NFC of tokenizers 0.23.3.
TEST(Nfc, CharactersThatTokenizersLeavesAlone) {
  const auto nfc = [](std::u32string_view text) {
    std::string utf8;
    for (const char32_t c : text) append_utf8(c, utf8);
    return to_nfc(utf8).value();
  };
  const auto utf8 = [](std::u32string_view text) {
    std::string out;
    for (const char32_t c : text) append_utf8(c, out);
    return out;
  };
  EXPECT_EQ(nfc(U"a\u0301\u0c3c"), utf8(U"\u00e1\u0c3c"));
  EXPECT_EQ(nfc(U"a\u0c3c\u0301"), utf8(U"a\u0c3c\u0301"));
  EXPECT_EQ(nfc(U"\u0342\u0d3c\u0327\u0301"), utf8(U"\u0342\u0d3c\u0327\u0301"));
  EXPECT_EQ(nfc(U"\u0d3c\u0301\u0327"), utf8(U"\u0d3c\u0327\u0301"));
  EXPECT_EQ(nfc(U"\U00011935\U00011930"), utf8(U"\U00011935\U00011930"));
  EXPECT_EQ(nfc(U"\uac00\u11a7"), utf8(U"\uac00\u11a7"));
  EXPECT_EQ(nfc(U"\uac00\u11a8"), utf8(U"\uac01"));
}

}  // namespace
}  // namespace rarefy::model::tokenizer
