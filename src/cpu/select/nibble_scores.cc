#include "cpu/select/nibble_scores.h"

#include <algorithm>
#include <cmath>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/select/nibble_scores.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
//
#include "hwy/cache_control.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace rarefy::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Registers: a tile of kTileQueries x kTileBlocks needs 2 sums each, plus 4 codes per block: 32 registers hold 4 x 2, 16 hold 2 x 1.
#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL || HWY_TARGET == HWY_NEON
constexpr int32_t kTileQueries = 4, kTileBlocks = 2;
#else
constexpr int32_t kTileQueries = 2, kTileBlocks = 1;
#endif
constexpr int32_t kRunBlocks = 16;    // sums of a run stay in the L1 cache: 8 KiB for 16 queries
constexpr int32_t kPrefetchBlocks = 12;  // ahead of the block being scored: 3.4 KiB of sign codes at head_dim 128

#if HWY_TARGET == HWY_SCALAR

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
        const auto codes = static_cast<uint32_t>(entry[lane * kNibbleLaneBytes + token % kNibbleBlockTokens]);
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

// Adds the 16-byte lanes of a vector.
HWY_INLINE hn::Vec<hn::FixedTag<uint16_t, 8>> sum_lanes(WordVec v) {
#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL
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

// Sums of table entries for kQueries queries and kBlocks blocks.
template <int32_t kQueries, int32_t kBlocks>
HWY_INLINE void sum_tile(const uint8_t* tables, int32_t num_lanes, const std::byte* const* entries,
                         uint16_t* sums, int64_t query_stride) {  // sums: [kQueries, query_stride] u16; 16 per block
  const Bytes d8;
  const Words d16;
  const int64_t vector_bytes = static_cast<int64_t>(hn::Lanes(d8));
  const int64_t half_bytes = int64_t{num_lanes} * kNibblePatterns;
  const auto low_mask = hn::Set(d8, 0x0f);
  WordVec all[kQueries][kBlocks];   // byte pairs as words: even byte + 256 * odd byte, modulo 65536
  WordVec high[kQueries][kBlocks];  // the odd bytes
  for (int32_t query = 0; query < kQueries; ++query) {
    for (int32_t block = 0; block < kBlocks; ++block) all[query][block] = high[query][block] = hn::Zero(d16);
  }
  int64_t at = 0;
  for (; at + 2 * vector_bytes <= half_bytes; at += 2 * vector_bytes) {
    ByteVec low0[kBlocks], high0[kBlocks], low1[kBlocks], high1[kBlocks];
    for (int32_t block = 0; block < kBlocks; ++block) {
      const auto* codes = reinterpret_cast<const uint8_t*>(entries[block]) + at;
      const ByteVec first = hn::LoadU(d8, codes), second = hn::LoadU(d8, codes + vector_bytes);
      low0[block] = hn::And(first, low_mask);
      high0[block] = hn::And(hn::BitCast(d8, hn::ShiftRight<4>(hn::BitCast(d16, first))), low_mask);
      low1[block] = hn::And(second, low_mask);
      high1[block] = hn::And(hn::BitCast(d8, hn::ShiftRight<4>(hn::BitCast(d16, second))), low_mask);
    }
    for (int32_t query = 0; query < kQueries; ++query) {
      const uint8_t* table = tables + query * 2 * half_bytes + at;
      const ByteVec table_low0 = hn::Load(d8, table), table_high0 = hn::Load(d8, table + half_bytes);
      const ByteVec table_low1 = hn::Load(d8, table + vector_bytes);
      const ByteVec table_high1 = hn::Load(d8, table + half_bytes + vector_bytes);
      for (int32_t block = 0; block < kBlocks; ++block) {
        const ByteVec sum0 = hn::Add(hn::TableLookupBytes(table_low0, low0[block]), hn::TableLookupBytes(table_high0, high0[block]));
        const ByteVec sum1 = hn::Add(hn::TableLookupBytes(table_low1, low1[block]), hn::TableLookupBytes(table_high1, high1[block]));
        const WordVec sum = hn::BitCast(d16, hn::Add(sum0, sum1));  // four entries of at most 62: no byte overflows
        all[query][block] = hn::Add(all[query][block], sum);
        high[query][block] = hn::Add(high[query][block], hn::ShiftRight<8>(sum));
      }
    }
  }
  if (at < half_bytes) {  // an odd number of vectors
    for (int32_t block = 0; block < kBlocks; ++block) {
      const ByteVec codes = hn::LoadU(d8, reinterpret_cast<const uint8_t*>(entries[block]) + at);
      const ByteVec low = hn::And(codes, low_mask);
      const ByteVec top = hn::And(hn::BitCast(d8, hn::ShiftRight<4>(hn::BitCast(d16, codes))), low_mask);
      for (int32_t query = 0; query < kQueries; ++query) {
        const uint8_t* table = tables + query * 2 * half_bytes + at;
        const WordVec sum = hn::BitCast(d16, hn::Add(hn::TableLookupBytes(hn::Load(d8, table), low),
                                                     hn::TableLookupBytes(hn::Load(d8, table + half_bytes), top)));
        all[query][block] = hn::Add(all[query][block], sum);
        high[query][block] = hn::Add(high[query][block], hn::ShiftRight<8>(sum));
      }
    }
  }
  const hn::FixedTag<uint16_t, 8> d128;
  for (int32_t query = 0; query < kQueries; ++query) {
    for (int32_t block = 0; block < kBlocks; ++block) {
      const auto odd = sum_lanes(high[query][block]);
      const auto even = hn::Sub(sum_lanes(all[query][block]), hn::ShiftLeft<8>(odd));
      uint16_t* to = sums + query * query_stride + block * kNibbleBlockTokens;
      hn::Store(hn::InterleaveLower(d128, even, odd), d128, to);
      hn::Store(hn::InterleaveUpper(d128, even, odd), d128, to + 8);
    }
  }
}

#endif  // HWY_SCALAR

template <int32_t kQueries>
void sum_run(const uint8_t* tables, int32_t num_lanes, const std::byte* const* entries, int32_t num_blocks, uint16_t* sums,
             int64_t query_stride) {
  int32_t block = 0;
  for (; block + kTileBlocks <= num_blocks; block += kTileBlocks) {
    sum_tile<kQueries, kTileBlocks>(tables, num_lanes, entries + block, sums + block * kNibbleBlockTokens, query_stride);
  }
  for (; block < num_blocks; ++block) {
    sum_tile<kQueries, 1>(tables, num_lanes, entries + block, sums + block * kNibbleBlockTokens, query_stride);
  }
}

// scores = scale * (step * (sum - offset)), with the f16 scales behind the codes of each block.
void scale_run(const uint16_t* sums,  // [num_blocks, 16] u16
               const std::byte* const* entries, int32_t num_blocks, int64_t codes_bytes, float step, int32_t offset,
               float* scores) {
  const hn::CappedTag<float, kNibbleBlockTokens> df;
  const hn::Rebind<int32_t, decltype(df)> di;
  const hn::Rebind<uint16_t, decltype(df)> d16;
  const hn::Rebind<hwy::float16_t, decltype(df)> dhalf;
  const auto vstep = hn::Set(df, step);
  const auto voffset = hn::Set(di, offset);
  const int32_t lanes = static_cast<int32_t>(hn::Lanes(df));
  for (int32_t block = 0; block < num_blocks; ++block) {
    const auto* scales = reinterpret_cast<const hwy::float16_t*>(entries[block] + codes_bytes);
    for (int32_t token = 0; token < kNibbleBlockTokens; token += lanes) {
      const int64_t at = int64_t{block} * kNibbleBlockTokens + token;
      const auto sum = hn::Sub(hn::PromoteTo(di, hn::LoadU(d16, sums + at)), voffset);
      const auto scale = hn::PromoteTo(df, hn::LoadU(dhalf, scales + token));
      hn::StoreU(hn::Mul(scale, hn::Mul(hn::ConvertTo(df, sum), vstep)), df, scores + at);
    }
  }
}

void nibble_scores_simd(const NibbleTables& queries, const std::byte* const* entries, int32_t num_blocks, float* scores,
                        int64_t score_stride) {
  HWY_ALIGN uint16_t sums[kTileQueries * kRunBlocks * kNibbleBlockTokens];
  constexpr int64_t kQueryStride = kRunBlocks * kNibbleBlockTokens;
  const int64_t table_bytes = nibble_table_bytes(queries.num_lanes);
  const int64_t codes_bytes = int64_t{queries.num_lanes} * kNibbleLaneBytes;
  const int64_t block_bytes = nibble_block_bytes(queries.num_lanes);
  const int32_t offset = kNibbleTableMiddle * 2 * queries.num_lanes;
  for (int32_t first = 0; first < num_blocks; first += kRunBlocks) {
    const int32_t count = std::min(kRunBlocks, num_blocks - first);
    for (int32_t ahead = first + kPrefetchBlocks; ahead < std::min(first + kPrefetchBlocks + count, num_blocks); ++ahead) {
      for (int64_t line = 0; line < block_bytes; line += 64) hwy::Prefetch(entries[ahead] + line);
    }
    for (int32_t query = 0; query < queries.num_queries; query += kTileQueries) {
      const uint8_t* tables = queries.tables + query * table_bytes;
      const int32_t tile = std::min(kTileQueries, queries.num_queries - query);
      const auto run = tile == 1 ? &sum_run<1> : tile == 2 ? &sum_run<2> : tile == 3 ? &sum_run<3> : &sum_run<4>;
      run(tables, queries.num_lanes, entries + first, count, sums, kQueryStride);
      for (int32_t j = 0; j < tile; ++j) {
        scale_run(sums + j * kQueryStride, entries + first, count, codes_bytes, queries.steps[query + j], offset,
                  scores + (query + j) * score_stride + int64_t{first} * kNibbleBlockTokens);
      }
    }
  }
}

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

float make_nibble_table(const float* q, int32_t head_dim, int32_t dims_per_group, const float* coefficients, int32_t num_lanes,
                        uint8_t* table) {
  return HWY_DYNAMIC_DISPATCH(make_nibble_table_simd)(q, head_dim, dims_per_group, coefficients, num_lanes, table);
}

void nibble_scores(const NibbleTables& queries, const std::byte* const* entries, int32_t num_blocks, float* scores,
                   int64_t score_stride) {
  HWY_DYNAMIC_DISPATCH(nibble_scores_simd)(queries, entries, num_blocks, scores, score_stride);
}

}  // namespace rarefy::cpu
#endif  // HWY_ONCE
