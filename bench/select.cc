// The stages of selection for one KV head with four query heads and head_dim 128, data in the cache: encoding, scoring, the
// filter that follows, and the draw. Whole selections from cold caches: `rarefy bench attention`.
#include <benchmark/benchmark.h>

#include <cmath>
#include <cstdlib>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "core/aligned_buffer.h"
#include "rarefy/select/registry.h"
#include "select/spend.h"

namespace {

constexpr int32_t kNumTokens = 2048, kGroup = 4, kHeadDim = 128;

std::vector<float> normal(int64_t count, float width) {
  std::mt19937 random(1);
  std::normal_distribution<float> distribution(0.0f, width);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = distribution(random);
  return values;
}

struct Index {
  explicit Index(const std::string& name)
      : selector(*rarefy::make_selector(name, {1, 1, kGroup, kHeadDim, rarefy::DType::f32})),
        keys(normal(int64_t{kNumTokens} * kHeadDim, 1.0f)),
        q(normal(int64_t{kGroup} * kHeadDim, 2.0f / std::sqrt(static_cast<float>(kHeadDim)))) {
    const int32_t block_tokens = selector->block_tokens();
    entry_memory.reserve(static_cast<size_t>(kNumTokens / block_tokens * selector->block_bytes()) + 1);
    for (int32_t block = 0; block < kNumTokens / block_tokens; ++block) {
      entries.push_back(entry_memory.data() + block * selector->block_bytes());
      rows.push_back(keys.data() + int64_t{block} * block_tokens * kHeadDim);
    }
  }
  // Trains on the keys that there are; a survey's sample is every other block.
  void train() {
    head.trained = trained.reserve(static_cast<size_t>(selector->trained_bytes()) + 1);
    const int32_t num_tokens = selector->training_tokens();
    if (num_tokens > 0 &&
        !selector->train(head, normal(int64_t{num_tokens} * kHeadDim, 1.0f).data(), num_tokens, trained.data()).ok())
      std::abort();
  }
  void survey(std::byte* state) {
    const int64_t num_values = selector->survey_values();
    if (num_values == 0) return;
    numbers.resize(static_cast<size_t>(num_values) * entries.size());
    const rarefy::ScoreBlocks all = blocks();
    selector->survey(state, all, numbers.data());
    rarefy::Survey survey{numbers.data(), all.num_blocks, kNumTokens, all};
    survey.sample.survey = numbers.data();
    survey.sample.survey_stride = num_values;
    selector->settle(state, survey);
  }
  rarefy::ScoreBlocks blocks() const {
    rarefy::ScoreBlocks result{head, static_cast<int32_t>(entries.size()), 0, entries.data(), rows.data(), kHeadDim};
    result.survey = numbers.data();
    result.survey_stride = selector->survey_values();
    return result;
  }
  void encode() {
    const int32_t block_tokens = selector->block_tokens();
    for (size_t block = 0; block < entries.size(); ++block) {
      const auto* block_keys = static_cast<const float*>(rows[block]);
      selector->encode(head, {block_keys, block_tokens, 0, block_keys}, const_cast<std::byte*>(entries[block]));
    }
  }

  std::shared_ptr<const rarefy::Selector> selector;
  std::vector<float> keys, q;  // [num_tokens, head_dim] f32; [group, head_dim] f32
  rarefy::AlignedBuffer entry_memory, trained;
  rarefy::HeadId head;
  std::vector<float> numbers;             // [num_blocks, survey_values] f32
  std::vector<const std::byte*> entries;  // [num_blocks] pointers to [block_bytes] bytes
  std::vector<const void*> rows;          // [num_blocks] pointers to [block_tokens, head_dim] f32
};

void encode(benchmark::State& state, const std::string& name) {
  Index index(name);
  index.train();
  for (auto _ : state) index.encode();
  state.SetItemsProcessed(state.iterations() * kNumTokens);
}

void score(benchmark::State& state, const std::string& name) {
  Index index(name);
  index.train();
  index.encode();
  rarefy::AlignedBuffer query, scores;
  index.selector->prepare(index.head, index.q.data(), query.reserve(index.selector->query_state_bytes()));
  auto* out = reinterpret_cast<float*>(scores.reserve(sizeof(float) * kGroup * kNumTokens));  // [group, num_tokens] f32
  for (auto _ : state) {
    index.survey(query.data());
    index.selector->score(query.data(), index.blocks(), out, kNumTokens);
    benchmark::DoNotOptimize(out);
  }
  state.SetItemsProcessed(state.iterations() * kNumTokens);
  state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(kNumTokens * index.selector->bytes_per_token()));
}

void filter(benchmark::State& state) {
  auto scores = normal(kNumTokens, 2.0f);  // [num_tokens] f32
  for (float& score : scores) score -= 9.6f;
  std::vector<float> kept(kNumTokens + rarefy::cpu::kCandidatePadding);
  std::vector<int32_t> token_ids(kept.size());
  rarefy::cpu::CandidateFilter candidates;
  candidates.key = {1, 2};
  candidates.keep_keys_above(-3.0f);
  int32_t count = 0;
  for (auto _ : state) {
    count = rarefy::cpu::filter_candidates(candidates, scores.data(), 0, kNumTokens, token_ids.data(), kept.data()).count;
    benchmark::DoNotOptimize(count);
  }
  state.SetItemsProcessed(state.iterations() * kNumTokens);
  state.counters["kept"] = count;
}
BENCHMARK(filter);

// 620 of 32,768 tokens from as many candidates as the filter passes on.
void draw(benchmark::State& state) {
  constexpr int32_t kCandidates = 1600, kBudget = 620;
  const auto scores = normal(kCandidates, 1.0f);  // [candidates] f32
  std::vector<int32_t> token_ids(kCandidates), out_ids(kBudget);
  for (int32_t i = 0; i < kCandidates; ++i) token_ids[i] = 20 * i;
  std::vector<float> out_weights(kBudget);
  rarefy::SpendScratch scratch;
  rarefy::SpendThresholds thresholds;
  thresholds.key = thresholds.score = -std::numeric_limits<float>::infinity();
  uint32_t seed = 0;
  for (auto _ : state) {
    const rarefy::SpendRule rule{rarefy::Spend::priority, kBudget, 32768, 0.0, {++seed, 2}};
    benchmark::DoNotOptimize(rarefy::spend(rule, thresholds, {token_ids.data(), scores.data(), kCandidates}, scratch,
                                           out_ids.data(), out_weights.data()));
  }
}
BENCHMARK(draw);

BENCHMARK_CAPTURE(score, oracle, "oracle");
BENCHMARK_CAPTURE(score, quest16, "quest16");
BENCHMARK_CAPTURE(score, quest16_int8, "quest16:int8");
BENCHMARK_CAPTURE(score, sign, "sign");
BENCHMARK_CAPTURE(score, sign64, "sign64");
BENCHMARK_CAPTURE(score, q2, "q2");
BENCHMARK_CAPTURE(score, quest16_int4, "quest16:int4");
BENCHMARK_CAPTURE(score, quest32_int4, "quest32:int4");
BENCHMARK_CAPTURE(score, pq16x4, "pq16x4");
BENCHMARK_CAPTURE(score, pq8x8, "pq8x8");
BENCHMARK_CAPTURE(score, pq4x8, "pq4x8");
BENCHMARK_CAPTURE(score, pq2x6, "pq2x6");
BENCHMARK_CAPTURE(score, ds16, "ds16");
BENCHMARK_CAPTURE(score, magicpig, "magicpig");
BENCHMARK_CAPTURE(score, socket, "socket");
BENCHMARK_CAPTURE(score, quest32_int4_sign, "quest32:int4+sign");
BENCHMARK_CAPTURE(score, quest16_int8_q2, "quest16:int8+q2");
BENCHMARK_CAPTURE(encode, sign, "sign");
BENCHMARK_CAPTURE(encode, sign64, "sign64");
BENCHMARK_CAPTURE(encode, q2, "q2");
BENCHMARK_CAPTURE(encode, quest32_int4, "quest32:int4");
BENCHMARK_CAPTURE(encode, pq16x4, "pq16x4");
BENCHMARK_CAPTURE(encode, pq8x8, "pq8x8");
BENCHMARK_CAPTURE(encode, ds16, "ds16");
BENCHMARK_CAPTURE(encode, magicpig, "magicpig");
BENCHMARK_CAPTURE(encode, socket, "socket");

}  // namespace
