// SparseStep: one layer of one decode step under a policy. Selects tokens, attends to them, judges every list by its certificate
// (docs/certificate.md), and on request compares with dense attention. The engine decodes with it, and replay judges captured
// queries with it: the same code, so that what is measured is what runs.
//
//   auto plan = SparseStepPlan::make(policy, shape, problem, max_kv_len);      // once per policy; shared between sequences
//   auto step = SparseStep::make(*plan, *cache);                               // once per thread
//   if (!step->ready(sequence, layer)) step->update_index(sequence, layer);    // many new tokens, as of a prompt
//   if (step->ready(sequence, layer)) { step->run(sequence, where, out, result); step->audit(out, audit); }
//
// A SparseStep owns scratch memory and belongs to one thread at a time. Nothing is kept between calls but what audit() needs.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "rarefy/attention/decode.h"
#include "rarefy/engine/stats.h"
#include "rarefy/kv/kv_cache.h"
#include "rarefy/select/selection.h"

namespace rarefy {

// What a policy needs besides the cache. Immutable.
struct SparseStepPlan {
  Policy policy;  // not dense
  std::shared_ptr<const Selector> selector;
  SelectorShape shape;
  DecodePlan sparse, dense;
  DecodePlan one_list;  // sparse attention of one KV head

  // `problem` is that of dense attention; max_selected is set here, for contexts up to `max_kv_len` tokens. Refuses what the
  // policy, the selector and the problem cannot do together.
  static Expected<std::shared_ptr<const SparseStepPlan>> make(const Policy& policy, const SelectorShape& shape,
                                                              const DecodeProblem& problem, int32_t max_kv_len);
};

struct SparseStepResult {
  Traffic traffic;                    // of this step; every pass counts, rows that are read again too
  std::vector<float> rel_std;         // [num_q_heads] f32; estimated
  std::vector<float> out_rel_std;     // [num_q_heads] f32; estimated
  std::vector<float> out_bound;       // [num_q_heads] f32; bounded |out - dense| / |dense|; empty without certify=bounded
  std::vector<ListOutcome> outcomes;  // [num_kv_heads]
};

// Of the step that ran last, per query head.
struct SparseStepAudit {
  std::vector<double> error;  // [num_q_heads] f64; |out - dense| / |dense|
  std::vector<double> mass;   // [num_q_heads] f64; attention probability of the chosen tokens under dense attention
};

class SparseStep {
 public:
  static Expected<SparseStep> make(std::shared_ptr<const SparseStepPlan> plan, KvCache& cache);
  SparseStep(SparseStep&&) noexcept;
  SparseStep& operator=(SparseStep&&) noexcept;
  ~SparseStep();

  const SparseStepPlan& plan() const;
  Status update_index(KvSequence& sequence, int32_t layer);
  // Whether run() may be called: the index lacks tokens of the last page at most. Otherwise update_index() comes first; where that does not help, attend
  // densely.
  bool ready(const KvSequence& sequence, int32_t layer) const;

  // Pre: ready(), and the policy does not want the layer dense. Encodes what the index lacks of the last page.
  Status run(KvSequence& sequence, const SelectionStep& where,
             float* out,  // [num_q_heads, head_dim] f32
             SparseStepResult& result);
  // Attends to lists that somebody else made: the certificate, but no judgement by it. No index is read.
  Status run_lists(const KvSequence& sequence, const SelectionStep& where, const IndexSetView& lists,
                   float* out,  // [num_q_heads, head_dim] f32
                   SparseStepResult& result);
  // Recomputes densely what ran last. Pre: nothing was appended since, and lists given to run_lists() are still there.
  Status audit(const float* out,  // [num_q_heads, head_dim] f32; what it gave
               SparseStepAudit& audit);
  // What ran last.
  const IndexSetView& lists() const;

  class Impl;
  explicit SparseStep(std::unique_ptr<Impl> impl);

 private:
  std::unique_ptr<Impl> impl_;
};

}  // namespace rarefy
