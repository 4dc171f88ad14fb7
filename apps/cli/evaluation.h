// What `perplexity`, `recall` and `demo` share: arms (dense first, then each policy), contexts prefilled once and forked for
// every arm, and timed decode steps.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "rarefy/engine/sampler.h"
#include "rarefy/engine/session.h"

namespace rarefy::cli {

struct Arm {
  std::string name;  // as the user wrote it
  Policy policy;
};

// Policies as the user wrote them; fails with ExitCode::usage. The model says which layers there are.
Policy parse_policy(const std::string& text, const ModelConfig& config);
// Dense, then each policy once.
std::vector<Arm> parse_arms(const std::vector<std::string>& policies, const ModelConfig& config);

// Text to ids; fails with ExitCode::bad_input, naming `where` the text came from.
std::vector<int32_t> encode_text(const Tokenizer& tokenizer, const std::string& text, bool add_special_tokens,
                                 const std::string& where);

// Prefills with a progress bar on a terminal. Ctrl-C cancels it.
void prefill(Session& session, const std::vector<int32_t>& tokens, const std::string& label);

// A fork of `context` for one arm, with its policy's index built.
Session fork_for_arm(const Session& context, const Arm& arm, uint64_t seed, double audit);

// Decodes one token and appends the time it took to `seconds`, audits not counted: a step that was audited is left out, for
// its neighbour in the cache was disturbed.
void timed_decode(Session& session, int32_t token, std::vector<float>* logits, std::vector<double>* seconds);

// Greedy answer to a question: its tokens go through the policy, then as many tokens are drawn as `expected` has, at most
// until the first wrong one when `stop_at_miss`.
struct Answer {
  std::vector<int32_t> tokens;  // [num_new] i32
  bool right = false;
};
Answer ask(Session& session, const std::vector<int32_t>& question, const std::vector<int32_t>& expected, bool stop_at_miss,
           std::vector<double>* seconds);

}  // namespace rarefy::cli
