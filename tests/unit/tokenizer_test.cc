// Properties of the tokenizer, and files and texts that must be refused with one clear message.
#include "rarefy/model/tokenizer.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <nlohmann/json.hpp>
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

TEST(TokenizerRoundTrip, BytesSurviveWithoutNormalizer) {
  const auto tokenizer = Tokenizer::load(fixture("llama3"));
  ASSERT_TRUE(tokenizer) << tokenizer.status().message();
  const uint32_t seed = 7;
  std::mt19937 random(seed);
  for (int i = 0; i < 500; ++i) {
    const std::string text = random_text(random, 1 + static_cast<int>(random() % 60));
    const auto ids = tokenizer->encode(text, {.add_special_tokens = false, .parse_special = i % 2 == 0});
    ASSERT_TRUE(ids);
    EXPECT_EQ(tokenizer->decode(*ids).value(), text) << "seed " << seed << ", text " << i;
  }
}

TEST(TokenizerRoundTrip, ArbitraryBytesComeBackAsValidUtf8) {
  const auto tokenizer = Tokenizer::load(fixture("llama3"));
  ASSERT_TRUE(tokenizer);
  const uint32_t seed = 8;
  std::mt19937 random(seed);
  for (int i = 0; i < 500; ++i) {
    std::vector<int32_t> ids;
    for (int k = 0; k < 20; ++k)
      ids.push_back(static_cast<int32_t>(random() % static_cast<uint32_t>(tokenizer->vocab_size())));
    const std::string whole = tokenizer->decode(ids).value();
    EXPECT_FALSE(model::tokenizer::first_malformed_byte(whole));
    Tokenizer::Stream stream(*tokenizer, false);
    std::string parts;
    for (const int32_t id : ids) {
      const std::string part = stream.push(id).value();
      EXPECT_FALSE(model::tokenizer::first_malformed_byte(part));
      parts += part;
    }
    parts += stream.flush();
    EXPECT_EQ(parts, whole) << "seed " << seed << ", list " << i;
  }
}

// A quadratic step anywhere would make these take minutes.
TEST(TokenizerLongText, OneMegabyteOfOneKindOfCharacter) {
  constexpr std::size_t kSize = 1 << 20;
  for (const char* name : {"llama3", "awkward"}) {
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
  expect_refused([](Json& j) { j["model"]["byte_fallback"] = true; }, {"model.byte_fallback", "does not support"});
  expect_refused([](Json& j) { j["model"]["dropout"] = 0.1; }, {"model.dropout"});
  expect_refused([](Json& j) { j["model"]["unk_token"] = "no such"; }, {"model.unk_token", "'no such'"});
  expect_refused([](Json& j) { j["model"]["ignore_merges"] = 1; }, {"model.ignore_merges", "true or false"});
  expect_refused(
      [](Json& j) {
        j["normalizer"] = {{"type", "Lowercase"}};
      },
      {"normalizer.type", "NFC, Sequence", "'Lowercase'"});
  expect_refused(
      [](Json& j) {
        j["pre_tokenizer"] = {{"type", "Metaspace"}};
      },
      {"pre_tokenizer.type", "Split", "'Metaspace'"});
  expect_refused(
      [](Json& j) {
        j["decoder"] = {{"type", "ByteFallback"}};
      },
      {"decoder.type", "ByteLevel, Fuse", "'ByteFallback'"});
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
