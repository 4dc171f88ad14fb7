// Help, version, exit codes, and every kind of bad input: one clear message, a code that says whose fault it was, and nothing
// half-written.
#include <gtest/gtest.h>

#include "cli_files.h"
#include "run_program.h"
#include "tests/support/tiny_checkpoint.h"

namespace rarefy::testing {
namespace {

using ::testing::TestWithParam;

class CliInput : public ::testing::Test {
 protected:
  // Runs `generate` on the tiny checkpoint.
  ProgramResult generate(std::vector<std::string> more, const ProgramOptions& options = {}) {
    std::vector<std::string> arguments = {"generate", "-m", checkpoint_.folder().string(), "-t", "1"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return run_program(arguments, options);
  }

  // One message on standard error that starts with the program's name and contains `part`; nothing on standard output.
  static void expect_refused(const ProgramResult& result, int exit_code, const std::string& part) {
    EXPECT_EQ(result.exit_code, exit_code) << result.err;
    EXPECT_TRUE(result.err.starts_with("rarefy: ")) << result.err;
    EXPECT_NE(result.err.find(part), std::string::npos) << result.err;
    EXPECT_EQ(result.out, "");
  }

  TinyCheckpoint checkpoint_;
  ScratchFolder files_;
};

class CliHelp : public TestWithParam<std::vector<std::string>> {};

TEST_P(CliHelp, TeachesIn80Columns) {
  std::vector<std::string> arguments = GetParam();
  arguments.push_back("--help");
  const ProgramResult result = run_program(arguments);
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_EQ(result.err, "");
  EXPECT_NE(result.out.find("Example"), std::string::npos);
  if (!GetParam().empty()) {
    EXPECT_NE(result.out.find("Exit codes: 0 done"), std::string::npos);
  }
  std::istringstream lines(result.out);
  for (std::string line; std::getline(lines, line);) {
    // An example may not be broken; everything else is.
    if (!line.starts_with("  rarefy ")) {
      EXPECT_LE(line.size(), 82u) << line;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Verbs, CliHelp,
                         ::testing::Values(std::vector<std::string>{}, std::vector<std::string>{"demo"},
                                           std::vector<std::string>{"generate"}, std::vector<std::string>{"perplexity"},
                                           std::vector<std::string>{"recall"}, std::vector<std::string>{"capture"},
                                           std::vector<std::string>{"replay"}, std::vector<std::string>{"policy"},
                                           std::vector<std::string>{"policy", "explain"},
                                           std::vector<std::string>{"policy", "list"}, std::vector<std::string>{"inspect"},
                                           std::vector<std::string>{"bench"}));

TEST_F(CliInput, VersionNamesBuildFacts) {
  const ProgramResult result = run_program({"--version"});
  EXPECT_EQ(result.exit_code, 0);
  for (const char* part :
       {"rarefy 0.", "commit", "compiler", "oneDNN", "Highway", "this machine runs", "CUDA", "threads"}) {
    EXPECT_NE(result.out.find(part), std::string::npos) << part << " is not in:\n" << result.out;
  }
}

TEST_F(CliInput, UsageErrors) {
  expect_refused(run_program({}), 2, "subcommand");
  expect_refused(run_program({"no-such-verb"}), 2, "");
  expect_refused(generate({"-p", "x", "--no-such-flag"}), 2, "--no-such-flag");
  expect_refused(generate({"-p", "x", "--temp", "warm"}), 2, "--temp");
  expect_refused(generate({}), 2, "expected a prompt");
  expect_refused(generate({"-p", "x", "-ctk", "f16", "-ctv", "f32"}), 2, "the same type for keys and values");
  expect_refused(generate({"-p", "x", "-ctk", "q8_0"}), 2, "q8_0");
}

TEST_F(CliInput, LongFlagsWithOneDash) {
  for (const std::vector<std::string>& flags :
       {std::vector<std::string>{"-ctk", "f16"}, {"-ctk=f16"}, {"-ctv", "f16"}, {"-ctk", "f16", "-ctv", "f16"}}) {
    std::vector<std::string> arguments = {"-p", "Hello", "--json"};
    arguments.insert(arguments.end(), flags.begin(), flags.end());
    const ProgramResult result = generate(arguments);
    EXPECT_EQ(result.exit_code, 0) << result.err;
    EXPECT_NE(result.out.find(R"("kv_dtype":"f16")"), std::string::npos) << result.out;
  }
}

TEST_F(CliInput, Policies) {
  expect_refused(generate({"-p", "x", "--policy", "fifty"}), 2, "fifty");
  expect_refused(generate({"-p", "x", "--policy", "total=0.02 index=nonsense"}), 2, "nonsense");
  expect_refused(generate({"-p", "x", "--policy", "total=1.5"}), 2, "1.5");
  expect_refused(generate({"-p", "x", "--policy", "50x dense_layers=7"}), 2, "");
  expect_refused(run_program({"policy", "explain", "total=0.02 index=nonsense", "--ctx-size", "4096"}), 2, "nonsense");
}

TEST_F(CliInput, ModelFolders) {
  expect_refused(run_program({"generate", "-m", files_.path("nowhere"), "-p", "x"}), 3, "nowhere");
  files_.write("config.json", "{");
  expect_refused(run_program({"inspect", "-m", files_.path("")}), 3, "config.json");
  expect_refused(run_program({"policy", "explain", "50x", "-c", "4096", "-m", files_.path("nowhere")}), 3, "nowhere");
}

TEST_F(CliInput, Texts) {
  expect_refused(generate({"-f", files_.path("nowhere.txt")}), 3, "nowhere.txt");
  expect_refused(generate({"-f", files_.path("")}), 3, "got a folder");
  expect_refused(generate({"-f", files_.write("latin1.txt", "caf\xe9 au lait")}), 3, "UTF-8");
  expect_refused(generate({"-f", "-"}, {.input = "caf\xe9"}), 3, "UTF-8");
  const std::string longer = files_.write("long.txt", sample_text(9000));
  expect_refused(generate({"-f", longer}), 3, "the model allows 8192");
  expect_refused(generate({"-f", longer, "-c", "1000"}), 3, "-c allows 1000");
  expect_refused(generate({"-p", "x", "-c", "100000"}), 2, "8192");
}

TEST_F(CliInput, QuestionsAndPassages) {
  const std::string model = checkpoint_.folder().string();
  expect_refused(run_program({"recall", "-m", model, "-f", files_.write("empty.jsonl", "\n")}), 3, "empty");
  expect_refused(run_program({"recall", "-m", model, "-f", files_.write("bad.jsonl", "{\"context\": \"x\"}\nnot json\n")}),
                 3, "bad.jsonl:2");
  expect_refused(run_program({"recall", "-m", model, "-f", files_.write("none.jsonl", "{\"context\": \"x\"}\n")}), 3,
                 "question");
  expect_refused(run_program({"perplexity", "-m", model, "-f", files_.write("short.txt", "short"), "--context", "100"}), 3,
                 "short.txt");
  expect_refused(run_program({"perplexity", "-m", model, "-f", files_.write("half.jsonl", "{\"context\": \"x\"}\n")}), 3,
                 "continuation");
  expect_refused(run_program({"demo", "-m", model, "--data", files_.path("nowhere")}), 3, "demo_context.txt");
}

TEST_F(CliInput, UnwritableOutput) {
  expect_refused(generate({"-p", "x", "--output", files_.path("no/folder.txt")}), 1, "no/folder.txt");
  EXPECT_EQ(files_.num_files(), 0);
  const ProgramResult full = generate({"-p", "x", "--json", "--output", "/dev/full"});
  EXPECT_EQ(full.exit_code, 1);
  EXPECT_NE(full.err.find("No space left"), std::string::npos) << full.err;
  const ProgramResult full_stdout = generate({"-p", "x", "--json"}, {.stdout_path = "/dev/full"});
  EXPECT_EQ(full_stdout.exit_code, 1);
  EXPECT_NE(full_stdout.err.find("No space left"), std::string::npos) << full_stdout.err;
  EXPECT_EQ(run_program({"--version"}, {.stdout_path = "/dev/full"}).exit_code, 1);
}

TEST_F(CliInput, OutputAppearsWholeOrNotAtAll) {
  const ProgramResult result = generate({"-p", "x", "--json", "--output", files_.path("answer.json")});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(result.out, "");
  EXPECT_EQ(files_.num_files(), 1);
  EXPECT_TRUE(files_.read("answer.json").ends_with("}\n"));
  // A run that fails leaves what was there.
  EXPECT_NE(generate({"-p", "x", "--policy", "fifty", "--output", files_.path("answer.json")}).exit_code, 0);
  EXPECT_EQ(files_.num_files(), 1);
  EXPECT_TRUE(files_.read("answer.json").ends_with("}\n"));
}

TEST_F(CliInput, ClosedPipeEndsQuietly) {
  const ProgramResult result = generate({"-p", "x", "-n", "8000", "--ignore-eos"}, {.close_output = true});
  EXPECT_EQ(result.exit_code, 141);
  EXPECT_EQ(result.err, "");
}

TEST_F(CliInput, InterruptStopsCleanly) {
  const ProgramResult result = generate({"-p", "x", "-n", "8000", "--ignore-eos"}, {.interrupt = true});
  EXPECT_EQ(result.exit_code, 130);
  EXPECT_NE(result.err.find("tokens/s"), std::string::npos) << result.err;
  EXPECT_NE(result.err.find("cancelled"), std::string::npos) << result.err;
}

}  // namespace
}  // namespace rarefy::testing
