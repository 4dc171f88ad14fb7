// Plugins in every verb that takes a policy, and calibrate: what it writes, that it is used, what it refuses.
#include <gtest/gtest.h>

#include <iterator>
#include <nlohmann/json.hpp>
#include <random>
#include <sstream>

#include "cli_files.h"
#include "rarefy/select/policy.h"
#include "run_program.h"
#include "tests/support/tiny_checkpoint.h"

namespace rarefy::testing {
namespace {

using nlohmann::json;

class CliExtension : public ::testing::Test {
 protected:
  ProgramResult run(const std::string& verb, const std::vector<std::string>& more) {
    std::vector<std::string> arguments = {verb, "-m", checkpoint_.folder().string(), "-t", "1"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return run_program(arguments);
  }
  static void expect_refused(const ProgramResult& result, int exit_code, const std::string& part) {
    EXPECT_EQ(result.exit_code, exit_code) << result.err;
    EXPECT_TRUE(result.err.starts_with("rarefy: ")) << result.err;
    EXPECT_NE(result.err.find(part), std::string::npos) << result.err;
    EXPECT_EQ(result.out, "");
  }
  std::string text(size_t num_bytes) { return files_.write("text.txt", sample_text(num_bytes)); }

  TinyCheckpoint checkpoint_;
  ScratchFolder files_;
};

constexpr const char* kPlugins[] = {RAREFY_PLUGIN_PAGE_MEAN, RAREFY_PLUGIN_INT8_CODES};
constexpr const char* kNames[] = {"page_mean", "int8_codes"};

TEST_F(CliExtension, PluginsAreListedExplainedAndBenched) {
  for (size_t i = 0; i < 2; ++i) {
    const ProgramResult listed = run_program({"policy", "list", "--plugin", kPlugins[i]});
    EXPECT_EQ(listed.exit_code, 0) << listed.err;
    EXPECT_NE(listed.out.find(kNames[i]), std::string::npos) << listed.out;
    const std::string policy = std::string("50x index=") + kNames[i];
    const ProgramResult explained =
        run_program({"policy", "explain", policy, "--ctx-size", "16384", "--plugin", kPlugins[i]});
    EXPECT_EQ(explained.exit_code, 0) << explained.err;
    EXPECT_NE(explained.out.find(std::string("index=") + kNames[i]), std::string::npos) << explained.out;
    const ProgramResult benched = run_program(
        {"bench", "attention", "--plugin", kPlugins[i], "--repeats", "3", "-t", "1", "--json", "--case",
         "kv_len=2048 num_q_heads=2 num_kv_heads=1 head_dim=64 policy='total=0.1 index=" + std::string(kNames[i]) + "'"});
    EXPECT_EQ(benched.exit_code, 0) << benched.err;
    EXPECT_NE(benched.out.find(kNames[i]), std::string::npos) << benched.out;
  }
}

TEST_F(CliExtension, PluginsDecode) {
  const std::string file = text(1500);
  for (size_t i = 0; i < 2; ++i) {
    const std::string policy = std::string("total=64 index=") + kNames[i];
    const ProgramResult generated = run(
        "generate", {"--plugin", kPlugins[i], "-f", file, "-n", "4", "--ignore-eos", "--policy", policy, "--audit", "1"});
    EXPECT_EQ(generated.exit_code, 0) << generated.err;
    EXPECT_NE(generated.err.find(std::string("index=") + kNames[i]), std::string::npos) << generated.err;
    const ProgramResult scored = run("perplexity", {"--plugin", kPlugins[i], "-f", file, "--context", "1024", "-n", "8",
                                                    "--policy", policy, "--audit", "1", "--json"});
    EXPECT_EQ(scored.exit_code, 0) << scored.err;
    std::istringstream lines(scored.out);
    std::string line;
    std::getline(lines, line);
    std::getline(lines, line);
    EXPECT_LT(json::parse(line).at("density"), 0.1) << line;
  }
}

TEST_F(CliExtension, PluginsAnswerAndReplay) {
  const std::string document = sample_text(900), capture = files_.path("capture.safetensors");
  const json questions = {
      {"id", "one"}, {"context", document}, {"questions", {{{"question", "What is line 7?"}, {"answer", "it"}}}}};
  const std::string file = files_.write("questions.jsonl", questions.dump() + "\n");
  const ProgramResult captured = run("capture", {"-f", text(1500), "--tokens", "900", "--steps", "2", "-o", capture});
  ASSERT_EQ(captured.exit_code, 0) << captured.err;
  for (size_t i = 0; i < 2; ++i) {
    const std::string policy = std::string("total=64 index=") + kNames[i];
    const ProgramResult asked = run("recall", {"--plugin", kPlugins[i], "-f", file, "--policy", policy});
    EXPECT_EQ(asked.exit_code, 0) << asked.err;
    EXPECT_NE(asked.out.find(std::string("index=") + kNames[i]), std::string::npos) << asked.out;
    const ProgramResult replayed = run_program({"replay", capture, "--plugin", kPlugins[i], "--policy", policy});
    EXPECT_EQ(replayed.exit_code, 0) << replayed.err;
    EXPECT_NE(replayed.out.find(kNames[i]), std::string::npos) << replayed.out;
  }
}

TEST_F(CliExtension, PluginsComeFromTheEnvironmentToo) {
  const std::string both = std::string(kPlugins[0]) + ":" + kPlugins[1];
  ASSERT_EQ(setenv("RAREFY_PLUGINS", both.c_str(), 1), 0);
  const ProgramResult listed = run_program({"policy", "list", "--plugin", kPlugins[0]});  // the same one twice is fine
  setenv("RAREFY_PLUGINS", "no/such.so", 1);
  const ProgramResult refused = run_program({"policy", "list"});
  const ProgramResult help = run_program({"policy", "list", "--help"});
  unsetenv("RAREFY_PLUGINS");
  EXPECT_EQ(listed.exit_code, 0) << listed.err;
  for (const char* name : kNames) EXPECT_NE(listed.out.find(name), std::string::npos) << listed.out;
  expect_refused(refused, 3, "RAREFY_PLUGINS: plugin no/such.so");
  EXPECT_EQ(help.exit_code, 0) << help.err;
}

TEST_F(CliExtension, BadPluginsAreRefused) {
  expect_refused(run_program({"policy", "list", "--plugin", "no/such.so"}), 3,
                 "plugin no/such.so: expected a shared object");
  expect_refused(run_program({"policy", "list", "--plugin", RAREFY_BAD_PLUGIN_OTHER_ABI}), 3, "interface");
  expect_refused(run_program({"policy", "list", "--plugin", RAREFY_BAD_PLUGIN_DUPLICATE}), 3, "registered already");
  expect_refused(run_program({"policy", "list", "--plugin", RAREFY_BAD_PLUGIN_THROWS}), 3, "not today");
  const std::string file = text(1500);
  for (const auto& [option, part] :
       {std::pair{"score", "no scores today"}, {"encode", "no encoding today"}, {"block_24", "got 24"}}) {
    expect_refused(run("generate", {"--plugin", RAREFY_BAD_PLUGIN_MISBEHAVING, "-f", file, "-n", "4", "--policy",
                                    std::string("total=64 index=misbehaving:") + option}),
                   1, part);
  }
}

// Scores so wrong that a sample now and then misses what matters, and its certificate with it: audits see that a promise this tight is
// not kept (0.3 % of pairs instead of 0.01 %), and the program says so at its end.
TEST_F(CliExtension, AuditFailEndsWithItsOwnCode) {
  std::istringstream words(sample_text(6000));
  const std::vector<std::string> all{std::istream_iterator<std::string>(words), {}};
  std::mt19937 random(1);
  std::string shuffled;
  for (int i = 0; i < 4000; ++i) shuffled += all[random() % all.size()] + " ";
  const std::string file = files_.write("words.txt", shuffled);
  const auto audited = [&](const std::string& policy) {  // by the trained checkpoint: attention of a random one is flat
    return run_program({"perplexity", "-t", "1", "--plugin", RAREFY_BAD_PLUGIN_MISBEHAVING, "-f", file, "--context", "1024",
                        "-n", "64", "--audit", "1", "--audit-fail", "--policy", policy});
  };
  const ProgramResult broken = audited("total=200 index=misbehaving:none spend=priority eps=0.05 delta=0.0001 min=64");
  EXPECT_EQ(broken.exit_code, 5) << broken.err << broken.out;
  EXPECT_NE(broken.err.find("rarefy: --audit-fail: "), std::string::npos) << broken.err;
  EXPECT_NE(broken.err.find("promised 0.01 %"), std::string::npos) << broken.err;
  EXPECT_NE(broken.out.find("dense"), std::string::npos) << "the table comes all the same: " << broken.out;
  const ProgramResult kept = audited("total=200 index=q2 spend=priority eps=0.5 delta=0.2 min=64");
  EXPECT_EQ(kept.exit_code, 0) << kept.err;
}

TEST_F(CliExtension, PoliciesComeFromFiles) {
  const std::string file = files_.write("a.policy", "# a comment, with total=2\n  50x # and another\n\tindex=q2\n");
  const ProgramResult explained = run_program({"policy", "explain", "@" + file, "--ctx-size", "8192"});
  EXPECT_EQ(explained.exit_code, 0) << explained.err;
  EXPECT_NE(explained.out.find("total=0.02 sink=4 local=32 index=q2"), std::string::npos) << explained.out;
  const ProgramResult generated = run("generate", {"-p", "Hello", "-n", "2", "--ignore-eos", "--policy", "@" + file});
  EXPECT_NE(generated.err.find("index=q2"), std::string::npos) << generated.err;
  expect_refused(run_program({"policy", "explain", "@no/such.policy", "--ctx-size", "8192"}), 3, "no/such.policy");
  const std::string empty = files_.write("empty.policy", "# nothing\n");
  expect_refused(run_program({"policy", "explain", "@" + empty, "--ctx-size", "8192"}), 2,
                 "empty.policy: policy: expected a budget");
}

TEST_F(CliExtension, CalibrateWritesAPolicyThatEveryVerbTakes) {
  const std::string file = text(3000), policy = files_.path("out.policy");
  const std::vector<std::string> common = {"-f", file,        "--context", "1024",     "--steps",      "12", "--chunks",
                                           "2",  "--budgets", "5",         "--policy", "50x index=q2", "-o", policy};
  std::vector<std::string> by_bytes = common;
  by_bytes.insert(by_bytes.end(), {"--bytes-ratio", "0.3", "--json", "--channels", files_.path("channels.json")});
  const ProgramResult result = run("calibrate", by_bytes);
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const json record = json::parse(result.out);
  EXPECT_LE(record.at("bytes_ratio"), 0.3);
  EXPECT_LE(record.at("error"), record.at("single_same_bytes_error"));
  EXPECT_GE(record.at("bytes_saved_share"), -1e-9);
  EXPECT_EQ(record.at("error_label"), "audited");
  EXPECT_EQ(record.at("contexts"), 2);
  ASSERT_EQ(record.at("layers").size(), 2u);
  for (const json& layer : record.at("layers")) {
    ASSERT_EQ(layer.at("audited_error").size(), 5u);
    EXPECT_LT(layer.at("audited_error").at(4), layer.at("audited_error").at(0)) << "more tokens, less error";
    EXPECT_LT(layer.at("bytes_ratio").at(0), layer.at("bytes_ratio").at(4));
  }
  EXPECT_LE(record.at("per_kv_head_bytes_ratio").get<double>(),
            record.at("bytes_ratio").get<double>() + 1e-3);  // one KV head
  const json channels = json::parse(files_.read("channels.json"));
  EXPECT_EQ(channels.at("head_dim"), 64);
  ASSERT_EQ(channels.at("layers").size(), 2u);
  for (const json& layer : channels.at("layers")) {
    ASSERT_EQ(layer.size(), 1u);
    std::vector<int32_t> order = layer.at(0);
    EXPECT_FALSE(std::is_sorted(order.begin(), order.end())) << "no order of importance";
    std::sort(order.begin(), order.end());
    for (int32_t channel = 0; channel < 64; ++channel) EXPECT_EQ(order.at(static_cast<size_t>(channel)), channel);
  }
  // The file is the resolved policy, with comments; and running it gives the bytes that were promised.
  EXPECT_TRUE(files_.read("out.policy").starts_with("# rarefy calibrate")) << files_.read("out.policy");
  const ProgramResult scored =
      run("perplexity", {"-f", file, "--context", "1024", "-n", "12", "--policy", "@" + policy, "--json"});
  ASSERT_EQ(scored.exit_code, 0) << scored.err;
  const json line = json::parse(scored.out.substr(scored.out.find('\n') + 1));
  EXPECT_EQ(line.at("policy_resolved"), record.at("policy_resolved"));
  EXPECT_NEAR(line.at("bytes_ratio").get<double>(), record.at("bytes_ratio").get<double>(), 0.01);

  std::vector<std::string> by_error = common;
  by_error.insert(by_error.end(), {"--error", std::to_string(record.at("error").get<double>()), "--from", "estimated"});
  const ProgramResult estimated = run("calibrate", by_error);
  EXPECT_EQ(estimated.exit_code, 0) << estimated.err;
  for (const char* part : {"error, estimated", "One budget for all layers", "bytes_ratio"}) {
    EXPECT_NE(estimated.out.find(part), std::string::npos) << estimated.out;
  }
}

TEST_F(CliExtension, CalibrateRefusesWhatCannotBe) {
  const std::string file = text(1200), policy = files_.path("out.policy");
  const auto calibrate = [&](std::vector<std::string> more) {
    more.insert(more.end(), {"-f", file, "-o", policy, "--steps", "4", "--budgets", "3"});
    return run("calibrate", more);
  };
  const std::vector<std::string> sizes = {"--context", "1024"};
  const auto with = [&](std::vector<std::string> more) {
    more.insert(more.end(), sizes.begin(), sizes.end());
    return calibrate(more);
  };
  expect_refused(with({}), 2, "--error E or --bytes-ratio R");
  expect_refused(with({"--error", "0.1", "--bytes-ratio", "0.1"}), 2, "--error E or --bytes-ratio R");
  expect_refused(with({"--error", "0.1", "--policy", "dense"}), 2, "got dense");
  expect_refused(with({"--error", "0.1", "--policy", "50x dense_layers=0"}), 2, "dense_layers=");
  expect_refused(with({"--error", "0.1", "--policy", "50x spend=priority eps=0.1"}), 2, "expected no eps=");
  expect_refused(with({"--error", "0.000001"}), 2, "no budget satisfies this");
  expect_refused(with({"--bytes-ratio", "0.001"}), 2, "smallest budgets tried");
  expect_refused(with({"--error", "0.1", "--from", "estimated", "--policy", "50x spend=topk"}), 2, "no certificate");
  expect_refused(calibrate({"--error", "0.1"}), 3, "text.txt: expected");                       // 16,384 tokens
  expect_refused(calibrate({"--error", "0.1", "--context", "300"}), 3, "at least 512 tokens");  // min= of the policy
  expect_refused(with({"--error", "0.1", "-o", "/no/such/folder/out.policy"}), 2, "-o");
  const ProgramResult unwritable = run(
      "calibrate", {"-f", file, "--context", "1024", "--steps", "4", "--error", "0.1", "-o", "/no/such/folder/out.policy"});
  expect_refused(unwritable, 1, "cannot write there");
  EXPECT_EQ(files_.num_files(), 1) << "something half-written beside the text";
}

}  // namespace
}  // namespace rarefy::testing
