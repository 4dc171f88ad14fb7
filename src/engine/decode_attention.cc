#include "engine/decode_attention.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>

#include "rarefy/core/rng.h"
#include "rarefy/select/registry.h"

namespace rarefy {
namespace {

constexpr double kZ95 = 1.96;  // two-sided 95 % quantile of the normal distribution

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

Status DecodeAttention::set_policy(const Policy& policy, KvSequence& sequence) {
  const ModelConfig& config = engine_->model->config();
  RAREFY_RETURN_IF_ERROR(policy.check(config.num_layers));
  if (policy.dense) {
    selector_.reset();
    sparse_plan_.reset();
    selection_.reset();
    policy_ = policy;
    stats.policy = policy_.to_string();
    return {};
  }

  RAREFY_ASSIGN_OR_RETURN(auto selector, make_selector(policy.index, engine_->shape));
  if (engine_->options.page_size % selector->block_tokens() != 0) {
    return Status::unsupported("policy: index=" + policy.index + " works on blocks of " +
                               std::to_string(selector->block_tokens()) + " tokens, which the cache's page_size of " +
                               std::to_string(engine_->options.page_size) +
                               " does not hold; use a page size that is a multiple of it");
  }
  DecodeProblem problem = engine_->decode_problem;
  const std::vector<int32_t> full_layers = config.layers_of(LayerKind::full_attention);
  for (const int32_t layer : full_layers) {
    if (policy.layer_is_dense(layer, engine_->options.ctx_size)) continue;
    problem.max_selected = std::max(problem.max_selected, policy.total_tokens(layer, engine_->options.ctx_size));
  }
  // A fraction of a short context never exceeds that of the longest, a count of tokens may: the cap covers both.
  problem.max_selected = std::max(problem.max_selected, policy.min_kv_len);
  RAREFY_ASSIGN_OR_RETURN(DecodePlan plan, DecodePlan::make(DecodeOp::sparse, Device{}, problem));
  RAREFY_ASSIGN_OR_RETURN(Selection selection, Selection::make(policy, selector, engine_->shape, *engine_->cache));
  {
    const std::lock_guard lock(engine_->index_mutex);
    for (const int32_t layer : full_layers) {
      if (policy.layer_is_dense(layer, std::numeric_limits<int32_t>::max())) continue;
      RAREFY_RETURN_IF_ERROR(selection.update_index(sequence, layer));
    }
  }
  set_.resize(1, config.num_kv_heads, problem.max_selected);
  sparse_plan_ = std::move(plan);
  selector_ = std::move(selector);
  selection_ = std::move(selection);
  policy_ = policy;
  stats.policy = policy_.to_string();
  return {};
}

void DecodeAttention::adopt_policy(const DecodeAttention& other) {
  policy_ = other.policy_;
  selector_ = other.selector_;
  sparse_plan_ = other.sparse_plan_;
  selection_.reset();
  stats.policy = policy_.to_string();
}

Status DecodeAttention::ensure_selection() {
  if (selector_ == nullptr || selection_.has_value()) return {};
  RAREFY_ASSIGN_OR_RETURN(Selection selection, Selection::make(policy_, selector_, engine_->shape, *engine_->cache));
  set_.resize(1, engine_->shape.num_kv_heads, sparse_plan_->problem().max_selected);
  selection_ = std::move(selection);
  return {};
}

void DecodeAttention::begin(KvSequence& sequence, Mode mode) {
  sequence_ = &sequence;
  mode_ = mode;
}

bool DecodeAttention::layer_uses_index(int32_t layer) const {
  return selector_ != nullptr && kind(layer) == LayerKind::full_attention &&
         !policy_.layer_is_dense(layer, std::numeric_limits<int32_t>::max());
}

int64_t DecodeAttention::row_bytes() const {
  return 2 * static_cast<int64_t>(engine_->shape.head_dim) * static_cast<int64_t>(size_of(engine_->options.kv_dtype));
}

Status DecodeAttention::attend(int32_t layer, int32_t num_tokens, const float* q, const float* k, const float* v,
                               float* out) {
  RAREFY_RETURN_IF_ERROR(sequence_->write(layer, k, v));
  RAREFY_RETURN_IF_ERROR(ensure_selection());
  if (layer_uses_index(layer)) RAREFY_RETURN_IF_ERROR(selection_->update_index(*sequence_, layer));

  const PagedKvView kv = sequence_->view(layer);
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
  const bool sees_all = kind(layer) == LayerKind::full_attention;
  if (!sees_all || policy_.dense || policy_.layer_is_dense(layer, kv.kv_lens[0])) return run_dense(layer, args);
  if (!selection_->ready(*sequence_, layer)) return run_dense(layer, args);  // too few tokens to train its selector
  return run_sparse(layer, args, q);
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
    for (const LayerKind layer_kind : engine_->model->config().layers) stats.layers.push_back({layer_kind, {}});
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

Status DecodeAttention::run_sparse(int32_t layer, DecodeArgs args, const float* q) {
  const int32_t kv_len = args.kv.kv_lens[0];
  const int32_t num_q_heads = engine_->model->config().num_q_heads;
  SelectionStep step;
  step.layer = layer;
  step.scale = args.scale;
  step.seed = seed;
  step.position = kv_len - 1;
  step.q = q;
  SelectionCost cost;
  RAREFY_RETURN_IF_ERROR(selection_->select(*sequence_, step, set_, cost));

  rel_std_.resize(num_q_heads);
  out_rel_std_.resize(num_q_heads);
  args.index = set_.view();
  args.rel_std = rel_std_.data();
  args.out_rel_std = out_rel_std_.data();
  args.workspace_bytes = sparse_plan_->workspace_bytes();
  args.workspace = workspace_.reserve(args.workspace_bytes);
  RAREFY_RETURN_IF_ERROR(sparse_plan_->run(args));

  Traffic traffic;
  traffic.sparse_layer_steps = 1;
  traffic.tokens_read = cost.tokens_selected;
  traffic.tokens_cached = cost.tokens_cached;
  traffic.row_bytes = cost.tokens_selected * row_bytes();
  traffic.index_bytes = cost.index_bytes;
  traffic.dense_bytes = cost.tokens_cached * row_bytes();
  count(layer, traffic);
  for (float estimate : out_rel_std_) stats.estimated_error.add(estimate);

  if (should_audit(layer, step.position)) {
    const auto start = std::chrono::steady_clock::now();
    RAREFY_RETURN_IF_ERROR(run_audit(layer, step.position, args));
    stats.audit_seconds += seconds_since(start);
  }
  return {};
}

bool DecodeAttention::should_audit(int32_t layer, int64_t position) const {
  if (audit.fraction <= 0.0) return false;
  const ListKey key = make_list_key(seed, RngPurpose::audit, layer, 0, position);
  return static_cast<double>(token_uniform(key, 0)) <= audit.fraction;
}

Status DecodeAttention::run_audit(int32_t layer, int64_t position, const DecodeArgs& sparse) {
  const int32_t num_q_heads = engine_->model->config().num_q_heads;
  const int32_t head_dim = engine_->shape.head_dim;
  lse_.resize(num_q_heads);
  selected_lse_.resize(num_q_heads);
  dense_out_.resize(static_cast<size_t>(num_q_heads) * head_dim);
  unweighted_out_.resize(dense_out_.size());

  DecodeArgs dense = sparse;
  dense.index = {};
  dense.rel_std = dense.out_rel_std = nullptr;
  dense.out = dense_out_.data();
  dense.lse = lse_.data();
  dense.workspace_bytes = engine_->full.decode.workspace_bytes();
  dense.workspace = workspace_.reserve(dense.workspace_bytes);
  RAREFY_RETURN_IF_ERROR(engine_->full.decode.run(dense));

  // The same tokens without their sampling weights: exp(lse - dense lse) is the attention mass they hold.
  DecodeArgs unweighted = sparse;
  unweighted.index.log_weight = nullptr;
  unweighted.rel_std = unweighted.out_rel_std = nullptr;
  unweighted.out = unweighted_out_.data();
  unweighted.lse = selected_lse_.data();
  unweighted.workspace_bytes = sparse_plan_->workspace_bytes();
  unweighted.workspace = workspace_.reserve(unweighted.workspace_bytes);
  RAREFY_RETURN_IF_ERROR(sparse_plan_->run(unweighted));

  AuditStats& result = stats.audit;
  result.layer_error.resize(engine_->shape.num_layers);
  result.head_error.resize(static_cast<size_t>(engine_->shape.num_layers) * num_q_heads);
  ++result.layer_steps;
  const auto* out = static_cast<const float*>(sparse.out);  // [num_q_heads, head_dim] f32
  for (int32_t head = 0; head < num_q_heads; ++head) {
    double difference = 0.0, norm = 0.0;
    for (int32_t dim = 0; dim < head_dim; ++dim) {
      const double exact = dense_out_[static_cast<size_t>(head) * head_dim + dim];
      const double got = out[static_cast<size_t>(head) * head_dim + dim];
      difference += (got - exact) * (got - exact);
      norm += exact * exact;
    }
    const double error = norm > 0.0 ? std::sqrt(difference / norm) : 0.0;
    result.error.add(error);
    result.layer_error[layer].add(error);
    result.head_error[static_cast<size_t>(layer) * num_q_heads + head].add(error);
    result.mass.add(std::exp(static_cast<double>(selected_lse_[head]) - lse_[head]));
    const double estimate = out_rel_std_[head];
    if (estimate > 0.0) {
      ++result.certificate_pairs;
      result.certificate_ratio.add(error / estimate);
      if (error <= kZ95 * estimate) ++result.certificate_covered;
    }
    if (error > result.worst.error || result.worst.layer < 0) result.worst = {error, layer, head, position};
  }
  return {};
}

}  // namespace rarefy
