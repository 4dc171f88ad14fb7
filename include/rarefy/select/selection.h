// Selection: from queries, an index and a policy to the IndexSet of one step.
//
// For every KV head: score all tokens for the queries of its group; let L_h be the log-sum-exp of head h's scores (from a
// sample that does not depend on the random numbers); rank token i by a_i = max_h (s_hi - L_h), the largest estimated
// probability over the group; spend the budget (Policy::spend). Randomness is keyed by (seed, layer, kv head, position,
// token), so a request gets the same tokens whatever else runs, whatever the number of threads.
//
// One Selection owns the scratch memory of one sequence of calls; it belongs to one thread at a time.
#pragma once

#include <functional>
#include <memory>

#include "rarefy/attention/index_set.h"
#include "rarefy/core/rng.h"
#include "rarefy/kv/kv_cache.h"
#include "rarefy/select/policy.h"
#include "rarefy/select/selector.h"

namespace rarefy {

struct SelectionStep {
  int32_t layer = 0;
  float scale = 1.0f;
  uint64_t seed = 0;
  int64_t position = 0;      // of the query token
  const float* q = nullptr;  // [num_q_heads, head_dim] f32; after RoPE, unscaled
  // Instead of what the policy says, tokens of each list: 0 leaves the list as it is. Sink, local and (vattention) heavy tokens
  // stay those of the policy's total.
  const int32_t* list_tokens = nullptr;  // [num_kv_heads] i32; nullable
  // Random numbers are independent between draws. Within a draw more tokens extend the same sample (priority, gumbel, uniform).
  RngPurpose draw = RngPurpose::select;  // or tail
};

// What the step read, for bytes_ratio and reports.
struct SelectionCost {
  int64_t tokens_selected = 0;  // over all lists
  int64_t tokens_cached = 0;    // over all lists
  int64_t index_bytes = 0;      // read by scoring
};

// What a list leaves out at most, for one query head, in units of the list's own denominator exp(lse).
struct OutsideBound {
  double mass = 0.0;           // sum of exp(bound of the logit - lse)
  double value_mass = 0.0;     // the same times the bound of |v|
  double largest_value = 0.0;  // largest bound of |v|
};

class Selection {
 public:
  // `selector` must have been made for this cache's shape.
  static Expected<Selection> make(const Policy& policy, std::shared_ptr<const Selector> selector,
                                  const SelectorShape& shape, KvCache& cache);
  Selection(Selection&&) noexcept;
  Selection& operator=(Selection&&) noexcept;
  ~Selection();

  // Encodes the tokens of a layer that its index does not hold yet; the pending tokens of an append included. A selector that
  // trains does so first; with too few tokens for that the layer stays without index.
  Status update_index(KvSequence& sequence, int32_t layer);
  // Whether select() may be called: the index of the layer covers the sequence, but for tokens of its last page at most. Otherwise call update_index();
  // where that does not help, attend densely.
  bool ready(const KvSequence& sequence, int32_t layer) const;
  // What may be done with the list of a KV head as soon as it is made, on the thread that made it while other threads make others;
  // `thread` is below num_threads().
  using ListReady = std::function<void(int32_t kv_head, int32_t thread)>;
  // Fills row 0 of `set`, one list per KV head. Pre: ready(), the layer is not dense. Encodes what the index lacks of the last page, each list's tokens on
  // the thread that makes it. `list_ready` (may be empty) is called for each list that is made.
  Status select(KvSequence& sequence, const SelectionStep& step, IndexSet& set, SelectionCost& cost,
                const ListReady& list_ready = {});

  // Bounds what list `kv_head` of the last select() leaves out, by the bounds of the selector. Pre: selector().has_bounds();
  // `set` and the sequence are as select() left them.
  void bound_outside(int32_t kv_head, IndexSet& set,
                     const float* lse,        // [group] f32; of the list's tokens without weights
                     OutsideBound* outside);  // not a tensor: one for each of the group's query heads

  const Selector& selector() const;

  class Impl;
  explicit Selection(std::unique_ptr<Impl> impl);

 private:
  std::unique_ptr<Impl> impl_;
};

}  // namespace rarefy
