#include "evaluation.h"

#include "failure.h"
#include "interrupt.h"
#include "policy_text.h"
#include "terminal.h"

namespace rarefy::cli {

Policy parse_policy(const std::string& text, const ModelConfig& config) {
  Policy policy = read_policy(text);
  check(policy.check(config.num_layers), ExitCode::usage);
  return policy;
}

std::vector<Arm> parse_arms(const std::vector<std::string>& policies, const ModelConfig& config) {
  std::vector<Arm> arms = {{"dense", Policy{}}};
  for (const std::string& text : policies) {
    Policy policy = parse_policy(text, config);
    if (!policy.dense) arms.push_back({text, std::move(policy)});
  }
  return arms;
}

std::vector<int32_t> encode_text(const Tokenizer& tokenizer, const std::string& text, bool add_special_tokens,
                                 const std::string& where) {
  Expected<std::vector<int32_t>> tokens = tokenizer.encode(text, {.add_special_tokens = add_special_tokens});
  check(tokens.status().with_context(where), ExitCode::bad_input);
  return *std::move(tokens);
}

void prefill(Session& session, const std::vector<int32_t>& tokens, const std::string& label) {
  ProgressBar bar(label);
  check(session.prefill(tokens, [&](int64_t done, int64_t total) {
    bar.update(done, total);
    return !interrupted();
  }));
  check_interrupt();
}

Session fork_for_arm(const Session& context, const Arm& arm, uint64_t seed, double audit) {
  Session session = context.fork();
  session.set_seed(seed);
  session.set_audit({.fraction = audit});
  check(session.set_policy(arm.policy));
  return session;
}

void timed_decode(Session& session, int32_t token, std::vector<float>* logits, std::vector<double>* seconds) {
  const double decode_before = session.stats().decode_seconds;
  const double audit_before = session.stats().audit_seconds;
  check(session.decode(token, logits != nullptr ? logits->data() : nullptr));
  check_interrupt();
  if (seconds == nullptr || session.stats().audit_seconds != audit_before) return;
  seconds->push_back(session.stats().decode_seconds - decode_before);
}

Answer ask(Session& session, const std::vector<int32_t>& question, const std::vector<int32_t>& expected, bool stop_at_miss,
           std::vector<double>* seconds) {
  const ModelConfig& config = session.engine().model().config();
  std::vector<float> logits(static_cast<size_t>(config.vocab_size));  // [vocab_size] f32
  for (size_t i = 0; i < question.size(); ++i) {
    timed_decode(session, question[i], i + 1 == question.size() ? &logits : nullptr, seconds);
  }
  Sampler greedy = unwrap(Sampler::make({}));
  Answer answer;
  for (size_t i = 0; i < expected.size(); ++i) {
    answer.tokens.push_back(greedy.sample(logits, session.length()));
    if (stop_at_miss && answer.tokens.back() != expected[i]) break;
    if (i + 1 < expected.size()) timed_decode(session, answer.tokens.back(), &logits, seconds);
  }
  answer.right = answer.tokens == expected;
  return answer;
}

}  // namespace rarefy::cli
