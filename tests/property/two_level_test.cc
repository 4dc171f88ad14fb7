// COARSE+FINE: which blocks are kept, what their tokens get, what the others get, and that one list is made of both.
#include <gtest/gtest.h>

#include <set>

#include "rarefy/core/device.h"
#include "rarefy/kv/kv_cache.h"
#include "rarefy/select/selection.h"
#include "ref/select.h"
#include "select/two_level.h"
#include "tests/support/selector_case.h"

namespace rarefy {
namespace {

using Case = test::SelectorCase;
constexpr uint32_t kSeed = 27182;

struct Pair {
  const char* coarse;
  const char* fine;
  double share;
};
constexpr Pair kPairs[] = {{"quest32:int4", "sign", 0.25}, {"quest16:int8", "q2", 0.2}, {"quest16", "sign64", 0.5},
                           {"quest32", "pq16x4", 0.1},     {"quest16", "oracle", 0.3},  {"quest16", "q2", 1.0},
                           {"quest32", "ds16", 0.01}};

std::string text_of(const Pair& pair) {
  char share[32];
  std::snprintf(share, sizeof(share), "@%g", pair.share);
  return std::string(pair.coarse) + "+" + pair.fine + share;
}

// The same keys and queries under the pair and under each of its parts.
TEST(TwoLevel, KeepsTheBestBlocksAndFitsTheOthers) {
  for (const Pair& pair : kPairs) {
    for (const auto& [group, num_tokens] : {std::pair{1, 64 * 40 + 21}, std::pair{4, 64 * 37 + 64}, std::pair{7, 40}}) {
      SCOPED_TRACE(text_of(pair) + " group " + std::to_string(group) + " tokens " + std::to_string(num_tokens));
      const Case both(text_of(pair), 64, group, num_tokens, DType::bf16, kSeed);
      const Case coarse(pair.coarse, 64, group, num_tokens, DType::bf16, kSeed);
      const Case fine(pair.fine, 64, group, num_tokens, DType::bf16, kSeed);
      const auto& selector = dynamic_cast<const TwoLevelSelector&>(*both.selector);
      const auto scores = both.scores(), page_scores = coarse.scores(), token_scores = fine.scores();
      const int32_t page_tokens = coarse.block_tokens, num_pages = coarse.num_blocks;
      const int32_t pages_in_block = both.block_tokens / page_tokens;

      // Blocks by the largest estimated probability of a page over the heads.
      std::vector<std::vector<double>> pages(static_cast<size_t>(group));  // [group][num_pages]
      std::vector<double> log_sums;
      for (int32_t query = 0; query < group; ++query) {
        for (int32_t page = 0; page < num_pages; ++page) pages[query].push_back(page_scores[query][page * page_tokens]);
        log_sums.push_back(ref::log_sum_exp(pages[query].data(), num_pages));
      }
      const auto page_keys = ref::group_scores(pages, log_sums);
      std::vector<double> keys(static_cast<size_t>(both.num_blocks), -1e300);
      for (int32_t page = 0; page < num_pages; ++page) {
        keys[page / pages_in_block] = std::max(keys[page / pages_in_block], page_keys[page]);
      }
      std::vector<double> order = keys;
      std::sort(order.rbegin(), order.rend());
      const double cut = order[selector.num_kept(both.num_blocks) - 1];

      std::vector<bool> kept(keys.size());
      for (int32_t block = 0; block < both.num_blocks; ++block) {
        kept[block] = std::isnan(both.survey[static_cast<size_t>(block) * selector.survey_values()]);
        if (std::abs(keys[block] - cut) > 1e-4) {
          EXPECT_EQ(kept[block], keys[block] > cut) << "block " << block;
        }
      }
      EXPECT_EQ(std::count(kept.begin(), kept.end(), true), selector.num_kept(both.num_blocks));

      // The sample of SelectorCase: every other complete block. All pairs were chosen such that a fit uses all of it.
      std::vector<int32_t> sample, outside;
      const int32_t in_sample = both.num_blocks / 2;
      const int32_t step =
          std::max(1, (in_sample * both.block_tokens + TwoLevelSelector::kFitTokens - 1) / TwoLevelSelector::kFitTokens);
      for (int32_t i = 0; i < in_sample; i += step) {
        sample.push_back(2 * i);
        if (!kept[2 * i]) outside.push_back(2 * i);
      }
      const auto& used = outside.size() < 4 ? sample : outside;
      for (int32_t query = 0; query < group; ++query) {
        std::vector<double> x, y;
        for (int32_t block : used) {
          for (int32_t page = block * pages_in_block; page < (block + 1) * pages_in_block; ++page) {
            std::vector<double> tokens(token_scores[query].begin() + page * page_tokens,
                                       token_scores[query].begin() + (page + 1) * page_tokens);
            x.push_back(pages[query][page]);
            y.push_back(ref::log_sum_exp(tokens.data(), page_tokens) - std::log(page_tokens));
          }
        }
        const ref::LineFit line = ref::fit_line(x, y);
        for (int32_t token = 0; token < num_tokens; ++token) {
          const int32_t block = token / both.block_tokens;
          if (kept[block]) {
            EXPECT_EQ(scores[query][token], token_scores[query][token]) << "token " << token;
          } else {
            const double expected =
                line.intercept + line.slope * pages[query][token / page_tokens] + 0.5 * line.residual_variance;
            EXPECT_NEAR(scores[query][token], expected, 1e-4 * (1 + std::abs(expected))) << "token " << token;
          }
        }
      }
    }
  }
}

TEST(TwoLevel, HardFiltersDropWhatIsNotKept) {
  const Case soft("quest16:int8+q2@0.2", 64, 4, 16 * 50, DType::bf16, kSeed);
  const Case hard("hard:quest16:int8+q2@0.2", 64, 4, 16 * 50, DType::bf16, kSeed);
  const auto soft_scores = soft.scores(), hard_scores = hard.scores();
  int32_t dropped = 0;
  for (int32_t block = 0; block < hard.num_blocks; ++block) {
    const bool kept = std::isnan(soft.survey[static_cast<size_t>(block) * soft.selector->survey_values()]);
    for (int32_t token = 16 * block; token < 16 * block + 16; ++token) {
      for (int32_t query = 0; query < 4; ++query) {
        EXPECT_EQ(hard_scores[query][token], kept ? soft_scores[query][token] : TwoLevelSelector::kDropped);
      }
    }
    dropped += kept ? 0 : 1;
  }
  EXPECT_EQ(dropped, 40);
}

// The estimate is the mean weight of pages like this one: over all tokens that are not kept, the sum of exp(a) is that of
// exp(FINE score) within sampling error, while the raw page bounds are far too high.
TEST(TwoLevel, EstimatesHoldAsMuchMassAsTheTokens) {
  double worst = 0.0, mean = 0.0, raw = 1e300;
  for (uint32_t seed = 0; seed < 8; ++seed) {
    const Case both("quest32:int4+oracle@0.25", 64, 1, 32 * 400, DType::bf16, kSeed + seed, 0.0f);
    const Case coarse("quest32:int4", 64, 1, 32 * 400, DType::bf16, kSeed + seed, 0.0f);
    const Case fine("oracle", 64, 1, 32 * 400, DType::bf16, kSeed + seed, 0.0f);
    const auto scores = both.scores()[0], bounds = coarse.scores()[0], exact = fine.scores()[0];
    double estimated = 0.0, true_mass = 0.0, bound_mass = 0.0;
    for (int32_t token = 0; token < both.num_tokens; ++token) {
      if (std::isnan(both.survey[static_cast<size_t>(token / 32)])) continue;
      estimated += std::exp(double{scores[token]});
      true_mass += std::exp(double{exact[token]});
      bound_mass += std::exp(double{bounds[token]});
    }
    const double error = std::log(estimated / true_mass);
    worst = std::max(worst, std::abs(error));
    mean += error / 8;
    raw = std::min(raw, std::log(bound_mass / true_mass));
  }
  // In nats: each true sum is that of a heavy tail, on average errors cancel.
  EXPECT_LT(worst, 1.0);
  EXPECT_LT(std::abs(mean), 0.3);
  EXPECT_GT(raw, 2.0);
}

TEST(TwoLevel, FitsOfFewPagesAreConstants) {
  const double x[] = {1.0, 2.0, 3.0, 4.0}, y[] = {0.5, 1.0, 1.5, 2.0}, same[] = {2.0, 2.0, 2.0, 2.0},
               falling[] = {4.0, 3.0, 2.0, 1.0};
  EXPECT_EQ(fit_pages(x, y, 2).slope, 0.0f);
  EXPECT_FLOAT_EQ(fit_pages(x, y, 2).intercept, 0.75f);
  EXPECT_FLOAT_EQ(fit_pages(x, y, 4).slope, 0.5f);
  EXPECT_NEAR(fit_pages(x, y, 4).intercept, 0.0f, 1e-6);
  EXPECT_EQ(fit_pages(same, y, 4).slope, 0.0f);
  EXPECT_EQ(fit_pages(x, falling, 4).slope, 0.0f);  // a higher page score never means less
}

// Through a cache: one list of heavy and sampled tokens, the same whatever the number of threads.
class TwoLevelLists : public testing::Test {
 protected:
  static constexpr int32_t kTokens = 9000, kHeadDim = 64, kKvHeads = 2, kGroup = 2;

  void SetUp() override {
    KvCacheConfig config;
    config.num_layers = 1;
    config.num_kv_heads = kKvHeads;
    config.head_dim = kHeadDim;
    config.page_size = 64;
    config.max_tokens = kTokens + 64;
    cache_ = *KvCache::create(config);
    sequence_.emplace(cache_->new_sequence());
    std::mt19937 random(kSeed);
    std::normal_distribution<float> normal;
    std::vector<float> keys(size_t{kTokens} * kKvHeads * kHeadDim), values(keys.size());
    for (float& x : keys) x = normal(random);
    for (float& x : values) x = normal(random);
    for (int32_t i = 0; i < kKvHeads * kGroup * kHeadDim; ++i) q_.push_back(2.5f * normal(random));
    ASSERT_TRUE(sequence_->begin_append(kTokens).ok());
    ASSERT_TRUE(sequence_->write(0, keys.data(), values.data()).ok());
    sequence_->commit();
  }
  ~TwoLevelLists() override { set_num_threads(0); }

  IndexSet select(const std::string& index, int32_t total, int32_t threads, SelectionCost* cost = nullptr) {
    set_num_threads(threads);
    const SelectorShape shape{1, kKvHeads, kGroup, kHeadDim, DType::bf16};
    Policy policy = *Policy::parse("total=" + std::to_string(total) + " spend=priority index=" + index);
    Selection selection = *Selection::make(policy, *make_selector(index, shape), shape, *cache_);
    EXPECT_TRUE(selection.update_index(*sequence_, 0).ok());
    EXPECT_TRUE(selection.ready(*sequence_, 0));
    IndexSet set;
    set.resize(1, kKvHeads, total);
    SelectionStep step;
    step.scale = 0.125f;
    step.position = kTokens - 1;
    step.q = q_.data();
    SelectionCost used;
    const Status status = selection.select(*sequence_, step, set, used);
    EXPECT_TRUE(status.ok()) << status.to_string();
    if (cost != nullptr) *cost = used;
    return set;
  }

  std::shared_ptr<KvCache> cache_;
  std::optional<KvSequence> sequence_;
  std::vector<float> q_;  // [num_q_heads, head_dim] f32
};

TEST_F(TwoLevelLists, AreTheSameWhateverTheNumberOfThreads) {
  for (const std::string index :
       {"quest32:int4+sign", "quest16:int8+sign64@0.1", "hard:quest16+q2@0.2", "quest32+pq16x4"}) {
    IndexSet one = select(index, 300, 1);
    for (int32_t threads : {2, 7}) {
      IndexSet many = select(index, 300, threads);
      for (int32_t kv_head = 0; kv_head < kKvHeads; ++kv_head) {
        ASSERT_EQ(one.count(0, kv_head), 300);
        ASSERT_EQ(many.count(0, kv_head), 300);
        EXPECT_TRUE(std::equal(one.token_ids(0, kv_head), one.token_ids(0, kv_head) + 300, many.token_ids(0, kv_head)));
        EXPECT_EQ(std::memcmp(one.log_weight(0, kv_head), many.log_weight(0, kv_head), 300 * sizeof(float)), 0);
      }
    }
  }
}

TEST_F(TwoLevelLists, CountTheBytesOfBothLevels) {
  SelectionCost cost;
  select("quest32:int4+sign@0.25", 300, 2, &cost);
  // 6 bytes per 32 tokens and head_dim / 32 per token; 10 bytes of signs for a quarter.
  const double per_token = (64 + 6) / 32.0 + 0.25 * 10;
  const int32_t blocks = (kTokens + 31) / 32;
  EXPECT_NEAR(static_cast<double>(cost.index_bytes), per_token * blocks * 32 * kKvHeads,
              0.5 * per_token * blocks * 32 * kKvHeads);
  EXPECT_GE(static_cast<double>(cost.index_bytes) + 1, per_token * blocks * 32 * kKvHeads);
}

// A soft filter draws tokens from pages that it does not keep; a hard one never does, unless the budget exceeds what is kept.
TEST_F(TwoLevelLists, HardFiltersChooseOutsideOnlyWhenNothingElseIsLeft) {
  const auto sets_of = [](IndexSet set) {
    std::set<int32_t> blocks;
    for (int32_t i = 0; i < set.count(0, 0); ++i) blocks.insert(set.token_ids(0, 0)[i] / 16);
    return blocks;
  };
  const int32_t num_blocks = (kTokens + 15) / 16, kept = (num_blocks + 9) / 10;
  // Sink and local tokens lie in at most 4 more blocks.
  EXPECT_LE(sets_of(select("hard:quest16+q2@0.1", 600, 1)).size(), static_cast<size_t>(kept + 4));
  EXPECT_GT(sets_of(select("quest16+q2@0.1", 600, 1)).size(), static_cast<size_t>(kept + 4));
  IndexSet all = select("hard:quest16+q2@0.1", 4000, 1);
  EXPECT_EQ(all.count(0, 0), 4000);
  for (int32_t i = 0; i < 4000; ++i) EXPECT_TRUE(std::isfinite(all.log_weight(0, 0)[i]));
}

}  // namespace
}  // namespace rarefy
