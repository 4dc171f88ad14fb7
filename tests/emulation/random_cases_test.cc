// Shapes, layouts, lists and devices at random, dense and sparse, against the oracle. About six minutes.
#include <gtest/gtest.h>

#include "tests/cuda/device_decode.h"
#include "tests/emulation/device.h"

namespace rarefy::test {
namespace {

template <typename T, size_t kCount>
T one_of(RandomStream& random, const T (&values)[kCount]) {
  return values[static_cast<size_t>(random.below(static_cast<int32_t>(kCount)))];
}

AttentionCase random_case(RandomStream& random, uint64_t seed) {
  AttentionCase c;
  c.q_dtype = one_of(random, {DType::bf16, DType::f16});
  c.kv_dtype = random.below(4) == 0 ? DType::f8_e4m3 : c.q_dtype;
  c.out_dtype = one_of(random, {DType::f32, DType::bf16, DType::f16});
  c.kv_scales = c.kv_dtype == DType::f8_e4m3 && random.below(2) == 0;
  c.head_dim = one_of(random, {64, 128, 256});
  c.num_kv_heads = 1 + random.below(8);
  c.num_q_heads = c.num_kv_heads * (1 + random.below(random.below(3) == 0 ? 16 : 4));
  c.num_queries = random.below(4) == 0 ? 1 + random.below(8) : 1;
  c.page_size = 1 << random.below(9);
  c.kv_lens.clear();
  const int32_t batch = 1 + random.below(4);
  for (int32_t i = 0; i < batch; ++i) c.kv_lens.push_back(random.below(one_of(random, {20, 150, 600})));
  c.kv_lens[0] += 1;
  c.layout = one_of(random, {KvLayout::nhd, KvLayout::hnd, KvLayout::head_major});
  c.scope = one_of(random, {ListScope::kv_head, ListScope::query_head});
  c.density = random.uniform();
  c.log_weights = random.below(3) > 0;
  c.dense_fallback = random.below(3) == 0;
  c.logit_soft_cap = random.below(4) == 0 ? 4.0f : 0.0f;
  c.sink_logit = random.below(4) == 0;
  c.seed = seed;
  return c;
}

TEST(EmulatedDecodeLong, MatchesOracleForRandomCases) {
  constexpr uint64_t kCases = 400;
  for (uint64_t seed = 1; seed <= kCases && !HasFailure(); ++seed) {
    RandomStream random(seed);
    const AttentionCase c = random_case(random, seed);
    emulation::model() = {};
    emulation::model().multiprocessors = one_of(random, {1, 2, 5, 16, 132});
    emulation::model().max_cluster = one_of(random, {8, 16});
    check_device_decode(DecodeOp::sparse, c);
    if (c.scope == ListScope::kv_head) check_device_decode(DecodeOp::dense, c);
  }
  emulation::model() = {};
}

}  // namespace
}  // namespace rarefy::test
