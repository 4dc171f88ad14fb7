// rarefy bench: measurements of single operations.
#include <CLI/CLI.hpp>

#include "verbs.h"

namespace rarefy::cli {

void add_bench(CLI::App& parent) {
  CLI::App* verb = add_verb(parent, "bench",
                            "Measure single operations on this machine.\n"
                            "Each benchmark states its cases as text and writes a table or JSON lines.",
                            "  rarefy bench attention --help");
  verb->require_subcommand(1);
  add_bench_attention(*verb);
}

}  // namespace rarefy::cli
