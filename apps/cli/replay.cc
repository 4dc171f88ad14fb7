// rarefy replay: policies and index sets on captured queries, keys and values, against dense attention.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <memory>

#include "evaluation.h"
#include "failure.h"
#include "files.h"
#include "fingerprint.h"
#include "interrupt.h"
#include "layer_list.h"
#include "model_flags.h"
#include "rarefy/core/device.h"
#include "rarefy/engine/index_set_file.h"
#include "rarefy/engine/replay.h"
#include "replay_report.h"
#include "terminal.h"
#include "verbs.h"

namespace rarefy::cli {
namespace {

struct Flags {
  std::string capture, model, layers, output, html, write_index_set;
  std::vector<std::string> policies, index_sets;
  int32_t steps = 0;
  int32_t seeds = 1;
  int32_t threads = 0;
  uint64_t seed = 0;
  bool json = false;
};

void check_model(const Capture& capture, const std::string& folder) {
  const ModelConfig config = unwrap(ModelConfig::load(folder), ExitCode::bad_input);
  check(capture.info().check_model(config), ExitCode::bad_input);
  const auto captured = capture.info().origin.find("checkpoint");
  if (captured == capture.info().origin.end()) return;
  const std::string given = checkpoint_fingerprint(folder);
  if (captured->second == given) return;
  fail(ExitCode::bad_input, fmt::format("capture of another model: expected checkpoint {} (of {}), got {}; name the model it was "
                                        "captured from, or capture again",
                                        given, folder, captured->second));
}

void write_lists(Output& output, const std::vector<ReplaySummary>& arms) {
  check(save_index_sets(arms.front().arm.lists, [&](std::span<const std::byte> bytes) {
    output.write_bytes(bytes.data(), bytes.size());
    return Status();
  }));
  output.commit();
}

void run(const Flags& flags) {
  set_num_threads(flags.threads);
  if (flags.policies.empty() && flags.index_sets.empty()) {
    fail(ExitCode::usage, "replay: expected --policy or --index-set at least once, got none");
  }
  if (!flags.write_index_set.empty() && flags.policies.size() + flags.index_sets.size() != 1) {
    fail(ExitCode::usage, "--write-index-set: expected one --policy, whose lists are written, got several; replay them one by one");
  }
  const Capture capture = unwrap(Capture::load(flags.capture), ExitCode::bad_input);
  if (!flags.model.empty()) check_model(capture, flags.model);
  if (flags.steps > capture.info().num_steps) {
    fail(ExitCode::usage, fmt::format("--steps: expected at most {}, which the capture has, got {}", capture.info().num_steps, flags.steps));
  }

  ReplayOptions options;
  options.layers = parse_layers("--layers", flags.layers, capture.info().layers, "layers of the capture");
  options.num_steps = flags.steps;
  options.seed = flags.seed;
  options.num_seeds = flags.seeds;
  options.keep_sets = !flags.write_index_set.empty();
  std::vector<Policy> policies;
  for (const std::string& text : flags.policies) {
    policies.push_back(unwrap(Policy::parse(text), ExitCode::usage));
    check(policies.back().check(capture.info().num_layers), ExitCode::usage);
  }
  std::vector<std::vector<LayerIndexSet>> stored;
  for (const std::string& path : flags.index_sets) {
    stored.push_back(unwrap(load_index_sets(path, options.layers), ExitCode::bad_input));
  }
  // Opened before the work: a place that cannot be written is refused at once.
  Output output(flags.output);
  const auto html = flags.html.empty() ? nullptr : std::make_unique<Output>(flags.html);
  const auto lists = flags.write_index_set.empty() ? nullptr : std::make_unique<Output>(flags.write_index_set);
  ProgressBar bar("replay");
  options.progress = [&](int64_t done, int64_t total) {
    bar.update(done, total);
    return !interrupted();
  };
  std::vector<ReplayArm> arms = unwrap(replay(capture, options, policies, stored), ExitCode::bad_input);
  bar.clear();

  ReplayScope scope = {flags.capture, capture.info(), options.layers, {}, flags.seeds};
  const int32_t num_steps = flags.steps > 0 ? flags.steps : capture.info().num_steps;
  scope.positions.assign(capture.positions().begin(), capture.positions().begin() + num_steps);
  std::vector<ReplaySummary> summaries;
  for (size_t i = 0; i < arms.size(); ++i) {
    const bool is_stored = i >= policies.size();
    const std::string& name = is_stored ? flags.index_sets[i - policies.size()] : flags.policies[i];
    summaries.push_back(summarize(name, is_stored, is_stored ? Policy{} : policies[i], std::move(arms[i])));
  }
  if (html != nullptr) {
    html->write(replay_html(scope, summaries));
    html->commit();
  }
  if (lists != nullptr) write_lists(*lists, summaries);
  if (flags.json) {
    for (const ReplaySummary& arm : summaries) output.write(replay_json(scope, arm));
  } else {
    output.write(replay_table(scope, summaries));
  }
  output.commit();
}

}  // namespace

void add_replay(CLI::App& parent) {
  auto flags = std::make_shared<Flags>();
  CLI::App* verb = add_verb(parent, "replay",
                            "Policies and index sets on captured queries, keys and values.\n"
                            "Error, mass, recall, bytes and certificate of each, against dense attention.",
                            "  rarefy replay capture.safetensors --policy 50x --policy 100x --html report.html\n"
                            "  rarefy replay capture.safetensors --index-set mine.npz --json");
  verb->add_option("capture", flags->capture, "a file of rarefy capture")->required()->type_name("");
  verb->add_option("--policy", flags->policies, "a policy to replay; may be repeated")->allow_extra_args(false)->type_name("POLICY");
  verb->add_option("--index-set", flags->index_sets, "lists made elsewhere: .safetensors, .npz or .npy; may be repeated")
      ->allow_extra_args(false)
      ->type_name("FILE");
  verb->add_option("-m,--model", flags->model, "refuse the capture when it is not of this model")->type_name("FOLDER");
  verb->add_option("--layers", flags->layers, "layers to replay, like 0,2-3 (default: all of the capture)")->type_name("LAYERS");
  verb->add_option("--steps", flags->steps, "the first N steps (default: all)")->check(CLI::Range(1, 1 << 20))->type_name("N");
  verb->add_option("--seeds", flags->seeds, "draws of every policy, with seeds -s, -s + 1, ... (default 1)")
      ->check(CLI::Range(1, 1 << 20))
      ->type_name("N");
  verb->add_option("-s,--seed", flags->seed, "first seed of token selection (default 0)")->type_name("N");
  add_threads_flag(*verb, flags->threads);
  verb->add_flag("--json", flags->json, "write one JSON object a line instead of the table");
  verb->add_option("--html", flags->html, "write a page with plots to this file, too")->type_name("FILE.html");
  verb->add_option("--write-index-set", flags->write_index_set, "write the lists of the one policy to this file, too")
      ->type_name("FILE.safetensors");
  verb->add_option("--output", flags->output, "write to this file instead of standard output")->type_name("FILE");
  verb->callback([flags] { run(*flags); });
}

}  // namespace rarefy::cli
