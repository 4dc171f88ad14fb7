// Selectors that train, within a cache: when a layer becomes ready, what forks share, and that growing equals building at once.
#include <gtest/gtest.h>

#include <cstring>
#include <optional>
#include <random>
#include <thread>

#include "rarefy/core/device.h"
#include "rarefy/kv/kv_cache.h"
#include "rarefy/select/registry.h"
#include "rarefy/select/selection.h"

namespace rarefy {
namespace {

constexpr int32_t kLayers = 2, kKvHeads = 2, kGroup = 2, kHeadDim = 32, kPageSize = 64;
constexpr uint32_t kSeed = 11235;
const std::vector<std::string>& trained_selectors() {
  static const std::vector<std::string> names = {"pq16x4", "pq4x5", "ds16", "magicpig:4x20", "quest32:int4+pq8x4"};
  return names;
}

class SelectionTraining : public testing::Test {
 protected:
  SelectionTraining() {
    std::mt19937 random(kSeed);
    std::normal_distribution<float> normal;
    keys_.resize(size_t{kMaxTokens} * kKvHeads * kHeadDim);
    values_.resize(keys_.size());
    for (float& x : keys_) x = normal(random);
    for (float& x : values_) x = normal(random);
    for (int32_t i = 0; i < kKvHeads * kGroup * kHeadDim; ++i) q_.push_back(3.0f * normal(random));
  }
  ~SelectionTraining() override { set_num_threads(0); }

  static std::shared_ptr<KvCache> make_cache() {
    KvCacheConfig config;
    config.num_layers = kLayers;
    config.num_kv_heads = kKvHeads;
    config.head_dim = kHeadDim;
    config.page_size = kPageSize;
    config.max_tokens = 8 * kMaxTokens;
    return *KvCache::create(config);
  }
  static SelectorShape shape() { return {kLayers, kKvHeads, kGroup, kHeadDim, DType::bf16}; }
  static Selection make(const std::string& name, KvCache& cache) {
    const Policy policy = *Policy::parse("total=100 spend=priority min=64 index=" + name);
    return *Selection::make(policy, *make_selector(name, shape()), shape(), cache);
  }
  // Tokens `first` .. `first + count` of the random ones; layer 1 has the negative keys of layer 0.
  void append(KvSequence& sequence, Selection& selection, int32_t first, int32_t count) const {
    const size_t at = static_cast<size_t>(first) * kKvHeads * kHeadDim,
                 size = static_cast<size_t>(count) * kKvHeads * kHeadDim;
    ASSERT_TRUE(sequence.begin_append(count).ok());
    for (int32_t layer = 0; layer < kLayers; ++layer) {
      std::vector<float> keys(keys_.begin() + static_cast<std::ptrdiff_t>(at),
                              keys_.begin() + static_cast<std::ptrdiff_t>(at + size));
      if (layer == 1) {
        for (float& x : keys) x = -x;
      }
      ASSERT_TRUE(sequence.write(layer, keys.data(), values_.data() + at).ok());
      ASSERT_TRUE(selection.update_index(sequence, layer).ok());
    }
    sequence.commit();
  }
  // Ids and weights of all lists of a layer.
  std::vector<float> select(KvSequence& sequence, Selection& selection, int32_t layer) const {
    IndexSet set;
    set.resize(1, kKvHeads, 100);
    SelectionStep step;
    step.layer = layer;
    step.scale = 0.2f;
    step.position = sequence.length() - 1;
    step.q = q_.data();
    SelectionCost cost;
    const Status status = selection.select(sequence, step, set, cost);
    EXPECT_TRUE(status.ok()) << status.to_string();
    std::vector<float> result;
    for (int32_t kv_head = 0; kv_head < kKvHeads && status.ok(); ++kv_head) {
      for (int32_t i = 0; i < set.count(0, kv_head); ++i) {
        result.push_back(static_cast<float>(set.token_ids(0, kv_head)[i]));
        result.push_back(set.log_weight(0, kv_head)[i]);
      }
    }
    return result;
  }
  static constexpr int32_t kMaxTokens = 1600;
  std::vector<float> keys_, values_;  // [kMaxTokens, num_kv_heads, head_dim] f32
  std::vector<float> q_;              // [num_q_heads, head_dim] f32
};

TEST_F(SelectionTraining, LayersAreReadyOnceThereAreTokensToTrainOn) {
  for (const std::string& name : trained_selectors()) {
    SCOPED_TRACE(name);
    const auto cache = make_cache();
    Selection selection = make(name, *cache);
    KvSequence sequence = cache->new_sequence();
    const int32_t needed = selection.selector().training_tokens();
    ASSERT_GT(needed, 300);
    append(sequence, selection, 0, needed - 1);
    EXPECT_FALSE(selection.ready(sequence, 0));
    IndexSet set;
    set.resize(1, kKvHeads, 100);
    SelectionStep step;
    step.q = q_.data();
    SelectionCost cost;
    EXPECT_EQ(selection.select(sequence, step, set, cost).code(), StatusCode::invalid_argument);
    append(sequence, selection, needed - 1, 1);
    for (int32_t layer = 0; layer < kLayers; ++layer) {
      EXPECT_TRUE(selection.ready(sequence, layer));
      EXPECT_EQ(select(sequence, selection, layer).size(), size_t{2 * 2 * 100});
    }
    // The cache has its data now: a short sequence is ready at once.
    KvSequence other = cache->new_sequence();
    append(other, selection, 0, 200);
    EXPECT_TRUE(selection.ready(other, 1));
  }
}

TEST_F(SelectionTraining, GrowingEqualsBuildingAtOnceWhateverTheNumberOfThreads) {
  for (const std::string& name : trained_selectors()) {
    SCOPED_TRACE(name);
    std::vector<std::vector<float>> results;
    for (const int32_t threads : {1, 3}) {
      set_num_threads(threads);
      const auto cache = make_cache();
      Selection selection = make(name, *cache);
      KvSequence sequence = cache->new_sequence();
      if (threads == 1) {
        append(sequence, selection, 0, 1500);
      } else {
        append(sequence, selection, 0, 500);
        append(sequence, selection, 500, 700);
        for (int32_t token = 1200; token < 1500; ++token) append(sequence, selection, token, 1);
      }
      for (int32_t layer = 0; layer < kLayers; ++layer) results.push_back(select(sequence, selection, layer));
    }
    EXPECT_EQ(results[0], results[2]);
    EXPECT_EQ(results[1], results[3]);
    EXPECT_NE(results[0], results[1]);
  }
}

TEST_F(SelectionTraining, ForksShareDataAndPagesAndStayIndependent) {
  for (const std::string& name : trained_selectors()) {
    SCOPED_TRACE(name);
    const auto cache = make_cache();
    Selection selection = make(name, *cache);
    KvSequence parent = cache->new_sequence();
    append(parent, selection, 0, 1100);
    const auto before = select(parent, selection, 0);
    KvSequence child = parent.fork();
    Selection child_selection = make(name, *cache);
    EXPECT_TRUE(child_selection.ready(child, 0));  // nothing is encoded again
    EXPECT_EQ(select(child, child_selection, 0), before);
    append(child, child_selection, 1200, 90);
    EXPECT_EQ(select(parent, selection, 0), before);
    // What the fork holds is what a sequence of its own in this cache would hold.
    KvSequence alone = cache->new_sequence();
    append(alone, selection, 0, 1100);
    append(alone, selection, 1200, 90);
    EXPECT_EQ(select(child, child_selection, 0), select(alone, selection, 0));
    EXPECT_NE(select(child, child_selection, 0), before);
  }
}

// Several sequences reach the number of tokens at the same time: one of them trains, all are usable.
TEST_F(SelectionTraining, ThreadsTrainOnce) {
  const auto cache = make_cache();
  constexpr int kThreads = 4;
  std::vector<std::vector<float>> results(kThreads);
  std::vector<std::thread> threads;
  threads.reserve(kThreads);
  for (int thread = 0; thread < kThreads; ++thread) {
    threads.emplace_back([&, thread] {
      Selection selection = make("pq16x4", *cache);
      KvSequence sequence = cache->new_sequence();
      append(sequence, selection, 0, 1100);
      results[static_cast<size_t>(thread)] = select(sequence, selection, 0);
    });
  }
  for (auto& thread : threads) thread.join();
  for (const auto& result : results) EXPECT_EQ(result, results[0]);
}

TEST_F(SelectionTraining, KeysThatAreNotFiniteLeaveTheLayerWithoutIndex) {
  keys_[700] = std::numeric_limits<float>::infinity();
  const auto cache = make_cache();
  Selection selection = make("pq16x4", *cache);
  KvSequence sequence = cache->new_sequence();
  ASSERT_TRUE(sequence.begin_append(1100).ok());
  for (int32_t layer = 0; layer < kLayers; ++layer) ASSERT_TRUE(sequence.write(layer, keys_.data(), values_.data()).ok());
  EXPECT_EQ(selection.update_index(sequence, 0).code(), StatusCode::invalid_argument);
  EXPECT_FALSE(selection.ready(sequence, 0));
}

TEST(TrainedIndexes, AreKeptPerLayerAndHead) {
  KvCacheConfig config;
  config.num_layers = 2;
  config.num_kv_heads = 3;
  config.head_dim = 8;
  config.max_tokens = 64;
  const auto cache = *KvCache::create(config);
  const int32_t index = *cache->add_index("trained", 16, 8, 100);
  EXPECT_FALSE(cache->add_index("trained", 16, 8, 99));
  EXPECT_FALSE(cache->add_index("trained", 16, 8));
  EXPECT_EQ(*cache->add_index("trained", 16, 8, 100), index);
  EXPECT_EQ(cache->add_index("negative", 16, 8, -1).status().code(), StatusCode::invalid_argument);
  EXPECT_EQ(cache->add_index("huge", 16, 8, int64_t{1} << 62).status().code(), StatusCode::resource_exhausted);
  for (int32_t i = 0; i < 6; ++i) std::memset(cache->trained(index, i / 3, i % 3), i, 100);
  for (int32_t i = 0; i < 6; ++i) {
    EXPECT_EQ(reinterpret_cast<uintptr_t>(cache->trained(index, i / 3, i % 3)) % 64, 0u);
    for (int32_t byte = 0; byte < 100; ++byte) EXPECT_EQ(static_cast<int>(cache->trained(index, i / 3, i % 3)[byte]), i);
  }
  EXPECT_FALSE(cache->is_trained(index, 0));
  cache->set_trained(index, 1);
  EXPECT_FALSE(cache->is_trained(index, 0));
  EXPECT_TRUE(cache->is_trained(index, 1));
  EXPECT_EQ(cache->trained(*cache->add_index("plain", 16, 8), 0, 0), nullptr);
}

}  // namespace
}  // namespace rarefy
