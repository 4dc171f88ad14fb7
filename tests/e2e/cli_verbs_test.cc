// What the verbs compute, seen from outside, on a tiny random checkpoint.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "cli_files.h"
#include "run_program.h"
#include "tests/support/tiny_checkpoint.h"

namespace rarefy::testing {
namespace {

using nlohmann::json;

class CliVerbs : public ::testing::Test {
 protected:
  ProgramResult run(const std::string& verb, std::vector<std::string> more) {
    std::vector<std::string> arguments = {verb, "-m", checkpoint_.folder().string(), "-t", "1"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return run_program(arguments);
  }

  // The JSON objects of standard output, one a line; the run must succeed.
  std::vector<json> records(const std::string& verb, std::vector<std::string> more) {
    more.push_back("--json");
    const ProgramResult result = run(verb, more);
    EXPECT_EQ(result.exit_code, 0) << result.err;
    return json_lines(result.out);
  }

  TinyCheckpoint checkpoint_;
  ScratchFolder files_;
};

TEST_F(CliVerbs, GenerateIsReproducibleBySeed) {
  const std::string text = files_.write("text.txt", sample_text(1500));
  const auto tokens = [&](const char* seed) {
    return records("generate", {"-f", text, "-p", "And then", "-n", "24", "--temp", "1", "--ignore-eos", "-s", seed,
                                "--policy", "total=64 index=sign", "--policy-tokens", "8"})
        .at(0);
  };
  const json first = tokens("7"), second = tokens("7"), other = tokens("8");
  EXPECT_EQ(first.at("tokens").size(), 24u);
  EXPECT_EQ(first.at("tokens"), second.at("tokens"));
  EXPECT_EQ(first.at("text"), second.at("text"));
  EXPECT_NE(first.at("tokens"), other.at("tokens"));
  EXPECT_EQ(first.at("prompt_tokens").get<int64_t>() - first.at("dense_prompt_tokens").get<int64_t>(), 8);
  EXPECT_LT(first.at("stats").at("density"), 0.1);
}

TEST_F(CliVerbs, GenerateStreamsTextAndSumsUp) {
  const ProgramResult result = run("generate", {"-p", "Hello", "-n", "5", "--ignore-eos"});
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_FALSE(result.out.empty());
  for (const char* part : {"prefill (dense)", "decode", "policy", "dense", "density", "bytes_ratio"}) {
    EXPECT_NE(result.err.find(part), std::string::npos) << part << " is not in:\n" << result.err;
  }
  EXPECT_EQ(result.err.find('\r'), std::string::npos) << "a progress bar without a terminal";
  EXPECT_EQ(result.err.find('\x1b'), std::string::npos) << "colours without a terminal";
}

TEST_F(CliVerbs, GenerateWarnsWhenSparsityIsNotReached) {
  const ProgramResult result = run("generate", {"-p", "Hello", "-n", "4", "--policy", "50x"});
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_NE(result.err.find("less than 90 %"), std::string::npos) << result.err;
  EXPECT_NE(result.err.find("min=512"), std::string::npos) << result.err;
}

TEST_F(CliVerbs, AuditsAreLabelled) {
  const std::string text = files_.write("text.txt", sample_text(2000));
  const ProgramResult result =
      run("generate", {"-f", text, "-n", "8", "--ignore-eos", "--policy", "total=64 min=1 index=q2", "--audit", "1"});
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_NE(result.err.find("error, estimated"), std::string::npos) << result.err;
  EXPECT_NE(result.err.find("error, audited"), std::string::npos) << result.err;
}

TEST_F(CliVerbs, PolicyExplainCountsTokensAndBytes) {
  const ProgramResult result =
      run_program({"policy", "explain", "total=400 sink=4 local=32 index=sign dense_layers=1", "--ctx-size", "10000",
                   "--num-layers", "4", "--num-q-heads", "8", "--num-kv-heads", "2", "--head-dim", "64", "--json"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const json record = json::parse(result.out);
  const json& sparse = record.at("layers").at(0);
  EXPECT_EQ(sparse.at("total"), 400);
  EXPECT_EQ(sparse.at("sink"), 4);
  EXPECT_EQ(sparse.at("local"), 32);
  EXPECT_EQ(sparse.at("selected"), 364);
  EXPECT_TRUE(record.at("layers").at(1).at("dense"));
  EXPECT_DOUBLE_EQ(record.at("density"), (3 * 400.0 + 10000.0) / 40000.0);
  constexpr double kRowBytes = 2 * 64 * 2;  // key and value, bf16
  EXPECT_DOUBLE_EQ(record.at("dense_bytes"), 4 * 2 * 10000 * kRowBytes);
  EXPECT_DOUBLE_EQ(record.at("row_bytes"), 2 * (3 * 400 + 10000) * kRowBytes);
  // One bit per dimension is the least that sign codes can take.
  EXPECT_GE(record.at("index_bytes"), 3 * 2 * 10000 * 64 / 8.0);
  EXPECT_DOUBLE_EQ(record.at("bytes_ratio"),
                   (record.at("row_bytes").get<double>() + record.at("index_bytes").get<double>()) /
                       record.at("dense_bytes").get<double>());
}

TEST_F(CliVerbs, PolicyTextsComeBackResolved) {
  const ProgramResult result = run_program({"policy", "explain", "50x", "--ctx-size", "131072"});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_NE(result.out.find("total="), std::string::npos);
  EXPECT_NE(result.out.find("sparsity     50.0x"), std::string::npos) << result.out;
  const ProgramResult list = run_program({"policy", "list"});
  EXPECT_EQ(list.exit_code, 0);
  for (const char* part : {"sign", "q2", "quest16", "oracle", "priority", "half", "uniform"}) {
    EXPECT_NE(list.out.find(part), std::string::npos) << part;
  }
}

TEST_F(CliVerbs, InspectKnowsTheCheckpoint) {
  const json record = records("inspect", {"-c", "4096", "--bandwidth", "10", "-ctk", "f32", "--compute", "f32"}).at(0);
  EXPECT_EQ(record.at("num_layers"), 2);
  EXPECT_EQ(record.at("kv_bytes_per_token"), 2 * 2 * 64 * 4);  // layers, key and value, one head of 64, f32
  EXPECT_EQ(record.at("kv_bytes"), 4096 * 2 * 2 * 64 * 4);
  const double step_bytes = record.at("weight_bytes").get<double>() + record.at("kv_bytes").get<double>();
  EXPECT_NEAR(record.at("ceilings").at(0).at("tokens_per_second").get<double>(), 10e9 / step_bytes,
              1e-6 * 10e9 / step_bytes);
  EXPECT_GT(record.at("ceilings").at(1).at("tokens_per_second"), record.at("ceilings").at(0).at("tokens_per_second"));
}

TEST(CliModels, ListsSizesAndMemory) {
  const ProgramResult text = run_program({"models", "-c", "65536"});
  EXPECT_EQ(text.exit_code, 0) << text.err;
  for (const char* part : {"meta-llama/Llama-3.1-8B-Instruct", "131,072", "16.1 GB", "122,532", "at 65,536 tokens"}) {
    EXPECT_NE(text.out.find(part), std::string::npos) << part;
  }
  const ProgramResult one = run_program(
      {"models", "gemma-3-27b-it", "-c", "100000", "--policy", "total=1000 sink=4 local=32 index=sign", "--json"});
  ASSERT_EQ(one.exit_code, 0) << one.err;
  const json record = json::parse(one.out);
  const double row_bytes = 16 * 128 * 2 * 2;  // keys and values of a token in one layer
  EXPECT_DOUBLE_EQ(record.at("kv_bytes"), 10 * row_bytes * 100000);
  EXPECT_DOUBLE_EQ(record.at("memory_bytes"), record.at("weight_bytes").get<double>() +
                                                  record.at("kv_bytes").get<double>() +
                                                  record.at("index_bytes").get<double>() + 52 * 1024 * row_bytes);
  EXPECT_GE(record.at("index_bytes"), 10 * 16 * 100000 * 128 / 8.0);  // at least a bit a dimension
  EXPECT_NEAR(record.at("dense_step_bytes").get<double>() - record.at("sparse_step_bytes").get<double>(),
              0.99 * record.at("kv_bytes").get<double>() - record.at("index_bytes").get<double>(), 1.0);
  EXPECT_EQ(run_program({"models", "gpt-9"}).exit_code, 2);
  EXPECT_EQ(run_program({"models", "--policy", "50y"}).exit_code, 2);
}

TEST(CliModels, GiveBenchmarksTheirShapes) {
  const ProgramResult result =
      run_program({"bench", "attention", "--case", "model=Qwen3.5-0.8B kv_len=256", "--repeats", "3", "-t", "1", "--json"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  bool any = false;
  for (const json& record : json_lines(result.out)) {
    if (record.value("op", "") != "dense_decode") continue;
    any = true;
    EXPECT_EQ(record.at("num_q_heads"), 8);
    EXPECT_EQ(record.at("num_kv_heads"), 2);
    EXPECT_EQ(record.at("head_dim"), 256);
  }
  EXPECT_TRUE(any) << result.out;
  EXPECT_EQ(run_program({"bench", "attention", "--case", "model=gpt-9"}).exit_code, 2);
}

TEST_F(CliVerbs, PerplexityOfAFullBudgetIsThatOfDense) {
  const std::string text = files_.write("text.txt", sample_text(3000));
  const std::vector<json> lines =
      records("perplexity", {"-f", text, "--context", "900", "--predict", "40", "--chunks", "2", "--policy",
                             "total=100% min=1 index=sign", "--policy", "total=40 min=1 index=sign"});
  // A full budget is dense attention, either refused as a policy or run as one.
  ASSERT_GE(lines.size(), 2u);
  const json& dense = lines.front();
  const json& sparse = lines.back();
  EXPECT_EQ(dense.at("scored_tokens"), 80);
  EXPECT_EQ(dense.at("contexts"), 2);
  EXPECT_EQ(dense.at("kl_mean"), 0.0);
  EXPECT_EQ(dense.at("same_top"), 1.0);
  EXPECT_GT(dense.at("loss"), 0.5);
  EXPECT_LT(dense.at("loss"), 20.0);
  if (lines.size() == 3) {
    EXPECT_NEAR(lines[1].at("loss_gap").get<double>(), 0.0, 1e-5);
    EXPECT_NEAR(lines[1].at("kl_mean").get<double>(), 0.0, 1e-6);
    EXPECT_DOUBLE_EQ(lines[1].at("density"), 1.0);
  }
  EXPECT_NEAR(sparse.at("density").get<double>(), 40.0 / 920.0, 0.002);
  EXPECT_GT(sparse.at("kl_mean"), 0.0);
  EXPECT_EQ(sparse.at("policy"), "total=40 min=1 index=sign");
}

TEST_F(CliVerbs, PerplexityGoesOnFromItsResumeFile) {
  const std::string text = files_.write("text.txt", sample_text(2000));
  const auto arguments = [&](const char* seed) {
    return std::vector<std::string>{"-f",        text,
                                    "--context", "600",
                                    "--predict", "20",
                                    "--chunks",  "2",
                                    "-s",        seed,
                                    "--policy",  "total=40 min=1 index=q2",
                                    "--resume",  files_.path("state.jsonl")};
  };
  const std::vector<json> first = records("perplexity", arguments("1"));
  // As after a kill in the middle of the second context: half a line at the end.
  const std::string state = files_.read("state.jsonl");
  files_.write("state.jsonl", state.substr(0, state.size() - 30));
  const std::vector<json> second = records("perplexity", arguments("1"));
  ASSERT_EQ(first.size(), 2u);
  ASSERT_EQ(second.size(), 2u);
  EXPECT_EQ(first[1].at("loss"), second[1].at("loss"));
  EXPECT_EQ(first[1].at("kl_p999"), second[1].at("kl_p999"));
  EXPECT_EQ(files_.read("state.jsonl").substr(0, state.find('\n')), state.substr(0, state.find('\n')));
  const ProgramResult other = run("perplexity", arguments("2"));
  EXPECT_EQ(other.exit_code, 2);
  EXPECT_NE(other.err.find("state.jsonl"), std::string::npos);
}

TEST_F(CliVerbs, RecallCountsAnswers) {
  // What the model really says makes a question with a known right answer.
  const std::string context = sample_text(1200);
  const json said =
      records("generate", {"-f", files_.write("all.txt", context + "Q:"), "-n", "4", "--policy-tokens", "2"}).at(0);
  const std::string answer = said.at("text");
  const json line = {{"id", "one"},
                     {"context", context},
                     {"questions", {{{"question", "Q:"}, {"answer", "zzzz"}}, {{"question", "Q:"}, {"answer", "yyyyyy"}}}}};
  const std::string set = files_.write("set.jsonl", line.dump() + "\n");
  const std::vector<json> lines = records("recall", {"-f", set, "--policy", "total=64 index=sign"});
  ASSERT_EQ(lines.size(), 2u);
  for (const json& record : lines) {
    EXPECT_EQ(record.at("bench"), "recall");
    EXPECT_EQ(record.at("questions"), 2);
    EXPECT_LE(record.at("recall_ci95").at(0), record.at("recall"));
    EXPECT_GE(record.at("recall_ci95").at(1), record.at("recall"));
    for (const char* field : {"policy_resolved", "kv_dtype", "device", "commit", "command", "date"}) {
      EXPECT_TRUE(record.contains(field)) << field;
    }
  }
  EXPECT_LT(lines[1].at("density"), 0.2);
  EXPECT_EQ(lines[0].at("density"), 1.0);
}

}  // namespace
}  // namespace rarefy::testing
