// rarefy: the command line program. Verbs are in files of their own (verbs.h); this file reads the command line, sends the
// library's messages to standard error and turns failures into one message and an exit code.
#include <fmt/format.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <CLI/CLI.hpp>
#include <cerrno>
#include <clocale>
#include <cstdio>

#include "failure.h"
#include "help_formatter.h"
#include "interrupt.h"
#include "rarefy/core/build_info.h"
#include "rarefy/core/device.h"
#include "rarefy/core/log.h"
#include "run_record.h"
#include "verbs.h"

namespace rarefy::cli {
namespace {

std::string version_text() {
  const BuildInfo& info = build_info();
  return fmt::format(
      "rarefy {}\n"
      "  commit      {}{}\n"
      "  compiler    {}, {}\n"
      "  oneDNN      {}\n"
      "  Highway     {}, compiled for {}; this machine runs {}\n"
      "  CUDA        {}\n"
      "  threads     {}",
      info.version, info.commit, info.modified ? " with local changes" : "", info.compiler, info.build_type, info.onednn,
      info.highway, info.simd_targets, info.simd_target, info.cuda ? "yes" : "no", num_threads());
}

// Long flags with one dash, as llama.cpp has them, which CLI11 does not know.
std::vector<std::string> read_arguments(int argc, const char* const* argv) {
  std::vector<std::string> arguments;
  for (int i = 1; i < argc; ++i) {
    std::string argument = argv[i];
    for (const auto& [flag, full] : {std::pair{"-ctk", "--cache-type-k"}, std::pair{"-ctv", "--cache-type-v"}}) {
      if (argument == flag) argument = full;
      if (argument.starts_with(std::string(flag) + "=")) argument = full + argument.substr(4);
    }
    arguments.push_back(argument);
  }
  std::reverse(arguments.begin(), arguments.end());  // the order in which CLI11 takes them
  return arguments;
}

void send_log_to_stderr() {
  auto logger = std::make_shared<spdlog::logger>("rarefy", std::make_shared<spdlog::sinks::stderr_sink_mt>());
  logger->set_pattern("rarefy: %l: %v");
  set_log_sink([logger](LogLevel level, std::string_view message) {
    logger->log(level == LogLevel::warning ? spdlog::level::warn : spdlog::level::info, "{}", message);
  });
}

int run(int argc, const char* const* argv) {
  CLI::App app{"Decodes long contexts by attending to about 2 % of the cached tokens, and\nreports the error."};
  app.name("rarefy");
  app.formatter(std::make_shared<HelpFormatter>());
  app.set_version_flag("--version", version_text, "version and build facts");
  app.require_subcommand(1);
  app.footer(
      "\nExamples:\n"
      "  rarefy demo\n"
      "  rarefy generate -m MODEL -f document.txt -p 'Question: ...' --policy 50x\n"
      "  rarefy policy explain 50x --ctx-size 131072\n\n"
      "rarefy VERB --help explains a verb. Without -m, verbs use the small checkpoint\n"
      "that ships with rarefy.");
  add_demo(app);
  add_generate(app);
  add_chat(app);
  add_perplexity(app);
  add_recall(app);
  add_capture(app);
  add_replay(app);
  add_policy(app);
  add_inspect(app);
  add_models(app);
  add_bench(app);
  try {
    app.parse(read_arguments(argc, argv));
    return 0;
  } catch (const CLI::Success& success) {  // help and version
    errno = 0;
    app.exit(success);
    if (std::fflush(stdout) == 0 && std::ferror(stdout) == 0) return 0;
    return static_cast<int>(errno == EPIPE ? ExitCode::closed_pipe : ExitCode::run_failed);
  } catch (const CLI::ParseError& error) {
    fmt::print(stderr, "rarefy: {}\nrarefy --help, or rarefy VERB --help, lists the flags.\n", error.what());
    return static_cast<int>(ExitCode::usage);
  } catch (const Failure& failure) {
    if (!failure.message.empty()) fmt::print(stderr, "rarefy: {}\n", failure.message);
    return static_cast<int>(failure.code);
  } catch (const std::bad_alloc&) {
    fmt::print(stderr, "rarefy: out of memory; use a smaller -c or a smaller model\n");
    return static_cast<int>(ExitCode::run_failed);
  }
}

}  // namespace
}  // namespace rarefy::cli

int main(int argc, char** argv) {
  std::setlocale(LC_CTYPE, "");
  rarefy::cli::install_interrupt_handler();
  rarefy::cli::set_command_line(argc, argv);
  rarefy::cli::send_log_to_stderr();
  return rarefy::cli::run(argc, argv);
}
