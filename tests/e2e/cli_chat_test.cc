// `rarefy chat` from outside: scripted conversations with a tiny random checkpoint that has a template.
#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "cli_files.h"
#include "run_program.h"
#include "tests/support/tiny_checkpoint.h"

namespace rarefy::testing {
namespace {

using nlohmann::json;

// Appends only: what was said stays as it was.
constexpr const char* kAppending =
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}{% if add_generation_prompt "
    "%}<assistant>{% "
    "endif %}";
// Forgets what the assistant said: each turn rewrites the text behind the first message.
constexpr const char* kRewriting =
    "[{{ messages|selectattr('role', 'equalto', 'user')|map(attribute='content')|join('|') }}]";

class CliChat : public ::testing::Test {
 protected:
  ProgramResult chat(std::vector<std::string> more, ProgramOptions options) const {
    std::vector<std::string> arguments = {"chat", "-m", checkpoint_.folder().string(), "-t", "1"};
    if (std::find(more.begin(), more.end(), "-n") == more.end()) arguments.insert(arguments.end(), {"-n", "6"});
    for (const char* flag : {"--compute", "f32", "-ctk", "f32"}) arguments.emplace_back(flag);
    arguments.insert(arguments.end(), more.begin(), more.end());
    return run_program(arguments, options);
  }
  ProgramResult chat(const std::vector<std::string>& more, const std::string& input) const {
    return chat(more, ProgramOptions{.input = input});
  }
  // The JSON objects of a conversation that must succeed.
  std::vector<json> turns(std::vector<std::string> more, const std::string& input) const {
    more.emplace_back("--json");
    const ProgramResult result = chat(more, input);
    EXPECT_EQ(result.exit_code, 0) << result.err;
    return json_lines(result.out);
  }

  TinyCheckpoint checkpoint_;
  ScratchFolder files_;
};

TEST_F(CliChat, ReadsOnlyWhatIsNew) {
  const auto said = turns({"--chat-template", kAppending}, "hello\nand again\nonce more\n");
  ASSERT_EQ(said.size(), 3u);
  EXPECT_EQ(said[0].at("kept_tokens"), 0);
  EXPECT_EQ(said[0].at("prompt_tokens"), std::string("<user>hello</user><assistant>").size());
  EXPECT_EQ(said[0].at("read_tokens"), said[0].at("prompt_tokens"));
  for (size_t i = 1; i < said.size(); ++i) {
    const json &before = said[i - 1], &now = said[i];
    EXPECT_EQ(now.at("forgotten_tokens"), 0);
    // The last token of an answer that was cut short has not been read yet; a stop token never is.
    const int32_t unread = before.at("stop_reason") == "max_new_tokens" ? 1 : 0;
    EXPECT_EQ(now.at("kept_tokens"),
              before.at("prompt_tokens").get<int32_t>() + before.at("new_tokens").get<int32_t>() - unread);
    EXPECT_EQ(now.at("read_tokens").get<int32_t>(),
              now.at("prompt_tokens").get<int32_t>() - now.at("kept_tokens").get<int32_t>());
  }
}

TEST_F(CliChat, RewrittenHistoryKeepsTheCommonPrefix) {
  const std::vector<std::string> flags = {"--chat-template", kRewriting};
  const auto said = turns(flags, "hi\nthere\n");
  ASSERT_EQ(said.size(), 2u);
  EXPECT_EQ(said[1].at("prompt_tokens"), 10);  // [hi|there]
  EXPECT_EQ(said[1].at("kept_tokens"), 3);     // [hi
  EXPECT_EQ(said[1].at("read_tokens"), 7);
  EXPECT_EQ(said[1].at("forgotten_tokens").get<int32_t>(),
            4 + said[0].at("new_tokens").get<int32_t>() - (said[0].at("stop_reason") == "max_new_tokens" ? 1 : 0) - 3);
  const ProgramResult text = chat(flags, "hi\nthere\n");
  EXPECT_NE(text.err.find("rewrote earlier messages: 3 of "), std::string::npos) << text.err;
  EXPECT_NE(text.err.find("7 read"), std::string::npos) << text.err;
  // A cache that was cut back answers as a fresh one does.
  const ProgramResult fresh = run_program({"generate", "-m", checkpoint_.folder().string(), "-t", "1", "-n", "6",
                                           "--compute", "f32", "-ctk", "f32", "-p", "[hi|there]", "--json"});
  ASSERT_EQ(fresh.exit_code, 0) << fresh.err;
  EXPECT_EQ(said[1].at("text"), json::parse(fresh.out).at("text"));
}

TEST_F(CliChat, ResetBeginsAnew) {
  const auto said = turns({"--chat-template", kAppending, "--system", "s"}, "hello\n/reset\nhello\n");
  ASSERT_EQ(said.size(), 2u);
  EXPECT_EQ(said[1].at("kept_tokens"), 0);
  EXPECT_EQ(said[0].at("prompt_tokens"), std::string("<system>s</system><user>hello</user><assistant>").size());
  EXPECT_EQ(said[0].at("text"), said[1].at("text"));
  EXPECT_EQ(said[0].at("prompt_tokens"), said[1].at("prompt_tokens"));
}

TEST_F(CliChat, TemplateOfTheFolder) {
  std::ofstream(checkpoint_.folder() / "tokenizer_config.json")
      << json{{"chat_template", "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"},
              {"bos_token", "<|begin_of_text|>"}};
  const auto said = turns({}, "abc\n");
  ASSERT_EQ(said.size(), 1u);
  EXPECT_EQ(said[0].at("prompt_tokens"), 4);  // the begin-of-text token is one
  std::ofstream(checkpoint_.folder() / "chat_template.jinja") << "{{ raise_exception('I only listen.') }}";
  const ProgramResult refused = chat({}, "abc\n");
  EXPECT_EQ(refused.exit_code, 3);
  EXPECT_NE(refused.err.find("chat template, line 1: the template refuses the conversation: I only listen."),
            std::string::npos)
      << refused.err;
}

TEST_F(CliChat, WhatIsNoChatModelIsRefused) {
  const ProgramResult none = chat({}, "abc\n");
  EXPECT_EQ(none.exit_code, 3);
  EXPECT_NE(none.err.find("no chat model"), std::string::npos) << none.err;
  EXPECT_NE(none.err.find("--chat-template"), std::string::npos) << none.err;
  const ProgramResult nonsense = chat({"--chat-template", "nowhere.jinja"}, "abc\n");
  EXPECT_EQ(nonsense.exit_code, 2);
  EXPECT_NE(nonsense.err.find("nowhere.jinja"), std::string::npos) << nonsense.err;
  const ProgramResult broken = chat({"--chat-template", files_.write("t.jinja", "\n{% if %}")}, "abc\n");
  EXPECT_EQ(broken.exit_code, 3);
  EXPECT_NE(broken.err.find("line 2"), std::string::npos) << broken.err;
  const ProgramResult help = run_program({"chat", "--help"});
  EXPECT_NE(help.out.find("no chat model"), std::string::npos);
}

TEST_F(CliChat, StreamsAnswersAndNothingElse) {
  const ProgramResult result = chat({"--chat-template", kAppending}, "one\n\n/help\n//two\n/nope\n/quit\nthree\n");
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(result.out.find("> "), std::string::npos) << "a prompt without a terminal";
  EXPECT_NE(result.err.find("/stats"), std::string::npos);
  EXPECT_NE(result.err.find("got '/nope'"), std::string::npos);
  const auto said = turns({"--chat-template", kAppending}, "one\n//two\n/quit\nthree\n");
  EXPECT_EQ(said.size(), 2u);
  const auto joined = turns({"--chat-template", kAppending}, "one\\\ntwo\n");
  EXPECT_EQ(joined.at(0).at("prompt_tokens"), std::string("<user>one\ntwo</user><assistant>").size());
}

TEST_F(CliChat, StatsShowSparsity) {
  const std::vector<std::string> flags = {
      "--chat-template",          kAppending, "-f", files_.write("text.txt", sample_text(1500)), "--policy",
      "total=64 min=1 index=sign"};
  const ProgramResult result = chat(flags, "what?\nand?\n/stats\n");
  EXPECT_EQ(result.exit_code, 0) << result.err;
  for (const char* part : {"policy", "total=64", "density", "bytes_ratio", "error, estimated", "cache"}) {
    EXPECT_NE(result.out.find(part), std::string::npos) << part << " is not in:\n" << result.out;
  }
  const auto lines = turns(flags, "what?\nand?\n/stats\n/reset\n/stats\nwhat?\n");
  ASSERT_EQ(lines.size(), 5u);
  EXPECT_EQ(lines[0].at("prompt_tokens"), 1500 + std::string("<user>\n\nwhat?</user><assistant>").size());
  EXPECT_LT(lines[1].at("read_tokens"), 60) << "the document was read again";
  EXPECT_LT(lines[2].at("density"), 0.1);
  EXPECT_GT(lines[2].at("decode_tokens"), 0);
  EXPECT_EQ(lines[3].at("decode_tokens"), 0);
  EXPECT_EQ(lines[4].at("prompt_tokens"), lines[0].at("prompt_tokens")) << "/reset forgot the document";
}

TEST_F(CliChat, CtrlCStopsTheAnswerOnly) {
  const ProgramResult result = chat({"--chat-template", kAppending, "-n", "4000", "-c", "8192"},
                                    ProgramOptions{.input = "hi\n/stats\n", .interrupt = true});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_NE(result.err.find("answer stopped"), std::string::npos) << result.err;
  EXPECT_NE(result.out.find("decode"), std::string::npos) << "the command after the answer did not run";
}

TEST_F(CliChat, AFullContextIsSaid) {
  const ProgramResult result = chat({"--chat-template", kAppending, "-c", "40"}, "hello\n" + std::string(60, 'x') + "\n");
  EXPECT_EQ(result.exit_code, 3);
  EXPECT_NE(result.err.find("there are 40"), std::string::npos) << result.err;
  const ProgramResult cut = chat({"--chat-template", kAppending, "-c", "32", "-n", "100"}, "hello\n");
  EXPECT_EQ(cut.exit_code, 0);
  EXPECT_NE(cut.err.find("the context is full"), std::string::npos) << cut.err;
}

TEST_F(CliChat, ToolsAndVariablesReachTheTemplate) {
  const std::string tools = files_.write("tools.json", R"([{"type": "function", "function": {"name": "f"}}])");
  const auto said = turns(
      {"--chat-template", "{{ tools[0].function.name }}{{ mood }}", "--tools", tools, "--variables", R"({"mood": "calm"})"},
      "x\n");
  EXPECT_EQ(said.at(0).at("prompt_tokens"), 5);
  EXPECT_EQ(chat({"--chat-template", kAppending, "--variables", "{"}, "x\n").exit_code, 3);
}

}  // namespace
}  // namespace rarefy::testing
