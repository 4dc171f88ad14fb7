#include "rarefy/engine/replay.h"

#include <algorithm>
#include <limits>
#include <optional>

#include "core/aligned_buffer.h"
#include "engine/exact_attention.h"
#include "rarefy/engine/sparse_step.h"
#include "rarefy/select/registry.h"

namespace rarefy {
namespace {

constexpr int32_t kSmallestPageSize = 64;  // as EngineOptions

// What selects the tokens of one arm: a policy, or lists from outside.
struct Source {
  Policy policy;                     // dense for lists from outside
  std::optional<SparseStep> sparse;  // of a policy that is not dense
  const std::vector<LayerIndexSet>* stored = nullptr;
  std::optional<DecodePlan> stored_plan;  // set with `stored`
};

class Replayer {
 public:
  Replayer(const Capture& capture, const ReplayOptions& options)
      : capture_(capture), info_(capture.info()), options_(options) {}

  Status prepare(const std::vector<Policy>& policies, const std::vector<std::vector<LayerIndexSet>>& stored);
  Status run();
  std::vector<ReplayArm> take_arms() { return std::move(arms_); }

 private:
  Status choose_layers();
  Status add_policy(const Policy& policy);
  Status add_stored(const std::vector<LayerIndexSet>& lists);
  Status make_cache();
  DecodeProblem decode_problem() const;
  Status append(int32_t num_tokens);
  Status run_layer(int32_t step, std::size_t slot);
  Status run_arm(Source& source, ReplayArm& arm, int32_t step, std::size_t slot, uint64_t seed);
  Status run_dense(int32_t layer);
  Status run_stored(const Source& source, int32_t layer, int32_t step, IndexSetView& lists);
  void measure(ReplayArm& arm, const ReplayRow& where, const IndexSetView& lists) const;
  static void keep(const IndexSetView& lists, int32_t step, IndexSet& kept);
  int32_t capture_slot(std::size_t slot) const {
    const auto found = std::lower_bound(info_.layers.begin(), info_.layers.end(), layers_[slot]);
    return static_cast<int32_t>(found - info_.layers.begin());
  }
  int64_t row_bytes() const { return 2 * int64_t{info_.head_dim} * static_cast<int64_t>(size_of(info_.kv_dtype)); }

  const Capture& capture_;
  const CaptureInfo& info_;
  const ReplayOptions& options_;
  std::vector<int32_t> layers_;  // [num_replayed_layers] i32
  int32_t num_steps_ = 0;
  int32_t page_size_ = kSmallestPageSize;
  SelectorShape shape_;
  std::shared_ptr<KvCache> cache_;
  std::optional<KvSequence> sequence_;
  std::optional<DecodePlan> dense_plan_;
  std::vector<Source> sources_;
  std::vector<ReplayArm> arms_;

  // Of the step and layer at hand.
  ExactAttention exact_;
  AlignedBuffer workspace_;
  SparseStepResult result_;
  std::vector<float> q_;              // [num_q_heads, head_dim] f32
  std::vector<float> out_;            // [num_q_heads, head_dim] f32
  std::vector<float> keys_, values_;  // [num_tokens, num_kv_heads, head_dim] f32
};

DecodeProblem Replayer::decode_problem() const {
  DecodeProblem problem;
  problem.num_q_heads = info_.num_q_heads;
  problem.num_kv_heads = info_.num_kv_heads;
  problem.head_dim = info_.head_dim;
  problem.kv_dtype = info_.kv_dtype;
  problem.page_size = page_size_;
  problem.logit_soft_cap = info_.logit_soft_cap;
  return problem;
}

Status Replayer::choose_layers() {
  layers_ = options_.layers.empty() ? info_.layers : options_.layers;
  std::sort(layers_.begin(), layers_.end());
  for (const int32_t layer : layers_) {
    if (std::binary_search(info_.layers.begin(), info_.layers.end(), layer)) continue;
    return Status::invalid_argument("replay: expected layers that the capture has, got layer " + std::to_string(layer));
  }
  num_steps_ = options_.num_steps == 0 ? info_.num_steps : options_.num_steps;
  if (num_steps_ < 1 || num_steps_ > info_.num_steps) {
    return Status::invalid_argument("replay: expected 1 to " + std::to_string(info_.num_steps) +
                                    " steps, which the capture has, got " + std::to_string(options_.num_steps));
  }
  return {};
}

Status Replayer::add_policy(const Policy& policy) {
  RAREFY_RETURN_IF_ERROR(policy.check(info_.num_layers));
  Source source;
  source.policy = policy;
  if (!policy.dense) {
    RAREFY_ASSIGN_OR_RETURN(const auto selector, make_selector(policy.index, shape_));
    page_size_ = std::max(page_size_, selector->block_tokens());
  }
  ReplayArm arm;
  arm.policy = policy.to_string();
  sources_.push_back(std::move(source));
  arms_.push_back(std::move(arm));
  return {};
}

Status Replayer::add_stored(const std::vector<LayerIndexSet>& lists) {
  for (const int32_t layer : layers_) {
    const auto found =
        std::find_if(lists.begin(), lists.end(), [&](const LayerIndexSet& one) { return one.layer == layer; });
    if (found == lists.end()) {
      return Status::invalid_argument("index set: expected lists of layer " + std::to_string(layer) +
                                      ", got none; replay only the layers that it has");
    }
    const int32_t num_lists = found->set.num_lists();
    if (num_lists != info_.num_kv_heads && num_lists != info_.num_q_heads) {
      return Status::invalid_argument("index set: expected " + std::to_string(info_.num_kv_heads) +
                                      " lists (one per KV head) or " + std::to_string(info_.num_q_heads) +
                                      " (one per query head), got " + std::to_string(num_lists));
    }
    if (num_lists != lists.front().set.num_lists()) {
      return Status::invalid_argument("index set: expected the same number of lists in every layer, got " +
                                      std::to_string(lists.front().set.num_lists()) + " and " + std::to_string(num_lists));
    }
    if (found->set.batch() != info_.num_steps) {
      return Status::invalid_argument("index set: expected " + std::to_string(info_.num_steps) +
                                      " steps as in the capture, got " + std::to_string(found->set.batch()));
    }
    std::vector<int32_t> kv_lens;  // [num_steps] i32
    for (const int32_t position : capture_.positions()) kv_lens.push_back(position + 1);
    RAREFY_RETURN_IF_ERROR(
        validate(found->set.view(), info_.num_steps, kv_lens.data()).with_context("layer " + std::to_string(layer)));
  }
  Source source;
  source.stored = &lists;
  sources_.push_back(std::move(source));
  arms_.emplace_back();
  return {};
}

Status Replayer::make_cache() {
  KvCacheConfig config;
  config.num_layers = info_.num_layers;  // layers that were not captured take address space only
  config.num_kv_heads = info_.num_kv_heads;
  config.head_dim = info_.head_dim;
  config.dtype = info_.kv_dtype;
  config.page_size = page_size_;
  config.max_tokens = info_.kv_len;
  RAREFY_ASSIGN_OR_RETURN(cache_, KvCache::create(config));
  sequence_.emplace(cache_->new_sequence());
  RAREFY_ASSIGN_OR_RETURN(DecodePlan dense, DecodePlan::make(DecodeOp::dense, Device{}, decode_problem()));
  dense_plan_ = std::move(dense);
  for (Source& source : sources_) {
    if (source.stored != nullptr) {
      DecodeProblem problem = decode_problem();
      const IndexSet& set = source.stored->front().set;
      problem.scope = set.num_lists() == info_.num_kv_heads ? ListScope::kv_head : ListScope::query_head;
      for (const LayerIndexSet& one : *source.stored)
        problem.max_selected = std::max(problem.max_selected, one.set.max_selected());
      RAREFY_ASSIGN_OR_RETURN(DecodePlan plan, DecodePlan::make(DecodeOp::sparse, Device{}, problem));
      source.stored_plan = std::move(plan);
    } else if (!source.policy.dense) {
      RAREFY_ASSIGN_OR_RETURN(auto plan, SparseStepPlan::make(source.policy, shape_, decode_problem(), info_.kv_len));
      RAREFY_ASSIGN_OR_RETURN(SparseStep step, SparseStep::make(std::move(plan), *cache_));
      source.sparse = std::move(step);
    }
  }
  return {};
}

Status Replayer::prepare(const std::vector<Policy>& policies, const std::vector<std::vector<LayerIndexSet>>& stored) {
  if (options_.num_seeds < 1)
    return Status::invalid_argument("replay: expected at least 1 seed, got " + std::to_string(options_.num_seeds));
  if (policies.empty() && stored.empty())
    return Status::invalid_argument("replay: expected a policy or an index set, got none");
  RAREFY_RETURN_IF_ERROR(choose_layers());
  shape_.num_layers = info_.num_layers;
  shape_.num_kv_heads = info_.num_kv_heads;
  shape_.group = info_.num_q_heads / info_.num_kv_heads;
  shape_.head_dim = info_.head_dim;
  shape_.kv_dtype = info_.kv_dtype;
  for (const Policy& policy : policies) RAREFY_RETURN_IF_ERROR(add_policy(policy));
  for (const std::vector<LayerIndexSet>& lists : stored) RAREFY_RETURN_IF_ERROR(add_stored(lists));
  RAREFY_RETURN_IF_ERROR(make_cache());
  for (std::size_t i = 0; i < arms_.size(); ++i) {
    arms_[i].layers.resize(layers_.size());
    if (!options_.keep_sets) continue;
    const std::vector<LayerIndexSet>* lists = sources_[i].stored;
    for (const int32_t layer : layers_) {
      arms_[i].lists.push_back({layer, {}});
      const int32_t num_lists = lists != nullptr ? lists->front().set.num_lists() : info_.num_kv_heads;
      arms_[i].lists.back().set.resize(info_.num_steps, num_lists, info_.kv_len);
    }
  }
  q_.resize(static_cast<std::size_t>(info_.num_q_heads) * info_.head_dim);
  out_.resize(q_.size());
  return {};
}

Status Replayer::append(int32_t num_tokens) {
  const int32_t first = sequence_->length();
  keys_.resize(static_cast<std::size_t>(num_tokens) * info_.num_kv_heads * info_.head_dim);
  values_.resize(keys_.size());
  RAREFY_RETURN_IF_ERROR(sequence_->begin_append(num_tokens));
  for (std::size_t slot = 0; slot < layers_.size(); ++slot) {
    capture_.read_keys(capture_slot(slot), first, num_tokens, keys_.data());
    capture_.read_values(capture_slot(slot), first, num_tokens, values_.data());
    RAREFY_RETURN_IF_ERROR(sequence_->write(layers_[slot], keys_.data(), values_.data()));
  }
  sequence_->commit();
  return {};
}

Status Replayer::run() {
  const auto num_layers = static_cast<int64_t>(layers_.size());
  for (int32_t step = 0; step < num_steps_; ++step) {
    const int32_t kv_len = capture_.positions()[static_cast<std::size_t>(step)] + 1;
    // Tokens between two steps come in one at a time, as in decoding.
    if (step == 0) {
      RAREFY_RETURN_IF_ERROR(append(kv_len));
    }
    while (sequence_->length() < kv_len) {
      RAREFY_RETURN_IF_ERROR(append(1));
      for (Source& source : sources_) {
        if (!source.sparse) continue;
        for (const int32_t layer : layers_) RAREFY_RETURN_IF_ERROR(source.sparse->update_index(*sequence_, layer));
      }
    }
    for (std::size_t slot = 0; slot < layers_.size(); ++slot) {
      RAREFY_RETURN_IF_ERROR(run_layer(step, slot));
      const int64_t done = step * num_layers + static_cast<int64_t>(slot) + 1;
      if (options_.progress && !options_.progress(done, num_steps_ * num_layers)) return Status::cancelled("cancelled");
    }
  }
  return {};
}

Status Replayer::run_layer(int32_t step, std::size_t slot) {
  capture_.read_queries(capture_slot(slot), step, q_.data());
  const ExactProblem problem = {info_.num_q_heads, info_.attention_scale, info_.logit_soft_cap};
  exact_.compute(problem, q_.data(), sequence_->view(layers_[slot]));
  for (std::size_t arm = 0; arm < arms_.size(); ++arm) {
    const int32_t num_seeds = sources_[arm].sparse ? options_.num_seeds : 1;  // the others draw nothing
    for (int32_t i = 0; i < num_seeds; ++i) {
      RAREFY_RETURN_IF_ERROR(run_arm(sources_[arm], arms_[arm], step, slot, options_.seed + static_cast<uint64_t>(i)));
    }
  }
  return {};
}

Status Replayer::run_dense(int32_t layer) {
  DecodeArgs args;
  args.scale = info_.attention_scale;
  args.q = q_.data();
  args.kv = sequence_->view(layer);
  args.out = out_.data();
  args.workspace_bytes = dense_plan_->workspace_bytes();
  args.workspace = workspace_.reserve(args.workspace_bytes);
  result_.traffic = {};
  result_.traffic.dense_layer_steps = 1;
  result_.traffic.tokens_read = result_.traffic.tokens_cached = int64_t{info_.num_kv_heads} * args.kv.kv_lens[0];
  result_.traffic.row_bytes = result_.traffic.dense_bytes = result_.traffic.tokens_read * row_bytes();
  result_.out_rel_std.assign(static_cast<std::size_t>(info_.num_q_heads), 0.0f);
  return dense_plan_->run(args);
}

// The lists that were attended to are those of `step`.
Status Replayer::run_stored(const Source& source, int32_t layer, int32_t step, IndexSetView& lists) {
  const auto found = std::find_if(source.stored->begin(), source.stored->end(),
                                  [&](const LayerIndexSet& one) { return one.layer == layer; });
  lists = found->set.view();
  lists.token_ids += int64_t{step} * lists.num_lists * lists.max_selected;
  lists.log_weight += int64_t{step} * lists.num_lists * lists.max_selected;
  lists.counts += int64_t{step} * lists.num_lists;
  result_.out_rel_std.resize(static_cast<std::size_t>(info_.num_q_heads));
  DecodeArgs args;
  args.scale = info_.attention_scale;
  args.q = q_.data();
  args.kv = sequence_->view(layer);
  args.out = out_.data();
  args.out_rel_std = result_.out_rel_std.data();
  args.index = lists;
  args.workspace_bytes = source.stored_plan->workspace_bytes();
  args.workspace = workspace_.reserve(args.workspace_bytes);
  const int64_t kv_len = args.kv.kv_lens[0];
  Traffic& traffic = result_.traffic = {};
  traffic.sparse_layer_steps = 1;
  for (int32_t list = 0; list < lists.num_lists; ++list) {
    traffic.tokens_read += lists.counts[list] == kAllTokens ? kv_len : lists.counts[list];
    traffic.tokens_cached += kv_len;
  }
  traffic.row_bytes = traffic.tokens_read * row_bytes();
  traffic.dense_bytes = info_.num_kv_heads * kv_len * row_bytes();  // every row once, whoever shares a list
  return source.stored_plan->run(args);
}

Status Replayer::run_arm(Source& source, ReplayArm& arm, int32_t step, std::size_t slot, uint64_t seed) {
  const int32_t layer = layers_[slot], kv_len = sequence_->length();
  IndexSetView lists;  // of this step; without counts: all tokens
  if (source.stored != nullptr) {
    RAREFY_RETURN_IF_ERROR(run_stored(source, layer, step, lists));
  } else if (source.sparse) {
    RAREFY_RETURN_IF_ERROR(source.sparse->update_index(*sequence_, layer));
    if (source.policy.layer_is_dense(layer, kv_len) || !source.sparse->ready(*sequence_, layer)) {
      RAREFY_RETURN_IF_ERROR(run_dense(layer));
    } else {
      SelectionStep where;
      where.layer = layer;
      where.scale = info_.attention_scale;
      where.seed = seed;
      where.position = kv_len - 1;
      where.q = q_.data();
      RAREFY_RETURN_IF_ERROR(source.sparse->run(*sequence_, where, out_.data(), result_));
      lists = source.sparse->lists();
    }
  } else {
    RAREFY_RETURN_IF_ERROR(run_dense(layer));
  }
  arm.traffic.add(result_.traffic);
  arm.layers[slot].add(result_.traffic);
  ReplayRow where;
  where.layer = layer;
  where.step = step;
  where.seed = seed;
  measure(arm, where, lists);
  if (options_.keep_sets && seed == options_.seed) keep(lists, step, arm.lists[slot].set);
  return {};
}

void Replayer::keep(const IndexSetView& lists, int32_t step, IndexSet& kept) {
  for (int32_t list = 0; list < kept.num_lists(); ++list) {
    const int32_t count = lists.counts == nullptr ? kAllTokens : lists.counts[list];
    kept.count(step, list) = count;
    if (count <= 0) continue;
    const int64_t from = int64_t{list} * lists.max_selected;
    std::copy_n(lists.token_ids + from, count, kept.token_ids(step, list));
    if (lists.log_weight != nullptr) {
      std::copy_n(lists.log_weight + from, count, kept.log_weight(step, list));
    } else {
      std::fill_n(kept.log_weight(step, list), count, 0.0f);
    }
  }
}

void Replayer::measure(ReplayArm& arm, const ReplayRow& where, const IndexSetView& lists) const {
  const int32_t kv_len = exact_.kv_len(), group = shape_.group;
  std::vector<double> got(static_cast<std::size_t>(info_.head_dim));  // [head_dim] f64
  for (int32_t head = 0; head < info_.num_q_heads; ++head) {
    ReplayRow row = where;
    row.head = head;
    std::copy_n(out_.data() + int64_t{head} * info_.head_dim, info_.head_dim, got.data());
    row.error = relative_error(got.data(), exact_.out(head), info_.head_dim);
    row.estimated_error = result_.out_rel_std[static_cast<std::size_t>(head)];
    row.num_selected = kv_len;
    row.mass = row.recall = row.overlap = 1.0;
    if (lists.counts != nullptr) {
      const int32_t kv_head = head / group;
      const int32_t list = lists.num_lists == info_.num_kv_heads ? kv_head : head;
      if (const int32_t count = lists.counts[list]; count != kAllTokens) {
        const int32_t* ids = lists.token_ids + int64_t{list} * lists.max_selected;
        double mass = 0.0;
        int32_t best_of_head = 0, best_of_group = 0;
        for (int32_t i = 0; i < count; ++i) {
          mass += exact_.probability(head, ids[i]);
          best_of_head += exact_.head_rank(head, ids[i]) < count ? 1 : 0;
          best_of_group += exact_.group_rank(kv_head, ids[i]) < count ? 1 : 0;
        }
        row.num_selected = count;
        row.mass = mass;
        row.recall = count > 0 ? static_cast<double>(best_of_head) / count : 0.0;
        row.overlap = count > 0 ? static_cast<double>(best_of_group) / (2 * count - best_of_group) : 0.0;
        row.exact_error = exact_.truncation_error(head, count);
      }
    }
    arm.rows.push_back(row);
  }
}

}  // namespace

Expected<std::vector<ReplayArm>> replay(const Capture& capture, const ReplayOptions& options,
                                        const std::vector<Policy>& policies,
                                        const std::vector<std::vector<LayerIndexSet>>& stored) {
  Replayer replayer(capture, options);
  RAREFY_RETURN_IF_ERROR(replayer.prepare(policies, stored));
  RAREFY_RETURN_IF_ERROR(replayer.run());
  return replayer.take_arms();
}

}  // namespace rarefy
