// Selection end to end on a paged cache: like the reference, independent of threads and of how tokens came in, fair to every
// head of a group, and better than a uniform tail with every selector.
#include "rarefy/select/selection.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>

#include "rarefy/core/device.h"
#include "rarefy/engine/sparse_step.h"
#include "rarefy/select/registry.h"
#include "ref/select.h"
#include "select/list_builder.h"

namespace rarefy {
namespace {

constexpr uint32_t kSeed = 4711;
constexpr const char* kSelectors[] = {"oracle", "quest16", "quest16:int8", "sign", "sign64", "q2"};

// Keys and values with the habits of real ones: a common part, topics that last 64 tokens, and something of every token's own.
struct Tokens {
  Tokens(int32_t num_tokens, int32_t num_kv_heads, int32_t head_dim, uint32_t seed) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    const auto row = static_cast<size_t>(num_kv_heads) * head_dim;
    std::vector<float> common(2 * row), topic(2 * row);
    for (float& value : common) value = normal(random);
    for (int32_t token = 0; token < num_tokens; ++token) {
      if (token % 64 == 0) {
        for (float& value : topic) value = normal(random);
      }
      for (size_t i = 0; i < row; ++i) {
        keys.push_back(0.5f * common[i] + topic[i] + 0.6f * normal(random));
        values.push_back(0.5f * common[row + i] + topic[row + i] + 0.6f * normal(random));
      }
    }
  }
  std::vector<float> keys, values;  // [num_tokens, num_kv_heads, head_dim] f32
};

struct Fixture {
  SelectorShape shape{2, 2, 4, 64, DType::bf16};
  int32_t page_size = 64;
  std::shared_ptr<KvCache> cache;

  explicit Fixture(int32_t max_tokens, int32_t num_kv_heads = 2, int32_t group = 4) {
    shape.num_kv_heads = num_kv_heads;
    shape.group = group;
    KvCacheConfig config;
    config.num_layers = shape.num_layers;
    config.num_kv_heads = num_kv_heads;
    config.head_dim = shape.head_dim;
    config.dtype = shape.kv_dtype;
    config.page_size = page_size;
    config.max_tokens = max_tokens;
    cache = *KvCache::create(config);
  }
  // Appends tokens [first, end) to every layer.
  void append(KvSequence& sequence, const Tokens& tokens, int32_t first, int32_t end) const {
    const int64_t row = int64_t{shape.num_kv_heads} * shape.head_dim;
    ASSERT_TRUE(sequence.begin_append(end - first).ok());
    for (int32_t layer = 0; layer < shape.num_layers; ++layer) {
      ASSERT_TRUE(sequence.write(layer, tokens.keys.data() + first * row, tokens.values.data() + first * row).ok());
    }
    sequence.commit();
  }
  Selection selection(const Policy& policy) const {
    auto selector = *make_selector(policy.index, shape);
    return *Selection::make(policy, std::move(selector), shape, *cache);
  }
  // Queries of one group look for similar things: half of the variance is shared.
  std::vector<float> queries(float width, uint32_t seed) const {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal(0.0f, width * std::sqrt(0.5f));
    std::vector<float> q;
    for (int32_t head = 0; head < shape.num_kv_heads; ++head) {
      std::vector<float> shared(static_cast<size_t>(shape.head_dim));
      for (float& value : shared) value = normal(random);
      for (int32_t query = 0; query < shape.group; ++query) {
        for (float value : shared) q.push_back(value + normal(random));
      }
    }
    return q;
  }
  float scale() const { return 1.0f / std::sqrt(static_cast<float>(shape.head_dim)); }
};

Policy policy_of(const std::string& index, Spend spend, double total) {
  Policy policy;
  policy.dense = false;
  policy.total = {total < 1.0, total};
  policy.index = index;
  policy.spend = spend;
  return policy;
}

struct Lists {
  std::vector<std::vector<int32_t>> token_ids;
  std::vector<std::vector<float>> log_weight;
  bool operator==(const Lists&) const = default;
};

Lists select(Selection& selection, KvSequence& sequence, const Fixture& fixture, const std::vector<float>& q, int32_t layer,
             int64_t position, SelectionCost* cost_out = nullptr) {
  IndexSet set;
  set.resize(1, fixture.shape.num_kv_heads, 4096);
  SelectionStep step;
  step.layer = layer;
  step.scale = fixture.scale();
  step.seed = 5;
  step.position = position;
  step.q = q.data();
  SelectionCost cost;
  const Status status = selection.select(sequence, step, set, cost);
  EXPECT_TRUE(status.ok()) << status.to_string();
  const int32_t kv_len = sequence.length();
  EXPECT_TRUE(validate(set.view(), 1, &kv_len).ok());
  if (cost_out != nullptr) *cost_out = cost;
  Lists lists;
  for (int32_t head = 0; head < fixture.shape.num_kv_heads; ++head) {
    lists.token_ids.emplace_back(set.token_ids(0, head), set.token_ids(0, head) + set.count(0, head));
    lists.log_weight.emplace_back(set.log_weight(0, head), set.log_weight(0, head) + set.count(0, head));
  }
  return lists;
}

// Two sequences fed in turns, so that neither has its pages in a row.
std::pair<KvSequence, KvSequence> interleaved(const Fixture& fixture, const Tokens& tokens, int32_t num_tokens) {
  KvSequence first = fixture.cache->new_sequence(), second = fixture.cache->new_sequence();
  for (int32_t token = 0; token < num_tokens; token += 100) {
    const int32_t end = std::min(num_tokens, token + 100);
    fixture.append(first, tokens, token, end);
    fixture.append(second, tokens, token, end);
  }
  return {std::move(first), std::move(second)};
}

// What list_builder.h documents, in double: max(ln Z, M - 1) per query head.
std::vector<double> documented_log_sums(const std::vector<std::vector<double>>& scores, int32_t block_tokens, int32_t sink,
                                        int32_t local) {
  const auto kv_len = static_cast<int32_t>(scores[0].size());
  const int32_t num_blocks = (kv_len + block_tokens - 1) / block_tokens;
  const int32_t middle = std::max(1, (sink + block_tokens - 1) / block_tokens);
  const int32_t tail = std::max(middle, std::min(num_blocks - 1, (kv_len - local) / block_tokens));
  const int32_t step = std::max(1, (tail - middle) / std::max(2048 / block_tokens, 32));
  const int32_t sampled = (tail - middle + step - 1) / step;
  std::vector<double> result;
  for (const auto& head : scores) {
    double sum = 0.0;
    for (int32_t token = 0; token < kv_len; ++token) {
      const int32_t block = token / block_tokens;
      const bool fixed = block < middle || block >= tail;
      if (fixed) sum += std::exp(head[token]);
      if (!fixed && (block - middle) % step == 0) sum += std::exp(head[token]) * (tail - middle) / sampled;
    }
    result.push_back(std::max(std::log(sum), *std::max_element(head.begin(), head.end()) - 1.0));
  }
  return result;
}

TEST(SelectionLists, MatchTheReferenceForEverySelectorAndRule) {
  constexpr int32_t kTokens = 7003;
  const Fixture fixture(2 * kTokens + 64);
  const Tokens tokens(kTokens, 2, 64, kSeed);
  auto [sequence, other] = interleaved(fixture, tokens, kTokens);
  const auto q = fixture.queries(2.5f, kSeed + 1);
  for (const std::string name : kSelectors) {
    for (Spend spend_rule : {Spend::priority, Spend::top_k, Spend::half, Spend::uniform, Spend::gumbel}) {
      SCOPED_TRACE(name + " " + std::string(to_string(spend_rule)));
      const Policy policy = policy_of(name, spend_rule, 200);
      Selection selection = fixture.selection(policy);
      ASSERT_TRUE(selection.update_index(sequence, 1).ok());
      SelectionCost cost;
      const Lists lists = select(selection, sequence, fixture, q, 1, kTokens - 1, &cost);
      const TokenBudget budget = split_budget(policy, 1, kTokens);
      EXPECT_EQ(cost.tokens_selected, 2 * budget.total);
      EXPECT_EQ(cost.tokens_cached, 2 * kTokens);
      EXPECT_GE(cost.index_bytes, static_cast<int64_t>(2 * kTokens * selection.selector().bytes_per_token()));

      const Selector& selector = selection.selector();
      const int32_t index = selector.block_bytes() > 0 ? *fixture.cache->add_index(selector.name(), selector.block_tokens(),
                                                                                   selector.block_bytes())
                                                       : -1;
      for (int32_t head = 0; head < 2; ++head) {
        const BlockSource source(sequence, index, selector.block_tokens(), {1, head});
        std::vector<float> scaled(q.begin() + head * 4 * 64, q.begin() + (head + 1) * 4 * 64);
        for (float& value : scaled) value *= fixture.scale();
        AlignedBuffer state;
        selector.prepare({1, head}, scaled.data(), state.reserve(selector.query_state_bytes()));
        BlockPointers pointers;
        const int64_t stride = int64_t{source.num_blocks()} * selector.block_tokens();
        std::vector<float> raw(static_cast<size_t>(4 * stride));
        selector.score(state.data(), source.blocks(0, 1, source.num_blocks(), 0, pointers), raw.data(), stride);
        std::vector<std::vector<double>> scores;
        scores.reserve(4);
        for (int32_t query = 0; query < 4; ++query) {
          scores.emplace_back(raw.begin() + query * stride, raw.begin() + query * stride + kTokens);
        }
        const auto log_sums = documented_log_sums(scores, selector.block_tokens(), budget.sink, budget.local);
        auto a = ref::group_scores(scores, log_sums);
        a = {a.begin() + budget.sink, a.end() - budget.local};
        const int32_t num_free = kTokens - budget.sink - budget.local;
        SpendRule rule{spend_rule, budget.selected, num_free, 0.0,
                       make_list_key(5, RngPurpose::select, 1, head, kTokens - 1)};
        ref::SpendProblem problem;
        problem.num_top = rule.num_top();
        problem.num_random = rule.num_random();
        problem.draw = spend_rule == Spend::uniform  ? ref::Draw::flat
                       : spend_rule == Spend::gumbel ? ref::Draw::gumbel
                                                     : ref::Draw::priority;
        problem.first_token = budget.sink;
        problem.key = rule.key;
        const auto expected = ref::spend(problem, a);

        const auto& ids = lists.token_ids[head];
        ASSERT_EQ(static_cast<int32_t>(ids.size()), budget.total);
        for (int32_t i = 0; i < budget.sink; ++i) EXPECT_EQ(ids[i], i);
        for (int32_t i = 0; i < budget.local; ++i)
          EXPECT_EQ(ids[budget.total - budget.local + i], kTokens - budget.local + i);
        const std::vector<int32_t> selected(ids.begin() + budget.sink, ids.end() - budget.local);
        std::vector<int32_t> difference;
        std::set_symmetric_difference(selected.begin(), selected.end(), expected.token_ids.begin(),
                                      expected.token_ids.end(), std::back_inserter(difference));
        // L_h in f32 (2e-5) moves a and tau alike within one head, and heads against each other; keys add 1e-5.
        const double bound = 1e-4;
        for (int32_t token : difference) {
          const int32_t i = token - budget.sink;
          EXPECT_TRUE(std::abs(expected.keys[i] - expected.tau) < bound || std::abs(a[i] - expected.top_cut) < bound)
              << token;
        }
        for (size_t i = 0; i < selected.size(); ++i) {
          const auto found = std::lower_bound(expected.token_ids.begin(), expected.token_ids.end(), selected[i]);
          if (found == expected.token_ids.end() || *found != selected[i]) continue;
          EXPECT_NEAR(lists.log_weight[head][budget.sink + i], expected.log_weight[found - expected.token_ids.begin()],
                      bound);
        }
      }
    }
  }
}

TEST(SelectionLists, DoNotDependOnThreadsOrOnWhatElseIsCached) {
  constexpr int32_t kTokens = 13000;
  const Fixture fixture(2 * kTokens + 64, 1);
  const Tokens tokens(kTokens, 1, 64, kSeed + 2);
  auto [sequence, other] = interleaved(fixture, tokens, kTokens);
  const Fixture alone_fixture(kTokens, 1);
  KvSequence alone = alone_fixture.cache->new_sequence();
  alone_fixture.append(alone, tokens, 0, kTokens);
  const auto q = fixture.queries(2.5f, kSeed + 3);
  for (const std::string name : kSelectors) {
    const Policy policy = policy_of(name, Spend::half, 0.02);
    Selection selection = fixture.selection(policy), alone_selection = alone_fixture.selection(policy);
    set_num_threads(1);
    ASSERT_TRUE(alone_selection.update_index(alone, 0).ok());
    const Lists expected = select(alone_selection, alone, alone_fixture, q, 0, kTokens - 1);
    for (int32_t threads : {1, 2, 3, 5}) {
      set_num_threads(threads);
      ASSERT_TRUE(selection.update_index(sequence, 0).ok());
      EXPECT_EQ(select(selection, sequence, fixture, q, 0, kTokens - 1), expected) << name << ", " << threads << " threads";
    }
    set_num_threads(0);
    EXPECT_FALSE(select(selection, sequence, fixture, q, 0, kTokens) == expected) << "another position draws other tokens";
  }
}

// With no more threads than KV heads lists are attended to one by one, otherwise all together.
TEST(SparseStepBits, DoNotDependOnThreads) {
  constexpr int32_t kTokens = 9000;
  const Fixture fixture(kTokens + 64, 3);
  const Tokens tokens(kTokens, 3, 64, kSeed + 9);
  KvSequence sequence = fixture.cache->new_sequence();
  fixture.append(sequence, tokens, 0, kTokens);
  const auto q = fixture.queries(2.5f, kSeed + 10);
  DecodeProblem problem;
  problem.num_q_heads = 12;
  problem.num_kv_heads = 3;
  problem.head_dim = 64;
  problem.page_size = fixture.page_size;
  for (const std::string name : {"sign64", "oracle"}) {
    const auto plan = *SparseStepPlan::make(policy_of(name, Spend::half, 0.05), fixture.shape, problem, kTokens);
    const auto run = [&](int32_t threads) {
      set_num_threads(threads);
      SparseStep step = *SparseStep::make(plan, *fixture.cache);
      EXPECT_TRUE(step.update_index(sequence, 1).ok());
      SelectionStep where;
      where.layer = 1;
      where.scale = fixture.scale();
      where.position = kTokens - 1;
      where.q = q.data();
      std::vector<float> out(q.size(), 0.0f);
      SparseStepResult result;
      EXPECT_TRUE(step.run(sequence, where, out.data(), result).ok());
      set_num_threads(0);
      out.insert(out.end(), result.rel_std.begin(), result.rel_std.end());
      out.insert(out.end(), result.out_rel_std.begin(), result.out_rel_std.end());
      out.push_back(static_cast<float>(result.traffic.tokens_read));
      out.push_back(static_cast<float>(result.traffic.index_bytes));
      return out;
    };
    const std::vector<float> expected = run(5);
    EXPECT_GT(expected[q.size()], 0.0f);
    for (int32_t threads : {1, 2, 3}) EXPECT_EQ(run(threads), expected) << name << ", " << threads << " threads";
  }
}

// Every token is encoded as soon as it is there, or those of the last page by the next list.
TEST(SelectionIndex, AppendForkAndTruncateEqualRebuilding) {
  constexpr int32_t kTokens = 700;
  const Fixture fixture(8192);
  const Tokens tokens(kTokens, 2, 64, kSeed + 4), others(kTokens, 2, 64, kSeed + 5);
  const auto q = fixture.queries(2.5f, kSeed + 6);
  for (size_t i = 0; i < 2 * std::size(kSelectors); ++i) {
    const std::string name = kSelectors[i / 2];
    const bool lazy = i % 2 == 1;
    SCOPED_TRACE(name + (lazy ? ", lazy" : ""));
    const Policy policy = policy_of(name, Spend::priority, 60);
    Selection selection = fixture.selection(policy);
    const auto rebuilt = [&](const Tokens& tail, int32_t shared, int32_t length) {
      const Fixture fresh(2048);
      KvSequence sequence = fresh.cache->new_sequence();
      if (shared > 0) fresh.append(sequence, tokens, 0, shared);
      if (length > shared) fresh.append(sequence, tail, shared, length);
      Selection fresh_selection = fresh.selection(policy);
      EXPECT_TRUE(fresh_selection.update_index(sequence, 1).ok());
      return select(fresh_selection, sequence, fresh, q, 1, length - 1);
    };
    const auto extend = [&](KvSequence& sequence, const Tokens& source, int32_t end, int32_t step) {
      while (sequence.length() < end) {
        const int32_t next = std::min(end, sequence.length() + step);
        fixture.append(sequence, source, sequence.length(), next);
        if (!lazy || !selection.ready(sequence, 1)) {
          ASSERT_TRUE(selection.update_index(sequence, 1).ok());
        }
        EXPECT_TRUE(selection.ready(sequence, 1));
      }
    };
    KvSequence parent = fixture.cache->new_sequence();
    extend(parent, tokens, 603, 1);
    KvSequence twin = parent.fork();  // whichever selects first encodes for both
    EXPECT_EQ(select(selection, twin, fixture, q, 1, 602), rebuilt(tokens, 603, 603));
    const Lists before = select(selection, parent, fixture, q, 1, 602);
    EXPECT_EQ(before, rebuilt(tokens, 603, 603));

    KvSequence child = parent.fork();
    extend(child, others, 650, 7);
    EXPECT_EQ(select(selection, child, fixture, q, 1, 649), rebuilt(others, 603, 650));
    EXPECT_EQ(select(selection, parent, fixture, q, 1, 602), before) << "the fork changed its parent";

    extend(parent, tokens, 640, 3);
    EXPECT_EQ(select(selection, parent, fixture, q, 1, 639), rebuilt(tokens, 640, 640));
    EXPECT_EQ(select(selection, child, fixture, q, 1, 649), rebuilt(others, 603, 650)) << "the parent changed its fork";

    // A list for one head leaves no token of the others behind.
    extend(parent, tokens, 641, 1);
    IndexSet one;
    one.resize(1, 2, 4096);
    const int32_t only_second[] = {0, 60};
    SelectionStep step;
    step.layer = 1, step.scale = fixture.scale(), step.q = q.data(), step.list_tokens = only_second;
    SelectionCost cost;
    ASSERT_TRUE(selection.select(parent, step, one, cost).ok());
    EXPECT_EQ(select(selection, parent, fixture, q, 1, 640), rebuilt(tokens, 641, 641));

    ASSERT_TRUE(child.truncate(597).ok());
    extend(child, others, 620, 2);
    EXPECT_EQ(select(selection, child, fixture, q, 1, 619), rebuilt(others, 597, 620));
    EXPECT_EQ(select(selection, parent, fixture, q, 1, 640), rebuilt(tokens, 641, 641));
  }
}

// One token outside the sample outweighs everything: the first estimate of L_h misses it, the result must not.
TEST(SelectionLists, ASpikeOutsideTheSampleIsSeen) {
  constexpr int32_t kTokens = 6000;
  const Fixture fixture(kTokens + 64, 1, 2);
  Tokens tokens(kTokens, 1, 64, kSeed + 7);
  const auto q = fixture.queries(1.5f, kSeed + 8);
  const int32_t spike = 16 * 102 + 5;  // (102 - 1) % 2 != 0: between the sampled blocks
  for (int32_t dim = 0; dim < 64; ++dim) tokens.keys[spike * 64 + dim] = 3.0f * q[dim];
  KvSequence sequence = fixture.cache->new_sequence();
  fixture.append(sequence, tokens, 0, kTokens);
  Selection selection = fixture.selection(policy_of("oracle", Spend::priority, 120));
  ASSERT_TRUE(selection.update_index(sequence, 0).ok());
  SelectionCost cost;
  const Lists lists = select(selection, sequence, fixture, q, 0, kTokens - 1, &cost);
  EXPECT_TRUE(std::binary_search(lists.token_ids[0].begin(), lists.token_ids[0].end(), spike));
  EXPECT_GE(cost.index_bytes, 2 * int64_t{kTokens} * 128) << "the second pass is counted";
  // The other head keeps its share: its best 10 tokens are there.
  std::vector<std::pair<double, int32_t>> ranked;
  ranked.reserve(kTokens);
  const auto exact = ref::exact_scores(q.data() + 64, tokens.keys.data(), kTokens, 64);
  for (int32_t token = 0; token < kTokens; ++token) ranked.emplace_back(-exact.value[token], token);
  std::sort(ranked.begin(), ranked.end());
  for (int32_t i = 0; i < 5; ++i) {
    EXPECT_TRUE(std::binary_search(lists.token_ids[0].begin(), lists.token_ids[0].end(), ranked[i].second)) << i;
  }
}

// A head whose logits are eight times larger must not take the budget of its group.
TEST(SelectionLists, OneLargeHeadDoesNotTakeTheWholeBudget) {
  constexpr int32_t kTokens = 4096;
  const Fixture fixture(kTokens + 64, 1, 2);
  const Tokens tokens(kTokens, 1, 64, kSeed + 9);
  auto q = fixture.queries(2.0f, kSeed + 10);
  for (int32_t dim = 0; dim < 64; ++dim) q[dim] *= 8.0f;
  KvSequence sequence = fixture.cache->new_sequence();
  fixture.append(sequence, tokens, 0, kTokens);
  for (Spend spend_rule : {Spend::priority, Spend::top_k}) {
    Selection selection = fixture.selection(policy_of("oracle", spend_rule, 136));
    ASSERT_TRUE(selection.update_index(sequence, 0).ok());
    const Lists lists = select(selection, sequence, fixture, q, 0, kTokens - 1);
    const auto exact = ref::exact_scores(q.data() + 64, tokens.keys.data(), kTokens, 64);
    std::vector<double> sorted = exact.value;
    std::sort(sorted.rbegin(), sorted.rend());
    int32_t of_small_head = 0;
    for (int32_t token : lists.token_ids[0]) of_small_head += exact.value[token] >= sorted[99] ? 1 : 0;
    EXPECT_GE(of_small_head, 50) << "of the 100 best tokens of the smaller head, " << to_string(spend_rule);
  }
}

// Root mean square error of the attention output, averaged over heads, against exact attention.
double output_error(const Fixture& fixture, KvSequence& sequence, const Tokens& tokens, const std::string& name,
                    Spend spend_rule, const std::vector<float>& q, int32_t num_draws) {
  Selection selection = fixture.selection(policy_of(name, spend_rule, 0.02));
  EXPECT_TRUE(selection.update_index(sequence, 0).ok());
  const int32_t kv_len = sequence.length(), heads = fixture.shape.num_kv_heads, group = fixture.shape.group;
  std::vector<std::vector<double>> mass;  // [query head][token]; normalised
  std::vector<std::vector<double>> exact_out;
  for (int32_t query = 0; query < heads * group; ++query) {
    const int32_t head = query / group;
    std::vector<double> p(static_cast<size_t>(kv_len));
    double sum = 0.0;
    std::vector<double> out(64, 0.0);
    for (int32_t token = 0; token < kv_len; ++token) {
      double s = 0.0;
      for (int32_t dim = 0; dim < 64; ++dim)
        s += double{q[query * 64 + dim]} * tokens.keys[(int64_t{token} * heads + head) * 64 + dim];
      p[token] = std::exp(s * fixture.scale());
      sum += p[token];
      for (int32_t dim = 0; dim < 64; ++dim)
        out[dim] += p[token] * tokens.values[(int64_t{token} * heads + head) * 64 + dim];
    }
    for (double& value : p) value /= sum;
    for (double& value : out) value /= sum;
    mass.push_back(std::move(p));
    exact_out.push_back(std::move(out));
  }
  double total = 0.0;
  for (int32_t draw = 0; draw < num_draws; ++draw) {
    const Lists lists = select(selection, sequence, fixture, q, 0, kv_len - 1 + draw);
    for (int32_t query = 0; query < heads * group; ++query) {
      const int32_t head = query / group;
      double denominator = 0.0, difference = 0.0, norm = 0.0;
      std::vector<double> out(64, 0.0);
      for (size_t i = 0; i < lists.token_ids[head].size(); ++i) {
        const int32_t token = lists.token_ids[head][i];
        const double weight = mass[query][token] * std::exp(double{lists.log_weight[head][i]});
        denominator += weight;
        for (int32_t dim = 0; dim < 64; ++dim)
          out[dim] += weight * tokens.values[(int64_t{token} * heads + head) * 64 + dim];
      }
      for (int32_t dim = 0; dim < 64; ++dim) {
        const double error = out[dim] / denominator - exact_out[query][dim];
        difference += error * error;
        norm += exact_out[query][dim] * exact_out[query][dim];
      }
      total += difference / norm / (num_draws * heads * group);
    }
  }
  return std::sqrt(total);
}

// The keys as the cache rounds them do not matter here; errors are 10 % and more.
TEST(SelectionQuality, PriorityBeatsAUniformTailWithEverySelector) {
  constexpr int32_t kTokens = 8192, kDraws = 20;
  const Fixture fixture(kTokens + 64);
  const Tokens tokens(kTokens, 2, 64, kSeed + 11);
  KvSequence sequence = fixture.cache->new_sequence();
  fixture.append(sequence, tokens, 0, kTokens);
  const auto q = fixture.queries(2.0f, kSeed + 12);
  for (const std::string name : kSelectors) {
    const double priority = output_error(fixture, sequence, tokens, name, Spend::priority, q, kDraws);
    const double uniform = output_error(fixture, sequence, tokens, name, Spend::uniform, q, kDraws);
    const double top_k = output_error(fixture, sequence, tokens, name, Spend::top_k, q, 1);
    std::printf("%-13s output error: priority %.3f, uniform tail %.3f, top-k %.3f; priority / uniform %.2f\n", name.c_str(),
                priority, uniform, top_k, priority / uniform);
    EXPECT_LE(priority, (name == "oracle" ? 0.5 : 0.75) * uniform) << name;
  }
}

TEST(SelectionErrors, SayWhatWasExpected) {
  const Fixture fixture(256);
  const auto selector = *make_selector("sign", fixture.shape);
  const Policy policy = policy_of("sign", Spend::priority, 50);
  SelectorShape other = fixture.shape;
  other.num_kv_heads = 3;
  EXPECT_EQ(Selection::make(policy, selector, other, *fixture.cache).status().code(), StatusCode::invalid_argument);
  EXPECT_EQ(Selection::make(policy, nullptr, fixture.shape, *fixture.cache).status().code(), StatusCode::invalid_argument);
  EXPECT_EQ(Selection::make(Policy(), selector, fixture.shape, *fixture.cache).status().code(),
            StatusCode::invalid_argument);

  KvCacheConfig config = fixture.cache->config();
  config.page_size = 8;
  const auto small_pages = *KvCache::create(config);
  const auto refused = Selection::make(policy, selector, fixture.shape, *small_pages);
  EXPECT_EQ(refused.status().code(), StatusCode::unsupported);
  EXPECT_NE(refused.status().message().find("page_size"), std::string::npos);

  Selection selection = *Selection::make(policy, selector, fixture.shape, *fixture.cache);
  KvSequence sequence = fixture.cache->new_sequence();
  IndexSet set;
  set.resize(1, 2, 64);
  SelectionCost cost;
  SelectionStep step;
  const auto q = fixture.queries(1.0f, 1);
  step.q = q.data();
  EXPECT_EQ(selection.select(sequence, step, set, cost).code(), StatusCode::invalid_argument) << "empty sequence";
  const Tokens tokens(200, 2, 64, 1);
  fixture.append(sequence, tokens, 0, 200);
  EXPECT_EQ(selection.update_index(sequence, 2).code(), StatusCode::invalid_argument);
  ASSERT_TRUE(selection.update_index(sequence, 0).ok());
  EXPECT_TRUE(selection.select(sequence, step, set, cost).ok());
  step.layer = -1;
  EXPECT_EQ(selection.select(sequence, step, set, cost).code(), StatusCode::invalid_argument);
  step.layer = 0;
  set = IndexSet();
  set.resize(1, 2, 49);
  EXPECT_EQ(selection.select(sequence, step, set, cost).code(), StatusCode::invalid_argument) << "lists too short";
  step.q = nullptr;
  EXPECT_EQ(selection.select(sequence, step, set, cost).code(), StatusCode::invalid_argument) << "no queries";
}

}  // namespace
}  // namespace rarefy
