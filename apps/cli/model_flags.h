// The flags that every verb with a model shares, and what they open.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>

#include "rarefy/engine/sampler.h"
#include "rarefy/engine/session.h"

namespace CLI {  // NOLINT(readability-identifier-naming): the library calls itself so
class App;
}

namespace rarefy::cli {

struct ModelFlags {
  std::string model;  // folder; empty = the checkpoint that ships with the program
  std::string compute = "auto";
  std::string cache_type_k, cache_type_v;  // empty = the other one, or bf16
  int32_t ctx_size = 0;                    // 0 = what the verb needs
  int32_t threads = 0;                     // 0 = all
  uint64_t seed = 0;
  double audit = 0.0;
  bool audit_fail = false;
};

void add_model_flags(CLI::App& verb, ModelFlags& flags);
// Of verbs that can end with ExitCode::promise_broken.
void add_audit_fail_flag(CLI::App& verb, ModelFlags& flags);
void add_threads_flag(CLI::App& verb, int32_t& threads);
// Of verbs that answer: what decode steps read, and how much of a prompt goes through it.
void add_policy_flags(CLI::App& verb, std::string& policy, int32_t& policy_tokens);
void add_sampling_flags(CLI::App& verb, SamplerOptions& sampler);  // its seed is that of ModelFlags
void add_cache_type_flags(CLI::App& verb, std::string& cache_type_k, std::string& cache_type_v);

// Refuses --audit-fail where nothing could fail: without audits, or without a policy that promises anything.
void check_audit_fail(const ModelFlags& flags, bool any_promise);
// Fails with promise_broken when --audit-fail is given and audits refute the promise.
void fail_broken_promise(const ModelFlags& flags, const PromiseCounts& promise);

// Both cache types must name the same type; the cache has one.
DType parse_cache_type(const std::string& cache_type_k, const std::string& cache_type_v);

// The folder of the checkpoint that ships with the program: beside the source tree or the installation the program is in, or
// below the current folder.
std::filesystem::path shipped_model();

struct LoadedModel {
  std::filesystem::path folder;
  std::shared_ptr<const Model> model;
};
LoadedModel load_model(const ModelFlags& flags);

// The context size to use when `needed_tokens` have to fit: -c, or what is needed. Fails with bad_input when they do not fit.
int32_t choose_ctx_size(const ModelFlags& flags, const ModelConfig& config, int64_t needed_tokens);

// An engine for sequences of ctx_size tokens. Up to `num_forks` forks of one context add up to `fork_tokens` tokens each.
std::shared_ptr<Engine> make_engine(const ModelFlags& flags, std::shared_ptr<const Model> model, int32_t ctx_size,
                                    int32_t num_forks, int64_t fork_tokens);

}  // namespace rarefy::cli
