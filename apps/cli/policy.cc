// rarefy policy explain and rarefy policy list: what a policy means, and what can stand in one.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>

#include "failure.h"
#include "files.h"
#include "model_flags.h"
#include "policy_text.h"
#include "rarefy/select/explain.h"
#include "rarefy/select/registry.h"
#include "table.h"
#include "terminal.h"
#include "verbs.h"

namespace rarefy::cli {
namespace {

struct ExplainFlags {
  std::string policy, model, cache_type_k, cache_type_v;
  int32_t ctx_size = 0;
  int32_t num_layers = 32, num_q_heads = 32, num_kv_heads = 8, head_dim = 128;
  bool json = false;
};

// `layers` are the full-attention layers of a model that has others too, else empty.
SelectorShape read_shape(const ExplainFlags& flags, std::vector<int32_t>& layers) {
  SelectorShape shape;
  int32_t num_q_heads = flags.num_q_heads;
  shape.num_layers = flags.num_layers;
  shape.num_kv_heads = flags.num_kv_heads;
  shape.head_dim = flags.head_dim;
  if (!flags.model.empty()) {
    const ModelConfig config = unwrap(ModelConfig::load(flags.model), ExitCode::bad_input);
    shape.num_layers = config.num_layers;
    shape.num_kv_heads = config.num_kv_heads;
    shape.head_dim = config.head_dim;
    num_q_heads = config.num_q_heads;
    layers = config.layers_of(LayerKind::full_attention);
  }
  if (num_q_heads % shape.num_kv_heads != 0) {
    fail(ExitCode::usage,
         fmt::format("--num-q-heads: expected a multiple of --num-kv-heads ({}), got {}", shape.num_kv_heads, num_q_heads));
  }
  shape.group = num_q_heads / shape.num_kv_heads;
  shape.kv_dtype = parse_cache_type(flags.cache_type_k, flags.cache_type_v);
  return shape;
}

// Bytes of one decode step over all layers.
struct StepBytes {
  double rows = 0.0, index = 0.0, dense = 0.0;
};

StepBytes step_bytes(const PolicyExplanation& explanation, const SelectorShape& shape) {
  StepBytes bytes;
  bytes.dense = explanation.row_bytes_per_token * explanation.kv_len * shape.num_kv_heads *
                static_cast<double>(explanation.layers.size());
  bytes.rows = explanation.density * bytes.dense;
  bytes.index = (explanation.bytes_ratio - explanation.density) * bytes.dense;
  return bytes;
}

// Layers in a row that do the same, one line each.
std::string layer_table(const PolicyExplanation& explanation) {
  Table table({"layers", "sink", "local", "by scores", "total"});
  const std::vector<LayerExplanation>& layers = explanation.layers;
  for (size_t first = 0, last = 0; first < layers.size(); first = last + 1) {
    const LayerExplanation& layer = layers[first];
    for (last = first; last + 1 < layers.size(); ++last) {
      const LayerExplanation& next = layers[last + 1];
      if (next.dense != layer.dense || next.budget.total != layer.budget.total) break;
    }
    const int32_t from = layers[first].layer, to = layers[last].layer;
    const auto count = static_cast<int32_t>(last - first + 1);
    std::string name = from == to ? std::to_string(from) : fmt::format("{}-{}", from, to);
    if (count < to - from + 1) name = fmt::format("{} of {}", count, name);  // others are not full attention
    if (layer.dense) {
      table.add_row({name, "-", "-", "-", format_count(explanation.kv_len) + " (dense)"});
    } else {
      table.add_row({name, format_count(layer.budget.sink), format_count(layer.budget.local),
                     format_count(layer.budget.selected), format_count(layer.budget.total)});
    }
  }
  return table.text();
}

void write_explanation(Output& output, const ExplainFlags& flags, const Policy& policy, const SelectorShape& shape,
                       const PolicyExplanation& explanation) {
  const StepBytes bytes = step_bytes(explanation, shape);
  output.write(fmt::format("policy       {}\n", explanation.policy));
  output.write(fmt::format("shape        {} layers, {} query heads, {} KV heads, head_dim {}, {} cache{}\n",
                           shape.num_layers, shape.num_kv_heads * shape.group, shape.num_kv_heads, shape.head_dim,
                           to_string(shape.kv_dtype),
                           flags.model.empty() ? "\n             (assumed; -m takes a model's)" : ""));
  output.write(fmt::format("context      {} cached tokens\n\n", format_count(flags.ctx_size)));
  output.write("Tokens of one list (one KV head of one layer, shared by its query heads):\n\n");
  output.write(layer_table(explanation));
  output.write(
      fmt::format("\nBytes of one decode step, all full-attention layers:\n\n"
                  "keys, values {:>10}\n"
                  "index        {:>10}   {:.1f} B per token and KV head, beside {:.0f} B of key and value\n"
                  "dense        {:>10}\n\n"
                  "density      {:.4f}\n"
                  "sparsity     {:.1f}x\n"
                  "bytes_ratio  {:.4f}, which bounds the speed-up of attention at {:.1f}x\n",
                  format_bytes(bytes.rows), format_bytes(bytes.index), explanation.index_bytes_per_token,
                  explanation.row_bytes_per_token, format_bytes(bytes.dense), explanation.density, explanation.sparsity(),
                  explanation.bytes_ratio, explanation.speed_ceiling()));
  if (explanation.fallback_bytes_ratio > 0.0) {
    int32_t most = 0;
    for (const LayerExplanation& layer : explanation.layers) most = std::max(most, layer.max_tokens);
    output.write(
        fmt::format("with eps     these are the first budgets; a list grows to at most {} tokens, and where that is not\n"
                    "             enough it is dense: bytes_ratio {:.4f} if all lists were, and more after enlargements\n",
                    format_count(most), explanation.fallback_bytes_ratio));
  }
  if (policy.dense) return;
  const double asked = static_cast<double>(flags.ctx_size) / policy.total.tokens(flags.ctx_size);
  if (flags.ctx_size < policy.min_kv_len) {
    output.write(
        fmt::format("\nEvery step is dense here: the policy starts at min={} cached tokens.\n", policy.min_kv_len));
  } else if (explanation.sparsity() < 0.9 * asked) {
    output.write(fmt::format("\nLess than 90 % of the {:.1f}x asked for: some layers are dense or read more.\n", asked));
  }
}

void explain(const ExplainFlags& flags) {
  std::vector<int32_t> layers;
  const SelectorShape shape = read_shape(flags, layers);
  const Policy policy = read_policy(flags.policy);
  const PolicyExplanation explanation = unwrap(explain_policy(policy, shape, flags.ctx_size, layers), ExitCode::usage);
  Output output;
  if (!flags.json) {
    write_explanation(output, flags, policy, shape, explanation);
    output.commit();
    return;
  }
  const StepBytes bytes = step_bytes(explanation, shape);
  nlohmann::ordered_json record = {{"policy", flags.policy},
                                   {"policy_resolved", explanation.policy},
                                   {"kv_len", flags.ctx_size},
                                   {"num_layers", shape.num_layers},
                                   {"num_q_heads", shape.num_kv_heads * shape.group},
                                   {"num_kv_heads", shape.num_kv_heads},
                                   {"head_dim", shape.head_dim},
                                   {"kv_dtype", to_string(shape.kv_dtype)},
                                   {"index_bytes_per_token", explanation.index_bytes_per_token},
                                   {"row_bytes", bytes.rows},
                                   {"index_bytes", bytes.index},
                                   {"dense_bytes", bytes.dense},
                                   {"density", explanation.density},
                                   {"sparsity", explanation.sparsity()},
                                   {"bytes_ratio", explanation.bytes_ratio},
                                   {"fallback_bytes_ratio", explanation.fallback_bytes_ratio}};
  for (const LayerExplanation& layer : explanation.layers) {
    record["layers"].push_back({{"dense", layer.dense},
                                {"sink", layer.budget.sink},
                                {"local", layer.budget.local},
                                {"selected", layer.budget.selected},
                                {"total", layer.dense ? flags.ctx_size : layer.budget.total},
                                {"max", layer.dense ? flags.ctx_size : layer.max_tokens}});
  }
  output.write(record.dump() + "\n");
  output.commit();
}

constexpr std::pair<Spend, const char*> kSpendRules[] = {
    {Spend::priority, "priority sampling on estimated weights; the default. Has a certificate"},
    {Spend::half, "half of the budget to the best scores, half by priority sampling. Has a certificate"},
    {Spend::gumbel, "Gumbel top-k on estimated weights. Has a certificate"},
    {Spend::top_k, "the best scores and nothing else. No certificate"},
    {Spend::top_p, "the best scores until they hold a share p= of the estimated probability. No certificate"},
    {Spend::uniform, "half to the best scores, half drawn evenly from the rest; for comparison"},
    {Spend::systematic, "half to the best scores, then every n-th token from a random one on"},
    {Spend::vattention, "the best scores and an even sample whose size follows from eps= and delta="},
};

// One object for programs that try everything there is (study/pareto.py).
std::string list_json() {
  nlohmann::ordered_json record = {{"selectors", nlohmann::ordered_json::array()},
                                   {"spends", nlohmann::ordered_json::array()}};
  for (const SelectorInfo& info : list_selectors()) {
    record["selectors"].push_back({{"name", info.name}, {"options", info.options}, {"description", info.description}});
  }
  for (const auto& [spend, text] : kSpendRules)
    record["spends"].push_back({{"name", to_string(spend)}, {"description", text}});
  return record.dump() + "\n";
}

std::string list_text() {
  std::string lines = "Selectors, index=NAME or index=NAME:OPTION (where scores come from)\n\n";
  const auto add_all = [&](const std::vector<SelectorInfo>& infos) {
    for (const SelectorInfo& info : infos) {
      lines += fmt::format("  {:<17} {}\n", info.name, info.description);
      if (!info.options.empty()) lines += fmt::format("  {:<17} options: {}\n", "", info.options);
    }
  };
  add_all(list_selectors());
  lines += "\nTwo selectors as one\n\n";
  add_all(list_selector_combinations());
  lines += "\nSpending rules, spend=NAME (how the budget goes to tokens, given their scores)\n\n";
  for (const auto& [spend, text] : kSpendRules) lines += fmt::format("  {:<10} {}\n", to_string(spend), text);
  return lines +
         "\nThe text form is explained in docs/guide/policies.md. rarefy policy explain POLICY\n"
         "--ctx-size N shows what one means at a context length.\n";
}

void list(bool json) {
  Output output;
  output.write(json ? list_json() : list_text());
  output.commit();
}

void add_list(CLI::App& parent) {
  auto json = std::make_shared<bool>(false);
  CLI::App* verb =
      add_verb(parent, "list", "Selectors and spending rules.\nNew selectors that register themselves show up here.",
               "  rarefy policy list");
  verb->add_flag("--json", *json, "write one JSON object");
  verb->callback([json] { list(*json); });
}

void add_explain(CLI::App& parent) {
  auto flags = std::make_shared<ExplainFlags>();
  CLI::App* verb = add_verb(parent, "explain",
                            "What a policy reads at a context length.\n"
                            "Tokens per part, index bytes, bytes_ratio and sparsity; nothing is run.",
                            "  rarefy policy explain 50x --ctx-size 131072\n"
                            "  rarefy policy explain 'total=0.02 index=sign dense_layers=0' --ctx-size 32768 -m MODEL");
  verb->add_option("policy", flags->policy, "50x, dense, or a text like 'total=0.02 index=sign'")
      ->required()
      ->type_name("");
  verb->add_option("-c,--ctx-size", flags->ctx_size, "cached tokens")
      ->required()
      ->check(CLI::Range(1, 1 << 30))
      ->type_name("N");
  verb->add_option("-m,--model", flags->model, "take the shape from this model's config.json")->type_name("FOLDER");
  const auto shape_option = [verb](const char* name, int32_t& value, int32_t largest) {
    verb->add_option(name, value, fmt::format("without -m (default {})", value))
        ->check(CLI::Range(1, largest))
        ->excludes("--model")
        ->type_name("N");
  };
  shape_option("--num-layers", flags->num_layers, 4096);
  shape_option("--num-q-heads", flags->num_q_heads, 4096);
  shape_option("--num-kv-heads", flags->num_kv_heads, 4096);
  shape_option("--head-dim", flags->head_dim, 4096);
  add_cache_type_flags(*verb, flags->cache_type_k, flags->cache_type_v);
  verb->add_flag("--json", flags->json, "write one JSON object");
  verb->callback([flags] { explain(*flags); });
}

}  // namespace

void add_policy(CLI::App& parent) {
  CLI::App* verb = add_verb(parent, "policy",
                            "Explain a policy, or list what can stand in one.\n"
                            "A policy says how many cached tokens a decode step reads and how they are chosen.",
                            "  rarefy policy list");
  verb->require_subcommand(1);
  add_explain(*verb);
  add_list(*verb);
}

}  // namespace rarefy::cli
