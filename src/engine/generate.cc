#include "rarefy/engine/generate.h"

#include <algorithm>

namespace rarefy {

Expected<GenerateResult> generate(Session& session, std::span<const int32_t> prompt, const GenerateOptions& options,
                                  const std::function<bool(int32_t token)>& on_token) {
  if (prompt.empty()) {
    return Status::invalid_argument("generate: expected at least one prompt token to continue from, got none");
  }
  RAREFY_ASSIGN_OR_RETURN(Sampler sampler, Sampler::make(options.sampler));
  const ModelConfig& config = session.engine().model().config();
  const std::vector<int32_t>& stops = options.stop_token_ids.empty() ? config.stop_token_ids : options.stop_token_ids;

  std::vector<float> logits(config.vocab_size);  // [vocab_size] f32
  for (size_t i = 0; i < prompt.size(); ++i) {
    RAREFY_RETURN_IF_ERROR(session.decode(prompt[i], i + 1 == prompt.size() ? logits.data() : nullptr));
  }
  GenerateResult result;
  while (static_cast<int32_t>(result.tokens.size()) < options.max_new_tokens) {
    const int32_t token = sampler.sample(logits, session.length());
    if (std::find(stops.begin(), stops.end(), token) != stops.end()) {
      result.reason = StopReason::stop_token;
      return result;
    }
    result.tokens.push_back(token);
    if (on_token && !on_token(token)) {
      result.reason = StopReason::cancelled;
      return result;
    }
    if (static_cast<int32_t>(result.tokens.size()) == options.max_new_tokens) break;
    if (session.length() >= session.engine().options().ctx_size) {
      result.reason = StopReason::context_full;
      return result;
    }
    RAREFY_RETURN_IF_ERROR(session.decode(token, logits.data()));
  }
  result.reason = StopReason::max_new_tokens;
  return result;
}

}  // namespace rarefy
