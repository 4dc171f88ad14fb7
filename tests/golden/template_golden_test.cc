// Chat templates against jinja2 as `transformers` sets it up: tests/golden/make_template_fixtures.py made the cases.
#include <gtest/gtest.h>

#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>

#include "rarefy/model/chat_template.h"

namespace rarefy {
namespace {

using Json = nlohmann::ordered_json;

constexpr int64_t kNow = 1770127506;  // 2026-02-03 14:05:06, the clock of the fixtures
const std::string folder = std::string(RAREFY_SOURCE_DIR) + "/tests/golden/templates/";

std::string read_file(const std::string& path) {
  std::stringstream text;
  text << std::ifstream(path, std::ios::binary).rdbuf();
  return text.str();
}

Expected<std::string> render(const Json& one) {
  const std::string source = one.contains("source") ? one.at("source").get<std::string>()
                                                    : read_file(folder + one.at("template").get<std::string>());
  const auto chat = ChatTemplate::parse(source, {{"bos_token", "<s>"}, {"eos_token", "</s>"}});
  if (!chat) return chat.status();
  std::vector<ChatMessage> messages;
  for (const Json& message : one.at("messages")) messages.push_back({.extra_json = message.dump()});
  ChatOptions options;
  options.add_generation_prompt = one.at("add_generation_prompt");
  if (!one.at("tools").is_null()) options.tools_json = one.at("tools").dump();
  options.variables_json = one.at("variables").dump();
  options.now = kNow;
  return chat->render(messages, options);
}

std::vector<Json> read_cases() {
  std::vector<Json> cases;
  std::ifstream file(folder + "cases.jsonl");
  for (std::string line; std::getline(file, line);) cases.push_back(Json::parse(line));
  return cases;
}

TEST(TemplateGolden, EqualsJinja2) {
  const std::vector<Json> cases = read_cases();
  std::map<std::string, int32_t> rendered;
  for (const Json& one : cases) {
    const auto got = render(one);
    const std::string name = one.value("template", "snippet");
    const std::string what =
        one.contains("source") ? one.at("source").get<std::string>() : name + " " + one.at("messages").dump();
    if (one.contains("output")) {
      ASSERT_TRUE(got.has_value() || got.status().code() != StatusCode::ok);
      EXPECT_TRUE(got.has_value()) << what << "\n" << got.status().to_string();
      if (got) {
        EXPECT_EQ(*got, one.at("output").get<std::string>()) << what;
        ++rendered[name];
      }
      continue;
    }
    EXPECT_FALSE(got.has_value()) << what << "\nexpected an error, got '" << (got ? *got : "") << "'";
    if (got) continue;
    EXPECT_NE(got.status().message().find("chat template, line "), std::string::npos) << what << got.status().message();
    if (one.at("error").is_string()) {
      EXPECT_EQ(got.status().code(), StatusCode::invalid_argument) << what;
      EXPECT_NE(got.status().message().find("refuses the conversation: " + one.at("error").get<std::string>()),
                std::string::npos)
          << what << "\n"
          << got.status().message();
    }
  }
  // Each style was rendered often, not only refused.
  EXPECT_GE(cases.size(), 500u);
  for (const char* name : {"llama_style", "qwen2_style", "qwen35_style", "gemma_style", "mistral_style", "extras_style"}) {
    EXPECT_GE(rendered[std::string(name) + ".jinja"], 15) << name;
  }
  EXPECT_GE(rendered["snippet"], 100);
}

}  // namespace
}  // namespace rarefy
