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

#if RAREFY_PLANES_VBMI

constexpr int32_t kTilePlanes = 3;  // share one lookup of what is left over
constexpr int32_t kTableBytes = 64;

// Tables in the order of use: six bits of up to three planes, then the upper two bits of these.
float make_plane_table_simd(const float* q, int32_t head_dim, int8_t* table) {
  const TableStep scale = table_step(q, head_dim);
  const int32_t num_planes = num_sign_planes(head_dim);
  alignas(64) int8_t ids[64];
  for (int32_t i = 0; i < 64; ++i) ids[i] = static_cast<int8_t>(i);
  const __m512i id = _mm512_load_si512(ids), low2 = _mm512_set1_epi8(3);
  const __m512i upper = _mm512_and_si512(_mm512_srli_epi16(id, 4), low2);
  const __m512i digits[kTilePlanes] = {upper, _mm512_and_si512(_mm512_srli_epi16(id, 2), low2), _mm512_and_si512(id, low2)};
  for (int32_t chunk = 0; chunk < num_planes; chunk += kChunkPlanes) {
    const int32_t end = std::min(num_planes, chunk + kChunkPlanes);
    for (int32_t first = chunk; first < end; first += kTilePlanes) {
      __m512i left = _mm512_setzero_si512();
      for (int32_t plane = first; plane < std::min(end, first + kTilePlanes); ++plane, table += kTableBytes) {
        PlaneGroups groups;
        fill_groups(q, head_dim, plane, scale.inverse, groups);
        const __m512i low = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(groups.low)));
        const __m512i middle = _mm512_castsi128_si512(_mm_loadu_si128(reinterpret_cast<const __m128i*>(groups.middle)));
        const __m512i high = _mm512_castsi128_si512(_mm_loadu_si128(reinterpret_cast<const __m128i*>(groups.high)));
        _mm512_store_si512(table, _mm512_add_epi8(low, _mm512_permutexvar_epi8(upper, middle)));
        const __m512i digit = _mm512_slli_epi16(digits[plane - first], 2);  // patterns 0, 4, 8, 12
        left = _mm512_add_epi8(left, _mm512_permutexvar_epi8(digit, high));
      }
      _mm512_store_si512(table, left);
      table += kTableBytes;
    }
  }
  return scale.step;
}

// Adds one table's entries for kBlocks blocks and kQueries queries.
// Entries that are fetched while a tile is scored, a line of each at a time: a burst of prefetches fills the queue of cache misses
// and then holds up everything.
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

template <int32_t kQueries, int32_t kBlocks>
HWY_INLINE void look_up(const __m512i (&index)[kBlocks], const int8_t* table, int64_t query_bytes,
                        __m512i (&sums)[kQueries * kBlocks], Ahead<kBlocks>& ahead) {
  ahead.fetch_line();
#pragma GCC unroll 16
  for (int32_t query = 0; query < kQueries; ++query) {
    // The barriers keep GCC 12 from loading once per block and from putting additions off until nothing fits the registers.
    __m512i entries = _mm512_load_si512(table + query * query_bytes);
    asm("" : "+v"(entries));
#pragma GCC unroll 16
    for (int32_t block = 0; block < kBlocks; ++block) {
      __m512i& sum = sums[query * kBlocks + block];
      sum = _mm512_add_epi8(sum, _mm512_permutexvar_epi8(index[block], entries));
      asm("" : "+v"(sum));
    }
  }
}

// Adds kPlanes planes that share the lookup of what is left over; returns the table after theirs.
template <int32_t kQueries, int32_t kBlocks, int32_t kPlanes>
HWY_INLINE const int8_t* add_tile_planes(const std::byte* const* entries, int32_t first, const int8_t* table,
                                         int64_t query_bytes, __m512i (&sums)[kQueries * kBlocks], Ahead<kBlocks>& ahead) {
  static_assert(kPlanes >= 1 && kPlanes <= kTilePlanes);
  constexpr int kSelect = 0xca;  // a ? b : c
  __m512i index[kBlocks], left[kBlocks];
#pragma GCC unroll 16
  for (int32_t plane = 0; plane < kPlanes; ++plane) {
    const __m512i taken = _mm512_set1_epi8(static_cast<char>(plane == 1 ? 0xc0 : 0xf0));  // bits that `left` has already
#pragma GCC unroll 16
    for (int32_t block = 0; block < kBlocks; ++block) {
      index[block] = _mm512_loadu_si512(entries[block] + int64_t{first + plane} * kPlaneTokens);
      left[block] =
          plane == 0 ? index[block]
                     : _mm512_ternarylogic_epi32(taken, left[block], _mm512_srli_epi16(index[block], 2 * plane), kSelect);
    }
    look_up<kQueries, kBlocks>(index, table + plane * kTableBytes, query_bytes, sums, ahead);
  }
  // Bits below those that were set are whatever they are: the table does not depend on them.
#pragma GCC unroll 16
  for (int32_t block = 0; block < kBlocks; ++block) index[block] = _mm512_srli_epi16(left[block], 2);
  look_up<kQueries, kBlocks>(index, table + kPlanes * kTableBytes, query_bytes, sums, ahead);
  return table + (kPlanes + 1) * kTableBytes;
}

template <int32_t kQueries, int32_t kBlocks>
HWY_INLINE const int8_t* add_chunk(const std::byte* const* entries, int32_t first, int32_t end, const int8_t* table,
                                   int64_t query_bytes, __m512i (&sums)[kQueries * kBlocks], Ahead<kBlocks>& ahead) {
  int32_t plane = first;
  if (end - first == kChunkPlanes) {  // the common case without loops
    table = add_tile_planes<kQueries, kBlocks, 3>(entries, plane, table, query_bytes, sums, ahead);
    table = add_tile_planes<kQueries, kBlocks, 3>(entries, plane + 3, table, query_bytes, sums, ahead);
    return add_tile_planes<kQueries, kBlocks, 2>(entries, plane + 6, table, query_bytes, sums, ahead);
  }
  for (; plane + 3 <= end; plane += 3)
    table = add_tile_planes<kQueries, kBlocks, 3>(entries, plane, table, query_bytes, sums, ahead);
  if (plane + 2 == end) return add_tile_planes<kQueries, kBlocks, 2>(entries, plane, table, query_bytes, sums, ahead);
  if (plane + 1 == end) return add_tile_planes<kQueries, kBlocks, 1>(entries, plane, table, query_bytes, sums, ahead);
  return table;
}

// Sums of a pair of chunks as words, of tokens 0, 16, 1, 17 ... and 32, 48, 33, 49 ... (Dot products that leave f32 bits behind
// would save the conversions, but took 10 % longer: they share pipes with the multiplications that follow.)
struct PairSums {
  __m512i low, high;
};
HWY_INLINE PairSums widen(__m512i even, __m512i odd) {
  const __m512i ones = _mm512_set1_epi8(1);
  return {_mm512_maddubs_epi16(ones, _mm512_unpacklo_epi8(even, odd)),
          _mm512_maddubs_epi16(ones, _mm512_unpackhi_epi8(even, odd))};
}

// kPlanes: num_planes, at most 16, or 0 for any number.
template <Keep kKeep, int32_t kQueries, int32_t kBlocks, int32_t kPlanes>
HWY_INLINE void score_tile(const PlaneQueries& queries, int32_t first_query, const std::byte* const* entries,
                           const PlaneOutput& output, Ahead<kBlocks> ahead) {
  constexpr int32_t kSums = kQueries * kBlocks;
  constexpr bool kOnePair = kPlanes > 0;
  const int32_t num_planes = kOnePair ? kPlanes : queries.num_planes;
  const int64_t query_bytes = plane_table_bytes(num_planes);
  const int8_t* table = queries.tables + first_query * query_bytes;
  PairSums kept[kOnePair ? 1 : kSums] = {};  // of the pairs before
  __m512i even[kSums], odd[kSums];
  for (int32_t plane = 0; plane < num_planes; plane += 2 * kChunkPlanes) {
    const int32_t middle = std::min(num_planes, plane + kChunkPlanes);
    const int32_t end = std::min(num_planes, middle + kChunkPlanes);
#pragma GCC unroll 16
    for (int32_t i = 0; i < kSums; ++i) even[i] = odd[i] = _mm512_setzero_si512();
    table = add_chunk<kQueries, kBlocks>(entries, plane, middle, table, query_bytes, even, ahead);
    table = add_chunk<kQueries, kBlocks>(entries, middle, end, table, query_bytes, odd, ahead);
    if constexpr (kOnePair) break;
    for (int32_t i = 0; i < kSums && !kOnePair; ++i) {
      const PairSums pair = widen(even[i], odd[i]);
      kept[i] = {_mm512_add_epi16(kept[i].low, pair.low), _mm512_add_epi16(kept[i].high, pair.high)};
    }
  }
  while (ahead.left > 0) ahead.fetch_line();
#pragma GCC unroll 16
  for (int32_t block = 0; block < kBlocks; ++block) {
    const auto* scales = reinterpret_cast<const uint8_t*>(entries[block]) + plane_scale_offset(num_planes, 0);
    const hn::FixedTag<float, 16> df;
    float* row = output.scores + block * kPlaneTokens;
    __m512 scale[kQuarters], best[kQuarters];
#pragma GCC unroll 16
    for (int32_t i = 0; i < kQuarters; ++i) {
      scale[i] = load_scales(df, scales + 16 * i).raw;
      best[i] = kKeep == Keep::all || first_query == 0 ? _mm512_set1_ps(-kLargestScore) : _mm512_loadu_ps(row + 16 * i);
    }
#pragma GCC unroll 16
    for (int32_t query = 0; query < kQueries; ++query) {
      const int32_t at = query * kBlocks + block;
      const PairSums words = kOnePair ? widen(even[at], odd[at]) : kept[kOnePair ? 0 : at];
      const __m512i sums[kQuarters] = {
          _mm512_srai_epi32(_mm512_slli_epi32(words.low, 16), 16), _mm512_srai_epi32(words.low, 16),
          _mm512_srai_epi32(_mm512_slli_epi32(words.high, 16), 16), _mm512_srai_epi32(words.high, 16)};
      const __m512 step = _mm512_set1_ps(queries.steps[first_query + query]);
      const __m512 offset = _mm512_set1_ps(output.offsets[query * output.offset_stride + block]);
#pragma GCC unroll 16
      for (int32_t i = 0; i < kQuarters; ++i) {
        const __m512 value = _mm512_mul_ps(step, _mm512_cvtepi32_ps(sums[i]));
        const __m512 score = _mm512_fmadd_ps(scale[i], value, offset);
        if constexpr (kKeep == Keep::largest) {
          best[i] = _mm512_max_ps(score, best[i]);  // the second operand for NaN
        } else {
          _mm512_storeu_ps(row + query * output.score_stride + 16 * i, score);
        }
      }
    }
    if constexpr (kKeep == Keep::largest) {
#pragma GCC unroll 16
      for (int32_t i = 0; i < kQuarters; ++i) {
        _mm512_storeu_ps(row + 16 * i, _mm512_min_ps(best[i], _mm512_set1_ps(kLargestScore)));
      }
    }
  }
}

template <Keep kKeep, int32_t kQueries, int32_t kPlanes>
void score_all(const PlaneQueries& queries, int32_t first_query, const PlaneBlocks& blocks, const PlaneOutput& output) {
  constexpr int32_t kTileBlocks = kPlanes > 0 ? 2 : 1;  // pairs of sums take half of the registers
  int32_t block = 0;
  for (; block + kTileBlocks <= blocks.num_blocks; block += kTileBlocks) {
    score_tile<kKeep, kQueries, kTileBlocks, kPlanes>(queries, first_query, blocks.entries + block, output.from(0, block),
                                                      Ahead<kTileBlocks>(blocks, block));
  }
  for (; block < blocks.num_blocks; ++block) {
    score_tile<kKeep, kQueries, 1, kPlanes>(queries, first_query, blocks.entries + block, output.from(0, block),
                                            Ahead<1>(blocks, block));
  }
}

template <Keep kKeep, int32_t kQueries>
void score_blocks(const PlaneQueries& queries, int32_t first_query, const PlaneBlocks& blocks, const PlaneOutput& output) {
  const auto run = queries.num_planes == 8    ? &score_all<kKeep, kQueries, 8>
                   : queries.num_planes == 16 ? &score_all<kKeep, kQueries, 16>
                                              : &score_all<kKeep, kQueries, 0>;
  run(queries, first_query, blocks, output);
}

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

template <int32_t kQueries>
HWY_INLINE void add_planes(const uint8_t* codes,  // [num_planes, 64] u8, from some token on
                           const int8_t* tables,  // [kQueries, plane_table_bytes] i8
                           int64_t query_bytes, int32_t first, int32_t end, ByteVec (&sums)[kQueries]) {
  const Bytes d8;
  const hn::Repartition<uint16_t, Bytes> d16;
  const auto low_mask = hn::Set(d8, 0x0f);
  for (int32_t plane = first; plane < end; ++plane) {
    const ByteVec byte = hn::LoadU(d8, codes + int64_t{plane} * kPlaneTokens);
    const ByteVec low = hn::And(byte, low_mask);
    const ByteVec high = hn::And(hn::BitCast(d8, hn::ShiftRight<4>(hn::BitCast(d16, byte))), low_mask);
    for (int32_t query = 0; query < kQueries; ++query) {
      const auto* table = reinterpret_cast<const uint8_t*>(tables + query * query_bytes) + int64_t{plane} * 2 * kPatterns;
      const ByteVec low_part = hn::TableLookupBytes(hn::LoadDup128(d8, table), low);
      const ByteVec high_part = hn::TableLookupBytes(hn::LoadDup128(d8, table + kPatterns), high);
      sums[query] = hn::Add(sums[query], hn::Add(low_part, high_part));
    }
  }
}

// A few entries at a time: a burst would fill the queue of cache misses. Into the L2 cache only: its queue is longer than that
// of the L1 cache (17 % of the time of a scan from memory on Zen 4).
HWY_INLINE void fetch_ahead(const PlaneBlocks& blocks, int32_t first, int32_t count) {
  constexpr int kIntoL2 = 2;
  for (int32_t i = first; i < std::min(first + count, blocks.num_ahead); ++i) {
    for (int64_t line = 0; line < blocks.ahead_bytes; line += 64) __builtin_prefetch(blocks.ahead[i] + line, 0, kIntoL2);
  }
}

template <Keep kKeep, int32_t kQueries>
void score_blocks(const PlaneQueries& queries, int32_t first_query, const PlaneBlocks& blocks, const PlaneOutput& output) {
  const Bytes d8;
  const Words d16;
  const hn::Repartition<int32_t, Bytes> d32;
  const hn::Repartition<float, Bytes> df;
  const int64_t query_bytes = plane_table_bytes(queries.num_planes);
  const int8_t* tables = queries.tables + first_query * query_bytes;
  const auto num_bytes = static_cast<int32_t>(hn::Lanes(d8));
  for (int32_t block = 0; block < blocks.num_blocks; ++block) {
    fetch_ahead(blocks, block, 1);
    const auto* entry = reinterpret_cast<const uint8_t*>(blocks.entries[block]);
    for (int32_t byte = 0; byte < kPlaneTokens; byte += num_bytes) {
      WordVec low[kQueries], high[kQueries];
      for (int32_t query = 0; query < kQueries; ++query) low[query] = high[query] = hn::Zero(d16);
      for (int32_t plane = 0; plane < queries.num_planes; plane += kChunkPlanes) {
        ByteVec sums[kQueries];
        for (ByteVec& sum : sums) sum = hn::Zero(d8);
        add_planes<kQueries>(entry + byte, tables, query_bytes, plane, std::min(queries.num_planes, plane + kChunkPlanes),
                             sums);
        for (int32_t query = 0; query < kQueries; ++query) {
          const ByteVec zero = hn::Zero(d8);  // below the byte: a shift extends the sign
          const auto words_low = hn::BitCast(d16, hn::InterleaveLower(d8, zero, sums[query]));
          const auto words_high = hn::BitCast(d16, hn::InterleaveUpper(d8, zero, sums[query]));
          low[query] = hn::Add(low[query], hn::ShiftRight<8>(words_low));
          high[query] = hn::Add(high[query], hn::ShiftRight<8>(words_high));
        }
      }
      const int32_t first_token = byte / 4;  // 16 bytes hold 4 tokens of each 16
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
        const auto low32 = hn::BitCast(d32, low[query]), high32 = hn::BitCast(d32, high[query]);
        keep(hn::ShiftRight<16>(hn::ShiftLeft<16>(low32)), 0);
        keep(hn::ShiftRight<16>(low32), 1);
        keep(hn::ShiftRight<16>(hn::ShiftLeft<16>(high32)), 2);
        keep(hn::ShiftRight<16>(high32), 3);
      }
      if constexpr (kKeep == Keep::largest) {
        for (int32_t i = 0; i < kQuarters; ++i) hn::StoreU(hn::Min(best[i], hn::Set(df, kLargestScore)), df, row + 16 * i);
      }
    }
  }
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
