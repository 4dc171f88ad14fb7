// rarefy inspect: what a checkpoint is, what its cache weighs, and how fast a decode step can be at a context length.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <memory>
#include <nlohmann/json.hpp>

#include "bandwidth.h"
#include "evaluation.h"
#include "failure.h"
#include "files.h"
#include "model_flags.h"
#include "rarefy/core/device.h"
#include "rarefy/select/explain.h"
#include "run_record.h"
#include "table.h"
#include "terminal.h"
#include "verbs.h"

namespace rarefy::cli {
namespace {

struct Flags {
  ModelFlags model;
  std::vector<std::string> policies = {"50x"};
  double bandwidth_gb_per_s = 0.0;
  bool json = false;
};

// Of windows and states, which every step reads whatever the policy; states are written too.
double fixed_bytes(const ModelConfig& config, DType kv_dtype) {
  return static_cast<double>(config.window_bytes(kv_dtype) + 2 * config.state_bytes());
}

// One whole decode step: all weights once, and what attention reads.
struct Ceiling {
  std::string name, resolved;
  double kv_bytes = 0.0;  // index included
  double bytes_ratio = 1.0;
  double tokens_per_second = 0.0;
};

Ceiling ceiling(const Arm& arm, const ModelConfig& config, const SelectorShape& shape, int32_t ctx_size,
                double weight_bytes, double bandwidth) {
  const std::vector<int32_t> layers = config.layers_of(LayerKind::full_attention);
  const PolicyExplanation explanation = unwrap(explain_policy(arm.policy, shape, ctx_size, layers), ExitCode::usage);
  const double kv_bytes =
      explanation.bytes_ratio * static_cast<double>(config.kv_bytes_per_token(shape.kv_dtype)) * ctx_size;
  const double fixed = fixed_bytes(config, shape.kv_dtype);
  return {arm.name, explanation.policy, kv_bytes, explanation.bytes_ratio, bandwidth / (weight_bytes + kv_bytes + fixed)};
}

void write_text(Output& output, const LoadedModel& loaded, DType kv_dtype, int32_t ctx_size, double bandwidth,
                bool measured, const std::vector<Ceiling>& ceilings) {
  const ModelConfig& config = loaded.model->config();
  const auto weights = static_cast<double>(loaded.model->weight_bytes());
  const auto per_token = static_cast<double>(config.kv_bytes_per_token(kv_dtype));
  const auto fixed = static_cast<double>(config.window_bytes(kv_dtype) + config.state_bytes());
  const auto line = [&](const char* label, const std::string& text) {
    output.write(fmt::format("{:<20}{}\n", label, text));
  };
  line("model", loaded.folder.string());
  line("architecture", config.architecture);
  line("layers", std::to_string(config.num_layers));
  line("heads", fmt::format("{} query, {} KV (group of {}), head_dim {}", config.num_q_heads, config.num_kv_heads,
                            config.num_q_heads / config.num_kv_heads, config.head_dim));
  line("sizes",
       fmt::format("hidden {}, MLP {}, vocabulary {}", config.hidden_size, config.intermediate_size, config.vocab_size));
  const auto count = [&](LayerKind kind) { return config.layers_of(kind).size(); };
  if (count(LayerKind::full_attention) < config.layers.size()) {
    line("kinds of layers",
         fmt::format("{} full attention, {} sliding window of {}, {} linear attention", count(LayerKind::full_attention),
                     count(LayerKind::sliding_attention), config.sliding_window, count(LayerKind::linear_attention)));
    line("fixed cache", fmt::format("{} a sequence (windows and states)", format_bytes(fixed)));
  }
  line("RoPE", fmt::format("{}, theta {:.0f}", config.rope.type, config.rope.theta));
  line("longest context", fmt::format("{} tokens", format_count(config.max_position_embeddings)));
  line("weights", fmt::format("{} ({})", format_bytes(weights), loaded.model->compute_name()));
  line("KV per token", fmt::format("{} in {}", format_bytes(per_token), to_string(kv_dtype)));
  if (per_token > 0.0) {
    line("break-even context", fmt::format("{} tokens: from there on a dense step reads more cache than weights",
                                           format_count(static_cast<int64_t>(weights / per_token))));
  }
  output.write(fmt::format("\nAt {} cached tokens: {} of weights, {} of cache, {} in memory\n", format_count(ctx_size),
                           format_bytes(weights), format_bytes(per_token * ctx_size),
                           format_bytes(weights + per_token * ctx_size + fixed)));
  output.write(fmt::format("Ceilings of a whole decode step at {:.1f} GB/s ({}):\n\n", bandwidth / 1e9,
                           measured ? fmt::format("measured now, {} threads", num_threads()) : "given"));
  Table table({"policy", "KV and index read", "bytes_ratio", "ms per token", "tokens/s", "of dense"});
  for (const Ceiling& entry : ceilings) {
    table.add_row({fit(entry.name, 24), format_bytes(entry.kv_bytes), fmt::format("{:.4f}", entry.bytes_ratio),
                   fmt::format("{:.3f}", 1e3 / entry.tokens_per_second), fmt::format("{:.1f}", entry.tokens_per_second),
                   fmt::format("{:.1f}x", entry.tokens_per_second / ceilings[0].tokens_per_second)});
  }
  output.write(table.text());
  output.write("\nA ceiling is memory speed alone; real steps are slower.\n");
}

void run(const Flags& flags) {
  ModelFlags model_flags = flags.model;
  const LoadedModel loaded = load_model(model_flags);
  const ModelConfig& config = loaded.model->config();
  const DType kv_dtype = parse_cache_type(flags.model.cache_type_k, flags.model.cache_type_v);
  const int32_t ctx_size =
      choose_ctx_size(flags.model, config, flags.model.ctx_size > 0 ? 1 : config.max_position_embeddings);
  const std::vector<Arm> arms = parse_arms(flags.policies, config);
  const SelectorShape shape{config.num_layers, config.num_kv_heads, config.num_q_heads / config.num_kv_heads,
                            config.head_dim, kv_dtype};

  const bool measured = flags.bandwidth_gb_per_s <= 0.0;
  const double bandwidth = measured ? measure_read_bandwidth() : 1e9 * flags.bandwidth_gb_per_s;
  const auto weights = static_cast<double>(loaded.model->weight_bytes());
  std::vector<Ceiling> ceilings;
  ceilings.reserve(arms.size());
  for (const Arm& arm : arms) ceilings.push_back(ceiling(arm, config, shape, ctx_size, weights, bandwidth));

  Output output;
  if (!flags.json) {
    write_text(output, loaded, kv_dtype, ctx_size, bandwidth, measured, ceilings);
    output.commit();
    return;
  }
  const int64_t per_token = config.kv_bytes_per_token(kv_dtype);
  nlohmann::ordered_json record = {
      {"model", loaded.folder.string()},
      {"architecture", config.architecture},
      {"num_layers", config.num_layers},
      {"num_q_heads", config.num_q_heads},
      {"num_kv_heads", config.num_kv_heads},
      {"head_dim", config.head_dim},
      {"hidden_size", config.hidden_size},
      {"intermediate_size", config.intermediate_size},
      {"vocab_size", config.vocab_size},
      {"rope_type", config.rope.type},
      {"rope_theta", config.rope.theta},
      {"max_position_embeddings", config.max_position_embeddings},
      {"compute", loaded.model->compute_name()},
      {"weight_bytes", loaded.model->weight_bytes()},
      {"kv_dtype", to_string(kv_dtype)},
      {"kv_bytes_per_token", per_token},
      {"full_attention_layers", config.layers_of(LayerKind::full_attention).size()},
      {"window_bytes", config.window_bytes(kv_dtype)},
      {"state_bytes", config.state_bytes()},
      {"break_even_kv_len", per_token > 0 ? static_cast<int64_t>(weights / static_cast<double>(per_token)) : 0},
      {"kv_len", ctx_size},
      {"kv_bytes", per_token * ctx_size},
      {"bandwidth_bytes_per_s", bandwidth},
      {"bandwidth_measured", measured}};
  for (const Ceiling& entry : ceilings) {
    record["ceilings"].push_back({{"policy", entry.name},
                                  {"policy_resolved", entry.resolved},
                                  {"kv_bytes_read", entry.kv_bytes},
                                  {"bytes_ratio", entry.bytes_ratio},
                                  {"tokens_per_second", entry.tokens_per_second}});
  }
  append_origin(record);
  output.write(record.dump() + "\n");
  output.commit();
}

}  // namespace

void add_inspect(CLI::App& parent) {
  auto flags = std::make_shared<Flags>();
  CLI::App* verb = add_verb(parent, "inspect",
                            "What a model is, what its KV cache weighs, and how fast a decode step can be.\n"
                            "Ceilings compare dense attention with policies at a context length (-c).",
                            "  rarefy inspect -c 16384 --policy 50x --policy 100x\n"
                            "  rarefy inspect -m MODEL -c 131072 --bandwidth 200");
  add_model_flags(*verb, flags->model);
  verb->remove_option(verb->get_option("--audit"));
  verb->remove_option(verb->get_option("--seed"));
  verb->add_option("--policy", flags->policies, "a policy to compare with dense; may be repeated (default 50x)")
      ->allow_extra_args(false)
      ->type_name("POLICY");
  verb->add_option("--bandwidth", flags->bandwidth_gb_per_s, "memory read bandwidth in GB/s (default: measured now)")
      ->check(CLI::PositiveNumber)
      ->type_name("GB/s");
  verb->add_flag("--json", flags->json, "write one JSON object");
  verb->callback([flags] { run(*flags); });
}

}  // namespace rarefy::cli
