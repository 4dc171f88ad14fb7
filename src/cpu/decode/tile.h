// The vector part of decode attention: one tile of tokens against the query rows that share it, and the merge of partial
// results. tile.cc compiles it for every Highway target; decode.cc splits the work and calls it through this table.
//
// Queries, sums and spreads are kept in the order that suits the loads of the cache's type ("tile order", cpu/simd/loads-inl.h
// and tile_bf16-inl.h) and put back by finish_row. Logits inside a tile are in units of ln 2, so that exp is exp2.
#pragma once

#include <cstdint>
#include <span>

#include "rarefy/core/dtype.h"

namespace rarefy::cpu {

// 32 tokens: keys and values of this tile and the next, 32 KiB at head_dim 128 in 16 bits, stay within the L1 and L2 caches.
inline constexpr int32_t kTileTokens = 32;
inline constexpr int32_t kMaxTileRows = 128;  // 16 query heads of a group x 8 queries
inline constexpr int32_t kRowStats = 4;

// Running sums of some query rows over the tokens seen so far, relative to exp(maximum).
struct Partial {
  float* sum = nullptr;     // [num_rows, head_dim] f32; sum_i p_i v_i; tile order
  float* spread = nullptr;  // [num_rows, head_dim] f32; sum_i w_i v_i, w = p^2 (1 - pi); nullable: no out_rel_std
  float* stats = nullptr;   // [num_rows, 4] f32; maximum, sum p, sum w, sum w |v|^2
};

inline constexpr int32_t kPairedWords = 16 * 256;  // high and low parts of 16 rows of queries of 256 dims, two in a word
inline constexpr int64_t kLineBytes = 64;          // of a cache
inline int32_t num_cache_lines(int64_t bytes) { return static_cast<int32_t>((bytes + kLineBytes - 1) / kLineBytes); }

// Fetches all rows of a tile into the L2 cache at once. (Not the L1 cache: it has room for one tile only, and drops prefetches beyond its
// 20 or so outstanding misses.) Rows that follow one another are taken from end to end, as the hardware's prefetchers like it; scattered
// rows four in turns, because neighbouring lines look like a stream to the hardware, which then fetches what lies behind the row. Always
// inline: gcc drops calls of functions that do nothing but prefetch.
[[gnu::always_inline]] inline void fetch_rows(const void* const* rows,  // [kTileTokens] pointers to rows
                                              bool scattered, int32_t lines) {
  const auto* row = reinterpret_cast<const char* const*>(rows);
  for (const auto* end = row + kTileTokens; row < end; row += 4) {
    if (scattered) {
      for (int32_t line = 0; line < lines; ++line) {
        for (int32_t i = 0; i < 4; ++i) __builtin_prefetch(row[i] + kLineBytes * line, 0, 2);
      }
    } else {
      for (int32_t i = 0; i < 4; ++i) {
        for (int32_t line = 0; line < lines; ++line) __builtin_prefetch(row[i] + kLineBytes * line, 0, 2);
      }
    }
  }
}

// Loads a byte of every line, so that all are in the L1 cache after as long as so many misses take: the fewer instructions, the more of them are
// under way at a time. kAtOnce divides the lines of a row.
template <int32_t kAtOnce>
void load_lines(const void* const* rows, int32_t lines) {  // rows [kTileTokens] pointers
  for (int32_t line = 0; line < lines; line += kAtOnce) {
    for (int32_t i = 0; i < kTileTokens; ++i) {
      const auto* at = static_cast<const volatile char*>(rows[i]) + kLineBytes * line;
#pragma GCC unroll 4
      for (int32_t j = 0; j < kAtOnce; ++j) static_cast<void>(at[kLineBytes * j]);
    }
  }
}
inline void load_rows(const void* const* rows, int32_t lines) {  // rows [kTileTokens] pointers
  if (lines % 4 == 0) return load_lines<4>(rows, lines);
  load_lines<1>(rows, lines);
}

struct Tile {
  DType kv_dtype = DType::bf16;
  int32_t num_rows = 0, head_dim = 0, num_tokens = 0;  // num_tokens: 1 .. kTileTokens
  float scale = 1.0f;                                  // of q . k
  bool q_is_bf16 = false;                              // every q is exact in bf16
  const float* q = nullptr;                            // [num_rows, head_dim] f32; as prepare_q wrote it
  const uint32_t* paired_q = nullptr;                  // [kPairedWords] u32; as pair_q wrote it, if there is one
  const void* const* keys = nullptr;                   // [kTileTokens] pointers to rows; past num_tokens the last again
  const void* const* values = nullptr;                 // [kTileTokens] pointers to rows; likewise
  const void* const* next_keys = nullptr;              // [kTileTokens] pointers; rows to prefetch, nullable
  const void* const* next_values = nullptr;            // [kTileTokens] pointers; with next_keys
  // Bytes from each of kTileTokens rows to the next, of this tile and the next; 0 = not the same.
  int64_t row_stride = 0, next_row_stride = 0;
  bool scattered = false, next_scattered = false;  // rows, of this tile and the next, lie here and there
  const float* log_weight = nullptr;               // [num_tokens] f32; nullable
  const int32_t* token_ids = nullptr;              // [num_tokens] i32; with last_visible
  const int32_t* last_visible = nullptr;           // [num_rows] i32; largest token a row may see; nullable = all
  float soft_cap = 0.0f;
  bool with_variance = false;  // keep the sums of w; of w v as well where Partial::spread is given

  // Whether kernels that take four query rows at once can take the tile.
  bool is_quads() const { return num_rows % 4 == 0 && soft_cap == 0.0f && last_visible == nullptr; }
};

// The partial results of one row, split by split.
struct FinishRow {
  DType kv_dtype = DType::bf16;
  int32_t head_dim = 0, num_splits = 0;
  const float* sum = nullptr;     // [head_dim] f32; of the first split; the next is split_stride floats on
  const float* spread = nullptr;  // [head_dim] f32; nullable
  const float* stats = nullptr;   // [4] f32
  int64_t split_stride = 0;
  float sink = 0.0f;  // logit; -inf without
  DType out_dtype = DType::f32;
  void* out = nullptr;           // [head_dim] out_dtype
  float* lse = nullptr;          // [1] f32; nullable
  float* rel_std = nullptr;      // [1] f32; nullable
  float* out_rel_std = nullptr;  // [1] f32; nullable
};

struct TileFunctions {
  const char* name;    // "cpu_avx3"
  bool bf16_products;  // multiplies in bf16: bf16 caches with head_dim a multiple of 32 only
  // Whether scattered rows are loaded right before their tile, not prefetched during the one before: where misses take longer than a tile's
  // arithmetic, prefetches that find no place for another miss hold the arithmetic up (Zen 3, 655 of 32,768 tokens: 270 instead of 300 us).
  bool loads_scattered;
  bool (*is_supported)();  // whether this machine has the instructions
  void (*prepare_q)(DType kv_dtype,
                    const float* q,  // [head_dim] f32
                    int32_t head_dim,
                    float* prepared);  // [head_dim] f32; opaque
  void (*start)(int32_t num_rows, int32_t head_dim, const Partial& partial);
  void (*add_tile)(const Tile& tile, const Partial& partial);
  void (*finish_row)(const FinishRow& row);
  // Where an implementation needs them: before a thread's first tile, after its last, and a list's queries once more in another order.
  void (*enter)(int32_t num_rows) = nullptr;
  void (*leave)() = nullptr;
  void (*pair_q)(int32_t num_rows, int32_t head_dim,
                 const float* prepared,        // [num_rows, head_dim] f32; as prepare_q wrote it
                 uint32_t* paired) = nullptr;  // [kPairedWords] u32; opaque
};

// Compiled targets, best first; what this machine supports is another matter (hwy::SupportedTargets).
std::span<const TileFunctions> tile_functions();

}  // namespace rarefy::cpu
