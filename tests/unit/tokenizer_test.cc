// Properties of the tokenizer, and files and texts that must be refused with one clear message.
#include "rarefy/model/tokenizer.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <nlohmann/json.hpp>
#include <optional>
#include <random>
#include <string>
#include <thread>

#include "model/tokenizer/utf8.h"

namespace rarefy {
namespace {

using Json = nlohmann::json;

std::filesystem::path fixture(const std::string& name) {
  return std::filesystem::path(RAREFY_SOURCE_DIR) / "tests" / "golden" / "tokenizers" / (name + ".tokenizer.json");
}

Json read_fixture(const std::string& name) {
  std::ifstream file(fixture(name));
  return Json::parse(file);
}

std::string random_text(std::mt19937& random, int num_characters) {
  std::string text;
  constexpr uint32_t kLimits[] = {0x80, 0x80, 0x250, 0x3000, 0x110000};
  for (int i = 0; i < num_characters; ++i) {
    uint32_t c = static_cast<uint32_t>(random() % kLimits[random() % 5]);
    if (c >= 0xd800 && c < 0xe000) c = ' ';
    model::tokenizer::append_utf8(c, text);
  }
  return text;
}

// Changes one thing of a good file; what comes must be an error whose message holds all of `parts`.
void expect_refused(const std::function<void(Json&)>& change, std::initializer_list<const char*> parts) {
  Json json = read_fixture("llama3");
  change(json);
  const auto tokenizer = Tokenizer::parse(json.dump());
  ASSERT_FALSE(tokenizer) << "accepted; expected a message with '" << *parts.begin() << "'";
  for (const char* part : parts)
    EXPECT_NE(tokenizer.status().message().find(part), std::string::npos) << tokenizer.status().message();
}

constexpr const char* kFixtures[] = {"llama3",  "qwen2",    "qwen35", "ministral", "gemma3",
                                     "awkward", "fallback", "gpt2",   "cased",     "characters"};

class TokenizerRoundTrip : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    auto tokenizer = Tokenizer::load(fixture(GetParam()));
    ASSERT_TRUE(tokenizer) << tokenizer.status().message();
    tokenizer_.emplace(*std::move(tokenizer));
  }
  std::vector<int32_t> random_ids(std::mt19937& random) const {
    std::vector<int32_t> ids;
    while (ids.size() < 20) {
      const auto id = static_cast<int32_t>(random() % static_cast<uint32_t>(tokenizer_->vocab_size()));
      if (tokenizer_->id_to_token(id)) ids.push_back(id);
    }
    return ids;
  }
  std::optional<Tokenizer> tokenizer_;
};

class TokenizerLossless : public TokenizerRoundTrip {};
class TokenizerFamily : public TokenizerRoundTrip {};

// Where nothing normalizes and every byte has a token, text comes back as it was, and its ids are those of what comes back.
TEST_P(TokenizerLossless, TextSurvives) {
  const bool is_gemma = std::string_view(GetParam()) == "gemma3";
  const uint32_t seed = 7;
  std::mt19937 random(seed);
  for (int i = 0; i < 500; ++i) {
    std::string text = random_text(random, 1 + static_cast<int>(random() % 60));
    if (is_gemma && text.find("\xe2\x96\x81") != std::string::npos) continue;  // U+2581 is a space there
    const EncodeOptions options = {.add_special_tokens = false, .parse_special = i % 2 == 0};
    const auto ids = tokenizer_->encode(text, options);
    ASSERT_TRUE(ids);
    EXPECT_EQ(tokenizer_->decode(*ids).value(), text) << "seed " << seed << ", text " << i;
    EXPECT_EQ(tokenizer_->encode(tokenizer_->decode(*ids).value(), options).value(), *ids)
        << "seed " << seed << ", text " << i;
  }
}

// Ids that no text has: the text they give is one whose ids give it again.
TEST_P(TokenizerFamily, DecodedTextIsAFixedPoint) {
  const uint32_t seed = 9;
  std::mt19937 random(seed);
  const EncodeOptions options = {.add_special_tokens = false};
  for (int i = 0; i < 500; ++i) {
    const std::string once =
        tokenizer_->decode(tokenizer_->encode(tokenizer_->decode(random_ids(random)).value(), options).value()).value();
    const auto ids = tokenizer_->encode(once, options).value();
    EXPECT_EQ(tokenizer_->decode(ids).value(), once) << "seed " << seed << ", list " << i;
    EXPECT_EQ(tokenizer_->encode(tokenizer_->decode(ids).value(), options).value(), ids)
        << "seed " << seed << ", list " << i;
  }
}

TEST_P(TokenizerRoundTrip, ArbitraryIdsStreamAsValidUtf8) {
  const uint32_t seed = 8;
  std::mt19937 random(seed);
  for (int i = 0; i < 500; ++i) {
    const std::vector<int32_t> ids = random_ids(random);
    const std::string whole = tokenizer_->decode(ids).value();
    EXPECT_FALSE(model::tokenizer::first_malformed_byte(whole));
    Tokenizer::Stream stream(*tokenizer_, false);
    std::string parts;
    for (const int32_t id : ids) {
      const std::string part = stream.push(id).value();
      EXPECT_FALSE(model::tokenizer::first_malformed_byte(part));
      parts += part;
    }
    parts += stream.flush();
    EXPECT_EQ(parts, whole) << "seed " << seed << ", list " << i;
    EXPECT_TRUE(stream.flush().empty());
  }
}

std::string fixture_name(const ::testing::TestParamInfo<const char*>& info) { return info.param; }
INSTANTIATE_TEST_SUITE_P(Fixtures, TokenizerRoundTrip, ::testing::ValuesIn(kFixtures), fixture_name);
INSTANTIATE_TEST_SUITE_P(Fixtures, TokenizerLossless, ::testing::Values("llama3", "ministral", "gemma3"), fixture_name);
INSTANTIATE_TEST_SUITE_P(Fixtures, TokenizerFamily, ::testing::Values("llama3", "qwen2", "qwen35", "ministral", "gemma3"),
                         fixture_name);

// A character of three byte tokens comes whole, when the run of byte tokens ends; a run with one wrong byte is U+FFFD for each.
TEST(TokenizerStream, ByteFallbackTokensGiveWholeCharacters) {
  const auto tokenizer = Tokenizer::load(fixture("gemma3"));
  ASSERT_TRUE(tokenizer) << tokenizer.status().message();
  const auto id = [&](const char* token) { return tokenizer->token_to_id(token); };
  Tokenizer::Stream stream(*tokenizer);
  EXPECT_EQ(stream.push(id("<0xE4>")).value(), "");
  EXPECT_EQ(stream.push(id("<0xBD>")).value(), "");
  EXPECT_EQ(stream.push(id("<0xA0>")).value(), "");
  EXPECT_EQ(stream.push(id("<eos>")).value(), "");  // special: left out, does not end the run
  EXPECT_EQ(stream.push(id("a")).value(),
            "\xe4\xbd\xa0"
            "a");
  EXPECT_EQ(stream.push(id("<0xE4>")).value(), "");
  EXPECT_EQ(stream.push(id("<0xBD>")).value(), "");
  EXPECT_EQ(stream.push(id("\xe2\x96\x81\xe2\x96\x81")).value(), "\xef\xbf\xbd\xef\xbf\xbd  ");
  EXPECT_EQ(stream.push(id("<0xC3>")).value(), "");
  EXPECT_EQ(stream.push(id("<0xA9>")).value(), "");
  EXPECT_EQ(stream.flush(), "\xc3\xa9");
  EXPECT_EQ(stream.flush(), "");
}

// A quadratic step anywhere would make these take minutes.
TEST(TokenizerLongText, OneMegabyteOfOneKindOfCharacter) {
  constexpr std::size_t kSize = 1 << 20;
  for (const char* name : {"llama3", "awkward", "gemma3", "fallback"}) {
    const auto tokenizer = Tokenizer::load(fixture(name));
    ASSERT_TRUE(tokenizer) << tokenizer.status().message();
    for (const std::string_view unit :
         {"a", "ab", " ", "\n", "\r\n", " \n", "-", "é", "你", "1", "\xcc\x81\xcc\xa3", "<|a|", "\x7fx"}) {
      std::string text;
      while (text.size() < kSize) text += unit;
      const auto ids = tokenizer->encode(text);
      ASSERT_TRUE(ids) << name << " '" << unit << "': " << ids.status().message();
      EXPECT_FALSE(ids->empty());
    }
  }
}

TEST(TokenizerLookup, TokensAndIds) {
  const auto tokenizer = Tokenizer::load(fixture("llama3"));
  ASSERT_TRUE(tokenizer);
  const int32_t begin = tokenizer->token_to_id("<|begin_of_text|>");
  ASSERT_GE(begin, 0);
  EXPECT_EQ(tokenizer->id_to_token(begin).value(), "<|begin_of_text|>");
  EXPECT_EQ(tokenizer->token_to_id("no such token"), -1);
  EXPECT_EQ(tokenizer->encode("").value(), std::vector<int32_t>{begin});
  EXPECT_TRUE(tokenizer->encode("", {.add_special_tokens = false}).value().empty());
  for (const int32_t bad : {-1, tokenizer->vocab_size(), 2147483647}) {
    EXPECT_EQ(tokenizer->decode({bad}).status().code(), StatusCode::invalid_argument);
    EXPECT_FALSE(tokenizer->id_to_token(bad));
    Tokenizer::Stream stream(*tokenizer);
    EXPECT_FALSE(stream.push(bad));
  }
}

TEST(TokenizerLookup, SharedBetweenThreads) {
  const auto tokenizer = Tokenizer::load(fixture("qwen2"));
  ASSERT_TRUE(tokenizer);
  const std::string text = "It's 2026: cafe\xcc\x81, \xe4\xbd\xa0\xe5\xa5\xbd <|im_start|>";
  const auto expected = tokenizer->encode(text).value();
  std::vector<std::vector<int32_t>> results(4);
  std::vector<std::thread> threads;
  for (auto& result : results) {
    threads.emplace_back([&] {
      for (int i = 0; i < 50; ++i) result = tokenizer->encode(text).value();
    });
  }
  for (auto& thread : threads) thread.join();
  for (const auto& result : results) EXPECT_EQ(result, expected);
}

TEST(TokenizerBadText, NamesTheFirstBadByte) {
  const auto tokenizer = Tokenizer::load(fixture("llama3"));
  ASSERT_TRUE(tokenizer);
  const struct {
    std::string text;
    const char* offset;
  } cases[] = {{"abc\xff", "byte 3 of 4"},
               {"\x80", "byte 0 of 1"},
               {"ab\xc3", "byte 2 of 3"},
               {"0123456789abcdef\xc0\xaf", "byte 16 of 18"},
               {"\xed\xa0\x80", "byte 0 of 3"},
               {"\xc3\xa9\xf4\x90\x80\x80", "byte 2 of 6"},
               {"\xe4\xbd\xa0\xe4\xbd", "byte 3 of 5"}};
  for (const auto& c : cases) {
    const auto ids = tokenizer->encode(c.text);
    ASSERT_FALSE(ids);
    EXPECT_EQ(ids.status().code(), StatusCode::invalid_argument);
    EXPECT_NE(ids.status().message().find(c.offset), std::string::npos) << ids.status().message();
  }
}

TEST(TokenizerBadText, CharacterWithoutTokenIsNotDropped) {
  Json json = read_fixture("llama3");
  json["model"]["vocab"].erase("!");
  json["model"]["merges"] = Json::array();
  const auto tokenizer = Tokenizer::parse(json.dump());
  ASSERT_TRUE(tokenizer) << tokenizer.status().message();
  const auto ids = tokenizer->encode("well!");
  ASSERT_FALSE(ids);
  EXPECT_NE(ids.status().message().find("'!'"), std::string::npos) << ids.status().message();
}

TEST(TokenizerBadFile, MissingMistypedAndUnknown) {
  expect_refused([](Json& j) { j = 3; }, {"expected an object", "got 3"});
  expect_refused([](Json& j) { j.erase("model"); }, {"model: expected an object, found nothing"});
  expect_refused([](Json& j) { j["model"] = "BPE"; }, {"model: expected an object", "\"BPE\""});
  expect_refused([](Json& j) { j["model"]["type"] = "Unigram"; }, {"model.type", "expected one of BPE", "'Unigram'"});
  expect_refused([](Json& j) { j["model"].erase("vocab"); }, {"model.vocab", "found nothing"});
  expect_refused([](Json& j) { j["model"].erase("merges"); }, {"model.merges", "found nothing"});
  expect_refused([](Json& j) { j["model"]["vocab"] = Json::object(); }, {"model.vocab", "at least one token"});
  expect_refused([](Json& j) { j["model"]["vocab"]["a"] = "7"; }, {"model.vocab['a']", "a token id"});
  expect_refused([](Json& j) { j["model"]["type"] = "WordPiece"; }, {"model.type", "expected one of BPE", "'WordPiece'"});
  expect_refused([](Json& j) { j["model"]["byte_fallback"] = 1; }, {"model.byte_fallback", "true or false"});
  expect_refused([](Json& j) { j["model"]["dropout"] = 0.1; }, {"model.dropout"});
  expect_refused([](Json& j) { j["model"]["unk_token"] = "no such"; }, {"model.unk_token", "'no such'"});
  expect_refused([](Json& j) { j["model"]["ignore_merges"] = 1; }, {"model.ignore_merges", "true or false"});
  expect_refused(
      [](Json& j) {
        j["normalizer"] = {{"type", "Lowercase"}};
      },
      {"normalizer.type", "NFC, Replace, Prepend, Strip, Sequence", "'Lowercase'"});
  expect_refused(
      [](Json& j) {
        j["pre_tokenizer"] = {{"type", "Metaspace"}};
      },
      {"pre_tokenizer.type", "Split", "'Metaspace'"});
  expect_refused(
      [](Json& j) {
        j["decoder"] = {{"type", "WordPiece"}};
      },
      {"decoder.type", "ByteLevel, ByteFallback, Replace, Fuse", "'WordPiece'"});
  expect_refused(
      [](Json& j) {
        j["post_processor"] = {{"type", "BertProcessing"}};
      },
      {"post_processor.type", "'BertProcessing'"});
  expect_refused([](Json& j) { j["pre_tokenizer"]["pretokenizers"][0]["behavior"] = "Alone"; },
                 {"pretokenizers[0].behavior", "'Alone'"});
  expect_refused([](Json& j) { j["pre_tokenizer"]["pretokenizers"][0].erase("pattern"); }, {"pretokenizers[0].pattern"});
  expect_refused([](Json& j) { j["added_tokens"][0].erase("content"); }, {"added_tokens[0].content", "found nothing"});
  expect_refused([](Json& j) { j["added_tokens"][0]["content"] = ""; }, {"added_tokens[0].content", "1 to 1024"});
  expect_refused([](Json& j) { j["added_tokens"][0]["lstrip"] = "yes"; }, {"added_tokens[0].lstrip", "true or false"});
}

TEST(TokenizerBadFile, NormalizersAndDecoders) {
  const auto with_normalizer = [](const Json& step) {
    return [step](Json& j) {
      j["normalizer"] = {{"type", "Sequence"}, {"normalizers", Json::array({{{"type", "NFC"}}, step})}};
    };
  };
  const Json space = {{"String", " "}};
  for (const char* kind : {"NFKC", "NFD", "BertNormalizer", "Precompiled", "StripAccents", "Nmt"}) {
    expect_refused(with_normalizer({{"type", kind}}), {"normalizer.normalizers[1].type", "NFC, Replace", kind});
  }
  expect_refused(with_normalizer({{"type", "Replace"}, {"content", "x"}}), {"normalizers[1].pattern", "found nothing"});
  expect_refused(with_normalizer({{"type", "Replace"}, {"pattern", space}}), {"normalizers[1].content", "found nothing"});
  expect_refused(with_normalizer({{"type", "Replace"}, {"pattern", {{"Regex", "("}}}, {"content", ""}}),
                 {"normalizers[1].pattern", "compiles"});
  expect_refused(with_normalizer({{"type", "Replace"}, {"pattern", space}, {"content", std::string(2000, 'x')}}),
                 {"normalizers[1].content", "at most 1024"});
  expect_refused(with_normalizer({{"type", "Prepend"}}), {"normalizers[1].prepend", "found nothing"});
  expect_refused(with_normalizer({{"type", "Strip"}, {"strip_left", 1}}), {"normalizers[1].strip_left", "true or false"});
  expect_refused(
      [](Json& j) {
        j["normalizer"] = {{"type", "Sequence"}, {"normalizers", Json::array()}};
        for (int i = 0; i < 65; ++i) j["normalizer"]["normalizers"].push_back({{"type", "NFC"}});
      },
      {"normalizer", "at most 64 steps", "got 65"});

  const auto with_decoders = [](const Json& steps) {
    return [steps](Json& j) { j["decoder"] = {{"type", "Sequence"}, {"decoders", steps}}; };
  };
  const Json replace = {{"type", "Replace"}, {"pattern", space}, {"content", "x"}}, fuse = {{"type", "Fuse"}},
             fallback = {{"type", "ByteFallback"}};
  for (const char* kind : {"Metaspace", "Strip", "CTC", "BPEDecoder"}) {
    expect_refused(with_decoders(Json::array({fallback, {{"type", kind}}})),
                   {"decoder.decoders[1].type", "ByteLevel, ByteFallback", kind});
  }
  expect_refused(with_decoders(Json::array({fuse, replace})), {"decoder.decoders[1]", "Replace after Fuse"});
  expect_refused(with_decoders(Json::array({fallback, fallback})), {"decoder.decoders[1]", "order"});
  expect_refused(with_decoders(Json::array({{{"type", "ByteLevel"}}, fallback})), {"decoder.decoders[1]", "order"});
  Json bad = replace;
  bad["pattern"] = {{"Regex", " "}};
  expect_refused(with_decoders(Json::array({bad})), {"decoder.decoders[0].pattern", "expected one of String", "'Regex'"});
  bad["pattern"] = {{"String", ""}};
  expect_refused(with_decoders(Json::array({bad})), {"decoder.decoders[0].pattern.String", "not empty"});
  bad = replace;
  bad["content"] = std::string(65, 'x');
  expect_refused(with_decoders(Json::array({bad})), {"decoder.decoders[0].content", "at most 64"});
  expect_refused(with_decoders(Json(std::vector<Json>(17, replace))), {"decoder.decoders[16]", "at most 16 steps"});
  expect_refused(with_decoders("x"), {"decoder.decoders", "an array"});
}

TEST(TokenizerBadFile, NormalizerThatExplodesGivesUp) {
  Json json = read_fixture("llama3"), steps = Json::array();
  for (int i = 0; i < 60; ++i)
    steps.push_back({{"type", "Replace"}, {"pattern", {{"String", "a"}}}, {"content", "aaaaaaaa"}});
  json["normalizer"] = {{"type", "Sequence"}, {"normalizers", steps}};
  const auto tokenizer = Tokenizer::parse(json.dump());
  ASSERT_TRUE(tokenizer) << tokenizer.status().message();
  EXPECT_TRUE(tokenizer->encode("bcd"));
  const auto ids = tokenizer->encode("banana");
  ASSERT_FALSE(ids);
  EXPECT_NE(ids.status().message().find("normalizer"), std::string::npos) << ids.status().message();
}

TEST(TokenizerOptions, SplitPatternReplacesTheFirst) {
  const Json wrong = [] {
    Json json = read_fixture("ministral");
    json["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {{"Regex", R"(\s+|\S+)"}};
    return json;
  }();
  const std::string pattern = read_fixture("ministral")["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"];
  const auto right = Tokenizer::load(fixture("ministral")), as_is = Tokenizer::parse(wrong.dump()),
             fixed = Tokenizer::parse(wrong.dump(), {.split_pattern = pattern});
  ASSERT_TRUE(right && as_is && fixed);
  const std::string text = "camelCase and 1234, they're //\n";
  EXPECT_EQ(fixed->encode(text).value(), right->encode(text).value());
  EXPECT_NE(as_is->encode(text).value(), right->encode(text).value());

  const auto bad = Tokenizer::parse(wrong.dump(), {.split_pattern = "(a"});
  ASSERT_FALSE(bad);
  EXPECT_NE(bad.status().message().find("split_pattern"), std::string::npos) << bad.status().message();
  const auto none =
      Tokenizer::parse(R"({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}})", {.split_pattern = pattern});
  ASSERT_FALSE(none);
  EXPECT_NE(none.status().message().find("found none"), std::string::npos) << none.status().message();
}

TEST(TokenizerBadFile, IdsMergesAndTemplates) {
  for (const Json& id :
       {Json(-1), Json(1.5), Json((1 << 24) + 1), Json(1e300), Json(18446744073709551615ull), Json(nullptr)}) {
    expect_refused([&](Json& j) { j["model"]["vocab"]["a"] = id; }, {"model.vocab['a']", "from 0 to 16777216"});
  }
  expect_refused([](Json& j) { j["model"]["vocab"]["a"] = j["model"]["vocab"]["b"]; }, {"an id of its own"});
  expect_refused([](Json& j) { j["added_tokens"][1]["id"] = j["added_tokens"][0]["id"]; },
                 {"added_tokens[1]", "of its own"});
  expect_refused([](Json& j) { j["added_tokens"][1]["content"] = j["added_tokens"][0]["content"]; }, {"added_tokens[1]"});
  expect_refused([](Json& j) { j["added_tokens"][1]["id"] = j["model"]["vocab"]["a"]; }, {"added_tokens[1]"});
  expect_refused([](Json& j) { j["model"]["merges"][3] = {"a", "no such"}; }, {"model.merges[3]", "'no such'"});
  expect_refused([](Json& j) { j["model"]["merges"][3] = "a b c"; }, {"model.merges[3]", "left right"});
  expect_refused([](Json& j) { j["model"]["merges"][3] = {"a", 3}; }, {"model.merges[3]"});
  expect_refused([](Json& j) { j["model"]["merges"][3] = nullptr; }, {"model.merges[3]"});
  expect_refused(
      [](Json& j) { j["post_processor"]["processors"][1]["special_tokens"]["<|begin_of_text|>"]["ids"][0] = 99999; },
      {"post_processor.processors[1]", "tokens that exist"});
  expect_refused([](Json& j) { j["post_processor"]["processors"][1]["special_tokens"] = Json::object(); },
                 {"found nothing"});
  expect_refused([](Json& j) { j["post_processor"]["processors"][1]["single"].erase(1); }, {"the text (Sequence A) once"});
}

TEST(TokenizerBadFile, RegularExpressions) {
  const auto with_pattern = [](const std::string& pattern) {
    return [pattern](Json& j) { j["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {{"Regex", pattern}}; };
  };
  expect_refused(with_pattern("(a"), {"pattern", "compiles", "'(a'"});
  expect_refused(with_pattern("a**{"), {"pattern"});
  expect_refused(with_pattern("[a"), {"closing"});
  expect_refused(with_pattern("[a&&b]"), {"intersection"});
  expect_refused(with_pattern("[a[b]]"), {"nested"});
  expect_refused(with_pattern("(*UTF)a"), {"verbs"});
  expect_refused(with_pattern("(?R)"), {"a group of the form"});
  expect_refused(with_pattern("\\Qa\\E"), {"an escape"});
  expect_refused(with_pattern("a\\"), {"after the last backslash"});
  expect_refused(with_pattern("\\p{NoSuchScript}"), {"compiles"});
  expect_refused(with_pattern("\\p{L"), {"\\p{Name}"});
  expect_refused(with_pattern("a{2}+"), {"interval"});
  expect_refused(with_pattern(std::string(200, '(') + "a" + std::string(200, ')')), {"compiles"});
  expect_refused(with_pattern("((((a{1000}){1000}){1000}){1000})"), {"compiles"});
  expect_refused(with_pattern(std::string(70000, 'a')), {"65536 bytes"});
}

TEST(TokenizerBadFile, RegularExpressionThatExplodesGivesUp) {
  Json json = read_fixture("llama3");
  json["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {{"Regex", "(a|a)*(a|aa)*(aa|a)*b\\z|(a+)+c"}};
  const auto tokenizer = Tokenizer::parse(json.dump());
  ASSERT_TRUE(tokenizer) << tokenizer.status().message();
  const auto ids = tokenizer->encode(std::string(3000, 'a') + "b c d");
  ASSERT_FALSE(ids);
  EXPECT_EQ(ids.status().code(), StatusCode::resource_exhausted);
  EXPECT_NE(ids.status().message().find("gave up"), std::string::npos) << ids.status().message();
}

TEST(TokenizerBadFile, NotJsonTruncatedDeepDuplicateMissing) {
  std::ifstream file(fixture("llama3"));
  const std::string good{std::istreambuf_iterator<char>(file), {}};
  for (std::size_t size = 0; size + 2 < good.size(); size += 97) {
    const auto tokenizer = Tokenizer::parse(std::string_view(good).substr(0, size));
    ASSERT_FALSE(tokenizer);
    EXPECT_FALSE(tokenizer.status().message().empty());
  }
  EXPECT_FALSE(Tokenizer::parse(std::string(100000, '[')));
  EXPECT_FALSE(Tokenizer::parse(std::string(100, '[') + std::string(100, ']')));
  EXPECT_FALSE(Tokenizer::parse(R"({"model": {"type": "BPE", "vocab": {"a": 0, "a": 1}, "merges": []}})"));
  const auto missing = Tokenizer::load("no/such/tokenizer.json");
  ASSERT_FALSE(missing);
  EXPECT_EQ(missing.status().code(), StatusCode::not_found);
}

}  // namespace
}  // namespace rarefy
