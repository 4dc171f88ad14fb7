// Engine and Session: a model, a pool of KV pages, and sequences that decode through a policy.
//
//   auto model = std::make_shared<const Model>(*Model::load(folder));
//   auto engine = *Engine::make(model, {.ctx_size = 32768});
//   Session context = engine->new_session();
//   context.prefill(tokens);                    // dense
//   Session question = context.fork();          // shares every page
//   question.set_policy(*Policy::parse("50x"));
//   question.decode(token, logits);             // one step through the policy
//
// An Engine may be shared between threads; a Session belongs to one thread at a time. Sessions keep their engine alive.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>

#include "rarefy/attention/paged_kv.h"
#include "rarefy/core/status.h"
#include "rarefy/engine/stats.h"
#include "rarefy/model/model.h"
#include "rarefy/select/policy.h"

namespace rarefy {

struct EngineOptions {
  int32_t ctx_size = 0;          // longest sequence in tokens; 0 = the model's max_position_embeddings
  DType kv_dtype = DType::bf16;  // f32, f16 or bf16
  int32_t page_size = 64;        // tokens; what the default index works on
  int64_t max_tokens = 0;        // cached tokens over all sessions, shared pages counted once; 0 = twice ctx_size
  int32_t prefill_chunk = 512;   // tokens per forward pass of a prefill
  // In models with sliding or linear layers, whose caches cannot be cut back to any length: besides the end of every prefill,
  // keep what is needed to go back to every so many prefilled tokens (at the end of a chunk); 0 = ends only.
  int32_t snapshot_tokens = 0;
};

struct AuditOptions {
  double fraction = 0.0;  // of (layer, step) pairs; 0 = none, 1 = all
};

class Session;

class Engine : public std::enable_shared_from_this<Engine> {
 public:
  static Expected<std::shared_ptr<Engine>> make(std::shared_ptr<const Model> model, const EngineOptions& options = {});
  ~Engine();

  const Model& model() const;
  const EngineOptions& options() const;  // with defaults filled in
  Session new_session();

  class Impl;
  Impl& impl() { return *impl_; }

 private:
  explicit Engine(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

class Session {
 public:
  // Called after every chunk of a prefill; returning false cancels it (the session keeps what was done so far).
  using Progress = std::function<bool(int64_t done_tokens, int64_t total_tokens)>;

  Session(Session&&) noexcept;
  Session& operator=(Session&&) noexcept;
  ~Session();

  Engine& engine() const;
  int32_t length() const;  // tokens in the cache

  // Sees the queries of every full-attention layer of the decode steps that follow, before they attend; null = nobody. A fork
  // starts without.
  using QueryObserver = std::function<void(int32_t layer, int64_t position,
                                           const float* q)>;  // q [num_q_heads, head_dim] f32; after RoPE, unscaled
  void set_query_observer(QueryObserver observer);
  // The cached keys and values of a full-attention layer; valid until the session changes.
  Expected<PagedKvView> cached(int32_t layer) const;

  // Affects the decode steps that follow. Builds the policy's index over what is cached already.
  Status set_policy(const Policy& policy);
  const Policy& policy() const;
  void set_seed(uint64_t seed);  // of token selection and audit sampling; 0 by default
  void set_audit(const AuditOptions& options);

  // Appends tokens with dense attention. `logits` of the last token when not null.
  Status prefill(std::span<const int32_t> tokens, const Progress& progress = {},
                 float* logits = nullptr);  // [vocab_size] f32; nullable
  // Appends one token through the policy.
  Status decode(int32_t token,
                float* logits);  // [vocab_size] f32; nullable

  // A second session with the same cached tokens, policy and seed, and empty statistics. Costs no copy of the cache.
  Session fork() const;
  // Drops cached tokens past `length`. In models with sliding or linear layers only lengths that reusable_length() gives back
  // unchanged: the ends of prefills, and what a window still holds.
  Status truncate(int32_t length);
  // The largest length up to `length` that truncate() accepts: how much of a common prefix of that length can be reused.
  int32_t reusable_length(int32_t length) const;

  const RunStats& stats() const;
  void reset_stats();

  class Impl;
  explicit Session(std::unique_ptr<Impl> impl);

 private:
  std::unique_ptr<Impl> impl_;
};

}  // namespace rarefy
