#include "rarefy/engine/sparse_step.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <utility>

#include "core/aligned_buffer.h"
#include "engine/tail_size.h"
#include "rarefy/select/registry.h"

namespace rarefy {
namespace {

// The certificate is an estimate, and the first budget that passes is not an arbitrary one: what is compared with eps is larger by
// this much. docs/certificate.md has the violation rates with and without.
constexpr double kGuard = 1.1;
// A budget that is enlarged grows by this much more than the variance law asks for, and at least by an eighth.
constexpr double kGrowth = 1.15;
// Share of eps that the bounded mode leaves to the kernels' arithmetic: with bf16 rows they round queries to bf16, 2^-8 of a
// logit's terms.
constexpr double kBoundedSlack = 0.02;

}  // namespace

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
  if (policy.eps > 0.0 && selector->is_hard_filter()) {
    return Status::invalid_argument(
        "policy: eps= with index=" + policy.index +
        ": tokens that it filters out are seen neither by the sample nor by its certificate; use "
        "a selector that scores every token");
  }
  if (policy.eps > 0.0 && policy.certify == Certify::bounded) {
    if (!selector->has_bounds()) {
      return Status::invalid_argument(
          "policy: certify=bounded needs a selector that bounds the error of its scores, such as "
          "quest16:bound or q2:bound; got index=" +
          policy.index);
    }
    if (problem.logit_soft_cap > 0.0f) {
      return Status::unsupported(
          "policy: certify=bounded does not know models with a soft cap on logits; use "
          "certify=estimated");
    }
  }
  DecodeProblem sparse = problem;
  // A fraction of a short context never exceeds that of the longest, a count of tokens may: the cap covers both.
  sparse.max_selected = policy.min_kv_len;
  for (int32_t layer = 0; layer < shape.num_layers; ++layer) {
    if (policy.layer_is_dense(layer, max_kv_len)) continue;
    sparse.max_selected = std::max(sparse.max_selected, policy.max_tokens(layer, max_kv_len));
  }
  RAREFY_ASSIGN_OR_RETURN(DecodePlan sparse_plan, DecodePlan::make(DecodeOp::sparse, Device{}, sparse));
  RAREFY_ASSIGN_OR_RETURN(DecodePlan dense_plan, DecodePlan::make(DecodeOp::dense, Device{}, problem));
  sparse.num_q_heads = shape.group;
  sparse.num_kv_heads = 1;
  sparse.max_batch = 1;
  RAREFY_ASSIGN_OR_RETURN(DecodePlan one_list_plan, DecodePlan::make(DecodeOp::sparse, Device{}, sparse));
  return std::make_shared<const SparseStepPlan>(SparseStepPlan{policy, std::move(selector), shape, std::move(sparse_plan),
                                                               std::move(dense_plan), std::move(one_list_plan)});
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

  Status run(KvSequence& sequence, const SelectionStep& where, float* out, SparseStepResult& result);
  Status run_lists(const KvSequence& sequence, const SelectionStep& where, const IndexSetView& lists, float* out,
                   SparseStepResult& result);
  Status audit(const float* out, SparseStepAudit& audit);

 private:
  int32_t num_lists() const { return plan_->shape.num_kv_heads; }
  int32_t num_q_heads() const { return num_lists() * plan_->shape.group; }
  int64_t row_bytes() const {  // of one token and KV head, key and value
    return 2 * static_cast<int64_t>(plan_->shape.head_dim) * static_cast<int64_t>(size_of(plan_->shape.kv_dtype));
  }
  bool bounded() const { return plan_->policy.certify == Certify::bounded; }
  static Status attend(const DecodePlan& plan, DecodeArgs args, AlignedBuffer& workspace);
  // Attends to one of the lists of args_, by the memory of a thread.
  Status attend_list(int32_t list, int32_t thread);
  void set_args(const KvSequence& sequence, const SelectionStep& where, const IndexSetView& lists, float* out,
                SparseStepResult& result);
  void count_traffic(SparseStepResult& result) const;

  // Tokens that the next attempt gives a list: 0 when it is accepted, kAllTokens when only dense attention is left.
  int32_t next_tokens(int32_t list, float* out, SparseStepResult& result);
  int32_t after_estimate(int32_t list, const SparseStepResult& result) const;
  int32_t after_bound(int32_t list, const float* out, SparseStepResult& result);  // out: [num_q_heads, head_dim] f32
  int32_t after_sample(int32_t list, const float* out) const;                     // out: [num_q_heads, head_dim] f32
  // Makes the lists with a number in tokens_ anew, attends to them, and puts what comes out in its place.
  Status retry(KvSequence& sequence, SelectionStep where, float* out, SparseStepResult& result);

  std::shared_ptr<const SparseStepPlan> plan_;
  Selection selection_;
  IndexSet set_;
  DecodeArgs args_;  // of the step that ran last
  TokenBudget budget_;
  int32_t max_tokens_ = 0;  // of one list
  AlignedBuffer workspace_;
  std::vector<AlignedBuffer> list_workspaces_;    // [threads]
  std::vector<Status> list_results_;              // [num_lists]
  std::vector<int32_t> tokens_, counts_;          // [num_lists] i32
  std::vector<float> list_lse_;                   // [num_q_heads] f32; of the lists
  std::vector<float> retry_lse_;                  // [num_q_heads] f32
  std::vector<float> retry_std_, retry_out_std_;  // [num_q_heads] f32
  std::vector<float> lse_;                        // [num_q_heads] f32; of the dense recomputation
  std::vector<float> selected_lse_;               // [num_q_heads] f32; of the selected tokens without weights
  std::vector<float> dense_out_;                  // [num_q_heads, head_dim] f32
  std::vector<float> scratch_out_;                // [num_q_heads, head_dim] f32
  std::vector<OutsideBound> outside_;
};

Status SparseStep::Impl::attend(const DecodePlan& plan, DecodeArgs args, AlignedBuffer& workspace) {
  args.workspace_bytes = plan.workspace_bytes();
  args.workspace = workspace.reserve(args.workspace_bytes);
  return plan.run(args);
}

// One list gives the same bits alone and beside others.
Status SparseStep::Impl::attend_list(int32_t list, int32_t thread) {
  const int32_t first_head = list * plan_->shape.group;
  const int64_t first_row = int64_t{first_head} * plan_->shape.head_dim;
  DecodeArgs args = args_;
  args.q = static_cast<const float*>(args.q) + first_row;
  args.out = static_cast<float*>(args.out) + first_row;
  for (float** of_heads : {&args.lse, &args.rel_std, &args.out_rel_std}) *of_heads += first_head;
  const int64_t kv_offset = list * args.kv.head_stride * static_cast<int64_t>(size_of(args.kv.dtype));
  args.kv.keys = static_cast<const std::byte*>(args.kv.keys) + kv_offset;
  args.kv.values = static_cast<const std::byte*>(args.kv.values) + kv_offset;
  args.kv.num_kv_heads = 1;
  args.index.num_lists = 1;
  args.index.token_ids += int64_t{list} * args.index.max_selected;
  args.index.log_weight += int64_t{list} * args.index.max_selected;
  args.index.counts += list;
  return attend(plan_->one_list, args, list_workspaces_[static_cast<size_t>(thread)]);
}

Status SparseStep::Impl::run(KvSequence& sequence, const SelectionStep& where, float* out, SparseStepResult& result) {
  const Policy& policy = plan_->policy;
  SelectionCost cost;
  if (num_threads() <= num_lists()) {  // every thread makes lists of its own, and attends to each at once
    set_args(sequence, where, set_.view(), out, result);
    list_workspaces_.resize(static_cast<size_t>(num_threads()));
    list_results_.assign(static_cast<size_t>(num_lists()), {});
    RAREFY_RETURN_IF_ERROR(selection_.select(sequence, where, set_, cost, [&](int32_t list, int32_t thread) {
      list_results_[static_cast<size_t>(list)] = attend_list(list, thread);
    }));
    for (const Status& status : list_results_) RAREFY_RETURN_IF_ERROR(status);
    count_traffic(result);
  } else {
    RAREFY_RETURN_IF_ERROR(selection_.select(sequence, where, set_, cost));
    RAREFY_RETURN_IF_ERROR(run_lists(sequence, where, set_.view(), out, result));
  }
  result.traffic.index_bytes = cost.index_bytes;
  if (policy.eps == 0.0) return {};

  const int32_t kv_len = sequence.length() + sequence.pending();
  budget_ = split_budget(policy, where.layer, kv_len);
  max_tokens_ = policy.max_tokens(where.layer, kv_len);
  if (bounded()) result.out_bound.resize(static_cast<size_t>(num_q_heads()));
  std::fill(result.outcomes.begin(), result.outcomes.end(), ListOutcome::first);
  tokens_.assign(static_cast<size_t>(num_lists()), 0);
  std::vector<char> open(static_cast<size_t>(num_lists()), 1);
  while (true) {
    bool any = false;
    for (int32_t list = 0; list < num_lists(); ++list) {
      int32_t& tokens = tokens_[static_cast<size_t>(list)];
      tokens = open[static_cast<size_t>(list)] != 0 ? next_tokens(list, out, result) : 0;
      if (tokens == 0) open[static_cast<size_t>(list)] = 0;
      if (tokens == 0) continue;
      any = true;
      ListOutcome& outcome = result.outcomes[static_cast<size_t>(list)];
      if (tokens == kAllTokens) {
        outcome = ListOutcome::dense;
      } else if (tokens > set_.count(0, list)) {
        outcome = tokens >= max_tokens_ ? ListOutcome::capped : ListOutcome::enlarged;
      }
      // A sample that was sized by another one is not judged by itself.
      if (tokens == kAllTokens || policy.spend == Spend::vattention) open[static_cast<size_t>(list)] = 0;
    }
    if (!any) return {};
    SelectionStep again = where;
    if (policy.spend == Spend::vattention) again.draw = RngPurpose::tail;
    RAREFY_RETURN_IF_ERROR(retry(sequence, again, out, result));
  }
}

int32_t SparseStep::Impl::next_tokens(int32_t list, float* out, SparseStepResult& result) {
  if (bounded()) return after_bound(list, out, result);
  if (plan_->policy.spend == Spend::vattention) return after_sample(list, out);
  return after_estimate(list, result);
}

int32_t SparseStep::Impl::after_estimate(int32_t list, const SparseStepResult& result) const {
  const Policy& policy = plan_->policy;
  const double z = normal_quantile(1.0 - policy.delta / 2.0);
  double worst = 0.0;  // NaN stays
  for (int32_t head = list * plan_->shape.group; head < (list + 1) * plan_->shape.group; ++head) {
    const double error = kGuard * z * result.out_rel_std[static_cast<size_t>(head)];
    if (!(error <= worst)) worst = error;
  }
  if (worst <= policy.eps) return 0;
  const int32_t fixed = budget_.sink + budget_.local;
  const int32_t tokens = tokens_[static_cast<size_t>(list)] > 0 ? tokens_[static_cast<size_t>(list)] : budget_.total;
  const int32_t selected = tokens - fixed, most = max_tokens_ - fixed;
  const double law = selected * (worst / policy.eps) * (worst / policy.eps);
  if (tokens >= max_tokens_ || !(law <= most)) return kAllTokens;
  const int32_t grown = std::max(static_cast<int32_t>(std::ceil(kGrowth * law)), selected + selected / 8 + 1);
  return fixed + std::min(grown, most);
}

// docs/certificate.md derives the inequality.
int32_t SparseStep::Impl::after_bound(int32_t list, const float* out, SparseStepResult& result) {
  const Policy& policy = plan_->policy;
  const int32_t group = plan_->shape.group, head_dim = plan_->shape.head_dim;
  outside_.resize(static_cast<size_t>(group));
  selection_.bound_outside(list, set_, list_lse_.data() + list * group, outside_.data());
  const int64_t block_tokens = plan_->selector->block_tokens();
  result.traffic.index_bytes += (args_.kv.kv_lens[0] + block_tokens - 1) / block_tokens * plan_->selector->block_bytes();
  bool all_within = true;
  for (int32_t query = 0; query < group; ++query) {
    const int32_t head = list * group + query;
    double squares = 0.0;
    for (int32_t d = 0; d < head_dim; ++d) squares += std::pow(double{out[head * head_dim + d]}, 2);
    const double norm = std::sqrt(squares);
    const OutsideBound& outside = outside_[static_cast<size_t>(query)];
    const double plain = outside.value_mass + outside.mass * norm;
    const double shared = (outside.largest_value + norm) * outside.mass / (1.0 + outside.mass);
    const double error = shared < plain ? shared : plain;
    const double relative = error < norm && std::isfinite(plain) ? error / (norm - error)
                            : plain == 0.0                       ? 0.0
                                                                 : std::numeric_limits<double>::infinity();
    result.out_bound[static_cast<size_t>(head)] = static_cast<float>(relative);
    all_within = all_within && relative <= (1.0 - kBoundedSlack) * policy.eps;
  }
  if (all_within) return 0;
  const int32_t tokens = tokens_[static_cast<size_t>(list)] > 0 ? tokens_[static_cast<size_t>(list)] : budget_.total;
  if (tokens >= max_tokens_) {
    std::fill_n(result.out_bound.begin() + list * group, group, 0.0f);
    return kAllTokens;
  }
  return static_cast<int32_t>(std::min<int64_t>(2 * int64_t{tokens}, max_tokens_));
}

int32_t SparseStep::Impl::after_sample(int32_t list, const float* out) const {
  const int32_t group = plan_->shape.group, first_head = list * group;
  const int64_t row = int64_t{list} * args_.index.max_selected, query = int64_t{first_head} * plan_->shape.head_dim;
  TailProblem problem;
  problem.eps = plan_->policy.eps;
  problem.delta = plan_->policy.delta;
  problem.group = group;
  problem.head_dim = plan_->shape.head_dim;
  problem.kv_head = list;
  problem.scale = args_.scale;
  problem.logit_soft_cap = plan_->sparse.problem().logit_soft_cap;
  problem.q = static_cast<const float*>(args_.q) + query;
  problem.out = out + query;
  problem.lse = list_lse_.data() + first_head;
  problem.kv = args_.kv;
  problem.token_ids = args_.index.token_ids + row;
  problem.log_weight = args_.index.log_weight + row;
  problem.count = args_.index.counts[list];
  const TailSize size = tail_size(problem);
  if (size.first == 0) return 0;
  const double tokens = problem.count - size.first + std::max(std::ceil(size.tokens), static_cast<double>(size.first));
  return tokens <= max_tokens_ ? static_cast<int32_t>(tokens) : kAllTokens;
}

Status SparseStep::Impl::retry(KvSequence& sequence, SelectionStep where, float* out, SparseStepResult& result) {
  where.list_tokens = tokens_.data();
  SelectionCost cost;
  const bool any_list = std::any_of(tokens_.begin(), tokens_.end(), [](int32_t tokens) { return tokens > 0; });
  if (any_list) RAREFY_RETURN_IF_ERROR(selection_.select(sequence, where, set_, cost));
  result.traffic.index_bytes += cost.index_bytes;

  const int32_t group = plan_->shape.group, head_dim = plan_->shape.head_dim,
                kv_len = sequence.length() + sequence.pending();
  counts_.assign(static_cast<size_t>(num_lists()), 0);
  for (int32_t list = 0; list < num_lists(); ++list) {
    const int32_t tokens = tokens_[static_cast<size_t>(list)];
    if (tokens == 0) continue;
    if (tokens == kAllTokens) set_.count(0, list) = kAllTokens;
    counts_[static_cast<size_t>(list)] = set_.count(0, list);
    const int64_t read = tokens == kAllTokens ? kv_len : set_.count(0, list);
    result.traffic.tokens_read += read;
    result.traffic.row_bytes += read * row_bytes();
  }
  DecodeArgs args = args_;
  args.index.counts = counts_.data();
  scratch_out_.resize(static_cast<size_t>(num_q_heads()) * static_cast<size_t>(head_dim));
  for (std::vector<float>* values : {&retry_lse_, &retry_std_, &retry_out_std_}) {
    values->resize(static_cast<size_t>(num_q_heads()));
  }
  args.out = scratch_out_.data();
  args.lse = retry_lse_.data();
  args.rel_std = retry_std_.data();
  args.out_rel_std = retry_out_std_.data();
  RAREFY_RETURN_IF_ERROR(attend(plan_->sparse, args, workspace_));
  for (int32_t list = 0; list < num_lists(); ++list) {
    if (tokens_[static_cast<size_t>(list)] == 0) continue;
    const int32_t first = list * group;
    std::copy_n(scratch_out_.begin() + int64_t{first} * head_dim, group * head_dim, out + int64_t{first} * head_dim);
    std::copy_n(retry_lse_.begin() + first, group, list_lse_.begin() + first);
    std::copy_n(retry_std_.begin() + first, group, result.rel_std.begin() + first);
    std::copy_n(retry_out_std_.begin() + first, group, result.out_rel_std.begin() + first);
  }
  return {};
}

void SparseStep::Impl::set_args(const KvSequence& sequence, const SelectionStep& where, const IndexSetView& lists,
                                float* out, SparseStepResult& result) {
  list_lse_.resize(static_cast<size_t>(num_q_heads()));
  result.rel_std.resize(static_cast<size_t>(num_q_heads()));
  result.out_rel_std.resize(static_cast<size_t>(num_q_heads()));
  result.out_bound.clear();
  result.outcomes.assign(static_cast<size_t>(num_lists()), ListOutcome::unjudged);
  args_ = {};
  args_.scale = where.scale;
  args_.q = where.q;
  args_.kv = sequence.view(where.layer);
  args_.index = lists;
  args_.out = out;
  args_.lse = list_lse_.data();
  args_.rel_std = result.rel_std.data();
  args_.out_rel_std = result.out_rel_std.data();
}

Status SparseStep::Impl::run_lists(const KvSequence& sequence, const SelectionStep& where, const IndexSetView& lists,
                                   float* out, SparseStepResult& result) {
  set_args(sequence, where, lists, out, result);
  RAREFY_RETURN_IF_ERROR(attend(plan_->sparse, args_, workspace_));
  count_traffic(result);
  return {};
}

void SparseStep::Impl::count_traffic(SparseStepResult& result) const {
  const IndexSetView& lists = args_.index;
  const int64_t kv_len = args_.kv.kv_lens[0];
  result.traffic = {};
  result.traffic.sparse_layer_steps = 1;
  for (int32_t list = 0; list < lists.num_lists; ++list) {
    result.traffic.tokens_read += lists.counts[list] == kAllTokens ? kv_len : lists.counts[list];
    result.traffic.tokens_cached += kv_len;
  }
  result.traffic.row_bytes = result.traffic.tokens_read * row_bytes();
  result.traffic.dense_bytes = result.traffic.tokens_cached * row_bytes();
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
  RAREFY_RETURN_IF_ERROR(attend(plan_->dense, dense, workspace_));

  // The same tokens without their sampling weights: exp(lse - dense lse) is the attention mass they hold.
  DecodeArgs unweighted = args_;
  unweighted.index.log_weight = nullptr;
  unweighted.rel_std = unweighted.out_rel_std = nullptr;
  unweighted.out = scratch_out_.data();
  unweighted.lse = selected_lse_.data();
  RAREFY_RETURN_IF_ERROR(attend(plan_->sparse, unweighted, workspace_));

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

bool SparseStep::ready(const KvSequence& sequence, int32_t layer) const {
  return impl_->selection().ready(sequence, layer);
}

Status SparseStep::run(KvSequence& sequence, const SelectionStep& where, float* out, SparseStepResult& result) {
  return impl_->run(sequence, where, out, result);
}

Status SparseStep::run_lists(const KvSequence& sequence, const SelectionStep& where, const IndexSetView& lists, float* out,
                             SparseStepResult& result) {
  return impl_->run_lists(sequence, where, lists, out, result);
}

Status SparseStep::audit(const float* out, SparseStepAudit& audit) { return impl_->audit(out, audit); }

const IndexSetView& SparseStep::lists() const { return impl_->lists(); }

}  // namespace rarefy
