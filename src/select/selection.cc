#include "rarefy/select/selection.h"

#include <omp.h>

#include <algorithm>
#include <mutex>
#include <utility>
#include <vector>

#include "cpu/select/key_rows.h"
#include "rarefy/core/device.h"
#include "select/list_builder.h"

namespace rarefy {
namespace {

// A range that is worth a thread of its own: about 20 us of scoring.
constexpr int32_t kMinPartTokens = 4096;
// Encoding fewer tokens than this (over all KV heads) is not worth starting threads.
constexpr int32_t kMinParallelTokens = 256;

}  // namespace

class Selection::Impl {
 public:
  Impl(const Policy& policy, std::shared_ptr<const Selector> selector, const SelectorShape& shape, int32_t index)
      : policy_(policy), selector_(std::move(selector)), shape_(shape), index_(index), lists_(shape.num_kv_heads) {}

  Status update_index(KvSequence& sequence, int32_t layer);
  bool ready(const KvSequence& sequence, int32_t layer) const;
  Status select(KvSequence& sequence, const SelectionStep& step, IndexSet& set, SelectionCost& cost,
                const ListReady& list_ready);
  void bound_outside(int32_t kv_head, IndexSet& set, const float* lse, OutsideBound* outside) {
    lists_[static_cast<size_t>(kv_head)].bound_outside(set.token_ids(0, kv_head), set.count(0, kv_head), lse, outside);
  }
  const Selector& selector() const { return *selector_; }

 private:
  HeadId head(const KvSequence& sequence, int32_t layer, int32_t kv_head) const {
    return {layer, kv_head, index_ < 0 ? nullptr : sequence.cache().trained(index_, layer, kv_head)};
  }
  // Trains the heads of a layer unless that has been done. Pre: the sequence holds training_tokens().
  Status train(const KvSequence& sequence, int32_t layer) const;
  // Tokens [first, end) of one page and KV head.
  void encode_page(const KvSequence& sequence, const PagedKvView& view, int32_t layer, int32_t kv_head, int32_t page,
                   int32_t first, int32_t end) const;
  // Tokens [first, end) of the last page that its index does not hold yet, to be encoded while the lock is held.
  struct Missing {
    std::unique_lock<std::mutex> lock;
    PagedKvView view;
    int32_t page = 0, first = 0, end = 0;

    bool any() const { return first < end; }
  };
  Missing missing_tokens(const KvSequence& sequence, int32_t layer) const;
  // How many ranges each list is scanned in, by as many threads.
  int32_t num_ranges(int32_t num_blocks) const;

  Policy policy_;
  std::shared_ptr<const Selector> selector_;
  SelectorShape shape_;
  int32_t index_;                     // of the cache; -1 for a selector without entries
  std::vector<ListBuilder> lists_;    // [num_kv_heads]
  std::vector<ListScratch> scratch_;  // [threads], or of lists that several threads make together [num_kv_heads]
  std::vector<float> scaled_q_;       // [num_q_heads, head_dim] f32
};

Status Selection::Impl::train(const KvSequence& sequence, int32_t layer) const {
  KvCache& cache = sequence.cache();
  if (cache.is_trained(index_, layer)) return {};
  const auto lock = cache.lock_training();
  if (cache.is_trained(index_, layer)) return {};
  const PagedKvView view = sequence.view(layer);
  const int32_t num_tokens = selector_->training_tokens();
  const auto element_bytes = static_cast<int64_t>(size_of(view.dtype));
  std::vector<Status> results(static_cast<size_t>(shape_.num_kv_heads));
#pragma omp parallel for schedule(dynamic) num_threads(num_threads())
  for (int32_t kv_head = 0; kv_head < shape_.num_kv_heads; ++kv_head) {
    // [num_tokens, head_dim] f32
    const auto keys = std::make_unique_for_overwrite<float[]>(static_cast<size_t>(num_tokens) * view.head_dim);
    for (int32_t token = 0; token < num_tokens; token += view.page_size) {
      const auto* rows = static_cast<const std::byte*>(view.keys) + element_bytes * view.row_offset(0, token, kv_head);
      cpu::rows_to_float(rows, view.dtype, view.token_stride, std::min(view.page_size, num_tokens - token), view.head_dim,
                         keys.get() + int64_t{token} * view.head_dim);
    }
    results[static_cast<size_t>(kv_head)] =
        selector_->train({layer, kv_head}, keys.get(), num_tokens, cache.trained(index_, layer, kv_head));
  }
  for (const Status& result : results) RAREFY_RETURN_IF_ERROR(result);
  cache.set_trained(index_, layer);
  return {};
}

void Selection::Impl::encode_page(const KvSequence& sequence, const PagedKvView& view, int32_t layer, int32_t kv_head,
                                  int32_t page, int32_t first, int32_t end) const {
  const int32_t block_tokens = selector_->block_tokens();
  const auto element_bytes = static_cast<int64_t>(size_of(view.dtype));
  // [block_tokens, head_dim] f32; only rows from first_key_read() on are filled
  const auto row_floats = static_cast<size_t>(block_tokens) * view.head_dim;
  const auto keys = std::make_unique_for_overwrite<float[]>(row_floats);
  const auto values = selector_->reads_values() ? std::make_unique_for_overwrite<float[]>(row_floats) : nullptr;
  const HeadId id = head(sequence, layer, kv_head);
  for (int32_t token = first / block_tokens * block_tokens; token < end; token += block_tokens) {
    const int32_t position = page * view.page_size + token;
    const int64_t offset = element_bytes * view.row_offset(0, position, kv_head);
    BlockKeys block;
    block.num_tokens = std::min(block_tokens, end - token);
    block.first_new = std::max(0, first - token);
    const int32_t first_key = selector_->first_key_read(block.first_new, block.num_tokens);
    const auto read_rows = [&](const void* from, float* to) {
      const auto* rows = static_cast<const std::byte*>(from) + offset;
      cpu::rows_to_float(rows + element_bytes * first_key * view.token_stride, view.dtype, view.token_stride,
                         block.num_tokens - first_key, view.head_dim, to + int64_t{first_key} * view.head_dim);
    };
    read_rows(view.keys, keys.get());
    if (values != nullptr) read_rows(view.values, values.get());
    block.keys = keys.get();
    block.values = values.get();
    selector_->encode(id, block, sequence.index_entry(index_, layer, kv_head, position / block_tokens));
  }
}

Status Selection::Impl::update_index(KvSequence& sequence, int32_t layer) {
  if (layer < 0 || layer >= shape_.num_layers) {
    return Status::invalid_argument("selection: expected a layer below " + std::to_string(shape_.num_layers) + ", got " +
                                    std::to_string(layer));
  }
  const int32_t num_tokens = sequence.length() + sequence.pending();
  if (index_ < 0 || num_tokens == 0) return {};
  if (selector_->trained_bytes() > 0) {
    if (num_tokens < selector_->training_tokens() && !sequence.cache().is_trained(index_, layer)) return {};
    RAREFY_RETURN_IF_ERROR(train(sequence, layer));
  }
  const PagedKvView view = sequence.view(layer);
  const int32_t page_size = view.page_size;
  const int32_t num_pages = (num_tokens + page_size - 1) / page_size;
  // Tokens are encoded in order, and sequences that share a page share all pages before it: complete pages form a prefix.
  int32_t first_page = num_pages - 1;
  while (first_page > 0 && sequence.encoded_tokens(index_, layer, first_page - 1) < page_size) --first_page;
  const auto lock = sequence.lock_index(first_page);

  const auto tokens_in = [&](int32_t page) { return std::min(page_size, num_tokens - page * page_size); };
  const int32_t num_tasks = (num_pages - first_page) * shape_.num_kv_heads;
  int32_t num_new = 0;
  for (int32_t page = first_page; page < num_pages; ++page)
    num_new += tokens_in(page) - std::min(tokens_in(page), sequence.encoded_tokens(index_, layer, page));
  const bool parallel = num_new * shape_.num_kv_heads >= kMinParallelTokens;
#pragma omp parallel for schedule(static) num_threads(num_threads()) if (parallel)
  for (int32_t task = 0; task < num_tasks; ++task) {
    const int32_t page = first_page + task / shape_.num_kv_heads;
    const int32_t encoded = sequence.encoded_tokens(index_, layer, page);
    if (encoded < tokens_in(page)) {
      encode_page(sequence, view, layer, task % shape_.num_kv_heads, page, encoded, tokens_in(page));
    }
  }
  RAREFY_RETURN_IF_ERROR(selector_->failure());  // and nothing counts as encoded
  for (int32_t page = first_page; page < num_pages; ++page) {
    if (sequence.encoded_tokens(index_, layer, page) < tokens_in(page)) {
      sequence.set_encoded_tokens(index_, layer, page, tokens_in(page));
    }
  }
  return {};
}

bool Selection::Impl::ready(const KvSequence& sequence, int32_t layer) const {
  if (index_ < 0) return true;
  const int32_t num_tokens = sequence.length() + sequence.pending();
  if (num_tokens == 0 || layer < 0 || layer >= shape_.num_layers) return false;
  if (selector_->trained_bytes() > 0 && !sequence.cache().is_trained(index_, layer)) return false;
  // Complete pages form a prefix (update_index).
  const int32_t page_size = sequence.cache().config().page_size, last_page = (num_tokens - 1) / page_size;
  return last_page == 0 || sequence.encoded_tokens(index_, layer, last_page - 1) == page_size;
}

Selection::Impl::Missing Selection::Impl::missing_tokens(const KvSequence& sequence, int32_t layer) const {
  Missing missing;
  if (index_ < 0) return missing;
  missing.view = sequence.view(layer);
  const int32_t num_tokens = missing.view.kv_lens[0], page_size = missing.view.page_size;
  missing.page = (num_tokens - 1) / page_size;
  missing.end = num_tokens - missing.page * page_size;
  missing.first = sequence.encoded_tokens(index_, layer, missing.page);
  if (!missing.any()) return missing;
  missing.lock = sequence.lock_index(missing.page);
  missing.first = sequence.encoded_tokens(index_, layer, missing.page);  // another sequence may have done it
  return missing;
}

int32_t Selection::Impl::num_ranges(int32_t num_blocks) const {
  const int32_t wanted = (num_threads() + shape_.num_kv_heads - 1) / shape_.num_kv_heads;
  return std::min(wanted, std::max(1, num_blocks * selector_->block_tokens() / kMinPartTokens));
}

Status Selection::Impl::select(KvSequence& sequence, const SelectionStep& step, IndexSet& set, SelectionCost& cost,
                               const ListReady& list_ready) {
  if (step.q == nullptr || step.layer < 0 || step.layer >= shape_.num_layers) {
    return Status::invalid_argument("selection: expected queries and a layer below " + std::to_string(shape_.num_layers) +
                                    ", got layer " + std::to_string(step.layer) +
                                    (step.q == nullptr ? " and no queries" : ""));
  }
  const int32_t kv_len = sequence.length() + sequence.pending();
  if (kv_len == 0) return Status::invalid_argument("selection: the sequence is empty; append tokens first");
  TokenBudget budget = split_budget(policy_, step.layer, kv_len);
  budget.sink = std::clamp(budget.sink, 0, kv_len);
  budget.local = std::clamp(budget.local, 0, kv_len - budget.sink);
  const int32_t num_free = kv_len - budget.sink - budget.local;
  // Tokens by score and chance of each list to be made.
  std::vector<int32_t> selected(static_cast<size_t>(shape_.num_kv_heads), budget.selected);  // [num_kv_heads] i32
  std::vector<int32_t> todo;                                                                 // [lists to make] i32
  int32_t list_tokens = 0;
  for (int32_t kv_head = 0; kv_head < shape_.num_kv_heads; ++kv_head) {
    int32_t& tokens = selected[static_cast<size_t>(kv_head)];
    if (step.list_tokens != nullptr) {
      if (step.list_tokens[kv_head] <= 0) continue;
      tokens = std::max(1, step.list_tokens[kv_head] - budget.sink - budget.local);
    }
    todo.push_back(kv_head);
    list_tokens = std::max(list_tokens, budget.sink + budget.local + std::min(tokens, num_free));
  }
  const auto num_todo = static_cast<int32_t>(todo.size());
  if (set.batch() < 1 || set.num_lists() != shape_.num_kv_heads || set.max_selected() < list_tokens) {
    return Status::invalid_argument("selection: expected an index set with " + std::to_string(shape_.num_kv_heads) +
                                    " lists of at least " + std::to_string(list_tokens) + " tokens, got " +
                                    std::to_string(set.num_lists()) + " lists of " + std::to_string(set.max_selected()));
  }

  const int64_t group_values = int64_t{shape_.group} * shape_.head_dim;
  scaled_q_.resize(static_cast<size_t>(shape_.num_kv_heads * group_values));
  if (!ready(sequence, step.layer)) {
    return Status::invalid_argument(
        "selection: the index of layer " + std::to_string(step.layer) +
        " does not cover the sequence; call update_index, and attend densely while ready() says no");
  }
  const int32_t block_tokens = selector_->block_tokens();
  const int32_t num_blocks = (kv_len + block_tokens - 1) / block_tokens;
  const int32_t num_parts = num_ranges(num_blocks);
  scratch_.resize(static_cast<size_t>(num_parts == 1 ? num_threads() : shape_.num_kv_heads));
  for (ListScratch& scratch : scratch_) {
    scratch.parts.resize(static_cast<size_t>(num_parts));
    for (int32_t i = 0; i < num_parts; ++i) {
      scratch.parts[static_cast<size_t>(i)].first_block = static_cast<int32_t>(int64_t{num_blocks} * i / num_parts);
      scratch.parts[static_cast<size_t>(i)].end_block = static_cast<int32_t>(int64_t{num_blocks} * (i + 1) / num_parts);
    }
  }
  const Missing missing = missing_tokens(sequence, step.layer);
  const auto encode_missing = [&](int32_t kv_head) {
    if (missing.any()) {
      encode_page(sequence, missing.view, step.layer, kv_head, missing.page, missing.first, missing.end);
    }
  };
  if (num_todo < shape_.num_kv_heads) {
    for (int32_t kv_head = 0; kv_head < shape_.num_kv_heads; ++kv_head) {
      if (step.list_tokens[kv_head] <= 0) encode_missing(kv_head);
    }
  }
  const auto set_problem = [&](int32_t kv_head, ListScratch& scratch) {
    encode_missing(kv_head);
    ListBuilder::Problem problem;
    problem.selector = selector_.get();
    problem.group = shape_.group;
    problem.num_sink = budget.sink;
    problem.num_local = budget.local;
    problem.rule = {policy_.spend, selected[static_cast<size_t>(kv_head)], num_free, policy_.floor,
                    make_list_key(step.seed, step.draw, step.layer, kv_head, step.position)};
    problem.rule.first_token = budget.sink;
    problem.rule.num_heavy = (budget.selected + 1) / 2;
    problem.rule.top_p = policy_.top_p;
    problem.q = scaled_q_.data() + kv_head * group_values;
    for (int64_t i = kv_head * group_values; i < (kv_head + 1) * group_values; ++i) scaled_q_[i] = step.q[i] * step.scale;
    lists_[kv_head].set(problem, BlockSource(sequence, index_, block_tokens, head(sequence, step.layer, kv_head)), scratch);
  };
  const auto announce = [&](int32_t kv_head) {
    if (list_ready) list_ready(kv_head, omp_get_thread_num());
  };
  const auto finish = [&](int32_t kv_head) {
    set.count(0, kv_head) = lists_[kv_head].finish(set.token_ids(0, kv_head), set.log_weight(0, kv_head));
  };
#pragma omp parallel num_threads(num_threads())
  {
    if (num_parts == 1) {
      // A thread hands a list over as soon as it is made. Threads take lists as they come: cores may differ in speed.
#pragma omp for schedule(dynamic)
      for (int32_t i = 0; i < num_todo; ++i) {
        const int32_t kv_head = todo[static_cast<size_t>(i)];
        ListScratch& scratch = scratch_[static_cast<size_t>(omp_get_thread_num())];
        set_problem(kv_head, scratch);
        lists_[kv_head].begin();
        lists_[kv_head].scan(scratch.parts[0]);
        finish(kv_head);
        announce(kv_head);
      }
    } else {
#pragma omp for schedule(dynamic)
      for (int32_t i = 0; i < num_todo; ++i) {
        const int32_t kv_head = todo[static_cast<size_t>(i)];
        set_problem(kv_head, scratch_[static_cast<size_t>(kv_head)]);
        lists_[kv_head].begin();
      }
#pragma omp for schedule(dynamic)
      for (int32_t task = 0; task < num_todo * num_parts; ++task) {
        const int32_t kv_head = todo[static_cast<size_t>(task / num_parts)];
        lists_[kv_head].scan(scratch_[static_cast<size_t>(kv_head)].parts[task % num_parts]);
      }
#pragma omp for schedule(dynamic)
      for (int32_t i = 0; i < num_todo; ++i) {
        finish(todo[static_cast<size_t>(i)]);
        announce(todo[static_cast<size_t>(i)]);
      }
    }
  }

  RAREFY_RETURN_IF_ERROR(selector_->failure());  // and nothing counts as encoded
  if (missing.any()) sequence.set_encoded_tokens(index_, step.layer, missing.page, missing.end);

  cost = {};
  double bytes = 0.0;
  for (const int32_t kv_head : todo) {
    cost.tokens_selected += set.count(0, kv_head);
    cost.tokens_cached += kv_len;
    bytes += selector_->bytes_per_token() * num_blocks * block_tokens * lists_[kv_head].passes();
  }
  cost.index_bytes = static_cast<int64_t>(bytes);
  return {};
}

Selection::Selection(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Selection::Selection(Selection&&) noexcept = default;
Selection& Selection::operator=(Selection&&) noexcept = default;
Selection::~Selection() = default;

Expected<Selection> Selection::make(const Policy& policy, std::shared_ptr<const Selector> selector,
                                    const SelectorShape& shape, KvCache& cache) {
  if (selector == nullptr) return Status::invalid_argument("selection: expected a selector (select/registry.h), got none");
  if (policy.dense) return Status::invalid_argument("selection: a dense policy selects nothing; attend densely instead");
  const KvCacheConfig& config = cache.config();
  if (config.num_layers != shape.num_layers || config.num_kv_heads != shape.num_kv_heads ||
      config.head_dim != shape.head_dim || config.dtype != shape.kv_dtype) {
    return Status::invalid_argument(
        "selection: the selector was made for num_layers=" + std::to_string(shape.num_layers) +
        " num_kv_heads=" + std::to_string(shape.num_kv_heads) + " head_dim=" + std::to_string(shape.head_dim) + " " +
        std::string(to_string(shape.kv_dtype)) + ", the cache has num_layers=" + std::to_string(config.num_layers) +
        " num_kv_heads=" + std::to_string(config.num_kv_heads) + " head_dim=" + std::to_string(config.head_dim) + " " +
        std::string(to_string(config.dtype)));
  }
  const int32_t block_tokens = selector->block_tokens();
  if (block_tokens < 1 || block_tokens > kMaxBlockTokens || config.page_size % block_tokens != 0) {
    return Status::unsupported("selection: index=" + selector->name() + " works on blocks of " +
                               std::to_string(block_tokens) + " tokens; page_size must be a multiple of that, got " +
                               std::to_string(config.page_size));
  }
  int32_t index = -1;
  if (selector->block_bytes() > 0) {
    RAREFY_ASSIGN_OR_RETURN(
        index, cache.add_index(selector->name(), block_tokens, selector->block_bytes(), selector->trained_bytes()));
  }
  return Selection(std::make_unique<Impl>(policy, std::move(selector), shape, index));
}

Status Selection::update_index(KvSequence& sequence, int32_t layer) { return impl_->update_index(sequence, layer); }

bool Selection::ready(const KvSequence& sequence, int32_t layer) const { return impl_->ready(sequence, layer); }

Status Selection::select(KvSequence& sequence, const SelectionStep& step, IndexSet& set, SelectionCost& cost,
                         const ListReady& list_ready) {
  return impl_->select(sequence, step, set, cost, list_ready);
}

void Selection::bound_outside(int32_t kv_head, IndexSet& set, const float* lse, OutsideBound* outside) {
  impl_->bound_outside(kv_head, set, lse, outside);
}

const Selector& Selection::selector() const { return impl_->selector(); }

}  // namespace rarefy
