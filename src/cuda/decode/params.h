// What the decode kernel is launched with, and how a list is cut: one rule for host and device.
//
// A list of n tokens (or all kv_len tokens) is cut into steps of 16 tokens, steps into leaves, and every two leaves are a pair. A warp
// starts each leaf afresh; a pair is the fold of its leaves, the list the merge of its pairs in ascending order. All of
// that depends on n and the lists of a sequence, never on the batch or the device, so a request gives the same bits in any company. What
// does depend on the number of all lists is how many pairs a block has, so that blocks are as many as the device holds at a time.
#pragma once

#include <bit>
#include <cstdint>

#ifdef __CUDACC__
#define RAREFY_HOST_DEVICE __host__ __device__
#else
#define RAREFY_HOST_DEVICE
#endif

namespace rarefy::cuda {

inline constexpr int32_t kStepTokens = 16;  // rows of one matrix instruction
inline constexpr int32_t kMinBlockWarps = 2, kBlockWarps = 4, kMaxBlockWarps = 8, kPairLeaves = 2;
inline constexpr int32_t kFewPairsLog2 = 4, kMaxPairsLog2 = 6, kMaxPairs = 1 << kMaxPairsLog2;
static_assert(kPairLeaves == 2);
inline constexpr int32_t kManyLists = 16;       // of a sequence
inline constexpr int32_t kMaxTokens = 1 << 27;  // of a list: leaves times steps fit 32 bits
// Blocks of four warps that a multiprocessor holds at a time. Two keep enough rows of 256 bytes under way; registers for a third would
// spill, and a spilled register waits behind the rows. Rows of 128 bytes are half the work of a step for the same instructions, so there are
// twice the warps: dense decode with head_dim 64 took 7 % less time.
constexpr int32_t blocks_per_multiprocessor(int32_t head_dim, int32_t slots) {
  return head_dim == 64 && slots == 8 ? 4 : 2;
}

RAREFY_HOST_DEVICE constexpr int32_t ceil_div(int32_t a, int32_t b) { return (a + b - 1) / b; }
RAREFY_HOST_DEVICE constexpr int32_t floor_log2(uint32_t a) {  // a > 0
#ifdef __CUDA_ARCH__
  return 31 - __clz(static_cast<int>(a));
#else
  return static_cast<int32_t>(std::bit_width(a)) - 1;
#endif
}

// How a list of n tokens is cut, of a sequence with num_lists of them.
struct Cut {
  int32_t leaves_log2 = 1, steps = 1;

  Cut() = default;
  // Powers of two, so that pairs can be dealt out evenly. A multiprocessor is to have one block or two: 16 pairs of 8 lists are 128 blocks
  // for 132 multiprocessors, 32 are 256. More pairs of a short list spend more on merging than they save on rows (8 lists of a sequence,
  // batch 1, 4 and 16: 2,621 tokens 8.0, 17.3 and 47.6 us with 32 and 8.4, 16.7 and 47.0 with 16; 1,311 tokens 6.8, 12.3 and 27.9, and 6.4, 11.5 and 26.9).
  // Leaves of one step are the quickest for a sequence alone, but a leaf costs as much as a step to begin and end: where a sequence has many
  // lists, there are warps enough with leaves of two.
  RAREFY_HOST_DEVICE constexpr Cut(int32_t n, int32_t num_lists) {
    steps = n > kStepTokens ? static_cast<int32_t>(static_cast<uint32_t>(n - 1) / kStepTokens) + 1 : 1;
    const bool few_lists = num_lists < kManyLists;
    // As many leaves as there are, but no pair is empty: leaves are at most one more than steps. The last leaf may be.
    const int32_t leaf_steps_log2 = few_lists ? 0 : 1;  // about, at least
    const int32_t most = n <= (few_lists ? 2048 : 4096) ? kFewPairsLog2 : n <= 32768 ? kFewPairsLog2 + 1 : kMaxPairsLog2;
    const int32_t filled = floor_log2((static_cast<uint32_t>(steps + (1 << leaf_steps_log2) - 1) >> leaf_steps_log2) + 1);
    leaves_log2 = filled < 1 ? 1 : filled > most + 1 ? most + 1 : filled;
  }
  RAREFY_HOST_DEVICE constexpr int32_t pairs() const { return 1 << (leaves_log2 - 1); }
  // Where a leaf begins; that of 2 * pairs is the end. Leaves differ by a step at most, and so do any of their neighbours taken together: with
  // the longer ones first, the first block of two had 96 steps and the second 68 (2,621 tokens).
  RAREFY_HOST_DEVICE constexpr int32_t first_step(int32_t leaf) const {
    return -(-leaf * steps >> leaves_log2);  // rounded up
  }
};

// Blocks for each list, and warps of a block.
struct Blocks {
  int32_t per_list = 1, warps = kBlockWarps;
};

// For lists of which the longest has so many pairs. What `room` blocks of four warps start together, they end together: a list in half the
// blocks takes twice as long, a second wave of blocks too, and starting one costs about a twentieth of a whole list. Of more lists than
// blocks have room, twice as many fit with half a block each.
constexpr Blocks choose_blocks(int32_t pairs, int64_t num_lists, int32_t room) {
  int64_t best = 1, best_cost = 0;
  for (int64_t blocks = 1; blocks <= pairs; blocks *= 2) {
    const int64_t cost = (num_lists * blocks + room - 1) / room * (20 + blocks);  // over blocks
    if (best_cost == 0 || cost * best < best_cost * blocks) best = blocks, best_cost = cost;
  }
  const int64_t half_cost = (num_lists + 2 * room - 1) / (2 * room) * (2 * 20 + 1);
  if (best == 1 && num_lists > room && half_cost < best_cost) return {1, kMinBlockWarps};
  return {static_cast<int32_t>(best), kBlockWarps};
}

// About a / b, for numbers that the hardware's quick division is exact enough for.
RAREFY_HOST_DEVICE inline float quotient(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fdividef(a, b);
#else
  return a / b;
#endif
}
// Whole times that b (> 0) fits into a (>= 0), below 2^20.
RAREFY_HOST_DEVICE inline int32_t quick_div(float a, float b) { return static_cast<int32_t>(quotient(a + 0.5f, b)); }
RAREFY_HOST_DEVICE inline int32_t quick_div(int32_t a, int32_t b) {
  return quick_div(static_cast<float>(a), static_cast<float>(b));
}

// Who works on a list: two warps on a pair, as many pairs in a block as it has warps for; or each warp on some pairs.
struct Shares {
  static constexpr int32_t kUnitLog2 = 24;
  int32_t blocks = 1;
  bool two_warps = true;                      // on a pair
  uint32_t one_warp = 1u << (kUnitLog2 - 1);  // else: one over the number of warps, in 2^-24, rounded up

  Shares() = default;
  RAREFY_HOST_DEVICE Shares(int32_t pairs, Blocks most) {
    const int32_t pairs_log2 = pairs > 2 * most.per_list ? 2 : pairs > most.per_list ? 1 : 0;
    two_warps = kPairLeaves << pairs_log2 <= most.warps && pairs <= most.per_list << pairs_log2;
    blocks = two_warps ? pairs >> pairs_log2 : most.per_list;
    one_warp = static_cast<uint32_t>(quotient(1 << kUnitLog2, static_cast<float>(most.warps * blocks))) + 2;
  }
  // Of a block, with two warps on a pair.
  RAREFY_HOST_DEVICE constexpr int32_t block_pairs(int32_t pairs) const {
    return pairs >> floor_log2(static_cast<uint32_t>(blocks));
  }
  // First leaf of a warp of a block with `warps` warps; that of the next warp is the end. Some warps may have none: they help to merge.
  RAREFY_HOST_DEVICE constexpr int32_t first_leaf(int32_t pairs, int32_t warps, int32_t block, int32_t warp) const {
    if (!two_warps) {
      const auto before = static_cast<uint32_t>(pairs * (block * warps + warp));
      return kPairLeaves * static_cast<int32_t>(before * one_warp >> kUnitLog2);
    }
    const int32_t most = kPairLeaves * block_pairs(pairs);
    return block * most + (warp < most ? warp : most);
  }
};
// Twice the rounding of 1 / warps must not matter: that share of all pairs times warps, of at most kMaxPairs / 2 blocks of
// four warps or half as many of eight.
static_assert(int64_t{4} * kMaxPairs * (kMaxPairs / 2 * kBlockWarps) * (kMaxPairs / 2 * kBlockWarps) <
              int64_t{1} << Shares::kUnitLog2);

// The fewest blocks of so many warps for shares of at most `steps` steps (> 0), or of a leaf.
RAREFY_HOST_DEVICE inline int32_t blocks_within(const Cut& cut, int32_t steps, int32_t block_warps) {
  // So many pairs have at most so many steps, as pairs are even.
  const int32_t warp_pairs =
      quick_div(static_cast<float>(steps) * static_cast<float>(cut.pairs()), static_cast<float>(cut.steps));
  if (warp_pairs == 0) return ceil_div(cut.pairs() * kPairLeaves, block_warps);
  const int32_t warps = quick_div(cut.pairs() - 1, warp_pairs) + 1;
  return quick_div(warps - 1, block_warps) + 1;
}

// Whether the next kernel's blocks fit beside these, so that they start early: of four warps, one to a multiprocessor; of two, twice as many as
// `room` of four.
constexpr bool next_fits(Blocks blocks, int64_t num_lists, int32_t room, int32_t multiprocessors) {
  if (blocks.warps > kBlockWarps) return false;
  return num_lists * blocks.per_list <= (blocks.warps == kBlockWarps ? multiprocessors : room);
}

// Blocks of a list that are started as a cluster merge its parts in their own shared memory, not in device memory: 3 to 6 % less time for short
// lists at batch 1. All of a cluster are started at once, for which the next kernel's must fit beside this one's: four and eight to a list on a
// full device took 40 % longer, two to a list 3 to 4 % less (batch 16, 5x to 50x).
inline constexpr int32_t kMaxCluster = 16;  // from 9 on where the device allows it
constexpr bool forms_cluster(Blocks blocks, int64_t num_lists, int32_t room, int32_t multiprocessors) {
  if (blocks.per_list < 2 || blocks.per_list > kMaxCluster) return false;
  return blocks.per_list == 2 || next_fits(blocks, num_lists, room, multiprocessors);
}

// Blocks with one pair leave two of their warps idle. Where they form no cluster, but would without these warps, or half as many with two pairs
// each, they are made so: up to 8 to a list the first, which took 6 % less time (263 tokens at batch 4); 16 the second, as clusters of 16 such
// blocks crowd on few multiprocessors (1,311 tokens with head_dim 256 at batch 4: 13.5 us, 11.2 so). Where they form one anyway, blocks of two warps are
// slower too: 3 to 8 % (batch 1, 8 and 16 to a list).
constexpr Blocks without_idle_warps(Blocks blocks, int64_t num_lists, int32_t room, int32_t multiprocessors) {
  if (forms_cluster(blocks, num_lists, room, multiprocessors) || blocks.per_list > kMaxCluster) return blocks;
  const Blocks other =
      blocks.per_list <= 8 ? Blocks{blocks.per_list, kPairLeaves} : Blocks{blocks.per_list / 2, blocks.warps};
  return forms_cluster(other, num_lists, room, multiprocessors) ? other : blocks;
}

// Four blocks of a list that form no cluster are two of twice the warps, each alone on a multiprocessor, which do (batch 8, 500x to 5x: 7.25 instead of
// 7.49 us, 15.2 and 15.7, 26.1 and 26.8, 205.6 and 207.6). Not where a multiprocessor has more than two blocks: registers would spill; and where
// there are no clusters, nothing is won, and sm_89 has no room for a block's 128 KB of rows.
constexpr Blocks joined(Blocks blocks, int64_t num_lists, int32_t room, int32_t multiprocessors) {
  const bool joins = blocks.per_list == 4 && blocks.warps == kBlockWarps && room == 2 * multiprocessors &&
                     !forms_cluster(blocks, num_lists, room, multiprocessors);
  return joins ? Blocks{2, kMaxBlockWarps} : blocks;
}

// First bytes of a workspace: what check() reports. Zero when all is well.
inline constexpr int32_t kErrorToken = 1;   // token id outside the sequence
inline constexpr int32_t kErrorCount = 2;   // count neither -1 nor 0 to max_selected
inline constexpr int32_t kErrorPage = 3;    // physical page outside the pool
inline constexpr int32_t kErrorLength = 4;  // kv_len beyond the page table or the plan's max_kv_len
struct ErrorRecord {
  int32_t kind;                      // 0 = none
  int32_t sequence, list, position;  // position in the list, or the logical page
  int32_t value, limit;
};

struct DecodeParams {
  const void* q;                     // [batch, num_queries, num_q_heads, head_dim] f16 or bf16
  const char* keys;                  // [num_pages, page_size, num_kv_heads, head_dim] kv_dtype; rows by the strides below
  const char* values;                // the same
  uint32_t page_units, token_units;  // strides in units of 16 bytes; a row's offset fits 32 bits
  int64_t head_bytes;
  const int32_t* page_table;  // [batch, max_pages] i32
  const int32_t* kv_lens;     // [batch] i32
  int32_t num_pages, max_pages, page_shift;
  int32_t max_kv_len;         // longest that page table and workspace have room for
  const float* key_scales;    // [num_kv_heads] f32; nullable
  const float* value_scales;  // [num_kv_heads] f32; nullable
  const int32_t* token_ids;   // [batch, num_lists, max_selected] i32
  const int32_t* counts;      // [batch, num_lists] i32; null = every list dense
  const float* log_weight;    // [batch, num_lists, max_selected] f32; nullable
  int32_t max_selected;
  const float* sink_logits;  // [num_q_heads] f32; nullable
  float scale, soft_cap, inverse_soft_cap;
  int32_t num_q_heads, num_kv_heads, num_queries;
  int32_t num_lists, heads_per_list, lists_per_kv_head;
  int32_t columns_per_block, num_column_blocks;  // a column is a (query, query head) pair of a list
  void* out;                                     // [batch, num_queries, num_q_heads, head_dim] out_dtype
  int32_t out_dtype;                             // a DType
  float* lse;                                    // [batch, num_queries, num_q_heads] f32; nullable
  float* rel_std;                                // [batch, num_queries, num_q_heads] f32; nullable
  float* out_rel_std;                            // [batch, num_queries, num_q_heads] f32; nullable
  ErrorRecord* error;                            // not a tensor
  int32_t* counters;                             // [batch, num_lists, num_column_blocks] i32; zero between runs
  float* part_stats;     // [batch, num_lists, num_column_blocks, slots, pair_capacity, 4] f32; maximum, sum, norms, unused
  float* part_sums;      // [batch, num_lists, num_column_blocks, slots, pair_capacity, head_dim] f32
  int32_t block_tokens;  // about so many tokens of a full list has a block; two more numbers for prefetching:
  int32_t prefetch_table_lines;  // lines of the page table for each block of a sequence
  int32_t prefetch_sequences;    // about as many sequences are worked on at a time
  int32_t pair_capacity;         // pairs that the workspace has room for, per list
  int32_t full_tokens;           // of a list that is as long as can be,
  Cut full;                      // its cut,
  Shares full_shares;            // and its shares
  // Whether counts and lengths are guessed by reading them before the wait, which late blocks would wait for; else lists are guessed to be full.
  bool reads_early;
  // Whether a sequence's blocks are dealt to its lists by their lengths where these are not what was planned for (deal.cuh).
  bool deals_blocks;
  // Of a list's only block, or of its blocks as a cluster: where in a block's shared memory parts lie, for how many pairs; 0 = in the workspace. A
  // column's parts lie in, and are merged by, the block whose number is the column's last bits.
  int32_t parts_at, parts_pairs, parts_column_bits;
};

}  // namespace rarefy::cuda
