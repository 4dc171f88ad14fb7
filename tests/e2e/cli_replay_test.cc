// capture and replay from outside: the shipped checkpoint and tiny ones, what they write, and what they refuse.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <nlohmann/json.hpp>
#include <thread>

#include "cli_files.h"
#include "run_program.h"
#include "tests/support/tiny_checkpoint.h"

namespace rarefy::testing {
namespace {

using nlohmann::json;

class CliReplay : public ::testing::Test {
 protected:
  std::string model() const { return checkpoint_.folder().string(); }
  // A capture of the tiny checkpoint; its path.
  std::string capture(const std::string& name, std::vector<std::string> more = {}, const char* num_tokens = "700") {
    std::vector<std::string> arguments = {"capture",
                                          "-m",
                                          model(),
                                          "-t",
                                          "1",
                                          "-f",
                                          files_.write("text.txt", sample_text(1500)),
                                          "--tokens",
                                          num_tokens,
                                          "--steps",
                                          "4",
                                          "-o",
                                          files_.path(name)};
    arguments.insert(arguments.end(), more.begin(), more.end());
    const ProgramResult result = run_program(arguments);
    EXPECT_EQ(result.exit_code, 0) << result.err;
    EXPECT_EQ(result.out, "");
    return files_.path(name);
  }
  static std::vector<json> replay(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), "replay");
    arguments.insert(arguments.end(), {"-t", "1", "--json"});
    const ProgramResult result = run_program(arguments);
    EXPECT_EQ(result.exit_code, 0) << result.err;
    return json_lines(result.out);
  }
  static void expect_refused(const ProgramResult& result, int exit_code, const std::string& part) {
    EXPECT_EQ(result.exit_code, exit_code) << result.err;
    EXPECT_TRUE(result.err.starts_with("rarefy: ")) << result.err;
    EXPECT_NE(result.err.find(part), std::string::npos) << result.err;
    EXPECT_EQ(result.out, "");
  }

  TinyCheckpoint checkpoint_;
  ScratchFolder files_;
};

TEST_F(CliReplay, ShippedCheckpoint) {
  const std::string text = files_.write("text.txt", sample_text(6000)), file = files_.path("c.safetensors");
  const ProgramResult result =
      run_program({"capture", "-f", text, "--tokens", "900", "--steps", "3", "--every", "5", "-ctk", "f32", "-o", file});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const std::vector<json> arms =
      replay({file, "--policy", "total=1.0", "--policy", "10x", "--policy", "total=0.1 index=oracle spend=topk"});
  ASSERT_EQ(arms.size(), 3u);
  // With an f32 cache dense attention is exact to f32 rounding: logits of up to 100 in magnitude, 24 bits.
  EXPECT_LT(arms[0].at("error_max").get<double>(), 1e-4);
  EXPECT_EQ(arms[0].at("bytes_ratio"), 1.0);
  EXPECT_EQ(arms[1].at("model"), "rarefy-8m");
  EXPECT_EQ(arms[1].at("selector"), "sign64");
  EXPECT_EQ(arms[1].at("kv_dtype"), "f32");
  EXPECT_EQ(arms[1].at("kv_len"), 910);
  EXPECT_EQ(arms[1].at("pairs"), 3 * 6 * 8);
  EXPECT_GT(arms[1].at("error_p50").get<double>(), 1e-3);
  EXPECT_NEAR(arms[1].at("density").get<double>(), 0.1, 0.01);
  EXPECT_GT(arms[1].at("bytes_ratio").get<double>(), arms[1].at("density").get<double>());
  EXPECT_EQ(arms[1].at("by_layer").size(), 6u);
  for (const char* field :
       {"device", "commit", "command", "date", "certificate_covered", "exact_error_p95", "mass", "overlap"}) {
    EXPECT_TRUE(arms[1].contains(field)) << field;
  }
  EXPECT_FALSE(arms[2].contains("certificate_covered"));
  EXPECT_GT(arms[2].at("overlap").get<double>(), arms[1].at("overlap").get<double>());
}

TEST_F(CliReplay, WrittenIndexSetsReproduceTheirPolicy) {
  const std::string file = capture("c.safetensors"), lists = files_.path("lists.safetensors");
  const json policy = replay({file, "--policy", "total=64 index=q2", "-s", "3", "--write-index-set", lists}).at(0);
  const json stored = replay({file, "--index-set", lists}).at(0);
  EXPECT_GT(policy.at("error_p50").get<double>(), 0.0);
  for (const char* field : {"error_mean", "error_p99", "error_max", "exact_error_mean", "mass", "recall_of_exact",
                            "overlap", "estimated_error_mean", "certificate_covered", "density", "num_selected"}) {
    EXPECT_EQ(policy.at(field), stored.at(field)) << field;
  }
  EXPECT_EQ(stored.at("index_bytes"), 0);
  EXPECT_EQ(stored.at("selector"), "index set");
}

// Replaying a captured run gives the errors that its audits gave: the same queries, cache and draws.
TEST_F(CliReplay, AgreesWithAudits) {
  const std::string text = files_.write("audit.txt", sample_text(1500));
  const std::string policy = "total=64 index=sign";
  const ProgramResult run = run_program({"perplexity", "-m", model(), "-t", "1", "-f", text, "--context", "700",
                                         "--predict", "6", "--policy", policy, "--audit", "1", "--json"});
  ASSERT_EQ(run.exit_code, 0) << run.err;
  const json audited = json::parse(run.out.substr(run.out.find('\n') + 1));
  const std::string file = files_.path("policy.safetensors");
  ASSERT_EQ(run_program({"capture", "-m", model(), "-t", "1", "-f", text, "--tokens", "700", "--steps", "6", "--policy",
                         policy, "-o", file})
                .exit_code,
            0);
  const json replayed = replay({file, "--policy", policy}).at(0);
  EXPECT_NEAR(replayed.at("density").get<double>(), audited.at("density").get<double>(), 1e-12);
  EXPECT_NEAR(replayed.at("bytes_ratio").get<double>(), audited.at("bytes_ratio").get<double>(), 1e-12);
  // Audits compare with the dense kernel, replay with double precision: both sides round by up to 2^-8.
  const double rms = audited.at("audited_error_rms").get<double>();
  EXPECT_GT(rms, 0.02);
  EXPECT_NEAR(replayed.at("error_rms").get<double>(), rms, 0.01);
  EXPECT_EQ(replayed.at("pairs"), audited.at("audited_heads"));
}

TEST_F(CliReplay, GenerateSeedsAndPooling) {
  const std::string generated = capture("g.safetensors", {"--generate"}), text = capture("t.safetensors");
  EXPECT_NE(files_.read("g.safetensors").substr(2000), files_.read("t.safetensors").substr(2000));
  const json one = replay({text, "--policy", "total=64 index=sign"}).at(0);
  const json many = replay({text, "--policy", "total=64 index=sign", "--seeds", "5"}).at(0);
  EXPECT_EQ(many.at("pairs").get<int64_t>(), 5 * one.at("pairs").get<int64_t>());
  EXPECT_NE(many.at("error_mean"), one.at("error_mean"));
  EXPECT_EQ(many.at("index_bytes").get<int64_t>(), 5 * one.at("index_bytes").get<int64_t>());
  const json pooled = replay({text, generated, "--policy", "total=64 index=sign"}).at(0);
  EXPECT_EQ(pooled.at("captures"), 2);
  EXPECT_EQ(pooled.at("pairs").get<int64_t>(), 2 * one.at("pairs").get<int64_t>());
  EXPECT_EQ(replay({text, "--policy", "50x", "--steps", "2"}).at(0).at("steps"), 2);
}

TEST_F(CliReplay, TableAndPage) {
  const std::string file = capture("c.safetensors"), page = files_.path("page.html");
  const ProgramResult result =
      run_program({"replay", file, "--policy", "total=64 index=sign", "--policy", "total=32 index=sign", "--policy",
                   "total=64 index=oracle spend=topk", "--html", page});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  for (const char* part : {"bytes_ratio", "audited", "estimated", "overlap", "total=32 index=sign"}) {
    EXPECT_NE(result.out.find(part), std::string::npos) << part << " is not in:\n" << result.out;
  }
  const std::string html = files_.read("page.html");
  EXPECT_TRUE(html.starts_with("<!DOCTYPE html>"));
  EXPECT_TRUE(html.ends_with("</html>\n"));
  size_t plots = 0;
  for (size_t at = html.find("<svg"); at != std::string::npos; at = html.find("<svg", at + 1)) ++plots;
  EXPECT_EQ(plots, 4u);  // error against bytes, error by layer, two certificates
  for (const char* part : {"<script", "http://", "https://", "nan", "inf\""}) {
    std::string text = html;
    for (size_t at = 0; (at = text.find("http://www.w3.org/2000/svg")) != std::string::npos;) text.erase(at, 26);
    EXPECT_EQ(text.find(part), std::string::npos) << part;
  }
}

TEST_F(CliReplay, RefusesBadCalls) {
  const std::string file = capture("c.safetensors");
  const std::string text = files_.path("text.txt"), other = files_.path("other.safetensors");
  const auto capture_with = [&](std::vector<std::string> more) {
    std::vector<std::string> arguments = {"capture", "-m", model(), "-t", "1", "-f", text, "-o", other};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return run_program(arguments);
  };
  expect_refused(capture_with({"--tokens", "1490", "--steps", "40"}), 3, "expected 1,529 tokens");
  expect_refused(capture_with({"--tokens", "700", "--layers", "2"}), 2, "--layers");
  expect_refused(capture_with({"--tokens", "700", "--layers", "0-"}), 2, "--layers");
  expect_refused(capture_with({"--tokens", "700", "--policy", "fifty"}), 2, "fifty");
  expect_refused(
      run_program({"capture", "-m", model(), "-f", text, "--tokens", "700", "-o", files_.path("no/folder.safetensors")}), 1,
      "no/folder.safetensors");
  const ProgramResult full = run_program({"capture", "-m", model(), "-f", text, "--tokens", "700", "-o", "/dev/full"});
  expect_refused(full, 1, "No space left");
  expect_refused(run_program({"replay", file}), 2, "--policy or --index-set");
  expect_refused(run_program({"replay", file, "--policy", "fifty"}), 2, "fifty");
  expect_refused(run_program({"replay", file, "--policy", "total=64 index=nonsense"}), 2, "nonsense");
  expect_refused(run_program({"replay", file, "--policy", "50x", "--layers", "7"}), 2, "--layers");
  expect_refused(run_program({"replay", file, "--policy", "50x", "--steps", "9"}), 2, "at most 4");
  expect_refused(run_program({"replay", file, "--policy", "50x", "--html", files_.path("no/page.html")}), 1,
                 "no/page.html");
  expect_refused(run_program({"replay", file, "--policy", "50x", "--html", "/dev/full"}), 1, "No space left");
  expect_refused(run_program({"replay", file, "--policy", "50x", "--policy", "100x", "--write-index-set", other}), 2,
                 "one --policy");
  expect_refused(run_program({"replay", files_.path("nowhere"), "--policy", "50x"}), 3, "nowhere");
  EXPECT_FALSE(std::filesystem::exists(other));
}

TEST_F(CliReplay, RefusesBadFiles) {
  const std::string file = capture("c.safetensors"), whole = files_.read("c.safetensors");
  expect_refused(
      run_program({"replay", files_.write("cut.safetensors", whole.substr(0, whole.size() / 2)), "--policy", "50x"}), 3,
      "truncated");
  expect_refused(run_program({"replay", files_.path("text.txt"), "--policy", "50x"}), 3, "safetensors");
  // The last four bytes are two values in bf16: all ones is NaN.
  std::string bad = whole;
  bad.replace(bad.size() - 4, 4, 4, '\xff');
  expect_refused(run_program({"replay", files_.write("nan.safetensors", bad), "--policy", "50x"}), 3,
                 "expected finite numbers, got NaN");

  const TinyCheckpoint other({.num_layers = 3});
  expect_refused(run_program({"replay", file, "--policy", "50x", "-m", other.folder().string()}), 3,
                 "expected num_layers 3, got 2");
  const TinyCheckpoint twin({.seed = 2});
  expect_refused(run_program({"replay", file, "--policy", "50x", "-m", twin.folder().string()}), 3, "expected checkpoint");
  EXPECT_EQ(run_program({"replay", file, "--policy", "50x", "-m", model()}).exit_code, 0);

  const std::string lists = files_.path("lists.safetensors");
  replay({file, "--policy", "total=64 index=sign", "--write-index-set", lists});
  const std::string shorter = capture("s.safetensors", {}, "650");
  expect_refused(run_program({"replay", shorter, "--index-set", lists}), 3, "expected a token from 0 to kv_len - 1 = 6");
  expect_refused(run_program({"replay", file, "--index-set", files_.write("l.npy", "x")}), 3, "NumPy");
  expect_refused(run_program({"replay", file, "--index-set", files_.path("nowhere.npz")}), 3, "nowhere.npz");
  expect_refused(run_program({"replay", file, shorter, "--index-set", lists}), 2, "one capture");
}

TEST_F(CliReplay, InterruptLeavesNothing) {
  const std::string text = files_.write("long.txt", sample_text(8100));
  const ScratchFolder results;
  const std::string output = results.path("c.safetensors");
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    if (std::freopen("/dev/null", "w", stderr) == nullptr) _exit(98);
    execl(RAREFY_CLI, "rarefy", "capture", "-m", model().c_str(), "-t", "1", "-f", text.c_str(), "--tokens", "4000",
          "--steps", "4000", "-o", output.c_str(), nullptr);
    _exit(99);
  }
  // Once the temporary file is there, work is under way.
  while (results.num_files() == 0) {
    ASSERT_EQ(waitpid(child, nullptr, WNOHANG), 0) << "capture ended early";
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  ASSERT_EQ(kill(child, SIGINT), 0);
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 130);
  EXPECT_EQ(results.num_files(), 0);
}

TEST_F(CliReplay, PolicyListAsJson) {
  const ProgramResult result = run_program({"policy", "list", "--json"});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  const json record = json::parse(result.out);
  const auto has = [&](const char* list, const char* name) {
    return std::any_of(record.at(list).begin(), record.at(list).end(),
                       [&](const json& one) { return one.at("name") == name; });
  };
  EXPECT_TRUE(has("selectors", "sign64"));
  EXPECT_TRUE(has("spends", "half"));
}

}  // namespace
}  // namespace rarefy::testing
