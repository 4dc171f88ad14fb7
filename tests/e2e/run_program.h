// Runs the program `rarefy` the way a shell does, and gives back what it wrote and how it ended.
#pragma once

#include <string>
#include <vector>

namespace rarefy::testing {

struct ProgramResult {
  int exit_code = -1;  // 128 + n when signal n ended it
  std::string out, err;
};

struct ProgramOptions {
  std::string input = {};        // standard input
  std::string stdout_path = {};  // empty = captured
  bool interrupt = false;        // sends SIGINT as soon as something is captured on standard output
  bool close_output = false;     // closes the reading end of standard output as soon as something came
};

ProgramResult run_program(const std::vector<std::string>& arguments, const ProgramOptions& options = {});

}  // namespace rarefy::testing
