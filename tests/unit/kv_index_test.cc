// Index entries of a KvCache under random work: whatever is forked, truncated, aborted or copied, the entries a sequence sees
// are those of its own tokens, the page count adds up, and nobody else's bytes change.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <random>
#include <set>
#include <thread>

#include "core/round_rows.h"
#include "rarefy/kv/kv_cache.h"

namespace rarefy {
namespace {

constexpr int32_t kLayers = 2, kHeads = 2, kDim = 4, kPage = 8;

struct IndexShape {
  const char* name;
  int32_t block_tokens;
};
constexpr IndexShape kIndexes[] = {{"token", 1}, {"half", 4}, {"page", 8}};

struct Sequence {
  KvSequence cache;
  std::vector<int32_t> ids;  // [length] i32
};

std::shared_ptr<KvCache> make_cache(int32_t num_pages) {
  auto cache = KvCache::create({.num_layers = kLayers,
                                .num_kv_heads = kHeads,
                                .head_dim = kDim,
                                .dtype = DType::f32,
                                .page_size = kPage,
                                .max_tokens = int64_t{num_pages} * kPage});
  EXPECT_TRUE(cache) << cache.status().to_string();
  return *cache;
}

float value_of(int32_t id, int32_t layer, int32_t head) { return static_cast<float>(id * 10 + layer * 3 + head); }

Status append(KvSequence& sequence, const std::vector<int32_t>& ids) {
  RAREFY_RETURN_IF_ERROR(sequence.begin_append(static_cast<int32_t>(ids.size())));
  for (int32_t layer = 0; layer < kLayers; ++layer) {
    std::vector<float> rows;  // [count, num_kv_heads, head_dim] f32
    for (const int32_t id : ids) {
      for (int32_t i = 0; i < kHeads * kDim; ++i) rows.push_back(value_of(id, layer, i / kDim));
    }
    RAREFY_RETURN_IF_ERROR(sequence.write(layer, rows.data(), rows.data()));
  }
  return {};
}

// The entry of a block: how many of its tokens it covers, and the sum of their keys. Extends like Quest's bounds do: from what
// the entry holds, so that a stale entry shows.
struct Entry {
  int64_t num_tokens;
  int64_t sum;
  friend bool operator==(const Entry&, const Entry&) = default;
};

Entry read_entry(const KvSequence& sequence, int32_t index, int32_t layer, int32_t head, int32_t block) {
  Entry entry;
  std::memcpy(&entry, sequence.index_entry(index, layer, head, block), sizeof(entry));
  return entry;
}

void encode_page(const KvSequence& sequence, int32_t index, int32_t block_tokens, int32_t layer, int32_t first,
                 int32_t end) {
  const PagedKvView view = sequence.view(layer);
  for (int32_t head = 0; head < kHeads; ++head) {
    for (int32_t position = first; position < end; ++position) {
      const int32_t block = position / block_tokens;
      Entry entry = position % block_tokens == 0 ? Entry{} : read_entry(sequence, index, layer, head, block);
      ++entry.num_tokens;
      entry.sum += static_cast<int64_t>(static_cast<const float*>(view.keys)[view.row_offset(0, position, head)]);
      std::memcpy(sequence.index_entry(index, layer, head, block), &entry, sizeof(entry));
    }
  }
}

// What Selection::update_index does.
void encode(KvSequence& sequence, int32_t index, int32_t block_tokens) {
  const int32_t num_tokens = sequence.length() + sequence.pending();
  const int32_t num_pages = (num_tokens + kPage - 1) / kPage;
  const auto lock = sequence.lock_index(0);
  for (int32_t layer = 0; layer < kLayers; ++layer) {
    for (int32_t page = 0; page < num_pages; ++page) {
      const int32_t tokens = std::min(kPage, num_tokens - page * kPage);
      const int32_t encoded = sequence.encoded_tokens(index, layer, page);
      if (encoded >= tokens) continue;
      const int32_t first = encoded / block_tokens * block_tokens;  // the block from its start, when it was cut
      encode_page(sequence, index, block_tokens, layer, page * kPage + (encoded == 0 ? 0 : std::max(first, encoded)),
                  page * kPage + tokens);
      sequence.set_encoded_tokens(index, layer, page, tokens);
    }
  }
}

// Every entry equals what building the index from nothing gives. Blocks of a shared page may cover tokens that this sequence
// has dropped (another sequence needs them) until it appends.
void expect_entries(const Sequence& sequence, int32_t index, int32_t block_tokens) {
  const int32_t num_tokens = sequence.cache.length();
  for (int32_t layer = 0; layer < kLayers; ++layer) {
    for (int32_t head = 0; head < kHeads; ++head) {
      for (int32_t block = 0; block * block_tokens < num_tokens; ++block) {
        const int32_t end = std::min(num_tokens, (block + 1) * block_tokens);
        Entry expected{};
        for (int32_t position = block * block_tokens; position < end; ++position) {
          ++expected.num_tokens;
          expected.sum += static_cast<int64_t>(value_of(sequence.ids[static_cast<size_t>(position)], layer, head));
        }
        ASSERT_EQ(read_entry(sequence.cache, index, layer, head, block), expected)
            << "layer " << layer << " block " << block;
      }
    }
  }
}

int32_t pages_in_use(const std::vector<Sequence>& live) {
  std::set<int32_t> pages;
  for (const Sequence& sequence : live) {
    const PagedKvView view = sequence.cache.view(0);
    pages.insert(view.page_table, view.page_table + view.max_pages_per_sequence);
  }
  return static_cast<int32_t>(pages.size());
}

TEST(KvIndex, RandomWorkKeepsEntriesAndPageCounts) {
  const uint32_t seed = 20261124;
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  const auto pick = [&](int32_t n) { return static_cast<int32_t>(random() % static_cast<uint32_t>(n)); };
  constexpr int32_t kNumPages = 24;  // small enough to run out of
  auto cache = make_cache(kNumPages);
  std::vector<int32_t> indexes;
  std::vector<Sequence> live;
  int32_t next_id = 0, num_refused = 0, num_appended = 0;
  for (int32_t step = 0; step < 6000; ++step) {
    // Indexes come one by one, over sequences that hold tokens.
    if (step % 50 == 20 && indexes.size() < std::size(kIndexes)) {
      const IndexShape& shape = kIndexes[indexes.size()];
      indexes.push_back(*cache->add_index(shape.name, shape.block_tokens, sizeof(Entry)));
    }
    if (live.empty()) live.push_back({cache->new_sequence(), {}});
    Sequence& sequence = live[static_cast<size_t>(pick(static_cast<int32_t>(live.size())))];
    const int32_t length = sequence.cache.length();
    switch (pick(8)) {
      case 0:
        if (live.size() < 8) live.push_back({sequence.cache.fork(), sequence.ids});
        break;
      case 1: {
        const int32_t keep = length - std::min(length, pick(12));
        ASSERT_TRUE(sequence.cache.truncate(keep).ok());
        sequence.ids.resize(static_cast<size_t>(keep));
        break;
      }
      case 2:
        if (live.size() > 1) live.erase(live.begin() + (&sequence - live.data()));
        break;
      default: {
        std::vector<int32_t> more(static_cast<size_t>(1 + pick(pick(4) == 0 ? 60 : 5)));  // [count] i32
        for (int32_t& id : more) id = next_id++ % 1000;
        // A shared last page that is partly filled costs one page more.
        const int32_t last = length % kPage == 0 ? -1 : sequence.cache.view(0).page_table[length / kPage];
        int32_t holders = 0;
        for (const Sequence& other : live) {
          const PagedKvView view = other.cache.view(0);
          holders += std::count(view.page_table, view.page_table + view.max_pages_per_sequence, last) > 0;
        }
        const int32_t needed = (length + static_cast<int32_t>(more.size()) + kPage - 1) / kPage -
                               (length + kPage - 1) / kPage + (last >= 0 && holders > 1 ? 1 : 0);
        const bool fits = needed <= cache->num_free_pages();
        const Status status = append(sequence.cache, more);
        ASSERT_EQ(status.ok(), fits) << status.to_string();
        if (!fits) {
          EXPECT_EQ(status.code(), StatusCode::resource_exhausted);
          EXPECT_EQ(sequence.cache.length(), length);
          ++num_refused;
          break;
        }
        if (pick(3) > 0) {
          for (size_t i = 0; i < indexes.size(); ++i) encode(sequence.cache, indexes[i], kIndexes[i].block_tokens);
        }
        if (pick(4) == 0) {
          sequence.cache.abort_append();
          break;
        }
        sequence.cache.commit();
        ++num_appended;
        sequence.ids.insert(sequence.ids.end(), more.begin(), more.end());
        // As every decode step does: encode what is there, then use it.
        for (size_t i = 0; i < indexes.size(); ++i) {
          encode(sequence.cache, indexes[i], kIndexes[i].block_tokens);
          expect_entries(sequence, indexes[i], kIndexes[i].block_tokens);
        }
      }
    }
    ASSERT_EQ(cache->num_free_pages(), kNumPages - pages_in_use(live)) << "step " << step;
    if (::testing::Test::HasFatalFailure()) return;
  }
  EXPECT_GT(num_refused, 50);
  EXPECT_GT(num_appended, 500);
  live.clear();
  EXPECT_EQ(cache->num_free_pages(), kNumPages);
}

TEST(KvIndex, AppendingToAForkLeavesEveryByteOfItsParent) {
  auto cache = make_cache(8);
  const int32_t index = *cache->add_index("half", 4, sizeof(Entry));
  KvSequence parent = cache->new_sequence();
  ASSERT_TRUE(append(parent, {1, 2, 3, 4, 5, 6, 7, 8, 9, 10}).ok());
  parent.commit();
  encode(parent, index, 4);
  const auto snapshot = [&] {
    std::vector<std::byte> bytes;  // [size] bytes
    for (int32_t layer = 0; layer < kLayers; ++layer) {
      const PagedKvView view = parent.view(layer);
      for (int32_t page = 0; page < 2; ++page) {
        for (int32_t head = 0; head < kHeads; ++head) {
          for (const void* region : {view.keys, view.values}) {
            const auto* rows = reinterpret_cast<const std::byte*>(static_cast<const float*>(region) +
                                                                  view.row_offset(0, page * kPage, head));
            bytes.insert(bytes.end(), rows, rows + kPage * kDim * sizeof(float));
          }
          const std::byte* entries = parent.index_entry(index, layer, head, page * 2);
          bytes.insert(bytes.end(), entries, entries + 2 * sizeof(Entry));
        }
      }
    }
    return bytes;
  };
  const auto before = snapshot();
  KvSequence child = parent.fork();
  ASSERT_TRUE(append(child, {100, 101, 102, 103, 104, 105, 106, 107}).ok());
  encode(child, index, 4);
  child.commit();
  EXPECT_TRUE(snapshot() == before);
  EXPECT_EQ(parent.encoded_tokens(index, 0, 1), 2);
}

TEST(KvIndex, ForksEncodeSharedPagesFromSeveralThreads) {
  auto cache = make_cache(256);
  KvSequence parent = cache->new_sequence();
  std::vector<int32_t> ids(203);  // [count] i32; ends within a page
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(i);
  ASSERT_TRUE(append(parent, ids).ok());
  parent.commit();
  std::vector<Sequence> forks;
  for (int32_t i = 0; i < 4; ++i) forks.push_back({parent.fork(), ids});
  std::vector<std::thread> threads;
  for (Sequence& fork : forks) {
    threads.emplace_back([&fork] {
      for (const IndexShape& shape : kIndexes) {
        const auto index = fork.cache.cache().add_index(shape.name, shape.block_tokens, sizeof(Entry));
        ASSERT_TRUE(index);
        encode(fork.cache, *index, shape.block_tokens);
        for (int32_t i = 0; i < 10; ++i) {
          ASSERT_TRUE(append(fork.cache, {500 + i}).ok());
          fork.cache.commit();
          fork.ids.push_back(500 + i);
          encode(fork.cache, *index, shape.block_tokens);
        }
        expect_entries(fork, *index, shape.block_tokens);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  forks.clear();
  EXPECT_EQ(cache->num_free_pages(), 256 - 26);
}

TEST(KvIndex, EntriesAreAlignedAndLimitsAreRefused) {
  auto cache = make_cache(7);
  const auto aligned = cache->add_index("aligned", 8, 64);
  ASSERT_TRUE(aligned);
  KvSequence sequence = cache->new_sequence();
  ASSERT_TRUE(append(sequence, std::vector<int32_t>(50, 1)).ok());
  for (int32_t layer = 0; layer < kLayers; ++layer) {
    for (int32_t block = 0; block < 7; ++block) {
      EXPECT_EQ(reinterpret_cast<uintptr_t>(sequence.index_entry(*aligned, layer, 1, block)) % 64, 0u);
    }
  }
  EXPECT_EQ(cache->add_index("huge", 1, int64_t{1} << 60).status().code(), StatusCode::resource_exhausted);
  EXPECT_EQ(cache->add_index("large", 1, int64_t{1} << 44).status().code(), StatusCode::resource_exhausted);
  EXPECT_FALSE(cache->add_index("three", 3, 8));
  EXPECT_FALSE(cache->add_index("zero", 0, 8));
  Status last;
  for (int32_t i = 0; i < 70 && last.ok(); ++i) last = cache->add_index("index" + std::to_string(i), 8, 8).status();
  EXPECT_EQ(last.code(), StatusCode::resource_exhausted);
  EXPECT_TRUE(cache->add_index("aligned", 8, 64));
}

TEST(KvIndex, WritesOutsideAnAppendAreRefused) {
  auto cache = make_cache(2);
  KvSequence sequence = cache->new_sequence();
  const std::vector<float> row(kHeads * kDim, 1.0f);  // [1, num_kv_heads, head_dim] f32
  EXPECT_FALSE(sequence.write(0, row.data(), row.data()).ok());
  ASSERT_TRUE(sequence.begin_append(1).ok());
  EXPECT_FALSE(sequence.write(-1, row.data(), row.data()).ok());
  EXPECT_FALSE(sequence.write(kLayers, row.data(), row.data()).ok());
  EXPECT_FALSE(sequence.write(0, nullptr, row.data()).ok());
  EXPECT_TRUE(sequence.write(0, row.data(), row.data()).ok());
  sequence.commit();
  EXPECT_FALSE(sequence.begin_append(0).ok());
  EXPECT_FALSE(sequence.begin_append(-1).ok());
  EXPECT_FALSE(sequence.begin_append(2147483647).ok());
  EXPECT_FALSE(sequence.truncate(2).ok());
  EXPECT_FALSE(sequence.truncate(-1).ok());
}

TEST(RoundRows, EqualsTheScalarConversions) {
  // Every 4099th bit pattern (a prime), then the neighbours of all 16-bit boundaries; NaN and infinities are among them.
  std::vector<float> values;  // [count] f32
  for (uint64_t bits = 0; bits < (uint64_t{1} << 32); bits += 4099)
    values.push_back(std::bit_cast<float>(static_cast<uint32_t>(bits)));
  for (uint32_t high = 0; high < 65536; ++high) {
    for (const uint32_t low : {0u, 1u, 0x0fffu, 0x1000u, 0x1001u, 0x7fffu, 0x8000u, 0x8001u}) {
      values.push_back(std::bit_cast<float>(high << 16 | low));
    }
  }
  std::vector<uint16_t> rounded(values.size());
  round_row(values.data(), static_cast<int64_t>(values.size()), DType::bf16, rounded.data());
  for (size_t i = 0; i < values.size(); ++i)
    ASSERT_EQ(rounded[i], to_bfloat16(values[i]).bits) << std::hexfloat << values[i];
  round_row(values.data(), static_cast<int64_t>(values.size()), DType::f16, rounded.data());
  for (size_t i = 0; i < values.size(); ++i)
    ASSERT_EQ(rounded[i], to_float16(values[i]).bits) << std::hexfloat << values[i];
}

}  // namespace
}  // namespace rarefy
