// Window and recurrent layers of the cache beside paged ones: what is held, given back, shared, cut back to.
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "rarefy/kv/kv_cache.h"

namespace rarefy {
namespace {

constexpr int32_t kDim = 4, kWindow = 6, kPage = 4, kStateFloats = 3;
constexpr int32_t kPaged = 0, kWindowLayer = 1, kRecurrent = 2;

KvCacheConfig make_config() {
  return {.num_layers = 3,
          .num_kv_heads = 1,
          .head_dim = kDim,
          .dtype = DType::f32,
          .page_size = kPage,
          .max_tokens = 256,
          .layer_kinds = {CacheKind::paged, CacheKind::window, CacheKind::recurrent},
          .window_tokens = kWindow,
          .state_floats = kStateFloats,
          .max_snapshots = 3};
}

std::shared_ptr<KvCache> make_cache(const KvCacheConfig& config = make_config()) {
  auto cache = KvCache::create(config);
  EXPECT_TRUE(cache) << cache.status().to_string();
  return *cache;
}

// The state after some tokens: order matters, so that a wrong history shows.
float next_state(float state, int32_t id) { return 0.5f * state + static_cast<float>(id); }

Status append(KvSequence& sequence, const std::vector<int32_t>& ids, bool commit = true) {
  RAREFY_RETURN_IF_ERROR(sequence.begin_append(static_cast<int32_t>(ids.size())));
  const KvCacheConfig& config = sequence.cache().config();
  std::vector<float> keys;  // [count, 1, kDim] f32
  for (const int32_t id : ids) keys.insert(keys.end(), kDim, static_cast<float>(id));
  for (int32_t layer = 0; layer < config.num_layers; ++layer) {
    if (config.kind(layer) != CacheKind::recurrent) {
      RAREFY_RETURN_IF_ERROR(sequence.write(layer, keys.data(), keys.data()));
      continue;
    }
    RAREFY_ASSIGN_OR_RETURN(const RecurrentState state, sequence.state(layer));
    for (int32_t i = 0; i < kStateFloats; ++i) {
      float value = state.before == nullptr ? 0.0f : state.before[i];
      for (const int32_t id : ids) value = next_state(value, id + i);
      state.after[i] = value;
    }
  }
  if (commit) sequence.commit();
  return {};
}

// Rows of the paged layer, of the window that the next query sees, and the state.
void expect_holds(KvSequence& sequence, const std::vector<int32_t>& ids) {
  ASSERT_EQ(sequence.length(), static_cast<int32_t>(ids.size()));
  const auto length = static_cast<int32_t>(ids.size());
  const PagedKvView paged = sequence.view(kPaged), window = sequence.view(kWindowLayer);
  ASSERT_TRUE(validate(paged, 1).ok() && validate(window, 1).ok());
  ASSERT_EQ(paged.kv_lens[0], length);
  const auto row = [](const PagedKvView& view, int32_t token) {
    return static_cast<const float*>(view.keys)[view.row_offset(0, token, 0)];
  };
  for (int32_t token = 0; token < length; ++token) ASSERT_EQ(row(paged, token), static_cast<float>(ids[token]));
  const int32_t dropped = length - window.kv_lens[0];
  EXPECT_EQ(dropped % kPage, 0);
  EXPECT_LE(dropped, std::max(0, length - kWindow + 1));
  for (int32_t token = std::max(0, length - kWindow + 1); token < length; ++token) {
    ASSERT_EQ(row(window, token - dropped), static_cast<float>(ids[token])) << token;
  }
  ASSERT_TRUE(sequence.begin_append(1).ok());
  const auto state = sequence.state(kRecurrent);
  ASSERT_TRUE(state) << state.status().to_string();
  ASSERT_EQ(state->before == nullptr, ids.empty());
  for (int32_t i = 0; i < kStateFloats && !ids.empty(); ++i) {
    float expected = 0.0f;
    for (const int32_t id : ids) expected = next_state(expected, id + i);
    ASSERT_EQ(state->before[i], expected);
  }
  sequence.abort_append();
}

std::vector<int32_t> range(int32_t first, int32_t count) {
  std::vector<int32_t> ids(static_cast<size_t>(count));  // [count] i32
  for (int32_t i = 0; i < count; ++i) ids[static_cast<size_t>(i)] = first + i;
  return ids;
}
std::vector<int32_t> joined(std::vector<int32_t> ids, const std::vector<int32_t>& more) {
  ids.insert(ids.end(), more.begin(), more.end());
  return ids;
}

TEST(KvKinds, AWindowGivesPagesBackAndHoldsWhatIsSeen) {
  auto cache = make_cache();
  const int32_t all = cache->num_free_window_pages();
  {
    KvSequence sequence = cache->new_sequence();
    std::vector<int32_t> ids;
    for (int32_t step = 0; step < 25; ++step) {
      const auto more = range(100 + 10 * step, 1 + step % 3);
      ASSERT_TRUE(append(sequence, more).ok());
      ids = joined(ids, more);
      expect_holds(sequence, ids);
      // The window and a page that it begins in.
      EXPECT_LE(all - cache->num_free_window_pages(), (kWindow + 2 * kPage - 2) / kPage);
    }
    EXPECT_EQ(cache->num_pages() - cache->num_free_pages(), (static_cast<int32_t>(ids.size()) + kPage - 1) / kPage);
  }
  EXPECT_EQ(cache->num_free_window_pages(), all);
  EXPECT_EQ(cache->num_free_pages(), cache->num_pages());
}

TEST(KvKinds, ALongAppendHoldsTheWindowsOfAllItsTokens) {
  auto cache = make_cache();
  KvSequence sequence = cache->new_sequence();
  ASSERT_TRUE(append(sequence, range(1, 20)).ok());
  ASSERT_TRUE(sequence.begin_append(10).ok());
  // The first new token, 20, sees 15 .. 20.
  const PagedKvView view = sequence.view(kWindowLayer);
  const int32_t dropped = 30 - view.kv_lens[0];
  EXPECT_LE(dropped, 15);
  for (int32_t token = 15; token < 20; ++token) {
    EXPECT_EQ(static_cast<const float*>(view.keys)[view.row_offset(0, token - dropped, 0)], static_cast<float>(token + 1));
  }
  sequence.abort_append();
  expect_holds(sequence, range(1, 20));
}

TEST(KvKinds, ForksShareAndPart) {
  auto cache = make_cache();
  KvSequence parent = cache->new_sequence();
  ASSERT_TRUE(append(parent, range(1, 10)).ok());
  KvSequence child = parent.fork();
  ASSERT_TRUE(append(child, range(50, 7)).ok());
  ASSERT_TRUE(append(parent, range(30, 2)).ok());
  KvSequence grandchild = child.fork();
  ASSERT_TRUE(append(child, {99}).ok());
  expect_holds(parent, joined(range(1, 10), range(30, 2)));
  expect_holds(grandchild, joined(range(1, 10), range(50, 7)));
  expect_holds(child, joined(joined(range(1, 10), range(50, 7)), {99}));
}

TEST(KvKinds, AbortLeavesEverythingAsItWas) {
  auto cache = make_cache();
  KvSequence sequence = cache->new_sequence();
  ASSERT_TRUE(append(sequence, range(1, 9)).ok());
  const int32_t pages = cache->num_free_pages(), window_pages = cache->num_free_window_pages();
  ASSERT_TRUE(append(sequence, range(70, 11), /*commit=*/false).ok());
  sequence.abort_append();
  EXPECT_EQ(cache->num_free_pages(), pages);
  EXPECT_EQ(cache->num_free_window_pages(), window_pages);
  expect_holds(sequence, range(1, 9));
  EXPECT_EQ(sequence.begin_append(1000).code(), StatusCode::resource_exhausted);
  expect_holds(sequence, range(1, 9));
}

TEST(KvKinds, SnapshotsAreWhereOneCanGoBackTo) {
  auto cache = make_cache();
  KvSequence sequence = cache->new_sequence();
  ASSERT_TRUE(append(sequence, range(1, 9)).ok());
  sequence.keep_snapshot();
  sequence.keep_snapshot();  // the same again costs nothing
  ASSERT_TRUE(append(sequence, range(10, 8)).ok());
  sequence.keep_snapshot();
  ASSERT_TRUE(append(sequence, range(60, 20)).ok());
  EXPECT_EQ(sequence.reusable_length(100), 37);
  EXPECT_EQ(sequence.reusable_length(36), 17);
  EXPECT_EQ(sequence.reusable_length(16), 9);
  EXPECT_EQ(sequence.reusable_length(8), 0);
  const Status status = sequence.truncate(16);
  EXPECT_EQ(status.code(), StatusCode::invalid_argument);
  EXPECT_NE(status.message().find(" 9,"), std::string::npos) << status.message();
  KvSequence fork = sequence.fork();

  ASSERT_TRUE(sequence.truncate(17).ok());
  expect_holds(sequence, range(1, 17));
  ASSERT_TRUE(append(sequence, range(80, 5)).ok());
  expect_holds(sequence, joined(range(1, 17), range(80, 5)));
  ASSERT_TRUE(sequence.truncate(9).ok());
  expect_holds(sequence, range(1, 9));
  EXPECT_EQ(sequence.reusable_length(100), 9);
  ASSERT_TRUE(append(sequence, range(30, 30)).ok());
  expect_holds(sequence, joined(range(1, 9), range(30, 30)));

  expect_holds(fork, joined(range(1, 17), range(60, 20)));
  ASSERT_TRUE(fork.truncate(17).ok());
  expect_holds(fork, range(1, 17));
  ASSERT_TRUE(fork.truncate(0).ok());
  expect_holds(fork, {});
  ASSERT_TRUE(append(fork, range(5, 7)).ok());
  expect_holds(fork, range(5, 7));
}

TEST(KvKinds, TheOldestSnapshotGoesFirst) {
  auto cache = make_cache();
  const int32_t all = cache->num_free_window_pages();
  KvSequence sequence = cache->new_sequence();
  for (int32_t i = 0; i < 5; ++i) {
    ASSERT_TRUE(append(sequence, range(10 * i, 4)).ok());
    sequence.keep_snapshot();
  }
  EXPECT_EQ(sequence.reusable_length(19), 16);
  EXPECT_EQ(sequence.reusable_length(15), 12);
  EXPECT_EQ(sequence.reusable_length(11), 0);
  ASSERT_TRUE(sequence.truncate(0).ok());
  EXPECT_EQ(cache->num_free_window_pages(), all);  // snapshots past the new length went too
}

TEST(KvKinds, AWindowAloneCanGoBackWhileItHoldsEnough) {
  KvCacheConfig config = make_config();
  config.num_layers = 2;
  config.layer_kinds.pop_back();
  auto cache = make_cache(config);
  KvSequence sequence = cache->new_sequence();
  ASSERT_TRUE(append(sequence, range(1, 16)).ok());
  // Tokens from 8 on are held: the window begins at 11. At length 13 the next query sees tokens 8 and later.
  EXPECT_EQ(sequence.reusable_length(14), 14);
  EXPECT_EQ(sequence.reusable_length(13), 13);
  EXPECT_EQ(sequence.reusable_length(12), 0);
  ASSERT_TRUE(sequence.truncate(13).ok());
  ASSERT_TRUE(append(sequence, {77}).ok());
  const PagedKvView view = sequence.view(kWindowLayer);
  const int32_t dropped = 14 - view.kv_lens[0];
  EXPECT_EQ(static_cast<const float*>(view.keys)[view.row_offset(0, 12 - dropped, 0)], 13.0f);
  EXPECT_EQ(static_cast<const float*>(view.keys)[view.row_offset(0, 13 - dropped, 0)], 77.0f);
}

TEST(KvKinds, RefusesWhatDoesNotFit) {
  const auto refused = [](auto change) {
    KvCacheConfig config = make_config();
    change(config);
    return !KvCache::create(config).has_value();
  };
  EXPECT_TRUE(refused([](auto& c) { c.layer_kinds.pop_back(); }));
  EXPECT_TRUE(refused([](auto& c) { c.window_tokens = 0; }));
  EXPECT_TRUE(refused([](auto& c) { c.state_floats = 0; }));
  EXPECT_TRUE(refused([](auto& c) { c.state_floats = int64_t{1} << 45; }));
  EXPECT_TRUE(refused([](auto& c) { c.max_snapshots = 0; }));
  auto cache = make_cache();
  KvSequence sequence = cache->new_sequence();
  EXPECT_FALSE(sequence.state(kRecurrent));  // nothing pending
  ASSERT_TRUE(sequence.begin_append(1).ok());
  const std::vector<float> row(kDim);
  EXPECT_FALSE(sequence.write(kRecurrent, row.data(), row.data()).ok());
  EXPECT_FALSE(sequence.state(kPaged));
  EXPECT_FALSE(sequence.state(3));
  EXPECT_TRUE(sequence.state(kRecurrent));
}

}  // namespace
}  // namespace rarefy
