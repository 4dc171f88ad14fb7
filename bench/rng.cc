// One number per token of a list: 16 bits, all that most tokens need; 32 bits of the token hash; and Philox, which they replace
// inside a list (docs/adr/0004).
#include <benchmark/benchmark.h>

#include <cstdint>
#include <vector>

#include "rarefy/core/rng.h"

namespace {

constexpr uint32_t kNumTokens = 16384;

void upper_bits(benchmark::State& state) {
  const rarefy::ListKey key = rarefy::make_list_key(1, rarefy::RngPurpose::select, 2, 3, 4);
  std::vector<uint32_t> bits(kNumTokens);  // [num_tokens] u32
  for (auto _ : state) {
    for (uint32_t base = 0; base < kNumTokens; base += 2 * rarefy::kPairDistance) {
      for (uint32_t i = base; i < base + rarefy::kPairDistance; ++i) {
        const uint32_t hash = rarefy::counter_hash(key, rarefy::token_pair(i));
        bits[i] = hash >> 16;
        bits[i + rarefy::kPairDistance] = hash & 0xffffu;
      }
    }
    benchmark::DoNotOptimize(bits.data());
  }
  state.SetItemsProcessed(state.iterations() * kNumTokens);
}
BENCHMARK(upper_bits);

void token_hash(benchmark::State& state) {
  const rarefy::ListKey key = rarefy::make_list_key(1, rarefy::RngPurpose::select, 2, 3, 4);
  std::vector<float> uniform(kNumTokens);  // [num_tokens] f32
  for (auto _ : state) {
    for (uint32_t token = 0; token < kNumTokens; ++token) uniform[token] = rarefy::token_uniform(key, token);
    benchmark::DoNotOptimize(uniform.data());
  }
  state.SetItemsProcessed(state.iterations() * kNumTokens);
}
BENCHMARK(token_hash);

// Four numbers per block, all of them used.
void philox(benchmark::State& state) {
  std::vector<float> uniform(kNumTokens);  // [num_tokens] f32
  for (auto _ : state) {
    for (uint32_t token = 0; token < kNumTokens; token += 4) {
      const auto block = rarefy::philox4x32({token, 2, 3, 4}, {1, 0});
      for (uint32_t i = 0; i < 4; ++i) uniform[token + i] = rarefy::uniform_from_hash(block[i]);
    }
    benchmark::DoNotOptimize(uniform.data());
  }
  state.SetItemsProcessed(state.iterations() * kNumTokens);
}
BENCHMARK(philox);

}  // namespace
