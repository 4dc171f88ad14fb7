#include "verbs.h"

#include <CLI/CLI.hpp>
#include <cstdlib>

#include "failure.h"
#include "rarefy/select/registry.h"

namespace rarefy::cli {
namespace {

constexpr const char* kExitCodes =
    "Exit codes: 0 done, 1 the run failed, 2 bad flags or policy, 3 bad model or\n"
    "input file, 4 demo below expectation, 5 --audit-fail: eps not kept,\n"
    "130 cancelled (Ctrl-C), 141 output closed.";

// Those of RAREFY_PLUGINS, separated by colons.
void load_environment_plugins() {
  const char* text = std::getenv("RAREFY_PLUGINS");
  if (text == nullptr) return;
  std::string_view rest = text;
  while (!rest.empty()) {
    const size_t colon = rest.find(':');
    const std::string_view file = rest.substr(0, colon);
    if (!file.empty()) check(load_plugin(file).with_context("RAREFY_PLUGINS"), ExitCode::bad_input);
    if (colon == std::string_view::npos) return;
    rest.remove_prefix(colon + 1);
  }
}

}  // namespace

CLI::App* add_verb(CLI::App& parent, const std::string& name, const std::string& purpose, const std::string& examples) {
  CLI::App* verb = parent.add_subcommand(name, purpose);
  verb->parse_complete_callback(load_environment_plugins);  // before the verb itself, and not for --help
  verb->add_option_function<std::vector<std::string>>(
          "--plugin",
          [](const std::vector<std::string>& files) {
            for (const std::string& file : files) check(load_plugin(file), ExitCode::bad_input);
          },
          "load selectors from this shared object; may be repeated")
      ->allow_extra_args(false)
      ->type_name("FILE");
  verb->footer("\nExample:\n" + examples + "\n\n" + kExitCodes);
  return verb;
}

}  // namespace rarefy::cli
