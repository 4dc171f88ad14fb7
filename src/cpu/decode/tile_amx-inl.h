// Tiles of a bf16 cache by the matrix unit of Intel's servers (AMX): one instruction multiplies 16 x 32 by 32 x 16 numbers. There the dot
// product of AVX512_BF16 starts every second cycle only, which is 70 of the 104 cycles that tile_quad-inl.h takes per token and KV head with
// four query rows; this takes 68. Included by tile_bf16-inl.h for groups that tile_quad-inl.h takes, up to 16 rows.
//
//   scores [tokens, rows] = keys [tokens, head_dim] . queries [head_dim, rows]: keys as they lie, queries by pairs of dimensions.
//   sums [rows, head_dim] += weights [rows, tokens] . values [tokens, head_dim]: values by pairs of tokens, which puts sums in the tile order of
//   tile_bf16-inl.h. Roundings are those of tile_bf16-inl.h as well.
HWY_PUSH_ATTRIBUTES(HWY_TARGET_STR ",avx512bf16,amx-tile,amx-bf16")
namespace rarefy::cpu {
namespace N_AVX3 {

constexpr int32_t kAmxRows = 16, kAmxBytes = 64;  // of a matrix: rows at most, bytes of a row

// Matrix registers; macros, because the intrinsics paste them into assembly.
#define RAREFY_SCORES_0 0  // [16 tokens, num_rows] f32
#define RAREFY_SCORES_1 1
#define RAREFY_WEIGHTS 2  // [num_rows, 32 tokens] bf16
#define RAREFY_QUERIES 3  // [16 pairs of dims, num_rows] pairs of bf16
#define RAREFY_KEYS_0 4   // [16 tokens, 32 dims] bf16
#define RAREFY_KEYS_1 5
#define RAREFY_SUMS_0 6  // [num_rows, 16 dims] f32
#define RAREFY_SUMS_1 7
#define RAREFY_VALUES_0 RAREFY_KEYS_0  // [16 pairs of tokens, 16 dims] pairs of bf16
#define RAREFY_VALUES_1 RAREFY_KEYS_1

// Shapes of the matrix registers, as LDTILECFG reads them. A thread keeps them while it has tiles (loading them takes 200 cycles) and releases
// them then: others (oneDNN) set their own.
struct alignas(64) AmxShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t column_bytes[16] = {};
  uint8_t rows[16] = {};

  explicit AmxShapes(int32_t num_rows) {
    for (int32_t i = 0; i < 8; ++i) rows[i] = kAmxRows, column_bytes[i] = kAmxBytes;
    rows[RAREFY_WEIGHTS] = rows[RAREFY_SUMS_0] = rows[RAREFY_SUMS_1] = static_cast<uint8_t>(num_rows);
    for (int32_t i : {RAREFY_SCORES_0, RAREFY_SCORES_1, RAREFY_QUERIES})
      column_bytes[i] = static_cast<uint16_t>(4 * num_rows);
  }
};
static_assert(sizeof(AmxShapes) == 64);

// GCC's tile loads do not say that they read memory.
HWY_INLINE void settle_memory() { asm volatile("" ::: "memory"); }

// Fetches the next tile's rows into the L2 cache in the order of fetch_rows, a few lines at a time between the steps of this one.
// Each line holds one of a core's 16 or so places for misses until memory answers, and what the present tile loads from the L2 cache
// needs one too: a burst of 16 stops it.
class Fetcher {
 public:
  explicit Fetcher(const Tile& tile)
      : rows_(tile.next_keys),
        values_(tile.next_values),
        lines_(num_cache_lines(int64_t{2} * tile.head_dim)),
        is_run_(tile.next_row_stride == int64_t{2} * tile.head_dim),
        scattered_(tile.next_scattered) {}

  HWY_INLINE void next(int32_t count) {
    if (rows_ == nullptr) return;
    if (is_run_) {  // all rows are one long one
      const char* line = static_cast<const char*>(rows_[0]) + kLineBytes * line_;
      for (int32_t i = 0; i < count; ++i) __builtin_prefetch(line + kLineBytes * i, 0, 2);
      line_ += count;
      if (line_ >= lines_ * kTileTokens) next_rows();
      return;
    }
    for (int32_t i = 0; i < count && rows_ != nullptr; ++i) next_line();
  }
  void rest() {
    while (rows_ != nullptr) next(1);
  }

 private:
  void next_rows() {
    rows_ = std::exchange(values_, nullptr);
    row_ = line_ = 0;
  }
  void next_line() {
    __builtin_prefetch(static_cast<const char*>(rows_[row_]) + kLineBytes * line_, 0, 2);
    if (scattered_ && ++row_ % 4 != 0) return;  // four rows in turns
    if (scattered_) row_ -= 4;
    if (++line_ < lines_) return;
    line_ = 0;
    row_ += scattered_ ? 4 : 1;
    if (row_ >= kTileTokens) next_rows();
  }

  const void* const* rows_;    // [kTileTokens] pointers; nullable
  const void* const* values_;  // [kTileTokens] pointers; nullable
  int32_t lines_, row_ = 0, line_ = 0;
  bool is_run_, scattered_;
};

// The four 128-bit blocks of four vectors, transposed.
HWY_INLINE void transpose_blocks(__m512i (&v)[4]) {
  const __m512i low01 = _mm512_shuffle_i32x4(v[0], v[1], 0x44), high01 = _mm512_shuffle_i32x4(v[0], v[1], 0xee);
  const __m512i low23 = _mm512_shuffle_i32x4(v[2], v[3], 0x44), high23 = _mm512_shuffle_i32x4(v[2], v[3], 0xee);
  v[0] = _mm512_shuffle_i32x4(low01, low23, 0x88), v[1] = _mm512_shuffle_i32x4(low01, low23, 0xdd);
  v[2] = _mm512_shuffle_i32x4(high01, high23, 0x88), v[3] = _mm512_shuffle_i32x4(high01, high23, 0xdd);
}

// 32 dimensions of the queries by pairs: pairs [16, num_rows] pairs of bf16. q [num_rows, 2, head_dim] bf16.
HWY_INLINE void pair_queries(const uint16_t* HWY_RESTRICT q, int32_t head_dim, int32_t num_rows,
                             uint32_t* HWY_RESTRICT pairs) {
  for (int32_t row = 0; row < num_rows; row += 4) {
    __m512i v[4];
    for (int32_t r = 0; r < 4; ++r) v[r] = _mm512_loadu_si512(q + int64_t{2} * (row + r) * head_dim);
    const __m512i low01 = _mm512_unpacklo_epi32(v[0], v[1]), high01 = _mm512_unpackhi_epi32(v[0], v[1]);
    const __m512i low23 = _mm512_unpacklo_epi32(v[2], v[3]), high23 = _mm512_unpackhi_epi32(v[2], v[3]);
    v[0] = _mm512_unpacklo_epi64(low01, low23), v[1] = _mm512_unpackhi_epi64(low01, low23);
    v[2] = _mm512_unpacklo_epi64(high01, high23), v[3] = _mm512_unpackhi_epi64(high01, high23);
    transpose_blocks(v);  // v[i]: pairs 4 i to 4 i + 3, four rows each
    for (int32_t i = 0; i < 4; ++i) {
      uint32_t* to = pairs + 4 * i * num_rows + row;
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_castsi512_si128(v[i]));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to + num_rows), _mm512_extracti32x4_epi32(v[i], 1));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to + 2 * num_rows), _mm512_extracti32x4_epi32(v[i], 2));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to + 3 * num_rows), _mm512_extracti32x4_epi32(v[i], 3));
    }
  }
}

// scores [kTileTokens, num_rows] f32.
HWY_INLINE void score_amx(const Tile& tile, Fetcher& fetcher, float* HWY_RESTRICT scores) {
  alignas(64) uint16_t copies[kTileTokens * 256];  // [kTileTokens, head_dim] bf16
  const auto* keys = static_cast<const char*>(tile.keys[0]);
  int64_t stride = tile.row_stride;
  if (stride == 0) {
    stride = int64_t{2} * tile.head_dim;
    for (int32_t t = 0; t < kTileTokens; ++t) {
      const auto* key = static_cast<const uint16_t*>(tile.keys[t]);
      for (int32_t d = 0; d < tile.head_dim; d += 32) {
        _mm512_store_si512(copies + t * tile.head_dim + d, _mm512_loadu_si512(key + d));
      }
    }
    keys = reinterpret_cast<const char*>(copies);
  }
  const int32_t query_stride = 4 * tile.num_rows;
  settle_memory();
  _tile_zero(RAREFY_SCORES_0);
  _tile_zero(RAREFY_SCORES_1);
  for (int32_t d = 0; d < tile.head_dim; d += 32) {
    const uint32_t* queries = tile.paired_q + d * tile.num_rows;  // [2, 16, num_rows] pairs of bf16: high, low
    fetcher.next(4);
    _tile_loadd(RAREFY_KEYS_0, keys + 2 * d, stride);
    fetcher.next(4);
    _tile_loadd(RAREFY_KEYS_1, keys + kAmxRows * stride + 2 * d, stride);
    fetcher.next(4);
    _tile_loadd(RAREFY_QUERIES, queries, query_stride);
    _tile_dpbf16ps(RAREFY_SCORES_0, RAREFY_KEYS_0, RAREFY_QUERIES);
    _tile_dpbf16ps(RAREFY_SCORES_1, RAREFY_KEYS_1, RAREFY_QUERIES);
    if (!tile.q_is_bf16) {
      _tile_loadd(RAREFY_QUERIES, queries + 16 * tile.num_rows, query_stride);
      _tile_dpbf16ps(RAREFY_SCORES_0, RAREFY_KEYS_0, RAREFY_QUERIES);
      _tile_dpbf16ps(RAREFY_SCORES_1, RAREFY_KEYS_1, RAREFY_QUERIES);
    }
    fetcher.next(4);
  }
  _tile_stored(RAREFY_SCORES_0, scores, query_stride);
  _tile_stored(RAREFY_SCORES_1, scores + kAmxRows * tile.num_rows, query_stride);
  settle_memory();
}

// Values by pairs of tokens: pairs [head_dim / 16, 16, 16] pairs of bf16, the two vectors of 32 dimensions one after the other.
HWY_INLINE void pair_values(const Tile& tile, Fetcher& fetcher, uint32_t* HWY_RESTRICT pairs) {
  for (int32_t t = 0; t < kTileTokens; t += 2) {
    for (int32_t d = 0; d < tile.head_dim; d += 32) {
      const TokenPair pair = load_pair(tile.values[t], tile.values[t + 1], d);
      uint32_t* to = pairs + (d / 16 * kAmxRows + t / 2) * 16;
      _mm512_store_si512(to, pair.low);
      _mm512_store_si512(to + kAmxRows * 16, pair.high);
      fetcher.next(1);
    }
  }
}

// sums[r] = sums[r] * rescale[4 r] + sum_t weight[r][t] values[t].
HWY_INLINE void value_amx(const Tile& tile, Fetcher& fetcher,
                          const uint32_t* values,   // values [head_dim / 16, 16, 16] pairs of bf16
                          const uint32_t* weights,  // weights [num_rows, 16] pairs of bf16
                          const float* rescale,     // rescale [num_rows, 4] f32
                          float* sums) {            // sums [num_rows, head_dim] f32
  for (int32_t r = 0; r < tile.num_rows; ++r) {
    if (rescale[4 * r] == 1.0f) continue;
    const __m512 factor = _mm512_set1_ps(rescale[4 * r]);
    float* row = sums + r * tile.head_dim;
    for (int32_t d = 0; d < tile.head_dim; d += 16)
      _mm512_store_ps(row + d, _mm512_mul_ps(factor, _mm512_load_ps(row + d)));
  }
  settle_memory();
  const int32_t stride = 4 * tile.head_dim;
  _tile_loadd(RAREFY_WEIGHTS, weights, kAmxBytes);
  for (int32_t d = 0; d < tile.head_dim; d += 32) {
    _tile_loadd(RAREFY_SUMS_0, sums + d, stride);
    fetcher.next(4);
    _tile_loadd(RAREFY_VALUES_0, values + d * kAmxRows, kAmxBytes);
    fetcher.next(4);
    _tile_dpbf16ps(RAREFY_SUMS_0, RAREFY_WEIGHTS, RAREFY_VALUES_0);
    _tile_loadd(RAREFY_SUMS_1, sums + d + 16, stride);
    fetcher.next(4);
    _tile_loadd(RAREFY_VALUES_1, values + (d + 16) * kAmxRows, kAmxBytes);
    _tile_dpbf16ps(RAREFY_SUMS_1, RAREFY_WEIGHTS, RAREFY_VALUES_1);
    fetcher.next(4);
    _tile_stored(RAREFY_SUMS_0, sums + d, stride);
    _tile_stored(RAREFY_SUMS_1, sums + d + 16, stride);
  }
  settle_memory();
}

// Weights of four rows, by rows: pairs [kTileTokens / 4, 4, 2] bits, rows [4, 16] pairs of bf16.
HWY_INLINE void store_weight_rows(const uint32_t* HWY_RESTRICT pairs, int32_t num_tokens, uint32_t* HWY_RESTRICT rows) {
  for (int32_t i = 0; i < kQuadBlocks; ++i) {
    for (int32_t r = 0; r < 4; ++r) {
      const bool used = 4 * i < num_tokens;
      rows[r * 16 + 2 * i] = used ? pairs[i * 8 + 2 * r] : 0;
      rows[r * 16 + 2 * i + 1] = used ? pairs[i * 8 + 2 * r + 1] : 0;
    }
  }
}

void add_amx(const Tile& tile, const Partial& partial) {
  alignas(64) float by_token[kTileTokens * kAmxRows];  // [kTileTokens, num_rows] f32
  alignas(64) uint32_t values[kTileTokens / 2 * 256];  // [head_dim / 16, 16, 16] pairs of bf16
  alignas(64) uint32_t weights[kAmxRows * 16];         // [num_rows, 16] pairs of bf16
  alignas(64) uint32_t spread_weights[kAmxRows * 16];  // [num_rows, 16] pairs of bf16
  alignas(64) float rescale[4 * kAmxRows];             // [num_rows, 4] f32
  QuadTokens tokens;
  load_tokens_of(tile, partial.spread != nullptr, tokens);
  const bool with_spread = tile.with_variance && partial.spread != nullptr;
  Fetcher fetcher(tile);
  score_amx(tile, fetcher, by_token);
  pair_values(tile, fetcher, values);
  for (int32_t row = 0; row < tile.num_rows; row += 4) {
    alignas(64) float scores[4 * kTileTokens];    // [kTileTokens / 4, 4, 4] f32: token block, row, token
    alignas(64) uint32_t pairs[2 * kTileTokens];  // [kTileTokens / 4, 4, 2] bits
    const __m512i transposed = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    for (int32_t t = 0; t < tile.num_tokens; t += 4) {
      const float* from = by_token + t * tile.num_rows + row;
      __m512 four = _mm512_castps128_ps512(_mm_loadu_ps(from));
      four = _mm512_insertf32x4(four, _mm_loadu_ps(from + tile.num_rows), 1);
      four = _mm512_insertf32x4(four, _mm_loadu_ps(from + 2 * tile.num_rows), 2);
      four = _mm512_insertf32x4(four, _mm_loadu_ps(from + 3 * tile.num_rows), 3);
      _mm512_store_ps(scores + 4 * t, _mm512_permutexvar_ps(transposed, four));
      fetcher.next(4);
    }
    float* row_stats = partial.stats + row * kRowStats;  // [4, 4] f32
    __m512 stats = _mm512_loadu_ps(row_stats);
    _mm512_store_ps(rescale + 4 * row, soften_quad(tile, tokens, scores, pairs, stats));
    fetcher.next(16);
    store_weight_rows(pairs, tile.num_tokens, weights + row * 16);
    fetcher.next(16);
    if (tile.with_variance) {
      vary_quad(tile, tokens, scores, pairs, stats);
      if (with_spread) store_weight_rows(pairs, tile.num_tokens, spread_weights + row * 16);
    }
    _mm512_storeu_ps(row_stats, stats);
  }
  value_amx(tile, fetcher, values, weights, rescale, partial.sum);
  if (with_spread) {
    for (int32_t i = 0; i < 4 * tile.num_rows; ++i) rescale[i] *= rescale[i];
    value_amx(tile, fetcher, values, spread_weights, rescale, partial.spread);
  }
  fetcher.rest();
}

// Before and after a thread's tiles.
void enter_amx(int32_t num_rows) {
  const AmxShapes shapes(std::min(num_rows, kAmxRows));
  settle_memory();
  _tile_loadconfig(&shapes);
}
void leave_amx() { _tile_release(); }

bool is_amx(int32_t num_rows) { return num_rows % 4 == 0 && num_rows <= kAmxRows; }

// paired [head_dim / 32, 2, 16, num_rows] pairs of bf16: high and low parts.
void pair_q_amx(int32_t num_rows, int32_t head_dim, const float* prepared, uint32_t* paired) {
  if (!is_amx(num_rows)) return;
  const auto* q = reinterpret_cast<const uint16_t*>(prepared);  // [num_rows, 2, head_dim] bf16
  for (int32_t d = 0; d < head_dim; d += 32) {
    pair_queries(q + d, head_dim, num_rows, paired + d * num_rows);
    pair_queries(q + head_dim + d, head_dim, num_rows, paired + (d + 16) * num_rows);
  }
}

void add_tile_amx(const Tile& tile, const Partial& partial) {
  tile.is_quads() && is_amx(tile.num_rows) ? add_amx(tile, partial) : add_tile_bf16(tile, partial);
}

#undef RAREFY_SCORES_0
#undef RAREFY_SCORES_1
#undef RAREFY_WEIGHTS
#undef RAREFY_QUERIES
#undef RAREFY_KEYS_0
#undef RAREFY_KEYS_1
#undef RAREFY_SUMS_0
#undef RAREFY_SUMS_1
#undef RAREFY_VALUES_0
#undef RAREFY_VALUES_1

}  // namespace N_AVX3
}  // namespace rarefy::cpu
HWY_POP_ATTRIBUTES
