// Sums of signs by AVX-512 with VBMI: one instruction looks up six bits for 64 tokens. Included by sign_planes.cc, inside its namespace and
// attributes; the other instruction sets look up half a byte at a time, there.

constexpr int32_t kTilePlanes = 3;  // share one lookup of what is left over
constexpr int32_t kTableBytes = 64;

// Tables in the order of use: six bits of up to three planes, then the upper two bits of these.
float make_plane_table_simd(const float* q,  // [head_dim] f32
                            int32_t head_dim,
                            int8_t* table) {  // [plane_table_bytes] i8; 64-byte aligned
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
template <int32_t kQueries, int32_t kBlocks>
HWY_INLINE void look_up(const __m512i (&index)[kBlocks],
                        const int8_t* table,  // [kTableBytes] i8; of the first query
                        int64_t query_bytes, __m512i (&sums)[kQueries * kBlocks], Ahead<kBlocks>& ahead) {
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
HWY_INLINE const int8_t* add_tile_planes(
    const std::byte* const* entries,  // [kBlocks] pointers to [plane_block_bytes] bytes
    int32_t first,
    const int8_t* table,  // [kPlanes + 1, kTableBytes] i8; of the first query
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
HWY_INLINE const int8_t* add_chunk(const std::byte* const* entries,  // [kBlocks] pointers to [plane_block_bytes] bytes
                                   int32_t first, int32_t end,
                                   const int8_t* table,  // [tables of the chunk, kTableBytes] i8; of the first query
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
HWY_INLINE void score_tile(const PlaneQueries& queries, int32_t first_query,
                           const std::byte* const* entries,  // [kBlocks] pointers to [plane_block_bytes] bytes
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
