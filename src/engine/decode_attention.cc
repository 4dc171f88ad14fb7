#include "engine/decode_attention.h"

#include <algorithm>
#include <chrono>
#include <limits>

#include "rarefy/core/rng.h"

namespace rarefy {
namespace {

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

Status DecodeAttention::set_policy(const Policy& policy, KvSequence& sequence) {
  const ModelConfig& config = engine_->model->config();
  RAREFY_RETURN_IF_ERROR(policy.check(config.num_layers));
  std::shared_ptr<const SparseStepPlan> plan;
  std::optional<SparseStep> sparse;
  if (!policy.dense) {
    RAREFY_ASSIGN_OR_RETURN(
        plan, SparseStepPlan::make(policy, engine_->shape, engine_->decode_problem, engine_->options.ctx_size));
    RAREFY_ASSIGN_OR_RETURN(sparse, SparseStep::make(plan, *engine_->cache));
    const std::lock_guard lock(engine_->index_mutex);
    for (const int32_t layer : config.layers_of(LayerKind::full_attention)) {
      if (policy.layer_is_dense(layer, std::numeric_limits<int32_t>::max())) continue;
      RAREFY_RETURN_IF_ERROR(sparse->update_index(sequence, layer));
    }
  }
  sparse_plan_ = std::move(plan);
  sparse_ = std::move(sparse);
  policy_ = policy;
  stats.policy = policy_.to_string();
  return {};
}

void DecodeAttention::adopt_policy(const DecodeAttention& other) {
  policy_ = other.policy_;
  sparse_plan_ = other.sparse_plan_;
  sparse_.reset();
  stats.policy = policy_.to_string();
}

Status DecodeAttention::ensure_sparse() {
  if (sparse_plan_ == nullptr || sparse_.has_value()) return {};
  RAREFY_ASSIGN_OR_RETURN(sparse_, SparseStep::make(sparse_plan_, *engine_->cache));
  return {};
}

void DecodeAttention::begin(KvSequence& sequence, Mode mode) {
  sequence_ = &sequence;
  mode_ = mode;
}

bool DecodeAttention::layer_uses_index(int32_t layer) const {
  return sparse_plan_ != nullptr && kind(layer) == LayerKind::full_attention &&
         !policy_.layer_is_dense(layer, std::numeric_limits<int32_t>::max());
}

int64_t DecodeAttention::row_bytes() const {
  return 2 * static_cast<int64_t>(engine_->shape.head_dim) * static_cast<int64_t>(size_of(engine_->options.kv_dtype));
}

Status DecodeAttention::attend(int32_t layer, int32_t num_tokens, const float* q, const float* k, const float* v,
                               float* out) {
  RAREFY_RETURN_IF_ERROR(sequence_->write(layer, k, v));
  RAREFY_RETURN_IF_ERROR(ensure_sparse());
  const PagedKvView kv = sequence_->view(layer);
  const bool sees_all = kind(layer) == LayerKind::full_attention;
  const bool selects = mode_ == Mode::decode && sees_all && !policy_.dense && !policy_.layer_is_dense(layer, kv.kv_lens[0]);
  // A step that selects encodes its token itself.
  if (layer_uses_index(layer) && !(selects && sparse_->ready(*sequence_, layer))) {
    RAREFY_RETURN_IF_ERROR(sparse_->update_index(*sequence_, layer));
  }

  const float scale = engine_->model->config().attention_scale;
  if (mode_ == Mode::prefill) {
    PrefillArgs args;
    args.num_new = num_tokens;
    args.scale = scale;
    args.q = q;
    args.kv = kv;
    args.out = out;
    const PrefillPlan& plan = plans(layer).prefill;
    args.workspace_bytes = plan.workspace_bytes();
    args.workspace = workspace_.reserve(args.workspace_bytes);
    return plan.run(args);
  }

  DecodeArgs args;
  args.batch = 1;
  args.scale = scale;
  args.q = q;
  args.kv = kv;
  args.out = out;
  if (sees_all && query_observer) query_observer(layer, kv.kv_lens[0] - 1, q);
  if (!selects) return run_dense(layer, args);
  if (!sparse_->ready(*sequence_, layer)) return run_dense(layer, args);  // too few tokens to train its selector
  return run_sparse(layer, args.scale, q, out);
}

Expected<LayerState> DecodeAttention::state(int32_t layer) {
  RAREFY_ASSIGN_OR_RETURN(const RecurrentState state, sequence_->state(layer));
  if (mode_ == Mode::decode) {
    Traffic traffic;
    traffic.linear_layer_steps = 1;
    traffic.fixed_bytes = 2 * engine_->model->config().linear.state_floats() * static_cast<int64_t>(sizeof(float));
    count(layer, traffic);
  }
  return LayerState{state.before, state.after};
}

void DecodeAttention::count(int32_t layer, const Traffic& traffic) {
  if (stats.layers.empty()) {
    stats.layers.reserve(engine_->model->config().layers.size());
    for (const LayerKind layer_kind : engine_->model->config().layers) stats.layers.push_back({layer_kind, {}, {}});
  }
  stats.traffic.add(traffic);
  stats.layers[static_cast<size_t>(layer)].traffic.add(traffic);
}

Status DecodeAttention::run_dense(int32_t layer, const DecodeArgs& args_in) {
  DecodeArgs args = args_in;
  const DecodePlan& plan = plans(layer).decode;
  args.workspace_bytes = plan.workspace_bytes();
  args.workspace = workspace_.reserve(args.workspace_bytes);
  Traffic traffic;
  if (kind(layer) == LayerKind::full_attention) {
    traffic.dense_layer_steps = 1;
    traffic.tokens_read = traffic.tokens_cached = int64_t{engine_->shape.num_kv_heads} * args.kv.kv_lens[0];
    traffic.row_bytes = traffic.dense_bytes = traffic.tokens_read * row_bytes();
  } else {
    const int32_t seen = std::min(args.kv.kv_lens[0], engine_->model->config().sliding_window);
    traffic.sliding_layer_steps = 1;
    traffic.fixed_bytes = int64_t{engine_->shape.num_kv_heads} * seen * row_bytes();
  }
  count(layer, traffic);
  return plan.run(args);
}

Status DecodeAttention::run_sparse(int32_t layer, float scale, const float* q, float* out) {
  SelectionStep step;
  step.layer = layer;
  step.scale = scale;
  step.seed = seed;
  step.position = sequence_->length() + sequence_->pending() - 1;
  step.q = q;
  RAREFY_RETURN_IF_ERROR(sparse_->run(*sequence_, step, out, result_));
  count(layer, result_.traffic);
  for (float estimate : result_.out_rel_std) {
    stats.estimated_error.add(estimate);
    stats.layers[static_cast<size_t>(layer)].estimated_error.add(estimate);
  }
  for (float bound : result_.out_bound) stats.bounded_error.add(bound);
  for (ListOutcome outcome : result_.outcomes) stats.lists.add(outcome);

  if (should_audit(layer, step.position)) {
    const auto start = std::chrono::steady_clock::now();
    RAREFY_RETURN_IF_ERROR(sparse_->audit(out, audit_));
    stats.audit.add({layer, engine_->shape.num_layers, step.position, audit_.error, audit_.mass, result_.out_rel_std,
                     policy_.eps, policy_.certify == Certify::bounded ? 0.0 : policy_.delta});
    stats.audit_seconds += seconds_since(start);
  }
  return {};
}

bool DecodeAttention::should_audit(int32_t layer, int64_t position) const {
  if (audit.fraction <= 0.0) return false;
  const ListKey key = make_list_key(seed, RngPurpose::audit, layer, 0, position);
  return static_cast<double>(token_uniform(key, 0)) <= audit.fraction;
}

}  // namespace rarefy
