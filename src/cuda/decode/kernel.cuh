// Decode attention of some pairs of leaves of one list. Each warp copies the rows of its steps into a ring of its own and attends to them there;
// the warps of a block meet only at the end. docs/kernels/sparse_decode.md explains the layout and has the numbers.
#pragma once

#include "cuda/decode/attend.cuh"
#include "cuda/decode/deal.cuh"
#include "cuda/decode/finish.cuh"
#include "cuda/decode/rows.cuh"

namespace rarefy::cuda {

template <typename T>
__global__ __launch_bounds__(T::kMaxThreads, T::kMinBlocks) void decode_kernel(const __grid_constant__ DecodeParams p) {
  Shared<T>& shared = *reinterpret_cast<Shared<T>*>(block_memory());
  if (p.parts_at != 0) arrive_early();
  Work work;
  work.place = Place(p);
  allow_next_kernel();
  prefetch_lists(p, work.place);
  Rows<T> rows(p, work.place, shared_address(shared.ring(threadIdx.x / 32)));
  // Counts and lengths are guessed before the wait (docs/adr/0018-guessed-counts.md): which tokens are this warp's is known early then, and ids are
  // under way with what the counts and lengths have become. Where blocks can be dealt, lane l looks at list l.
  const int own_list = work.place.list, lane = static_cast<int>(threadIdx.x) % 32;
  const int lane_list = p.deals_blocks ? min(lane, p.num_lists - 1) : own_list;
  Extent extent = Extent::guess(p, work.place.sequence, lane_list);
  Cut cut = p.full;
  Shares shares = p.full_shares;
  bool as_placed = true;
  int leaf = 0;  // of a warp
  QueryPieces<T> pieces;
#pragma unroll 1
  for (bool waited = false;; waited = true) {
    const int num_warps = block_warps(), warp = static_cast<int>(threadIdx.x) / 32;
    Dealt dealt{own_list, static_cast<int>(blockIdx.x), static_cast<int>(gridDim.x)};
    work.extent = extent;
    if (waited || p.reads_early) {
      if (p.deals_blocks) {
        as_placed = !is_skewed(extent.num_tokens, p.num_lists, dealt.blocks);
        if (!as_placed) {
          dealt = deal_blocks(Cut(extent.num_tokens, p.num_lists), p.num_lists, dealt.blocks,
                              own_list * dealt.blocks + dealt.block);
        }
        work.extent.num_tokens = __shfl_sync(kAllLanes, extent.num_tokens, dealt.list);
        work.extent.dense = __shfl_sync(kAllLanes, extent.dense, dealt.list);
        work.place.list = dealt.list, work.place.block = dealt.block;
        rows.move_to(p, work.place);
      }
      cut = Cut(work.extent.num_tokens, p.num_lists);
      shares = Shares(cut.pairs(), {dealt.blocks, num_warps});
    }
    leaf = shares.first_leaf(cut.pairs(), num_warps, dealt.block, warp);
    const int end_leaf = shares.first_leaf(cut.pairs(), num_warps, dealt.block, warp + 1);
    rows.place(cut.first_step(leaf), cut.first_step(end_leaf), work.extent.num_tokens);
    const int64_t first_entry = rows.first_entry();
    pieces.place(p, work.place);
    if (!waited) {
      if (p.parts_at != 0) wait_for_cluster();  // its blocks run: their shared memory can be written
      wait_for_earlier_kernels();
    }
    const Given given = Given::now(p, work.place.sequence, lane_list);
    rows.load_first(p, work, first_entry);
    pieces.load();
    const Extent now(p, work.place.sequence, lane_list, given, threadIdx.x < 32);
    work.extent.kv_len = now.kv_len;
    const bool as_guessed = now.is_as_long(extent);
    if (__all_sync(kAllLanes, as_guessed)) break;
    extent = now;
    // Other lists are not as guessed, but blocks stay where they are.
    if (p.deals_blocks && as_placed && __shfl_sync(kAllLanes, as_guessed, own_list) != 0 &&
        !is_skewed(extent.num_tokens, p.num_lists, static_cast<int>(gridDim.x))) {
      break;
    }
  }
  if (work.place.block >= shares.blocks) return;
  // Blocks that were dealt anew are not those of a cluster.
  work.in_shared =
      p.parts_at != 0 && as_placed && cut.pairs() <= p.parts_pairs && shares.blocks >> p.parts_column_bits != 0;
  rows.look_up_first(p, work);
  pieces.store(shared.queries.rows);

  const StageLane<T> stage_lane;
  Queries<T> queries;
  queries.address = shared_address(shared.queries.rows) + Queries<T>::lane_offset();
  if (const int slot = static_cast<int>(threadIdx.x); p.num_queries > 1 && slot < T::kSlots) {
    shared.queries.last_visible[slot] = work.extent.kv_len - p.num_queries + work.place.query_of(p, slot % T::kColumns);
  }
  const float scale = p.key_scales != nullptr ? p.scale * p.key_scales[work.place.kv_head(p)] : p.scale;

  Running<T> run, first;  // of the present leaf; of its pair's first leaf
  run.clear();
  int leaf_end = cut.first_step(leaf + 1) - rows.first_step();
  constexpr int kNever = INT32_MAX;
  const auto end_of_leaf = [&] {
    run.add_lanes();
    const int pair = leaf / kPairLeaves;
    const bool is_first = leaf % kPairLeaves == 0;
    ++leaf;
    leaf_end = kNever;
    if (shares.two_warps) return;
    leaf_end = cut.first_step(leaf + 1) - rows.first_step();  // of a leaf that is not this warp's: after the last step
    if constexpr (T::kHoldsPair) {
      if (is_first) {
        first = run;
      } else {
        fold<T>(first, run);
        where_parts_are(work,
                        [&]<bool kInShared>() { store_pair<T, kInShared>(p, work, pair, first, 1.0f / T::kWeightScale); });
      }
    } else {
      where_parts_are(work, [&]<bool kInShared>() {
        if (is_first) return store_pair<T, kInShared>(p, work, pair, run, 1.0f);
        load_pair<T, kInShared>(p, work, pair, first);
        fold<T>(first, run);
        store_pair<T, kInShared>(p, work, pair, first, 1.0f / T::kWeightScale);
      });
    }
    run.clear();
  };
#pragma unroll 1  // one place that starts copies, those of the first steps too
  for (int step = -T::kStages; step < 0 || rows.has(step); ++step) {
    uint32_t stage = 0;
    Logits<T> logits;
    ValueRows<T> values;
    if (step >= 0) {
      stage = rows.wait();
      score<T>(stage + stage_lane.keys, queries, logits.at);
      if constexpr (T::kValuesEarly) values.load(stage + stage_lane.values);
      logits.scale_products(stage, stage_lane, p, scale);
    }
    if (step >= 0) {
      uint32_t weights[2][T::kColumnTiles];
      weigh<T>(run, logits, weights);
      if constexpr (T::kKeysApart) {
        __syncwarp();
        rows.start(p, work, step + T::kStages);
        rows.wait_for_values();
      }
      if constexpr (!T::kValuesEarly) values.load(stage + stage_lane.values);
      add_values<T>(run, values, weights);
      __syncwarp();
    } else if constexpr (T::kKeysApart) {
      rows.start(p, work, step + T::kStages);
    }
    if constexpr (T::kKeysApart) {
      rows.start_values(p, step + T::kStages);
    } else {
      rows.start(p, work, step + T::kStages);
    }
    if (step == -1) __syncthreads();  // queries are there
#pragma unroll 1
    while (step + 1 == leaf_end) end_of_leaf();
  }
  finish<T>(p, work, cut.pairs(), shares, run, shared);
}

}  // namespace rarefy::cuda
