// The demo on the shipped checkpoint, cut short.
#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <regex>

#include "run_program.h"

namespace rarefy::testing {
namespace {

TEST(CliDemo, EndsWithItsLineForScripts) {
  const std::string model = RAREFY_SOURCE_DIR "/models/rarefy-8m";
  ASSERT_TRUE(std::filesystem::exists(model + "/model.safetensors"));
  const ProgramResult result = run_program({"demo", "-m", model, "--questions", "2", "--max-tokens", "2048"});
  EXPECT_EQ(result.exit_code, 0) << result.out << result.err;
  const size_t last = result.out.rfind('\n', result.out.size() - 2) + 1;
  const std::regex line(
      R"(demo: tokens=2048 questions=2 dense=[0-2] sparse=[0-2] policy=50x bytes_ratio=0\.\d+ dense_ms_per_token=\d+\.\d+ sparse_ms_per_token=\d+\.\d+\n)");
  EXPECT_TRUE(std::regex_match(result.out.substr(last), line)) << result.out.substr(last);
  EXPECT_EQ(result.out.find('\x1b'), std::string::npos) << "colours without a terminal";

  const ProgramResult json = run_program({"demo", "-m", model, "--questions", "2", "--max-tokens", "2048", "--json"});
  EXPECT_EQ(json.exit_code, 0) << json.err;
  const nlohmann::json record = nlohmann::json::parse(json.out);
  EXPECT_EQ(record.at("tokens"), 2048);
  // Numbers that were timed differ from run to run, and with them the widths of columns; the text around them does not.
  const auto words = [](const std::string& text) {
    return std::regex_replace(std::regex_replace(text, std::regex(R"(\d+(\.\d+)?( (s|ms))?)"), "N"), std::regex(" +"), " ");
  };
  EXPECT_EQ(words(record.at("report").get<std::string>()), words(result.out));
}

}  // namespace
}  // namespace rarefy::testing
