// What the sessions of one engine share: the model, the pool of pages, and the plans that do not depend on a policy.
#pragma once

#include <memory>
#include <mutex>

#include "rarefy/attention/decode.h"
#include "rarefy/attention/prefill.h"
#include "rarefy/engine/session.h"
#include "rarefy/kv/kv_cache.h"
#include "rarefy/select/selector.h"

namespace rarefy {

// The plans for one kind of attention layer.
struct AttentionPlans {
  DecodePlan decode;
  PrefillPlan prefill;
};

class Engine::Impl {
 public:
  std::shared_ptr<const Model> model;
  EngineOptions options;  // defaults filled in
  std::shared_ptr<KvCache> cache;
  SelectorShape shape;
  DecodeProblem decode_problem;  // max_selected is up to each policy
  AttentionPlans full;
  AttentionPlans sliding;  // the same as full in models without sliding layers
  // Building an index over pages that several sessions share: one at a time. Afterwards a session only encodes tokens of
  // pages it owns alone.
  std::mutex index_mutex;

  Impl(std::shared_ptr<const Model> model_in, const EngineOptions& options_in, std::shared_ptr<KvCache> cache_in,
       const SelectorShape& shape_in, const DecodeProblem& problem_in, AttentionPlans full_in, AttentionPlans sliding_in)
      : model(std::move(model_in)),
        options(options_in),
        cache(std::move(cache_in)),
        shape(shape_in),
        decode_problem(problem_in),
        full(std::move(full_in)),
        sliding(std::move(sliding_in)) {}
};

}  // namespace rarefy
