#include "cpu/select/sign_planes.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "cpu/select/candidates.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/select/sign_planes.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
//
#include "cpu/simd/larger-inl.h"
#include "cpu/simd/register-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace rarefy::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// AVX-512 with VBMI: one instruction looks up six bits for 64 tokens.
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3_DL
#define RAREFY_PLANES_VBMI 1
#else
#define RAREFY_PLANES_VBMI 0
#endif

// Planes whose sums fit a signed byte together: 64 dimensions.
constexpr int32_t kChunkPlanes = 8;
// |sum| <= sum |q| / step + half a unit for each of the three groups of a plane <= 127; one unit for the division's rounding.
constexpr float kLargestChunkSum = 127.0f - 1.5f * kChunkPlanes - 1.0f;
constexpr int32_t kPatterns = 16;
constexpr int32_t kQuarters = 4;  // of a block: 16 tokens

// What is known of a query before its tables are filled.
struct TableStep {
  float step, inverse;
};

inline TableStep table_step(const float* q, int32_t head_dim) {  // q: [head_dim] f32
  float largest = 0.0f, total = 0.0f;
  for (int32_t first = 0; first < head_dim; first += kChunkPlanes * kPlaneDims) {
    float sum = 0.0f;
    const int32_t end = std::min(head_dim, first + kChunkPlanes * kPlaneDims);
    for (int32_t dim = first; dim < end; ++dim) sum += std::abs(q[dim]);
    largest = std::max(largest, sum);
    total += sum;
  }
  const float step = largest / kLargestChunkSum;
  if (!(step > 0.0f) || !std::isfinite(1.0f / step) || !std::isfinite(total)) return {0.0f, 0.0f};
  return {step, 1.0f / step};
}

// The groups of a plane under the 16 patterns of half a byte.
struct PlaneGroups {
  int8_t low[kPatterns];     // dimensions 0 .. 3
  int8_t middle[kPatterns];  // dimensions 4 and 5, by the lower two bits
  int8_t high[kPatterns];    // dimensions 6 and 7, by the upper two bits
};

inline void fill_groups(const float* q, int32_t head_dim, int32_t plane, float inverse, PlaneGroups& groups) {
  float scaled[kPlaneDims];
  for (int32_t j = 0; j < kPlaneDims; ++j) {
    const int32_t dim = plane * kPlaneDims + j;
    scaled[j] = dim < head_dim ? q[dim] * inverse : 0.0f;
  }
#if HWY_TARGET == HWY_SCALAR
  const auto signed_part = [&](int32_t j, int32_t bit) { return bit != 0 ? scaled[j] : -scaled[j]; };
  for (int32_t p = 0; p < kPatterns; ++p) {
    const float low = (signed_part(0, p & 1) + signed_part(1, p & 2)) + (signed_part(2, p & 4) + signed_part(3, p & 8));
    groups.low[p] = static_cast<int8_t>(std::nearbyint(low));
    groups.middle[p] = static_cast<int8_t>(std::nearbyint(signed_part(4, p & 1) + signed_part(5, p & 2)));
    groups.high[p] = static_cast<int8_t>(std::nearbyint(signed_part(6, p & 4) + signed_part(7, p & 8)));
  }
#else
  const hn::CappedTag<float, kPatterns> df;
  const hn::Rebind<int32_t, decltype(df)> di;
  const hn::Rebind<int8_t, decltype(df)> d8;
  HWY_ALIGN static constexpr int32_t kPattern[kPatterns] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const int32_t lanes = static_cast<int32_t>(hn::Lanes(df));
  for (int32_t p = 0; p < kPatterns; p += lanes) {
    const auto pattern = hn::Load(di, kPattern + p);
    const auto sign_bit = hn::Set(di, INT32_MIN);
    // Bit j of the pattern moved to the sign: set means plus.
    const auto signed_part = [&](int32_t j, int32_t bit) HWY_ATTR {
      const auto negative = hn::AndNot(hn::ShiftLeftSame(pattern, 31 - bit), sign_bit);
      return hn::Xor(hn::Set(df, scaled[j]), hn::BitCast(df, negative));
    };
    const auto low = hn::Add(hn::Add(signed_part(0, 0), signed_part(1, 1)), hn::Add(signed_part(2, 2), signed_part(3, 3)));
    hn::StoreU(hn::DemoteTo(d8, hn::NearestInt(low)), d8, groups.low + p);
    hn::StoreU(hn::DemoteTo(d8, hn::NearestInt(hn::Add(signed_part(4, 0), signed_part(5, 1)))), d8, groups.middle + p);
    hn::StoreU(hn::DemoteTo(d8, hn::NearestInt(hn::Add(signed_part(6, 2), signed_part(7, 3)))), d8, groups.high + p);
  }
#endif
}

// Where scores go, from one query and block on. Either every query has a row of its own, or a tile of queries leaves the largest of
// its scores and of what earlier tiles left.
enum class Keep { all, largest };
struct PlaneOutput {
  float* scores;         // [num_queries, score_stride] f32
  int64_t score_stride;  // 0: one row, of the largest
  const float* offsets;  // [num_queries, offset_stride] f32
  int64_t offset_stride;

  HWY_INLINE PlaneOutput from(int32_t query, int32_t block) const {
    return {scores + query * score_stride + int64_t{block} * kPlaneTokens, score_stride,
            offsets + query * offset_stride + block, offset_stride};
  }
};

#if HWY_TARGET != HWY_SCALAR

template <class D>
HWY_INLINE hn::Vec<D> load_scales(D df, const uint8_t* scales) {  // scales: [lanes] u8
  const hn::Rebind<int32_t, D> di;
  const hn::Rebind<uint8_t, D> d8;
  const auto codes = hn::PromoteTo(di, hn::LoadU(d8, scales));
  return hn::BitCast(df, hn::Add(hn::ShiftLeft<19>(codes), hn::Set(di, (127 - kE4m4Bias) << 23)));
}

#endif

// Entries that are fetched while a tile is scored, a line of each at a time: a burst of prefetches fills the queue of cache misses
// and then holds up everything. Into the L2 cache only: its queue is longer than that of the L1 cache (17 % of the time of a scan from memory on
// Zen 4).
template <int32_t kBlocks>
struct Ahead {
  const std::byte* next[kBlocks];  // [kBlocks] pointers into entries
  int64_t left;                    // bytes of each

  HWY_INLINE Ahead(const PlaneBlocks& blocks, int32_t first) : left(blocks.num_ahead > first ? blocks.ahead_bytes : 0) {
    for (int32_t i = 0; i < kBlocks; ++i)
      next[i] = left > 0 ? blocks.ahead[std::min(first + i, blocks.num_ahead - 1)] : nullptr;
  }
  HWY_INLINE void fetch_line() {
    constexpr int kIntoL2 = 2;
    if (left <= 0) return;
#pragma GCC unroll 16
    for (int32_t i = 0; i < kBlocks; ++i) {
      __builtin_prefetch(next[i], 0, kIntoL2);
      next[i] += 64;
    }
    left -= 64;
  }
};

#if RAREFY_PLANES_VBMI
#include "cpu/select/sign_planes_vbmi-inl.h"
#else

// Per plane: the table of the lower half of a byte, then that of the upper one.
float make_plane_table_simd(const float* q, int32_t head_dim, int8_t* table) {
  const TableStep scale = table_step(q, head_dim);
  for (int32_t plane = 0; plane < num_sign_planes(head_dim); ++plane, table += 2 * kPatterns) {
    PlaneGroups groups;
    fill_groups(q, head_dim, plane, scale.inverse, groups);
    for (int32_t p = 0; p < kPatterns; ++p) {
      table[p] = groups.low[p];
      table[kPatterns + p] = static_cast<int8_t>(groups.middle[p] + groups.high[p]);
    }
  }
  return scale.step;
}

#if HWY_TARGET == HWY_SCALAR

template <Keep kKeep, int32_t kQueries>
void score_blocks(const PlaneQueries& queries, int32_t first_query, const PlaneBlocks& blocks, const PlaneOutput& output) {
  for (int32_t block = 0; block < blocks.num_blocks; ++block) {
    const auto* entry = reinterpret_cast<const uint8_t*>(blocks.entries[block]);
    for (int32_t query = 0; query < kQueries; ++query) {
      const int8_t* table = queries.tables + (first_query + query) * plane_table_bytes(queries.num_planes);
      for (int32_t token = 0; token < kPlaneTokens; ++token) {
        int32_t sum = 0;
        for (int32_t plane = 0; plane < queries.num_planes; ++plane) {
          const uint32_t byte = entry[plane_code_offset(plane, token)];
          sum += table[2 * plane * kPatterns + (byte & 15u)] + table[(2 * plane + 1) * kPatterns + (byte >> 4)];
        }
        const float value = queries.steps[first_query + query] * static_cast<float>(sum);
        const float score = e4m4_to_float(entry[plane_scale_offset(queries.num_planes, token)]) * value +
                            output.offsets[query * output.offset_stride + block];
        float& to = output.scores[query * output.score_stride + block * kPlaneTokens + token];
        if constexpr (kKeep == Keep::all) {
          to = score;
        } else {
          const float best = first_query + query == 0 ? -kLargestScore : to;
          to = std::min(score > best ? score : best, kLargestScore);
        }
      }
    }
  }
}

#else

using Bytes = hn::CappedTag<uint8_t, 64>;
using Words = hn::Repartition<int16_t, Bytes>;
using ByteVec = hn::Vec<Bytes>;
using WordVec = hn::Vec<Words>;
using FloatVec = hn::Vec<hn::Repartition<float, Bytes>>;

// Vectors of bytes that share the loads of a query's tables: with four queries 8 sums and 4 indices in 16 registers.
constexpr int32_t kVectorsAtOnce = HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_NEON ? 2 : 1;

// Sums of planes [first, end) in bytes, kVectorsAtOnce vectors of tokens from `codes` on.
template <int32_t kQueries>
HWY_INLINE void add_planes(const uint8_t* codes,  // [num_planes, 64] u8, from some token on
                           const int8_t* tables,  // [kQueries, plane_table_bytes] i8
                           int64_t query_bytes, int32_t first, int32_t end, Ahead<1>& ahead,
                           ByteVec (&sums)[kVectorsAtOnce][kQueries]) {
  const Bytes d8;
  const hn::Repartition<uint16_t, Bytes> d16;
  const auto num_bytes = static_cast<int64_t>(hn::Lanes(d8));
  const auto low_mask = hn::Set(d8, 0x0f);
  for (auto& row : sums) {
    for (ByteVec& sum : row) sum = hn::Zero(d8);
  }
  for (int32_t plane = first; plane < end; ++plane) {
    ahead.fetch_line();
    ByteVec low[kVectorsAtOnce], high[kVectorsAtOnce];
    for (int32_t i = 0; i < kVectorsAtOnce; ++i) {
      const ByteVec byte = hn::LoadU(d8, codes + int64_t{plane} * kPlaneTokens + i * num_bytes);
      low[i] = hn::And(byte, low_mask);
      high[i] = hn::And(hn::BitCast(d8, hn::ShiftRight<4>(hn::BitCast(d16, byte))), low_mask);
    }
    for (int32_t query = 0; query < kQueries; ++query) {
      const auto* table = reinterpret_cast<const uint8_t*>(tables + query * query_bytes) + int64_t{plane} * 2 * kPatterns;
      const ByteVec low_table = hn::LoadDup128(d8, table), high_table = hn::LoadDup128(d8, table + kPatterns);
      for (int32_t i = 0; i < kVectorsAtOnce; ++i) {
        sums[i][query] = in_register(hn::Add(sums[i][query], hn::TableLookupBytes(low_table, low[i])));
        sums[i][query] = in_register(hn::Add(sums[i][query], hn::TableLookupBytes(high_table, high[i])));
      }
    }
  }
}

// Sums of two chunks of planes as words, of tokens in order.
struct PairSums {
  WordVec low, high;
};
HWY_INLINE PairSums widen(ByteVec even, ByteVec odd) {
  const Bytes d8;
#if HWY_TARGET == HWY_AVX2
  const __m256i ones = _mm256_set1_epi8(1);
  return {WordVec{_mm256_maddubs_epi16(ones, hn::InterleaveLower(d8, even, odd).raw)},
          WordVec{_mm256_maddubs_epi16(ones, hn::InterleaveUpper(d8, even, odd).raw)}};
#else
  const Words d16;
  const ByteVec zero = hn::Zero(d8);  // below the byte: a shift extends the sign
  const auto word = [&](ByteVec interleaved) HWY_ATTR { return hn::ShiftRight<8>(hn::BitCast(d16, interleaved)); };
  return {hn::Add(word(hn::InterleaveLower(d8, zero, even)), word(hn::InterleaveLower(d8, zero, odd))),
          hn::Add(word(hn::InterleaveUpper(d8, zero, even)), word(hn::InterleaveUpper(d8, zero, odd)))};
#endif
}

// kOnePair: at most two chunks of planes, head_dim up to 128.
template <Keep kKeep, int32_t kQueries, bool kOnePair>
void score_all(const PlaneQueries& queries, int32_t first_query, const PlaneBlocks& blocks, const PlaneOutput& output) {
  const Bytes d8;
  const Words d16;
  const hn::Repartition<int32_t, Bytes> d32;
  const hn::Repartition<float, Bytes> df;
  const int64_t query_bytes = plane_table_bytes(queries.num_planes);
  const int8_t* tables = queries.tables + first_query * query_bytes;
  const auto num_bytes = static_cast<int32_t>(hn::Lanes(d8));
  for (int32_t block = 0; block < blocks.num_blocks; ++block) {
    Ahead<1> ahead(blocks, block);
    const auto* entry = reinterpret_cast<const uint8_t*>(blocks.entries[block]);
    for (int32_t byte = 0; byte < kPlaneTokens; byte += kVectorsAtOnce * num_bytes) {
      ByteVec even[kVectorsAtOnce][kQueries], odd[kVectorsAtOnce][kQueries];
      WordVec low[kVectorsAtOnce][kQueries], high[kVectorsAtOnce][kQueries];  // of the pairs before
      for (int32_t plane = 0; plane < queries.num_planes; plane += 2 * kChunkPlanes) {
        const int32_t middle = std::min(queries.num_planes, plane + kChunkPlanes);
        const int32_t end = std::min(queries.num_planes, middle + kChunkPlanes);
        add_planes<kQueries>(entry + byte, tables, query_bytes, plane, middle, ahead, even);
        add_planes<kQueries>(entry + byte, tables, query_bytes, middle, end, ahead, odd);
        if constexpr (kOnePair) break;
        for (int32_t i = 0; i < kVectorsAtOnce; ++i) {
          for (int32_t query = 0; query < kQueries; ++query) {
            const PairSums pair = widen(even[i][query], odd[i][query]);
            low[i][query] = hn::Add(plane == 0 ? hn::Zero(d16) : low[i][query], pair.low);
            high[i][query] = hn::Add(plane == 0 ? hn::Zero(d16) : high[i][query], pair.high);
          }
        }
      }
      for (int32_t vector = 0; vector < kVectorsAtOnce; ++vector) {
        const int32_t first_token = (byte + vector * num_bytes) / 4;  // 16 bytes hold 4 tokens of each 16
        const uint8_t* scales = entry + plane_scale_offset(queries.num_planes, first_token);
        float* row = output.scores + int64_t{block} * kPlaneTokens + first_token;
        FloatVec scale[kQuarters], best[kQuarters];
        for (int32_t i = 0; i < kQuarters; ++i) {
          scale[i] = load_scales(df, scales + 16 * i);
          best[i] = kKeep == Keep::all || first_query == 0 ? hn::Set(df, -kLargestScore) : hn::LoadU(df, row + 16 * i);
        }
        for (int32_t query = 0; query < kQueries; ++query) {
          const auto step = hn::Set(df, queries.steps[first_query + query]);
          const auto offset = hn::Set(df, output.offsets[query * output.offset_stride + block]);
          const auto keep = [&](hn::Vec<decltype(d32)> sum, int32_t i) HWY_ATTR {
            const FloatVec score = hn::MulAdd(scale[i], hn::Mul(step, hn::ConvertTo(df, sum)), offset);
            if constexpr (kKeep == Keep::largest) {
              best[i] = larger(score, best[i]);
            } else {
              hn::StoreU(score, df, row + query * output.score_stride + 16 * i);
            }
          };
          PairSums words;
          if constexpr (kOnePair) {
            words = widen(even[vector][query], odd[vector][query]);
          } else {
            words = {low[vector][query], high[vector][query]};
          }
          const auto low32 = hn::BitCast(d32, words.low), high32 = hn::BitCast(d32, words.high);
          keep(hn::ShiftRight<16>(hn::ShiftLeft<16>(low32)), 0);
          keep(hn::ShiftRight<16>(low32), 1);
          keep(hn::ShiftRight<16>(hn::ShiftLeft<16>(high32)), 2);
          keep(hn::ShiftRight<16>(high32), 3);
        }
        if constexpr (kKeep == Keep::largest) {
          for (int32_t i = 0; i < kQuarters; ++i)
            hn::StoreU(hn::Min(best[i], hn::Set(df, kLargestScore)), df, row + 16 * i);
        }
      }
    }
    while (ahead.left > 0) ahead.fetch_line();
  }
}

template <Keep kKeep, int32_t kQueries>
void score_blocks(const PlaneQueries& queries, int32_t first_query, const PlaneBlocks& blocks, const PlaneOutput& output) {
  const auto run =
      queries.num_planes <= 2 * kChunkPlanes ? &score_all<kKeep, kQueries, true> : &score_all<kKeep, kQueries, false>;
  run(queries, first_query, blocks, output);
}

#endif  // HWY_SCALAR
#endif  // RAREFY_PLANES_VBMI

template <Keep kKeep>
void plane_scores_of(const PlaneQueries& queries, const PlaneBlocks& blocks, float* scores, int64_t score_stride) {
  constexpr int32_t kTileQueries = 4;
  const PlaneOutput output{scores, score_stride, blocks.offsets, blocks.offset_stride};
  for (int32_t query = 0; query < queries.num_queries; query += kTileQueries) {
    const int32_t tile = std::min(kTileQueries, queries.num_queries - query);
    const auto run = tile == 1   ? &score_blocks<kKeep, 1>
                     : tile == 2 ? &score_blocks<kKeep, 2>
                     : tile == 3 ? &score_blocks<kKeep, 3>
                                 : &score_blocks<kKeep, 4>;
    PlaneBlocks tile_blocks = blocks;
    if (query > 0) tile_blocks.num_ahead = 0;  // entries are fetched once, by the first tile of queries
    run(queries, query, tile_blocks, output.from(query, 0));
  }
}

void plane_scores_simd(const PlaneQueries& queries, const PlaneBlocks& blocks, float* scores, int64_t score_stride) {
  plane_scores_of<Keep::all>(queries, blocks, scores, score_stride);
}

void largest_plane_scores_simd(const PlaneQueries& queries, const PlaneBlocks& blocks, float* largest) {
  plane_scores_of<Keep::largest>(queries, blocks, largest, 0);
}

#undef RAREFY_PLANES_VBMI

}  // namespace HWY_NAMESPACE
}  // namespace rarefy::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace rarefy::cpu {

HWY_EXPORT(make_plane_table_simd);
HWY_EXPORT(plane_scores_simd);
HWY_EXPORT(largest_plane_scores_simd);

float make_plane_table(const float* q, int32_t head_dim, int8_t* table) {
  return HWY_DYNAMIC_DISPATCH(make_plane_table_simd)(q, head_dim, table);
}

void plane_scores(const PlaneQueries& queries, const PlaneBlocks& blocks, float* scores, int64_t score_stride) {
  HWY_DYNAMIC_DISPATCH(plane_scores_simd)(queries, blocks, scores, score_stride);
}

void largest_plane_scores(const PlaneQueries& queries, const PlaneBlocks& blocks, float* largest) {
  HWY_DYNAMIC_DISPATCH(largest_plane_scores_simd)(queries, blocks, largest);
}

}  // namespace rarefy::cpu
#endif  // HWY_ONCE
