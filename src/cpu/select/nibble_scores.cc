#include "cpu/select/nibble_scores.h"

#include <algorithm>
#include <cmath>
#include <utility>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/select/nibble_scores.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
//
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace rarefy::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// AVX-512 with VBMI and VNNI: one shuffle looks up four lanes, one dot product adds them up.
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3_DL
#define RAREFY_NIBBLE_VNNI 1
#else
#define RAREFY_NIBBLE_VNNI 0
#endif

// Registers: a tile of kTileQueries x kTileBlocks needs one or two sums each, plus codes: 32 registers hold 4 x 2, 16 hold 2 x 1.
#if (HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3) || HWY_TARGET == HWY_NEON
constexpr int32_t kTileQueries = 4, kTileBlocks = 4;
#else
constexpr int32_t kTileQueries = 2, kTileBlocks = 1;
#endif
// Blocks scored at a time; the next run is prefetched meanwhile: 16 x 288 bytes of sign codes at head_dim 128.
constexpr int32_t kRunBlocks = 16;

#if RAREFY_NIBBLE_VNNI
// score_tile below.
#elif HWY_TARGET == HWY_SCALAR

// Sums of table entries for kQueries queries and kBlocks blocks.
template <int32_t kQueries, int32_t kBlocks>
void sum_tile(const uint8_t* tables, int32_t num_lanes, const std::byte* const* entries, uint16_t* sums,
              int64_t query_stride) {  // sums: [kQueries, query_stride] u16; 16 per block
  for (int32_t query = 0; query < kQueries; ++query) {
    const uint8_t* low = tables + query * nibble_table_bytes(num_lanes);  // [num_lanes, 16] u8
    const uint8_t* high = low + int64_t{num_lanes} * kNibblePatterns;     // [num_lanes, 16] u8
    for (int32_t token = 0; token < kBlocks * kNibbleBlockTokens; ++token) {
      const std::byte* entry = entries[token / kNibbleBlockTokens];  // [nibble_block_bytes] bytes
      uint32_t sum = 0;
      for (int32_t lane = 0; lane < num_lanes; ++lane) {
        const auto codes = static_cast<uint32_t>(entry[nibble_code_offset(lane, token % kNibbleBlockTokens)]);
        sum += low[lane * kNibblePatterns + (codes & 15u)] + high[lane * kNibblePatterns + (codes >> 4)];
      }
      sums[query * query_stride + token] = static_cast<uint16_t>(sum);
    }
  }
}

#else

using Bytes = hn::CappedTag<uint8_t, 64>;
using Words = hn::Repartition<uint16_t, Bytes>;
using ByteVec = hn::Vec<Bytes>;
using WordVec = hn::Vec<Words>;

constexpr int32_t kRowBytes = kNibbleLaneMultiple * kNibbleLaneBytes;
#if HWY_TARGET == HWY_AVX3
constexpr int32_t kRowVectors = 1;
#elif HWY_TARGET == HWY_AVX2
constexpr int32_t kRowVectors = 2;
#else
constexpr int32_t kRowVectors = 4;
#endif

// Four interleaved lanes as vectors of whole lanes, in order.
HWY_INLINE void load_row(const uint8_t* codes, ByteVec* lanes) {  // codes: [64] u8; lanes: [kRowVectors]
  const Bytes d8;
#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX2
  // Within 16 bytes: from [token][lane] to [lane][token], one 32-bit element per lane.
  HWY_ALIGN static constexpr uint8_t kTranspose[16] = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};
  const hn::Repartition<uint32_t, Bytes> d32;
  const ByteVec transpose = hn::LoadDup128(d8, kTranspose);
#if HWY_TARGET == HWY_AVX3
  HWY_ALIGN static constexpr uint32_t kGather[16] = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};
  const auto quads = hn::BitCast(d32, hn::TableLookupBytes(hn::LoadU(d8, codes), transpose));
  lanes[0] = hn::BitCast(d8, hn::TableLookupLanes(quads, hn::SetTableIndices(d32, kGather)));
#else
  // Lanes 0 and 2 in the lower half, 1 and 3 in the upper one; then 8 tokens of the first vector and 8 of the second.
  HWY_ALIGN static constexpr uint32_t kGather[8] = {0, 4, 2, 6, 1, 5, 3, 7};
  const hn::Repartition<uint64_t, Bytes> d64;
  const auto gather = hn::SetTableIndices(d32, kGather);
  const auto first = hn::BitCast(d32, hn::TableLookupBytes(hn::LoadU(d8, codes), transpose));
  const auto second = hn::BitCast(d32, hn::TableLookupBytes(hn::LoadU(d8, codes + 32), transpose));
  const auto first64 = hn::BitCast(d64, hn::TableLookupLanes(first, gather));
  const auto second64 = hn::BitCast(d64, hn::TableLookupLanes(second, gather));
  lanes[0] = hn::BitCast(d8, hn::InterleaveLower(d64, first64, second64));
  lanes[1] = hn::BitCast(d8, hn::InterleaveUpper(d64, first64, second64));
#endif
#else
  hn::LoadInterleaved4(d8, codes, lanes[0], lanes[1], lanes[2], lanes[3]);
#endif
}

// Adds the 16-byte lanes of a vector.
HWY_INLINE hn::Vec<hn::FixedTag<uint16_t, 8>> sum_lanes(WordVec v) {
#if HWY_TARGET == HWY_AVX3
  const hn::Half<Words> d256;
  const hn::Half<decltype(d256)> d128;
  const auto half = hn::Add(hn::LowerHalf(d256, v), hn::UpperHalf(d256, v));
  return hn::Add(hn::LowerHalf(d128, half), hn::UpperHalf(d128, half));
#elif HWY_TARGET == HWY_AVX2
  const hn::Half<Words> d128;
  return hn::Add(hn::LowerHalf(d128, v), hn::UpperHalf(d128, v));
#else
  return v;
#endif
}

// Sums of one query and block. Table entries are added in bytes four at a time (at most 4 x 62), then in words.
struct Sums {
  WordVec all;   // byte pairs as words: even byte + 256 * odd byte, modulo 65536
  WordVec high;  // the odd bytes

  HWY_INLINE void add(ByteVec four_entries) {
    const WordVec words = hn::BitCast(Words(), four_entries);
    all = hn::Add(all, words);
    high = hn::Add(high, hn::ShiftRight<8>(words));
  }
};

// Adds kRows rows of codes (1 or 2) to the sums of a tile.
template <int32_t kQueries, int32_t kBlocks, int32_t kRows>
HWY_INLINE void add_rows(const uint8_t* tables, int64_t half_bytes, const std::byte* const* entries, int64_t at,
                         Sums (&sums)[kQueries][kBlocks]) {
  constexpr int32_t kVectors = kRows * kRowVectors;
  const Bytes d8;
  const Words d16;
  const int64_t vector_bytes = static_cast<int64_t>(hn::Lanes(d8));
  const auto low_mask = hn::Set(d8, 0x0f);
  ByteVec low[kBlocks][kVectors], high[kBlocks][kVectors];
  for (int32_t block = 0; block < kBlocks; ++block) {
    for (int32_t row = 0; row < kRows; ++row) {
      load_row(reinterpret_cast<const uint8_t*>(entries[block]) + at + row * kRowBytes, low[block] + row * kRowVectors);
    }
    for (int32_t i = 0; i < kVectors; ++i) {
      high[block][i] = hn::And(hn::BitCast(d8, hn::ShiftRight<4>(hn::BitCast(d16, low[block][i]))), low_mask);
      low[block][i] = hn::And(low[block][i], low_mask);
    }
  }
  for (int32_t query = 0; query < kQueries; ++query) {
    const uint8_t* table = tables + query * 2 * half_bytes + at;
    for (int32_t i = 0; i < kVectors; i += 2) {
      const ByteVec low0 = hn::Load(d8, table + i * vector_bytes),
                    high0 = hn::Load(d8, table + half_bytes + i * vector_bytes);
      for (int32_t block = 0; block < kBlocks; ++block) {
        ByteVec sum = hn::Add(hn::TableLookupBytes(low0, low[block][i]), hn::TableLookupBytes(high0, high[block][i]));
        if (i + 1 < kVectors) {
          const uint8_t* next = table + (i + 1) * vector_bytes;
          sum = hn::Add(sum, hn::Add(hn::TableLookupBytes(hn::Load(d8, next), low[block][i + 1]),
                                     hn::TableLookupBytes(hn::Load(d8, next + half_bytes), high[block][i + 1])));
        }
        sums[query][block].add(sum);
      }
    }
  }
}

// Sums of table entries for kQueries queries and kBlocks blocks.
template <int32_t kQueries, int32_t kBlocks>
HWY_INLINE void sum_tile(const uint8_t* tables, int32_t num_lanes, const std::byte* const* entries, uint16_t* sums,
                         int64_t query_stride) {  // sums: [kQueries, query_stride] u16; 16 per block
  const int64_t half_bytes = int64_t{num_lanes} * kNibblePatterns;
  Sums tile[kQueries][kBlocks];
  for (auto& row : tile) {
    for (Sums& sum : row) sum.all = sum.high = hn::Zero(Words());
  }
  int64_t at = 0;
  for (; at + 2 * kRowBytes <= half_bytes; at += 2 * kRowBytes)
    add_rows<kQueries, kBlocks, 2>(tables, half_bytes, entries, at, tile);
  if (at < half_bytes) add_rows<kQueries, kBlocks, 1>(tables, half_bytes, entries, at, tile);
  const hn::FixedTag<uint16_t, 8> d128;
  for (int32_t query = 0; query < kQueries; ++query) {
    for (int32_t block = 0; block < kBlocks; ++block) {
      const auto odd = sum_lanes(tile[query][block].high);
      const auto even = hn::Sub(sum_lanes(tile[query][block].all), hn::ShiftLeft<8>(odd));
      uint16_t* to = sums + query * query_stride + block * kNibbleBlockTokens;
      hn::Store(hn::InterleaveLower(d128, even, odd), d128, to);
      hn::Store(hn::InterleaveUpper(d128, even, odd), d128, to + 8);
    }
  }
}

#endif  // RAREFY_NIBBLE_VNNI, HWY_SCALAR

// Fetches entries kRunBlocks ahead of those being scored, a few at a time: a burst would fill the queue of cache misses. Into
// the L2 cache only: its queue is longer than that of the L1 cache (17 % of the time of a scan from memory on Zen 4).
constexpr int kIntoL2 = 2;
struct Prefetcher {
  const std::byte* const* entries;  // [num_known] pointers to [block_bytes] bytes
  int32_t num_known;
  int64_t block_bytes;

  HWY_INLINE void fetch(int32_t block, int32_t count) const {
    const int32_t end = std::min(block + kRunBlocks + count, num_known);
    for (int32_t ahead = block + kRunBlocks; ahead < end; ++ahead) {
      for (int64_t line = 0; line < block_bytes; line += 64) __builtin_prefetch(entries[ahead] + line, 0, kIntoL2);
    }
  }
};

// What one run of blocks writes, from its first query and block on.
struct ScoreOutput {
  float* scores;  // [num_queries, score_stride] f32; 16 per block
  int64_t score_stride;

  HWY_INLINE ScoreOutput from(int32_t query, int32_t block) const {
    return {scores + query * score_stride + int64_t{block} * kNibbleBlockTokens, score_stride};
  }
  // `token` is the vector's first one.
  template <class D>
  HWY_INLINE void store(D df, hn::Vec<D> score, int32_t query, int32_t block, int32_t token) const {
    hn::StoreU(score, df, scores + query * score_stride + int64_t{block} * kNibbleBlockTokens + token);
  }
};

// Scales of consecutive tokens from `token` on.
template <class D>
HWY_INLINE hn::Vec<D> load_scales(D df, const std::byte* scales, int32_t token) {  // [16] f16
  const hn::Rebind<hwy::float16_t, D> dhalf;
  return hn::PromoteTo(df, hn::LoadU(dhalf, reinterpret_cast<const hwy::float16_t*>(scales) + token));
}

#if RAREFY_NIBBLE_VNNI

#if HWY_COMPILER_CLANG
#define RAREFY_VNNI_ATTR __attribute__((target(HWY_TARGET_STR ",avx512vnni")))
#else
#define RAREFY_VNNI_ATTR __attribute__((target("avx512vnni")))
#endif

// Scores of kQueries queries and kBlocks blocks. The loops over the tile are unrolled by hand-written pragmas: a compiler that
// leaves them to its own passes keeps the sums in memory.
template <int32_t kQueries, int32_t kBlocks>
RAREFY_VNNI_ATTR void score_tile(const NibbleTables& queries, int32_t first_query, const std::byte* const* entries,
                                 const ScoreOutput& output) {
  const hn::CappedTag<float, kNibbleBlockTokens> df;
  const int64_t half_bytes = int64_t{queries.num_lanes} * kNibblePatterns;
  const uint8_t* tables = queries.tables + first_query * 2 * half_bytes;
  const __m512i low_mask = _mm512_set1_epi8(0x0f), ones = _mm512_set1_epi8(1);
  const __m512i lane_ids = _mm512_set1_epi32(0x30201000);  // byte j of a token looks into 16 entries from 16 j on
  constexpr int kAndOr = 0xea;                             // (a & b) | c
  const __m512i start = _mm512_set1_epi32(-kNibbleTableMiddle * 2 * queries.num_lanes);
  __m512i sums[kQueries * kBlocks];
#pragma GCC unroll 16
  for (int32_t i = 0; i < kQueries * kBlocks; ++i) sums[i] = start;
  for (int64_t at = 0; at < half_bytes; at += 64) {
    __m512i low[kBlocks], high[kBlocks];
#pragma GCC unroll 16
    for (int32_t block = 0; block < kBlocks; ++block) {
      __m512i codes = _mm512_loadu_si512(entries[block] + at);
      asm("" : "+v"(codes));
      low[block] = _mm512_ternarylogic_epi32(codes, low_mask, lane_ids, kAndOr);
      high[block] = _mm512_ternarylogic_epi32(_mm512_srli_epi16(codes, 4), low_mask, lane_ids, kAndOr);
    }
#pragma GCC unroll 16
    for (int32_t query = 0; query < kQueries; ++query) {
      __m512i low_table = _mm512_load_si512(tables + query * 2 * half_bytes + at);
      __m512i high_table = _mm512_load_si512(tables + query * 2 * half_bytes + half_bytes + at);
      // Keeps the tables in registers: as memory operands they would be loaded once per block, one load a cycle.
      asm("" : "+v"(low_table), "+v"(high_table));
#pragma GCC unroll 16
      for (int32_t block = 0; block < kBlocks; ++block) {
        // Two entries of at most 62 fit a byte; adding them there spares half of the dot products (20 % of the time on Zen 4).
        const __m512i entry_sums = _mm512_add_epi8(_mm512_permutexvar_epi8(low[block], low_table),
                                                   _mm512_permutexvar_epi8(high[block], high_table));
        sums[query * kBlocks + block] = _mm512_dpbusd_epi32(sums[query * kBlocks + block], entry_sums, ones);
      }
    }
  }
#pragma GCC unroll 16
  for (int32_t block = 0; block < kBlocks; ++block) {
    if (!queries.has_scales) {
#pragma GCC unroll 16
      for (int32_t query = 0; query < kQueries; ++query) {
        const hn::Vec<decltype(df)> sum{_mm512_cvtepi32_ps(sums[query * kBlocks + block])};
        const auto offset = hn::Set(df, queries.offsets[first_query + query]);
        output.store(df, hn::Add(hn::Mul(sum, hn::Set(df, queries.steps[first_query + query])), offset), query, block, 0);
      }
      continue;
    }
    const auto scale = load_scales(df, entries[block] + half_bytes, 0);
#pragma GCC unroll 16
    for (int32_t query = 0; query < kQueries; ++query) {
      const hn::Vec<decltype(df)> sum{_mm512_cvtepi32_ps(sums[query * kBlocks + block])};
      const auto score = hn::Mul(scale, hn::Mul(sum, hn::Set(df, queries.steps[first_query + query])));
      output.store(df, score, query, block, 0);
    }
  }
}

template <int32_t kQueries>
void score_run(const NibbleTables& queries, int32_t first_query, const std::byte* const* entries, int32_t num_blocks,
               const Prefetcher& prefetcher, const ScoreOutput& output) {
  int32_t block = 0;
  for (; block + kTileBlocks <= num_blocks; block += kTileBlocks) {
    prefetcher.fetch(block, kTileBlocks);
    score_tile<kQueries, kTileBlocks>(queries, first_query, entries + block, output.from(0, block));
  }
  for (; block < num_blocks; ++block) {
    prefetcher.fetch(block, 1);
    score_tile<kQueries, 1>(queries, first_query, entries + block, output.from(0, block));
  }
}

#else

template <int32_t kQueries>
void sum_run(const uint8_t* tables, int32_t num_lanes, const std::byte* const* entries, int32_t num_blocks,
             const Prefetcher& prefetcher, uint16_t* sums, int64_t query_stride) {
  int32_t block = 0;
  for (; block + kTileBlocks <= num_blocks; block += kTileBlocks) {
    prefetcher.fetch(block, kTileBlocks);
    sum_tile<kQueries, kTileBlocks>(tables, num_lanes, entries + block, sums + block * kNibbleBlockTokens, query_stride);
  }
  for (; block < num_blocks; ++block) {
    prefetcher.fetch(block, 1);
    sum_tile<kQueries, 1>(tables, num_lanes, entries + block, sums + block * kNibbleBlockTokens, query_stride);
  }
}

// scores = step * (sum - middle) + offset
void offset_run(const uint16_t* sums,  // [num_blocks, 16] u16
                int32_t num_blocks, float step, int32_t middle, float offset, const ScoreOutput& output) {
  const hn::CappedTag<float, kNibbleBlockTokens> df;
  const hn::Rebind<int32_t, decltype(df)> di;
  const hn::Rebind<uint16_t, decltype(df)> d16;
  const int32_t lanes = static_cast<int32_t>(hn::Lanes(df));
  for (int32_t at = 0; at < num_blocks * kNibbleBlockTokens; at += lanes) {
    const auto sum = hn::Sub(hn::PromoteTo(di, hn::LoadU(d16, sums + at)), hn::Set(di, middle));
    output.store(df, hn::Add(hn::Mul(hn::ConvertTo(df, sum), hn::Set(df, step)), hn::Set(df, offset)), 0, 0, at);
  }
}

// scores = scale * (step * (sum - offset)), with the scales behind the codes of each block.
void scale_run(const uint16_t* sums,  // [num_blocks, 16] u16
               const std::byte* const* entries, int32_t num_blocks, int64_t codes_bytes, float step, int32_t offset,
               const ScoreOutput& output) {
  const hn::CappedTag<float, kNibbleBlockTokens> df;
  const hn::Rebind<int32_t, decltype(df)> di;
  const hn::Rebind<uint16_t, decltype(df)> d16;
  const auto vstep = hn::Set(df, step);
  const auto voffset = hn::Set(di, offset);
  const int32_t lanes = static_cast<int32_t>(hn::Lanes(df));
  for (int32_t block = 0; block < num_blocks; ++block) {
    for (int32_t token = 0; token < kNibbleBlockTokens; token += lanes) {
      const int64_t at = int64_t{block} * kNibbleBlockTokens + token;
      const auto sum = hn::Sub(hn::PromoteTo(di, hn::LoadU(d16, sums + at)), voffset);
      const auto scale = load_scales(df, entries[block] + codes_bytes, token);
      output.store(df, hn::Mul(scale, hn::Mul(hn::ConvertTo(df, sum), vstep)), 0, block, token);
    }
  }
}

template <int32_t kQueries>
void score_run(const NibbleTables& queries, int32_t first_query, const std::byte* const* entries, int32_t num_blocks,
               const Prefetcher& prefetcher, const ScoreOutput& output) {
  HWY_ALIGN uint16_t sums[kQueries * kRunBlocks * kNibbleBlockTokens];
  constexpr int64_t kQueryStride = kRunBlocks * kNibbleBlockTokens;
  const uint8_t* tables = queries.tables + first_query * nibble_table_bytes(queries.num_lanes);
  sum_run<kQueries>(tables, queries.num_lanes, entries, num_blocks, prefetcher, sums, kQueryStride);
  const int32_t middle = kNibbleTableMiddle * 2 * queries.num_lanes;
  for (int32_t query = 0; query < kQueries; ++query) {
    if (!queries.has_scales) {
      offset_run(sums + query * kQueryStride, num_blocks, queries.steps[first_query + query], middle,
                 queries.offsets[first_query + query], output.from(query, 0));
      continue;
    }
    scale_run(sums + query * kQueryStride, entries, num_blocks, int64_t{queries.num_lanes} * kNibbleLaneBytes,
              queries.steps[first_query + query], middle, output.from(query, 0));
  }
}

#endif  // RAREFY_NIBBLE_VNNI

void nibble_scores_simd(const NibbleTables& queries, const NibbleBlocks& blocks, float* scores, int64_t score_stride) {
  const ScoreOutput output{scores, score_stride};
  const int64_t block_bytes = nibble_block_bytes(queries.num_lanes, queries.has_scales);
  for (int32_t first = 0; first < blocks.num_blocks; first += kRunBlocks) {
    const int32_t count = std::min(kRunBlocks, blocks.num_blocks - first);
    const std::byte* const* entries = blocks.entries + first;
    for (int32_t query = 0; query < queries.num_queries; query += kTileQueries) {
      // Entries are fetched once, by the first tile of queries.
      const int32_t num_known = query == 0 ? blocks.num_blocks + blocks.num_ahead - first : 0;
      const Prefetcher prefetcher{entries, num_known, block_bytes};
      const int32_t tile = std::min(kTileQueries, queries.num_queries - query);
      const auto run = tile == 1 ? &score_run<1> : tile == 2 ? &score_run<2> : tile == 3 ? &score_run<3> : &score_run<4>;
      run(queries, query, entries, count, prefetcher, output.from(query, first));
    }
  }
}

#undef RAREFY_NIBBLE_VNNI
#undef RAREFY_VNNI_ATTR

float make_nibble_table_simd(const float* q, int32_t head_dim, int32_t dims_per_group, const float* coefficients,
                             int32_t num_lanes, uint8_t* table) {
  const hn::CappedTag<float, kNibblePatterns> df;
  const hn::Rebind<int32_t, decltype(df)> di;
  const hn::Rebind<uint8_t, decltype(df)> d8;
  const int32_t lanes = static_cast<int32_t>(hn::Lanes(df));
  const int32_t num_groups = head_dim / dims_per_group;
  float largest = 0.0f;  // of any entry: coefficients are symmetric, the largest of each dimension has one magnitude
  for (int32_t group = 0; group < num_groups; ++group) {
    float sum = 0.0f;
    for (int32_t j = 0; j < dims_per_group; ++j) {
      sum += std::abs(q[group * dims_per_group + j] * coefficients[j * kNibblePatterns + kNibblePatterns - 1]);
    }
    largest = std::max(largest, sum);
  }
  // 31 steps must not round to 32: the division below is exact enough, and entries are clamped besides.
  const float step = largest / static_cast<float>(kNibbleTableMiddle);
  const float inverse = step > 0.0f && std::isfinite(1.0f / step) ? 1.0f / step : 0.0f;
  const auto middle = hn::Set(di, kNibbleTableMiddle);
  for (int32_t group = 0; group < 2 * num_lanes; ++group) {
    uint8_t* to = table + (group % 2) * int64_t{num_lanes} * kNibblePatterns + (group / 2) * int64_t{kNibblePatterns};
    for (int32_t pattern = 0; pattern < kNibblePatterns; pattern += lanes) {
      auto value = hn::Zero(df);
      for (int32_t j = 0; group < num_groups && j < dims_per_group; ++j) {
        const auto factor = hn::Set(df, q[group * dims_per_group + j] * inverse);
        value = hn::Add(value, hn::Mul(factor, hn::LoadU(df, coefficients + j * kNibblePatterns + pattern)));
      }
      const auto entry = hn::Add(hn::NearestInt(value), middle);
      const auto clamped = hn::Min(hn::Max(entry, hn::Zero(di)), hn::Set(di, 2 * kNibbleTableMiddle));
      hn::StoreU(hn::DemoteTo(d8, clamped), d8, to + pattern);
    }
  }
  return step;
}

}  // namespace HWY_NAMESPACE
}  // namespace rarefy::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace rarefy::cpu {

HWY_EXPORT(nibble_scores_simd);
HWY_EXPORT(make_nibble_table_simd);

float make_nibble_table(const float* q, int32_t head_dim, int32_t dims_per_group, const float* coefficients,
                        int32_t num_lanes, uint8_t* table) {
  return HWY_DYNAMIC_DISPATCH(make_nibble_table_simd)(q, head_dim, dims_per_group, coefficients, num_lanes, table);
}

// Once per query and step: plain code.
float make_nibble_table(const float* values, int32_t num_groups, int32_t num_lanes, uint8_t* table, float& offset) {
  float largest = 0.0f;
  offset = 0.0f;
  const auto ends_of = [&](int32_t group) {
    const float* of = values + int64_t{group} * kNibblePatterns;  // [16] f32
    return std::pair(*std::min_element(of, of + kNibblePatterns), *std::max_element(of, of + kNibblePatterns));
  };
  bool finite = true;
  for (int32_t group = 0; group < num_groups; ++group) {
    const auto [low, high] = ends_of(group);
    finite = finite && std::isfinite(high - low);
    for (int32_t i = 0; i < kNibblePatterns; ++i) finite = finite && !std::isnan(values[group * kNibblePatterns + i]);
    largest = std::max(largest, 0.5f * (high - low));
    offset += 0.5f * (low + high);
  }
  const float step = finite ? largest / static_cast<float>(kNibbleTableMiddle) : 0.0f;
  const float inverse = step > 0.0f && std::isfinite(1.0f / step) ? 1.0f / step : 0.0f;
  if (!finite) offset = 0.0f;
  for (int32_t group = 0; group < 2 * num_lanes; ++group) {
    uint8_t* to = table + (group % 2) * int64_t{num_lanes} * kNibblePatterns + (group / 2) * int64_t{kNibblePatterns};
    std::fill_n(to, kNibblePatterns, static_cast<uint8_t>(kNibbleTableMiddle));
    if (group >= num_groups || inverse == 0.0f) continue;
    const auto [low, high] = ends_of(group);
    constexpr auto kMost = static_cast<float>(kNibbleTableMiddle);
    for (int32_t i = 0; i < kNibblePatterns; ++i) {
      const float value = (values[group * kNibblePatterns + i] - 0.5f * (low + high)) * inverse;
      to[i] = static_cast<uint8_t>(kMost + std::clamp(std::nearbyint(value), -kMost, kMost));
    }
  }
  return step;
}

void nibble_scores(const NibbleTables& queries, const NibbleBlocks& blocks, float* scores, int64_t score_stride) {
  HWY_DYNAMIC_DISPATCH(nibble_scores_simd)(queries, blocks, scores, score_stride);
}

}  // namespace rarefy::cpu
#endif  // HWY_ONCE
