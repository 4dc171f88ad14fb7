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
  std::string model, layers, output, html, write_index_set;
  std::vector<std::string> captures, policies, index_sets;
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
  fail(ExitCode::bad_input,
       fmt::format("capture of another model: expected checkpoint {} (of {}), got {}; name the model it was "
                   "captured from, or capture again",
                   given, folder, captured->second));
}

// All of one shape, so that they can be pooled.
std::vector<Capture> load_captures(const Flags& flags) {
  std::vector<Capture> captures;
  for (const std::string& path : flags.captures) {
    captures.push_back(unwrap(Capture::load(path), ExitCode::bad_input));
    const CaptureInfo &info = captures.back().info(), &first = captures.front().info();
    if (!flags.model.empty()) check_model(captures.back(), flags.model);
    const auto shape = [](const CaptureInfo& one) {
      return fmt::format(
          "{} layers ({} captured), {} query heads, {} KV heads, head_dim {}, {} cache, scale {}, soft cap {}",
          one.num_layers, format_layers(one.layers), one.num_q_heads, one.num_kv_heads, one.head_dim,
          to_string(one.kv_dtype), one.attention_scale, one.logit_soft_cap);
    };
    if (shape(info) != shape(first)) {
      fail(ExitCode::bad_input, fmt::format("{}: expected {} as in {}, got {}; replay captures of one model together", path,
                                            shape(first), flags.captures.front(), shape(info)));
    }
    if (flags.steps > info.num_steps) {
      fail(ExitCode::usage,
           fmt::format("--steps: expected at most {}, which {} has, got {}", info.num_steps, path, flags.steps));
    }
  }
  return captures;
}

// The same arms on another capture.
void append_arms(std::vector<ReplayArm>& arms, std::vector<ReplayArm> more) {
  if (arms.empty()) {
    arms = std::move(more);
    return;
  }
  for (size_t i = 0; i < arms.size(); ++i) {
    arms[i].rows.insert(arms[i].rows.end(), more[i].rows.begin(), more[i].rows.end());
    arms[i].traffic.add(more[i].traffic);
    for (size_t layer = 0; layer < arms[i].layers.size(); ++layer) arms[i].layers[layer].add(more[i].layers[layer]);
  }
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
    fail(ExitCode::usage,
         "--write-index-set: expected one --policy, whose lists are written, got several; replay them one by one");
  }
  if (!flags.index_sets.empty() || !flags.write_index_set.empty()) {
    if (flags.captures.size() > 1) fail(ExitCode::usage, "--index-set: its lists belong to one capture; replay it alone");
  }
  const std::vector<Capture> captures = load_captures(flags);
  const CaptureInfo& info = captures.front().info();

  ReplayOptions options;
  options.layers = parse_layers("--layers", flags.layers, info.layers, "layers of the capture");
  options.num_steps = flags.steps;
  options.seed = flags.seed;
  options.num_seeds = flags.seeds;
  options.keep_sets = !flags.write_index_set.empty();
  std::vector<Policy> policies;
  for (const std::string& text : flags.policies) {
    policies.push_back(unwrap(Policy::parse(text), ExitCode::usage));
    check(policies.back().check(info.num_layers), ExitCode::usage);
  }
  std::vector<std::vector<LayerIndexSet>> stored;
  for (const std::string& path : flags.index_sets) {
    stored.push_back(unwrap(load_index_sets(path, options.layers), ExitCode::bad_input));
  }
  // Opened before the work: a place that cannot be written is refused at once.
  Output output(flags.output);
  const auto html = flags.html.empty() ? nullptr : std::make_unique<Output>(flags.html);
  const auto lists = flags.write_index_set.empty() ? nullptr : std::make_unique<Output>(flags.write_index_set);
  std::vector<ReplayArm> arms;
  {
    ProgressBar bar("replay");
    int64_t finished = 0;
    options.progress = [&](int64_t done, int64_t total) {
      bar.update(finished * total + done, static_cast<int64_t>(captures.size()) * total);
      return !interrupted();
    };
    for (const Capture& capture : captures) {
      append_arms(arms, unwrap(replay(capture, options, policies, stored), ExitCode::bad_input));
      ++finished;
    }
  }

  ReplayScope scope = {flags.captures, info, options.layers, {}, flags.seeds};
  for (const Capture& capture : captures) {
    const auto last = flags.steps > 0 ? capture.positions().begin() + flags.steps : capture.positions().end();
    scope.positions.insert(scope.positions.end(), capture.positions().begin(), last);
  }
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
  verb->add_option("capture", flags->captures, "files of rarefy capture; several of one model are pooled")
      ->required()
      ->type_name("");
  verb->add_option("--policy", flags->policies, "a policy to replay; may be repeated")
      ->allow_extra_args(false)
      ->type_name("POLICY");
  verb->add_option("--index-set", flags->index_sets, "lists made elsewhere: .safetensors, .npz or .npy; may be repeated")
      ->allow_extra_args(false)
      ->type_name("FILE");
  verb->add_option("-m,--model", flags->model, "refuse the capture when it is not of this model")->type_name("FOLDER");
  verb->add_option("--layers", flags->layers, "layers to replay, like 0,2-3 (default: all of the capture)")
      ->type_name("LAYERS");
  verb->add_option("--steps", flags->steps, "the first N steps (default: all)")
      ->check(CLI::Range(1, 1 << 20))
      ->type_name("N");
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
