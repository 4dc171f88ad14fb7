// DecodeAttention: what a session does with one layer's queries, keys and values. It stores keys and values in the cache,
// keeps the index up to date, picks tokens by the policy, runs the attention kernel, and counts and audits what happened.
#pragma once

#include <optional>

#include "core/aligned_buffer.h"
#include "engine/engine_impl.h"
#include "rarefy/engine/sparse_step.h"

namespace rarefy {

class DecodeAttention : public AttentionSink {
 public:
  explicit DecodeAttention(Engine::Impl& engine) : engine_(&engine) {}

  // Prepares for a policy: index, selection scratch, sparse plan. Builds the index over what `sequence` holds.
  Status set_policy(const Policy& policy, KvSequence& sequence);
  // The policy of another session over the same cached tokens, whose index is built already.
  void adopt_policy(const DecodeAttention& other);
  const Policy& policy() const { return policy_; }

  uint64_t seed = 0;
  AuditOptions audit;
  Session::QueryObserver query_observer;
  RunStats stats;

  // Between begin and the end of a forward pass, attend() works on `sequence`, whose pending tokens it fills.
  enum class Mode { prefill, decode };
  void begin(KvSequence& sequence, Mode mode);

  Status attend(int32_t layer, int32_t num_tokens,
                const float* q,        // [num_tokens, num_q_heads, head_dim] f32
                const float* k,        // [num_tokens, num_kv_heads, head_dim] f32
                const float* v,        // [num_tokens, num_kv_heads, head_dim] f32
                float* out) override;  // [num_tokens, num_q_heads, head_dim] f32
  Expected<LayerState> state(int32_t layer) override;

 private:
  LayerKind kind(int32_t layer) const { return engine_->model->config().layers[static_cast<size_t>(layer)]; }
  const AttentionPlans& plans(int32_t layer) const {
    return kind(layer) == LayerKind::sliding_attention ? engine_->sliding : engine_->full;
  }
  void count(int32_t layer, const Traffic& traffic);
  Status run_dense(int32_t layer, const DecodeArgs& args);
  Status run_sparse(int32_t layer, float scale,
                    const float* q,  // [num_q_heads, head_dim] f32
                    float* out);     // [num_q_heads, head_dim] f32
  Status ensure_sparse();
  bool layer_uses_index(int32_t layer) const;
  bool should_audit(int32_t layer, int64_t position) const;
  int64_t row_bytes() const;  // of one token and KV head, key and value

  Engine::Impl* engine_;
  KvSequence* sequence_ = nullptr;
  Mode mode_ = Mode::decode;
  Policy policy_;                                      // dense until set
  std::shared_ptr<const SparseStepPlan> sparse_plan_;  // null while dense
  std::optional<SparseStep> sparse_;                   // scratch of this session, made on first use
  SparseStepResult result_;
  SparseStepAudit audit_;
  AlignedBuffer workspace_;
};

}  // namespace rarefy
