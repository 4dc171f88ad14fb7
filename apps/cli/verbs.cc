#include "verbs.h"

#include <CLI/CLI.hpp>

namespace rarefy::cli {
namespace {

constexpr const char* kExitCodes =
    "Exit codes: 0 done, 1 the run failed, 2 bad flags or policy, 3 bad model or\n"
    "input file, 4 demo below expectation, 130 cancelled (Ctrl-C), 141 output closed.";

}  // namespace

CLI::App* add_verb(CLI::App& parent, const std::string& name, const std::string& purpose, const std::string& examples) {
  CLI::App* verb = parent.add_subcommand(name, purpose);
  verb->footer("\nExample:\n" + examples + "\n\n" + kExitCodes);
  return verb;
}

}  // namespace rarefy::cli
