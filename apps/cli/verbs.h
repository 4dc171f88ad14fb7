// The verbs of the program. Each lives in a file of its own and adds one subcommand to `parent`; its callback runs it and
// throws a Failure when it cannot.
#pragma once

#include <string>

namespace CLI {
class App;
}

namespace rarefy::cli {

void add_demo(CLI::App& parent);
void add_generate(CLI::App& parent);
void add_chat(CLI::App& parent);
void add_perplexity(CLI::App& parent);
void add_recall(CLI::App& parent);
void add_capture(CLI::App& parent);
void add_replay(CLI::App& parent);
void add_policy(CLI::App& parent);
void add_inspect(CLI::App& parent);
void add_models(CLI::App& parent);
void add_bench(CLI::App& parent);
void add_bench_attention(CLI::App& bench);

// A subcommand with its two lines of purpose and, below its flags, an example that works and the exit codes.
CLI::App* add_verb(CLI::App& parent, const std::string& name, const std::string& purpose, const std::string& examples);

}  // namespace rarefy::cli
