// Generation: feeds the last part of a prompt through a session's policy and draws tokens until a stop id or a limit.
#pragma once

#include <functional>
#include <span>
#include <vector>

#include "rarefy/engine/sampler.h"
#include "rarefy/engine/session.h"

namespace rarefy {

struct GenerateOptions {
  int32_t max_new_tokens = 128;
  SamplerOptions sampler = {};
  std::vector<int32_t> stop_token_ids = {};  // [num_stop_tokens] i32; empty = the model's own
};

enum class StopReason : int32_t { stop_token = 0, max_new_tokens = 1, context_full = 2, cancelled = 3 };

struct GenerateResult {
  std::vector<int32_t> tokens;  // [num_new] i32; without the stop token
  StopReason reason = StopReason::max_new_tokens;
};

// `prompt` (at least one token) goes through the policy token by token; what was prefilled before it was dense. `on_token`
// sees every new token and returns false to cancel.
Expected<GenerateResult> generate(Session& session, std::span<const int32_t> prompt, const GenerateOptions& options,
                                  const std::function<bool(int32_t token)>& on_token = {});

}  // namespace rarefy
