#include "rarefy/engine/sparse_step.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "core/aligned_buffer.h"
#include "rarefy/select/registry.h"

namespace rarefy {

Expected<std::shared_ptr<const SparseStepPlan>> SparseStepPlan::make(const Policy& policy, const SelectorShape& shape,
                                                                     const DecodeProblem& problem, int32_t max_kv_len) {
  if (policy.dense) return Status::invalid_argument("sparse step: a dense policy selects nothing; attend densely instead");
  RAREFY_RETURN_IF_ERROR(policy.check(shape.num_layers));
  RAREFY_ASSIGN_OR_RETURN(auto selector, make_selector(policy.index, shape));
  if (problem.page_size % selector->block_tokens() != 0) {
    return Status::unsupported("policy: index=" + policy.index + " works on blocks of " +
                               std::to_string(selector->block_tokens()) + " tokens, which the cache's page_size of " +
                               std::to_string(problem.page_size) +
                               " does not hold; use a page size that is a multiple of it");
  }
  DecodeProblem sparse = problem;
  // A fraction of a short context never exceeds that of the longest, a count of tokens may: the cap covers both.
  sparse.max_selected = policy.min_kv_len;
  for (int32_t layer = 0; layer < shape.num_layers; ++layer) {
    if (policy.layer_is_dense(layer, max_kv_len)) continue;
    sparse.max_selected = std::max(sparse.max_selected, policy.total_tokens(layer, max_kv_len));
  }
  RAREFY_ASSIGN_OR_RETURN(DecodePlan sparse_plan, DecodePlan::make(DecodeOp::sparse, Device{}, sparse));
  RAREFY_ASSIGN_OR_RETURN(DecodePlan dense_plan, DecodePlan::make(DecodeOp::dense, Device{}, problem));
  return std::make_shared<const SparseStepPlan>(
      SparseStepPlan{policy, std::move(selector), shape, std::move(sparse_plan), std::move(dense_plan)});
}

class SparseStep::Impl {
 public:
  Impl(std::shared_ptr<const SparseStepPlan> plan, Selection selection)
      : plan_(std::move(plan)), selection_(std::move(selection)) {
    set_.resize(1, plan_->shape.num_kv_heads, plan_->sparse.problem().max_selected);
  }

  const SparseStepPlan& plan() const { return *plan_; }
  Selection& selection() { return selection_; }
  const IndexSetView& lists() const { return args_.index; }

  Status run(const KvSequence& sequence, const SelectionStep& where, float* out, SparseStepResult& result);
  Status run_lists(const KvSequence& sequence, const SelectionStep& where, const IndexSetView& lists, float* out,
                   SparseStepResult& result);
  Status audit(const float* out, SparseStepAudit& audit);

 private:
  int32_t num_q_heads() const { return plan_->shape.num_kv_heads * plan_->shape.group; }
  int64_t row_bytes() const {  // of one token and KV head, key and value
    return 2 * static_cast<int64_t>(plan_->shape.head_dim) * static_cast<int64_t>(size_of(plan_->shape.kv_dtype));
  }
  Status attend(const DecodePlan& plan, DecodeArgs args);

  std::shared_ptr<const SparseStepPlan> plan_;
  Selection selection_;
  IndexSet set_;
  DecodeArgs args_;  // of the step that ran last
  AlignedBuffer workspace_;
  std::vector<float> lse_;           // [num_q_heads] f32; of the dense recomputation
  std::vector<float> selected_lse_;  // [num_q_heads] f32; of the selected tokens without weights
  std::vector<float> dense_out_;     // [num_q_heads, head_dim] f32
  std::vector<float> scratch_out_;   // [num_q_heads, head_dim] f32
};

Status SparseStep::Impl::attend(const DecodePlan& plan, DecodeArgs args) {
  args.workspace_bytes = plan.workspace_bytes();
  args.workspace = workspace_.reserve(args.workspace_bytes);
  return plan.run(args);
}

Status SparseStep::Impl::run(const KvSequence& sequence, const SelectionStep& where, float* out, SparseStepResult& result) {
  SelectionCost cost;
  RAREFY_RETURN_IF_ERROR(selection_.select(sequence, where, set_, cost));
  RAREFY_RETURN_IF_ERROR(run_lists(sequence, where, set_.view(), out, result));
  result.traffic.index_bytes = cost.index_bytes;
  return {};
}

Status SparseStep::Impl::run_lists(const KvSequence& sequence, const SelectionStep& where, const IndexSetView& lists,
                                   float* out, SparseStepResult& result) {
  result.rel_std.resize(static_cast<size_t>(num_q_heads()));
  result.out_rel_std.resize(static_cast<size_t>(num_q_heads()));
  args_ = {};
  args_.scale = where.scale;
  args_.q = where.q;
  args_.kv = sequence.view(where.layer);
  args_.index = lists;
  args_.out = out;
  args_.rel_std = result.rel_std.data();
  args_.out_rel_std = result.out_rel_std.data();
  RAREFY_RETURN_IF_ERROR(attend(plan_->sparse, args_));

  const int64_t kv_len = sequence.length() + sequence.pending();
  result.traffic = {};
  result.traffic.sparse_layer_steps = 1;
  for (int32_t list = 0; list < lists.num_lists; ++list) {
    result.traffic.tokens_read += lists.counts[list] == kAllTokens ? kv_len : lists.counts[list];
    result.traffic.tokens_cached += kv_len;
  }
  result.traffic.row_bytes = result.traffic.tokens_read * row_bytes();
  result.traffic.dense_bytes = result.traffic.tokens_cached * row_bytes();
  return {};
}

Status SparseStep::Impl::audit(const float* out, SparseStepAudit& audit) {
  const auto heads = static_cast<size_t>(num_q_heads()), head_dim = static_cast<size_t>(plan_->shape.head_dim);
  lse_.resize(heads);
  selected_lse_.resize(heads);
  dense_out_.resize(heads * head_dim);
  scratch_out_.resize(heads * head_dim);

  DecodeArgs dense = args_;
  dense.index = {};
  dense.rel_std = dense.out_rel_std = nullptr;
  dense.out = dense_out_.data();
  dense.lse = lse_.data();
  RAREFY_RETURN_IF_ERROR(attend(plan_->dense, dense));

  // The same tokens without their sampling weights: exp(lse - dense lse) is the attention mass they hold.
  DecodeArgs unweighted = args_;
  unweighted.index.log_weight = nullptr;
  unweighted.rel_std = unweighted.out_rel_std = nullptr;
  unweighted.out = scratch_out_.data();
  unweighted.lse = selected_lse_.data();
  RAREFY_RETURN_IF_ERROR(attend(plan_->sparse, unweighted));

  audit.error.resize(heads);
  audit.mass.resize(heads);
  for (size_t head = 0; head < heads; ++head) {
    double difference = 0.0, norm = 0.0;
    for (size_t dim = 0; dim < head_dim; ++dim) {
      const double exact = dense_out_[head * head_dim + dim];
      const double got = out[head * head_dim + dim];
      difference += (got - exact) * (got - exact);
      norm += exact * exact;
    }
    audit.error[head] = norm > 0.0 ? std::sqrt(difference / norm) : 0.0;
    audit.mass[head] = std::exp(static_cast<double>(selected_lse_[head]) - lse_[head]);
  }
  return {};
}

SparseStep::SparseStep(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
SparseStep::SparseStep(SparseStep&&) noexcept = default;
SparseStep& SparseStep::operator=(SparseStep&&) noexcept = default;
SparseStep::~SparseStep() = default;

Expected<SparseStep> SparseStep::make(std::shared_ptr<const SparseStepPlan> plan, KvCache& cache) {
  RAREFY_ASSIGN_OR_RETURN(Selection selection, Selection::make(plan->policy, plan->selector, plan->shape, cache));
  return SparseStep(std::make_unique<Impl>(std::move(plan), std::move(selection)));
}

const SparseStepPlan& SparseStep::plan() const { return impl_->plan(); }

Status SparseStep::update_index(KvSequence& sequence, int32_t layer) {
  return impl_->selection().update_index(sequence, layer);
}

bool SparseStep::ready(const KvSequence& sequence, int32_t layer) const { return impl_->selection().ready(sequence, layer); }

Status SparseStep::run(const KvSequence& sequence, const SelectionStep& where, float* out, SparseStepResult& result) {
  return impl_->run(sequence, where, out, result);
}

Status SparseStep::run_lists(const KvSequence& sequence, const SelectionStep& where, const IndexSetView& lists, float* out,
                             SparseStepResult& result) {
  return impl_->run_lists(sequence, where, lists, out, result);
}

Status SparseStep::audit(const float* out, SparseStepAudit& audit) { return impl_->audit(out, audit); }

const IndexSetView& SparseStep::lists() const { return impl_->lists(); }

}  // namespace rarefy
