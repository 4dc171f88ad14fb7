#include "model_flags.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <map>

#include "failure.h"
#include "rarefy/core/device.h"
#include "run_table.h"

namespace rarefy::cli {
namespace {

namespace fs = std::filesystem;

constexpr const char* kShippedModel = "rarefy-8m";

}  // namespace

void add_threads_flag(CLI::App& verb, int32_t& threads) {
  verb.add_option("-t,--threads", threads, "CPU threads (0: all)")->check(CLI::Range(0, 4096))->type_name("N");
}

void add_cache_type_flags(CLI::App& verb, std::string& cache_type_k, std::string& cache_type_v) {
  const auto types = CLI::IsMember({"f32", "f16", "bf16"});
  verb.add_option("--cache-type-k", cache_type_k,
                  "-ctk: f32, f16 or bf16 (default). Keys and values have the same type here")
      ->check(types)
      ->type_name("TYPE");
  verb.add_option("--cache-type-v", cache_type_v, "-ctv: the same as -ctk")->check(types)->type_name("TYPE");
}

void add_model_flags(CLI::App& verb, ModelFlags& flags) {
  verb.add_option(
          "-m,--model", flags.model,
          "folder with config.json, *.safetensors and tokenizer.json (default: the checkpoint that ships with rarefy)")
      ->type_name("FOLDER");
  verb.add_option("-c,--ctx-size", flags.ctx_size,
                  "longest sequence in tokens (default: what is needed, up to the model's)")
      ->check(CLI::Range(1, 1 << 30))
      ->type_name("N");
  add_threads_flag(verb, flags.threads);
  verb.add_option("-s,--seed", flags.seed, "seed of token sampling and token selection (default 0)")->type_name("N");
  add_cache_type_flags(verb, flags.cache_type_k, flags.cache_type_v);
  verb.add_option("--compute", flags.compute, "weights in f32, in bf16, or auto: bf16 where the CPU multiplies it fast")
      ->check(CLI::IsMember({"auto", "f32", "bf16"}))
      ->type_name("TYPE");
  verb.add_option("--audit", flags.audit,
                  "recompute this share of the sparse (layer, step) pairs densely and compare, 0 to 1")
      ->check(CLI::Range(0.0, 1.0))
      ->type_name("FRACTION");
}

void add_audit_fail_flag(CLI::App& verb, ModelFlags& flags) {
  verb.add_flag("--audit-fail", flags.audit_fail,
                "exit with 5 when audits show more errors above the policy's eps than its delta (95 % confidence)");
}

void check_audit_fail(const ModelFlags& flags, bool any_promise) {
  if (!flags.audit_fail) return;
  if (flags.audit <= 0.0) fail(ExitCode::usage, "--audit-fail: nothing is audited; give --audit FRACTION");
  if (!any_promise) fail(ExitCode::usage, "--audit-fail: no policy promises an error; give one with eps=");
}

void fail_broken_promise(const ModelFlags& flags, const PromiseCounts& promise) {
  if (flags.audit_fail && promise.broken()) fail(ExitCode::promise_broken, "--audit-fail: " + promise_text(promise));
}

void add_policy_flags(CLI::App& verb, std::string& policy, int32_t& policy_tokens) {
  verb.add_option("--policy", policy, "what decode steps read: dense (default), 50x, or a full text; see rarefy policy")
      ->type_name("POLICY");
  verb.add_option("--policy-tokens", policy_tokens,
                  "last tokens of each prompt that go through the policy as well (default 1); what comes before is dense")
      ->check(CLI::Range(1, 1 << 30))
      ->type_name("N");
}

void add_sampling_flags(CLI::App& verb, SamplerOptions& sampler) {
  verb.add_option("--temp", sampler.temperature, "temperature; 0 is greedy (default)")
      ->check(CLI::Range(0.0, 1000.0))
      ->type_name("T");
  verb.add_option("--top-k", sampler.top_k, "draw among this many tokens (0: all)")
      ->check(CLI::Range(0, 1 << 30))
      ->type_name("N");
  verb.add_option("--top-p", sampler.top_p, "draw among the smallest set with this probability (default 1)")
      ->check(CLI::Range(0.0, 1.0))
      ->type_name("P");
}

DType parse_cache_type(const std::string& cache_type_k, const std::string& cache_type_v) {
  const std::string k = !cache_type_k.empty() ? cache_type_k : !cache_type_v.empty() ? cache_type_v : "bf16";
  const std::string v = !cache_type_v.empty() ? cache_type_v : k;
  if (k != v) {
    fail(
        ExitCode::usage,
        fmt::format("-ctk and -ctv: expected the same type for keys and values, got {} and {}; give one of the two", k, v));
  }
  return unwrap(parse_dtype(k), ExitCode::usage);
}

fs::path shipped_model() {
  std::error_code ignored;
  const fs::path program = fs::read_symlink("/proc/self/exe", ignored);
  const fs::path relative[] = {fs::path("models") / kShippedModel, fs::path("share/rarefy/models") / kShippedModel};
  for (const fs::path& start : {program, fs::current_path(ignored) / "."}) {
    for (fs::path folder = start.parent_path(); !folder.empty(); folder = folder.parent_path()) {
      for (const fs::path& tail : relative) {
        if (fs::exists(folder / tail, ignored)) return folder / tail;
      }
      if (folder == folder.root_path()) break;
    }
  }
  fail(ExitCode::bad_input,
       fmt::format("expected the shipped checkpoint models/{} in a folder above the program or the current "
                   "folder, found none; name a model folder with -m",
                   kShippedModel));
}

LoadedModel load_model(const ModelFlags& flags) {
  set_num_threads(flags.threads);
  parse_cache_type(flags.cache_type_k, flags.cache_type_v);
  LoadedModel loaded;
  loaded.folder = flags.model.empty() ? shipped_model() : fs::path(flags.model);
  const std::map<std::string, ComputeType> types = {
      {"auto", ComputeType::automatic}, {"f32", ComputeType::f32}, {"bf16", ComputeType::bf16}};
  loaded.model = std::make_shared<const Model>(
      unwrap(Model::load(loaded.folder, {.compute = types.at(flags.compute)}), ExitCode::bad_input));
  return loaded;
}

int32_t choose_ctx_size(const ModelFlags& flags, const ModelConfig& config, int64_t needed_tokens) {
  if (flags.ctx_size > config.max_position_embeddings) {
    fail(ExitCode::usage, fmt::format("-c: expected at most {} tokens, which is what the model allows, got {}",
                                      config.max_position_embeddings, flags.ctx_size));
  }
  const int32_t limit = flags.ctx_size > 0 ? flags.ctx_size : config.max_position_embeddings;
  if (needed_tokens > limit) {
    const bool can_raise = flags.ctx_size > 0 && needed_tokens <= config.max_position_embeddings;
    fail(ExitCode::bad_input,
         fmt::format("the text needs a context of {} tokens, {} allows {}; {}", needed_tokens,
                     flags.ctx_size > 0 ? "-c" : "the model", limit, can_raise ? "raise -c" : "shorten the text"));
  }
  return flags.ctx_size > 0 ? flags.ctx_size : static_cast<int32_t>(std::max<int64_t>(1, needed_tokens));
}

std::shared_ptr<Engine> make_engine(const ModelFlags& flags, std::shared_ptr<const Model> model, int32_t ctx_size,
                                    int32_t num_forks, int64_t fork_tokens) {
  EngineOptions options;
  options.ctx_size = ctx_size;
  options.kv_dtype = parse_cache_type(flags.cache_type_k, flags.cache_type_v);
  // A fork copies the last page of its context and fills its own last page in part.
  options.max_tokens = ctx_size + num_forks * (fork_tokens + 2 * int64_t{options.page_size}) + options.page_size;
  return unwrap(Engine::make(std::move(model), options));
}

}  // namespace rarefy::cli
