#include "rarefy/kv/kv_cache.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <thread>

namespace rarefy {
namespace {

constexpr int32_t kLayers = 2, kHeads = 3, kDim = 8;

std::shared_ptr<KvCache> make_cache(int64_t max_tokens = 512, int32_t page_size = 16, DType dtype = DType::bf16) {
  auto cache = KvCache::create({.num_layers = kLayers,
                                .num_kv_heads = kHeads,
                                .head_dim = kDim,
                                .dtype = dtype,
                                .page_size = page_size,
                                .max_tokens = max_tokens});
  EXPECT_TRUE(cache) << cache.status().to_string();
  return *cache;
}

// What token `id` at any place stores: exact in 16 bits.
float key_of(int32_t id, int32_t layer, int32_t head, int32_t dim) {
  return static_cast<float>((id * 7 + layer * 3 + head * 5 + dim) % 128);
}

Status append(KvSequence& sequence, const std::vector<int32_t>& ids, bool commit = true) {
  const auto count = static_cast<int32_t>(ids.size());
  RAREFY_RETURN_IF_ERROR(sequence.begin_append(count));
  std::vector<float> keys(ids.size() * kHeads * kDim), values(keys.size());  // [count, num_kv_heads, head_dim] f32
  for (int32_t layer = 0; layer < kLayers; ++layer) {
    for (size_t i = 0; i < keys.size(); ++i) {
      const auto token = i / (kHeads * kDim);
      keys[i] = key_of(ids[token], layer, static_cast<int32_t>(i / kDim % kHeads), static_cast<int32_t>(i % kDim));
      values[i] = -keys[i];
    }
    RAREFY_RETURN_IF_ERROR(sequence.write(layer, keys.data(), values.data()));
  }
  if (commit) sequence.commit();
  return {};
}

void expect_holds(const KvSequence& sequence, const std::vector<int32_t>& ids) {
  ASSERT_EQ(sequence.length(), static_cast<int32_t>(ids.size()));
  for (int32_t layer = 0; layer < kLayers; ++layer) {
    const PagedKvView view = sequence.view(layer);
    for (size_t token = 0; token < ids.size(); ++token) {
      for (int32_t head = 0; head < kHeads; ++head) {
        const int64_t row = view.row_offset(0, static_cast<int32_t>(token), head);
        for (int32_t dim = 0; dim < kDim; ++dim) {
          const float expected = key_of(ids[token], layer, head, dim);
          ASSERT_EQ(load_as_float(view.keys, view.dtype, row + dim), expected) << "token " << token;
          ASSERT_EQ(load_as_float(view.values, view.dtype, row + dim), -expected) << "token " << token;
        }
      }
    }
  }
}

std::vector<int32_t> range(int32_t first, int32_t count) {
  std::vector<int32_t> ids(static_cast<size_t>(count));  // [count] i32
  for (int32_t i = 0; i < count; ++i) ids[static_cast<size_t>(i)] = first + i;
  return ids;
}

TEST(KvCache, StoresRowsRoundedToTheCachesType) {
  for (DType dtype : {DType::f32, DType::f16, DType::bf16}) {
    auto cache = make_cache(64, 16, dtype);
    KvSequence sequence = cache->new_sequence();
    ASSERT_TRUE(sequence.begin_append(1).ok());
    std::vector<float> row(kHeads * kDim, 1.0f / 3.0f);  // [1, num_kv_heads, head_dim] f32
    ASSERT_TRUE(sequence.write(0, row.data(), row.data()).ok());
    const PagedKvView view = sequence.view(0);
    EXPECT_EQ(view.kv_lens[0], 1);
    float stored = 0.0f;
    store_from_float(&stored, dtype, 0, 1.0f / 3.0f);
    EXPECT_EQ(load_as_float(view.keys, dtype, view.row_offset(0, 0, 2)), load_as_float(&stored, dtype, 0));
  }
}

TEST(KvCache, TokensOfAHeadAreContiguousAfterOnePrefill) {
  auto cache = make_cache();
  KvSequence sequence = cache->new_sequence();
  ASSERT_TRUE(append(sequence, range(0, 100)).ok());
  const PagedKvView view = sequence.view(1);
  for (int32_t token = 1; token < 100; ++token) {
    EXPECT_EQ(view.row_offset(0, token, 1), view.row_offset(0, token - 1, 1) + kDim);
  }
}

TEST(KvCache, ForkCopiesOnlyTheSharedTailPage) {
  auto cache = make_cache(160);
  KvSequence parent = cache->new_sequence();
  ASSERT_TRUE(append(parent, range(0, 40)).ok());
  EXPECT_EQ(cache->num_free_pages(), 7);
  {
    KvSequence child = parent.fork();
    EXPECT_EQ(cache->num_free_pages(), 7);
    ASSERT_TRUE(append(child, {500}).ok());
    EXPECT_EQ(cache->num_free_pages(), 6);
    auto ids = range(0, 40);
    expect_holds(parent, ids);
    ids.push_back(500);
    expect_holds(child, ids);
    EXPECT_EQ(parent.view(0).page_table[1], child.view(0).page_table[1]);
    EXPECT_NE(parent.view(0).page_table[2], child.view(0).page_table[2]);
    // The parent is now the only owner of its tail page and extends it in place.
    const int32_t tail = parent.view(0).page_table[2];
    ASSERT_TRUE(append(parent, {600}).ok());
    EXPECT_EQ(parent.view(0).page_table[2], tail);
  }
  EXPECT_EQ(cache->num_free_pages(), 7);
}

TEST(KvCache, ExhaustionChangesNothing) {
  auto cache = make_cache(64);
  KvSequence a = cache->new_sequence();
  ASSERT_TRUE(append(a, range(0, 40)).ok());
  KvSequence b = cache->new_sequence();
  const Status status = b.begin_append(17);
  EXPECT_EQ(status.code(), StatusCode::resource_exhausted);
  EXPECT_NE(status.message().find("2 pages needed, 1 of 4 free"), std::string::npos) << status.message();
  EXPECT_EQ(b.length(), 0);
  EXPECT_EQ(b.pending(), 0);
  EXPECT_EQ(cache->num_free_pages(), 1);
  EXPECT_TRUE(append(b, range(0, 16)).ok());
  expect_holds(a, range(0, 40));
  EXPECT_FALSE(a.begin_append(1000).ok());
}

TEST(KvCache, AbortReturnsItsPages) {
  auto cache = make_cache(160);
  KvSequence sequence = cache->new_sequence();
  ASSERT_TRUE(append(sequence, range(0, 10)).ok());
  ASSERT_TRUE(append(sequence, range(100, 50), /*commit=*/false).ok());
  EXPECT_EQ(sequence.pending(), 50);
  EXPECT_EQ(sequence.view(0).kv_lens[0], 60);
  EXPECT_FALSE(sequence.begin_append(1).ok());
  EXPECT_FALSE(sequence.truncate(1).ok());
  sequence.abort_append();
  EXPECT_EQ(cache->num_free_pages(), 9);
  expect_holds(sequence, range(0, 10));
}

TEST(KvCache, IndexEntriesFollowTheirPages) {
  auto cache = make_cache(320);
  auto index = cache->add_index("test", 8, 24);
  ASSERT_TRUE(index);
  EXPECT_EQ(*cache->add_index("test", 8, 24), *index);
  EXPECT_FALSE(cache->add_index("test", 16, 24));
  EXPECT_FALSE(cache->add_index("odd", 32, 24));
  EXPECT_FALSE(cache->add_index("empty", 8, 0));

  KvSequence parent = cache->new_sequence();
  ASSERT_TRUE(append(parent, range(0, 40)).ok());
  EXPECT_EQ(parent.index_entry(*index, 0, 1, 1), parent.index_entry(*index, 0, 1, 0) + 24);
  for (int32_t page = 0; page < 3; ++page) {
    EXPECT_EQ(parent.encoded_tokens(*index, 1, page), 0);
    parent.set_encoded_tokens(*index, 1, page, page < 2 ? 16 : 8);
  }
  std::memset(parent.index_entry(*index, 1, 2, 4), 0x5a, 24);

  KvSequence child = parent.fork();
  EXPECT_EQ(child.index_entry(*index, 1, 2, 4), parent.index_entry(*index, 1, 2, 4));
  ASSERT_TRUE(append(child, {1}).ok());
  EXPECT_NE(child.index_entry(*index, 1, 2, 4), parent.index_entry(*index, 1, 2, 4));
  EXPECT_EQ(child.index_entry(*index, 1, 2, 3), parent.index_entry(*index, 1, 2, 3));
  EXPECT_EQ(std::to_integer<int>(child.index_entry(*index, 1, 2, 4)[23]), 0x5a);
  EXPECT_EQ(child.encoded_tokens(*index, 1, 2), 8);
  EXPECT_EQ(child.encoded_tokens(*index, 0, 2), 0);
}

// An entry may depend on every key of its block, so one that describes tokens which are gone must be made again.
TEST(KvCache, EntriesOfForgottenTokensAreForgotten) {
  auto cache = make_cache(320);
  const int32_t index = *cache->add_index("test", 16, 64);
  const auto encode_all = [&](KvSequence& s) {
    for (int32_t page = 0; page * 16 < s.length(); ++page)
      s.set_encoded_tokens(index, 0, page, std::min(16, s.length() - page * 16));
  };
  KvSequence sequence = cache->new_sequence();
  ASSERT_TRUE(append(sequence, range(0, 30)).ok());
  encode_all(sequence);
  ASSERT_TRUE(sequence.truncate(20).ok());
  ASSERT_TRUE(append(sequence, {1}).ok());
  EXPECT_EQ(sequence.encoded_tokens(index, 0, 0), 16);
  EXPECT_EQ(sequence.encoded_tokens(index, 0, 1), 0);

  encode_all(sequence);
  {
    KvSequence short_fork = sequence.fork();  // copies the tail when it appends
    ASSERT_TRUE(short_fork.truncate(18).ok());
    EXPECT_EQ(sequence.encoded_tokens(index, 0, 1), 5);
    ASSERT_TRUE(append(short_fork, {2}).ok());
    EXPECT_EQ(short_fork.encoded_tokens(index, 0, 1), 0);
    EXPECT_EQ(sequence.encoded_tokens(index, 0, 1), 5);
  }
  KvSequence heir = sequence.fork();  // becomes the only owner of a tail that describes more than it holds
  ASSERT_TRUE(heir.truncate(17).ok());
  sequence = cache->new_sequence();
  ASSERT_TRUE(append(heir, {3}).ok());
  EXPECT_EQ(heir.encoded_tokens(index, 0, 1), 0);
}

TEST(KvCache, RandomOperationsMatchAPlainModel) {
  std::mt19937 random(20240601);
  auto cache = make_cache(640, 8);
  std::vector<std::pair<KvSequence, std::vector<int32_t>>> live;
  const auto pick = [&](size_t n) { return random() % n; };
  int32_t next_id = 0;
  for (int step = 0; step < 1500; ++step) {
    if (live.empty() || (live.size() < 6 && pick(8) == 0)) live.emplace_back(cache->new_sequence(), std::vector<int32_t>{});
    auto& [sequence, ids] = live[pick(live.size())];
    switch (pick(6)) {
      case 0:
        if (live.size() < 8) {
          KvSequence copy = sequence.fork();
          std::vector<int32_t> copied = ids;
          live.emplace_back(std::move(copy), std::move(copied));
        }
        break;
      case 1: {
        const auto keep = static_cast<int32_t>(pick(ids.size() + 1));
        ASSERT_TRUE(sequence.truncate(keep).ok());
        ids.resize(static_cast<size_t>(keep));
        break;
      }
      case 2: live.erase(live.begin() + static_cast<int64_t>(pick(live.size()))); break;
      case 3:
        if (append(sequence, range(next_id, 1 + static_cast<int32_t>(pick(30))), /*commit=*/false).ok())
          sequence.abort_append();
        break;
      default: {
        const auto more = range(next_id, 1 + static_cast<int32_t>(pick(30)));
        next_id += 31;
        if (append(sequence, more).ok()) ids.insert(ids.end(), more.begin(), more.end());
      }
    }
    if (step % 25 == 0) {
      for (const auto& [s, expected] : live) expect_holds(s, expected);
    }
  }
  live.clear();
  EXPECT_EQ(cache->num_free_pages(), cache->num_pages());
}

TEST(KvCache, ForksMayRunInDifferentThreads) {
  auto cache = make_cache(4096);
  KvSequence parent = cache->new_sequence();
  ASSERT_TRUE(append(parent, range(0, 100)).ok());
  std::vector<std::thread> threads;
  std::array<bool, 4> ok{};
  for (int32_t t = 0; t < 4; ++t) {
    threads.emplace_back([&ok, t, fork = std::make_shared<KvSequence>(parent.fork())]() mutable {
      auto ids = range(0, 100);
      bool all = true;
      for (int32_t i = 0; i < 50; ++i) {
        all = all && append(*fork, {1000 * t + i}).ok();
        ids.push_back(1000 * t + i);
      }
      expect_holds(*fork, ids);
      ok[static_cast<size_t>(t)] = all;
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (bool result : ok) EXPECT_TRUE(result);
  expect_holds(parent, range(0, 100));
  EXPECT_EQ(cache->num_free_pages(), cache->num_pages() - 7);
}

TEST(KvCache, RefusesImpossibleShapes) {
  KvCacheConfig good{.num_layers = 1, .num_kv_heads = 1, .head_dim = 64, .max_tokens = 64};
  EXPECT_TRUE(KvCache::create(good));
  const auto refused = [&](auto change) {
    KvCacheConfig config = good;
    change(config);
    return !KvCache::create(config).has_value();
  };
  EXPECT_TRUE(refused([](auto& c) { c.num_layers = 0; }));
  EXPECT_TRUE(refused([](auto& c) { c.head_dim = -1; }));
  EXPECT_TRUE(refused([](auto& c) { c.page_size = 24; }));
  EXPECT_TRUE(refused([](auto& c) { c.page_size = 512; }));
  EXPECT_TRUE(refused([](auto& c) { c.max_tokens = 0; }));
  EXPECT_TRUE(refused([](auto& c) { c.dtype = DType::i8; }));
  EXPECT_TRUE(refused([](auto& c) { c.num_layers = c.num_kv_heads = c.head_dim = 2000000000, c.max_tokens = 1 << 29; }));
}

}  // namespace
}  // namespace rarefy
