#include "tests/support/certificate_case.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <mutex>
#include <random>

#include "rarefy/select/registry.h"

namespace rarefy::testing {
namespace {

constexpr int32_t kPageSize = 64;

class EmulatedSelector final : public Selector {
 public:
  explicit EmulatedSelector(const SelectorShape& shape) : shape_(shape) {}

  std::string name() const override { return "emulated"; }
  int32_t block_tokens() const override { return 16; }
  int64_t block_bytes() const override { return 64; }
  bool reads_values() const override { return true; }
  // The largest |v| of the block.
  void encode(HeadId, const BlockKeys& block, std::byte* entry) const override {
    float largest = 0.0f;
    if (block.first_new > 0) std::memcpy(&largest, entry, sizeof largest);
    for (int32_t token = block.first_new; token < block.num_tokens; ++token) {
      double squares = 0.0;
      for (int32_t d = 0; d < shape_.head_dim; ++d)
        squares += std::pow(double{block.values[token * shape_.head_dim + d]}, 2);
      largest = std::max(largest, static_cast<float>(1.0001 * std::sqrt(squares)));
    }
    std::memcpy(entry, &largest, sizeof largest);
  }
  std::size_t query_state_bytes() const override { return 64; }
  void prepare(HeadId, const float* q, std::byte* state) const override { std::memcpy(state, q, sizeof(float)); }
  void score(const std::byte* state, const ScoreBlocks& blocks, float* scores, int64_t) const override {
    for_all(state, blocks, scores, 1);
  }
  bool has_bounds() const override { return true; }
  void bound(const std::byte* state, const ScoreBlocks& blocks, float* bounds, int64_t) const override {
    for_all(state, blocks, bounds, 2);
  }
  void value_bounds(const ScoreBlocks& blocks, float* norms) const override {
    for (int32_t block = 0; block < blocks.num_blocks; ++block)
      std::memcpy(norms + block, blocks.entries[block], sizeof(float));
  }

 private:
  // The logit plus key component `error` of every token.
  void for_all(const std::byte* state, const ScoreBlocks& blocks, float* out, int32_t error) const {  // out [tokens] f32
    float q = 0.0f;
    std::memcpy(&q, state, sizeof q);
    for (int32_t block = 0; block < blocks.num_blocks; ++block) {
      const auto* keys = static_cast<const float*>(blocks.keys[block]);
      for (int32_t token = 0; token < 16; ++token) {
        const float* key = keys + token * blocks.key_token_stride;
        out[block * 16 + token] = q * key[0] + key[error];
      }
    }
  }
  SelectorShape shape_;
};

void register_emulated() {
  static std::once_flag once;
  std::call_once(once, [] {
    static_cast<void>(register_selector(
        {"emulated", "", "scores with a chosen error, for tests"}, [](const SelectorShape& shape, std::string_view) {
          return Expected<std::shared_ptr<const Selector>>(std::make_shared<const EmulatedSelector>(shape));
        }));
  });
}

std::vector<double> logits(const CertificateCase& problem, std::mt19937& random) {
  std::normal_distribution<double> normal;
  std::exponential_distribution<double> exponential(1.0);
  std::vector<double> result(static_cast<size_t>(problem.kv_len));
  double level = 0.0;
  for (size_t i = 0; i < result.size(); ++i) {
    switch (problem.shape) {
      case CertificateCase::Shape::flat: break;
      case CertificateCase::Shape::spike: result[i] = i == result.size() / 3 ? std::log(problem.kv_len) : 0.0; break;
      case CertificateCase::Shape::heavy: result[i] = 0.8 * exponential(random); break;
      case CertificateCase::Shape::clustered:  // runs of 64 tokens with a level of their own
        if (i % 64 == 0) level = 1.5 * normal(random);
        result[i] = level + 0.5 * normal(random);
        break;
    }
  }
  return result;
}

}  // namespace

std::string to_string(CertificateCase::Shape shape) {
  constexpr const char* kNames[] = {"flat", "single-spike", "heavy-tailed", "clustered"};
  return kNames[static_cast<int>(shape)];
}

CertificateRun::CertificateRun(const CertificateCase& problem) {
  register_emulated();
  KvCacheConfig config;
  config.num_layers = 1;
  config.num_kv_heads = kHeads;
  config.head_dim = kHeadDim;
  config.dtype = DType::f32;
  config.page_size = kPageSize;
  config.max_tokens = problem.kv_len;
  cache_ = *KvCache::create(config);

  std::mt19937 random(problem.seed);
  std::normal_distribution<double> normal;
  const size_t row = size_t{kHeads} * kHeadDim;
  std::vector<float> keys(static_cast<size_t>(problem.kv_len) * row),
      values(keys.size());  // [kv_len, kHeads, kHeadDim] f32
  for (size_t head = 0; head < kHeads; ++head) {
    std::vector<double> logit = logits(problem, random);
    const auto needle = static_cast<size_t>(problem.kv_len * (0.2 + 0.07 * static_cast<double>(head)));
    if (problem.needle_mass > 0.0) {
      double rest = 0.0;
      for (size_t i = 0; i < logit.size(); ++i) rest += i == needle ? 0.0 : std::exp(logit[i]);
      logit[needle] = std::log(rest * problem.needle_mass / (1.0 - problem.needle_mass));
    }
    std::vector<double> common(kHeadDim), topic(kHeadDim), direction(kHeadDim);
    double length = 0.0;
    for (size_t d = 0; d < kHeadDim; ++d) {
      common[d] = 0.5 * normal(random);
      direction[d] = normal(random);
      length += direction[d] * direction[d];
    }
    for (size_t i = 0; i < logit.size(); ++i) {
      float* key = keys.data() + i * row + head * kHeadDim;
      float* value = values.data() + i * row + head * kHeadDim;
      const bool is_needle = problem.needle_mass > 0.0 && i == needle;
      const double error = is_needle ? -problem.needle_nats : problem.noise * normal(random);
      key[0] = static_cast<float>(logit[i]);
      key[1] = static_cast<float>(error);
      key[2] = static_cast<float>(0.01 + std::abs(normal(random)));
      const double along = 0.5 + normal(random);
      for (size_t d = 0; d < kHeadDim; ++d) {
        if (i % 64 == 0) topic[d] = 0.7 * normal(random);
        value[d] = static_cast<float>(problem.line_values ? along * direction[d] / std::sqrt(length)
                                                          : common[d] + topic[d] + 0.6 * normal(random));
        // What a needle says is unlike everything else.
        if (is_needle) value[d] = static_cast<float>(normal(random));
      }
    }
  }
  q_.assign(row, 0.0f);
  for (size_t head = 0; head < kHeads; ++head) q_[head * kHeadDim] = std::sqrt(static_cast<float>(kHeadDim));
  sequence_.push_back(cache_->new_sequence());
  static_cast<void>(sequence_[0].begin_append(problem.kv_len));
  static_cast<void>(sequence_[0].write(0, keys.data(), values.data()));
  sequence_[0].commit();
}

Expected<CertificateTally> CertificateRun::run(const std::string& policy_text, int32_t draws) {
  RAREFY_ASSIGN_OR_RETURN(const Policy policy, Policy::parse(policy_text));
  const int32_t kv_len = sequence_[0].length();
  DecodeProblem problem;
  problem.num_q_heads = problem.num_kv_heads = kHeads;
  problem.head_dim = kHeadDim;
  problem.kv_dtype = DType::f32;
  problem.page_size = kPageSize;
  RAREFY_ASSIGN_OR_RETURN(const auto plan, SparseStepPlan::make(policy, shape_, problem, kv_len));
  RAREFY_ASSIGN_OR_RETURN(SparseStep step, SparseStep::make(plan, *cache_));
  RAREFY_RETURN_IF_ERROR(step.update_index(sequence_[0], 0));
  SelectionStep where;
  where.scale = 1.0f / std::sqrt(static_cast<float>(kHeadDim));
  where.position = kv_len - 1;
  where.q = q_.data();
  std::vector<float> out(q_.size());  // [kHeads, kHeadDim] f32
  SparseStepResult result;
  SparseStepAudit audit;
  CertificateTally tally;
  for (int32_t draw = 0; draw < draws; ++draw) {
    where.seed = static_cast<uint64_t>(draw);
    RAREFY_RETURN_IF_ERROR(step.run(sequence_[0], where, out.data(), result));
    RAREFY_RETURN_IF_ERROR(step.audit(out.data(), audit));
    tally.traffic.add(result.traffic);
    for (const ListOutcome outcome : result.outcomes) tally.lists.add(outcome);
    for (const double error : audit.error) {
      ++tally.pairs;
      if (!(error <= policy.eps)) ++tally.violations;
      tally.largest_error = std::max(tally.largest_error, error);
    }
  }
  return tally;
}

}  // namespace rarefy::testing
