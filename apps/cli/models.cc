// rarefy models: the models that Rarefy is made for, and what they weigh at a context length, dense and through a policy.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <memory>
#include <nlohmann/json.hpp>

#include "failure.h"
#include "files.h"
#include "model_flags.h"
#include "policy_text.h"
#include "rarefy/model/known_models.h"
#include "rarefy/select/explain.h"
#include "table.h"
#include "terminal.h"
#include "verbs.h"

namespace rarefy::cli {
namespace {

struct Flags {
  std::vector<std::string> names;
  std::string policy = "50x", cache_type_k, cache_type_v;
  int32_t ctx_size = 131072;
  bool json = false;
};

// One model at a context length. Sparse attention keeps the whole cache, adds an index, and reads less.
struct Weighed {
  const KnownModel* model = nullptr;
  double kv_bytes = 0.0, index_bytes = 0.0, memory_bytes = 0.0;
  double dense_step_bytes = 0.0, sparse_step_bytes = 0.0;
  double bytes_ratio = 1.0;  // of the layers that attend to the whole context
  std::string policy_resolved;

  bool too_long(int32_t ctx_size) const { return ctx_size > model->max_position_embeddings; }
};

Weighed weigh(const KnownModel& model, const Policy& policy, DType kv_dtype, int32_t ctx_size) {
  const SelectorShape shape{model.num_full_layers(), model.num_kv_heads, model.num_q_heads / model.num_kv_heads,
                            model.head_dim, kv_dtype};
  const PolicyExplanation explanation = unwrap(explain_policy(policy, shape, ctx_size), ExitCode::usage);
  Weighed result;
  result.model = &model;
  result.policy_resolved = explanation.policy;
  result.bytes_ratio = explanation.bytes_ratio;
  const auto fixed = static_cast<double>(model.fixed_bytes(kv_dtype)), weights = static_cast<double>(model.weight_bytes());
  result.kv_bytes = static_cast<double>(model.kv_bytes_per_token(kv_dtype)) * ctx_size;
  for (const LayerExplanation& layer : explanation.layers) {
    if (!layer.dense) result.index_bytes += explanation.index_bytes_per_token * ctx_size * shape.num_kv_heads;
  }
  result.memory_bytes = weights + result.kv_bytes + result.index_bytes + fixed;
  const auto read = static_cast<double>(model.step_weight_bytes()) + fixed;
  result.dense_step_bytes = read + result.kv_bytes;
  result.sparse_step_bytes = read + explanation.bytes_ratio * result.kv_bytes;
  return result;
}

std::string in_billions(int64_t count) { return fmt::format("{:.2f} B", static_cast<double>(count) / 1e9); }

void write_table(Output& output, const std::vector<Weighed>& rows, const Flags& flags, DType kv_dtype) {
  Table table({"model", "layers", "full", "heads", "KV heads", "head_dim", "KV/token", "params", "weights", "KV=weights",
               "memory", "step dense", "sparse", "ratio"});
  bool any_doubt = false, any_long = false;
  for (const Weighed& row : rows) {
    const KnownModel& model = *row.model;
    const bool too_long = row.too_long(flags.ctx_size);
    any_doubt = any_doubt || !model.doubt.empty();
    any_long = any_long || too_long;
    table.add_row({std::string(model.id) + (model.doubt.empty() ? "" : " ?"), std::to_string(model.num_layers),
                   std::to_string(model.num_full_layers()), std::to_string(model.num_q_heads),
                   std::to_string(model.num_kv_heads), std::to_string(model.head_dim),
                   format_count(model.kv_bytes_per_token(kv_dtype)), in_billions(model.num_parameters()),
                   format_bytes(static_cast<double>(model.weight_bytes())), format_count(model.break_even_kv_len(kv_dtype)),
                   format_bytes(row.memory_bytes) + (too_long ? "*" : ""), format_bytes(row.dense_step_bytes),
                   format_bytes(row.sparse_step_bytes),
                   fmt::format("{:.2f}x", row.dense_step_bytes / row.sparse_step_bytes)});
  }
  output.write(table.text());
  output.write(
      fmt::format("\nKV/token: bytes of keys and values in {}, over the full-attention layers, which are the ones that "
                  "sparsity applies to.\n"
                  "weights: text decoder in bf16. KV=weights: the context at which keys and values weigh as much.\n"
                  "memory, step: at {} tokens; weights, keys and values, index, and windows or states of the other layers. "
                  "A step reads\n"
                  "weights (of an embedding table of its own, one row) and the cache, densely or with {}.\n",
                  to_string(kv_dtype), format_count(flags.ctx_size), flags.policy));
  if (any_long) output.write("*: longer than the model's own context.\n");
  if (any_doubt) output.write("?: not all of the line is confirmed; --json says what.\n");
}

void write_json(Output& output, const std::vector<Weighed>& rows, const Flags& flags, DType kv_dtype) {
  for (const Weighed& row : rows) {
    const KnownModel& model = *row.model;
    nlohmann::ordered_json record = {{"model", model.id},
                                     {"family", model.family},
                                     {"spare", model.spare},
                                     {"num_layers", model.num_layers},
                                     {"num_full_layers", model.num_full_layers()},
                                     {"num_q_heads", model.num_q_heads},
                                     {"num_kv_heads", model.num_kv_heads},
                                     {"head_dim", model.head_dim},
                                     {"hidden_size", model.hidden_size},
                                     {"intermediate_size", model.intermediate_size},
                                     {"vocab_size", model.vocab_size},
                                     {"max_position_embeddings", model.max_position_embeddings},
                                     {"sliding_window", model.sliding_window},
                                     {"num_parameters", model.num_parameters()},
                                     {"weight_bytes", model.weight_bytes()},
                                     {"kv_dtype", to_string(kv_dtype)},
                                     {"kv_bytes_per_token", model.kv_bytes_per_token(kv_dtype)},
                                     {"fixed_bytes", model.fixed_bytes(kv_dtype)},
                                     {"break_even_kv_len", model.break_even_kv_len(kv_dtype)},
                                     {"kv_len", flags.ctx_size},
                                     {"beyond_longest_context", row.too_long(flags.ctx_size)},
                                     {"policy", flags.policy},
                                     {"policy_resolved", row.policy_resolved},
                                     {"bytes_ratio", row.bytes_ratio},
                                     {"kv_bytes", row.kv_bytes},
                                     {"index_bytes", row.index_bytes},
                                     {"memory_bytes", row.memory_bytes},
                                     {"dense_step_bytes", row.dense_step_bytes},
                                     {"sparse_step_bytes", row.sparse_step_bytes}};
    if (!model.doubt.empty()) record["doubt"] = model.doubt;
    output.write(record.dump() + "\n");
  }
}

void run(const Flags& flags) {
  const Policy policy = read_policy(flags.policy);
  const DType kv_dtype = parse_cache_type(flags.cache_type_k, flags.cache_type_v);
  std::vector<Weighed> rows;
  for (const std::string& name : flags.names) {
    const KnownModel* model = find_known_model(name);
    if (model == nullptr) {
      fail(ExitCode::usage,
           fmt::format("expected a model of the list, got '{}'; rarefy models shows them all, rarefy inspect -m "
                       "FOLDER any other",
                       name));
    }
    rows.push_back(weigh(*model, policy, kv_dtype, flags.ctx_size));
  }
  if (flags.names.empty()) {
    for (const KnownModel& model : known_models()) rows.push_back(weigh(model, policy, kv_dtype, flags.ctx_size));
  }
  Output output;
  if (flags.json) {
    write_json(output, rows, flags, kv_dtype);
  } else {
    write_table(output, rows, flags, kv_dtype);
  }
  output.commit();
}

}  // namespace

void add_models(CLI::App& parent) {
  auto flags = std::make_shared<Flags>();
  CLI::App* verb = add_verb(parent, "models",
                            "The models that rarefy is made for: sizes, weights, cache, memory.\n"
                            "Nothing is downloaded; numbers follow from the sizes. Memory and bytes of a decode step\n"
                            "are for one sequence of -c tokens.",
                            "  rarefy models -c 131072 --policy 100x\n"
                            "  rarefy models Llama-3.1-8B-Instruct --json");
  verb->add_option("model", flags->names, "names of models, with or without the owner (default: all)")->type_name("NAME");
  verb->add_option("-c,--ctx-size", flags->ctx_size, "cached tokens (default 131072)")
      ->check(CLI::Range(1, 1 << 30))
      ->type_name("N");
  verb->add_option("--policy", flags->policy, "what sparse decode steps read: a sparsity as 50x (default), or a full text")
      ->type_name("POLICY");
  add_cache_type_flags(*verb, flags->cache_type_k, flags->cache_type_v);
  verb->add_flag("--json", flags->json, "write one JSON object for each model");
  verb->callback([flags] { run(*flags); });
}

}  // namespace rarefy::cli
