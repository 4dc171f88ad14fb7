// Decode attention of some pairs of leaves of one list. Each warp copies the rows of its steps into a ring of its own and attends to them there;
// the warps of a block meet only at the end. docs/kernels/sparse_decode.md explains the layout and has the numbers.
#pragma once

#include "cuda/decode/attend.cuh"
#include "cuda/decode/finish.cuh"
#include "cuda/decode/rows.cuh"

namespace rarefy::cuda {

template <typename T>
__global__ __launch_bounds__(T::kMaxThreads, T::kBlocks) void decode_kernel(const __grid_constant__ DecodeParams p) {
  extern __shared__ __align__(128) char memory[];
  Shared<T>& shared = *reinterpret_cast<Shared<T>*>(memory);
  Work work;
  work.place = Place(p);
  allow_next_kernel();
  prefetch_lists(p, work.place);
  work.kv_head = p.lists_per_kv_head == 1 ? work.place.list : work.place.list / p.lists_per_kv_head;
  Rows<T> rows(p, work.place, work.kv_head, shared_address(shared.ring(threadIdx.x / 32)));
  // Lists are mostly as long as they can be: where this warp's tokens are is known before the count then, and ids are under way with it.
  work.extent.num_tokens = p.full_tokens, work.extent.dense = p.token_ids == nullptr;
  Cut cut = p.full;
  Shares shares = p.full_shares;
  const int num_warps = static_cast<int>(blockDim.x) / 32;
  int leaf = 0, end_leaf = 0, first_step = 0;  // of a warp
  const auto take_share = [&] {
    const int block = static_cast<int>(blockIdx.x), warp = static_cast<int>(threadIdx.x) / 32;
    leaf = shares.first_leaf(cut.pairs, num_warps, block, warp);
    end_leaf = shares.first_leaf(cut.pairs, num_warps, block, warp + 1);
    first_step = cut.first_step(leaf);
    rows.place(first_step, cut.first_step(end_leaf), work.extent.num_tokens);
  };
  take_share();
  wait_for_earlier_kernels();
  rows.load_first(p, work);
  const QueryPieces<T> pieces(p, work.place);
  const Extent extent(p, work.place);
  const bool as_guessed = extent.num_tokens == work.extent.num_tokens && extent.dense == work.extent.dense;
  work.extent = extent;
  if (!as_guessed) {
    cut = Cut(extent.num_tokens, p.num_lists);
    shares = Shares(cut.pairs, {static_cast<int32_t>(gridDim.x), num_warps});
    take_share();
    rows.load_first(p, work);
  }
  if (static_cast<int>(blockIdx.x) >= shares.blocks) return;
  rows.look_up_first(p, work);
  pieces.store(shared.queries);

  const StageLane<T> lane;
  Queries<T> queries;
  queries.address = shared_address(shared.queries) + Queries<T>::lane_offset();
  if (p.num_queries > 1) {
#pragma unroll
    for (int n = 0; n < T::kColumnTiles; ++n) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        queries.last_visible[n][e] =
            work.extent.kv_len - p.num_queries + work.place.query_of(p, (n * 8 + 2 * (threadIdx.x % 4) + e) % T::kColumns);
      }
    }
  }
  const float scale = p.key_scales != nullptr ? p.scale * p.key_scales[work.kv_head] : p.scale;

  Running<T> run, first;  // of the present leaf; of its pair's first leaf
  run.clear();
  int leaf_end = cut.first_step(leaf + 1) - first_step;
  const auto end_of_leaf = [&] {
    run.add_lanes();
    const int pair = leaf / kPairLeaves;
    const bool is_first = leaf % kPairLeaves == 0;
    ++leaf;
    if (shares.two_warps) return;
    leaf_end = cut.first_step(leaf + 1) - first_step;
    if (!is_first) {
      if constexpr (!T::kHoldsPair) load_pair<T>(p, work.place, pair, first);
      fold<T>(first, run);
      store_pair<T>(p, work.place, pair, first, 1.0f / T::kWeightScale);
    } else if constexpr (T::kHoldsPair) {
      first = run;
    } else {
      store_pair<T>(p, work.place, pair, run, 1.0f);
    }
    run.clear();
  };
#pragma unroll 1  // one place that starts copies, those of the first steps too
  for (int step = -T::kStages; step < rows.num_steps(); ++step) {
    if (step >= 0) {
      attend_step<T>(run, rows.wait(), lane, queries, p, scale);
      __syncwarp();
    }
    rows.start(p, work, step + T::kStages);
    if (step == -1) __syncthreads();  // queries are there
#pragma unroll 1
    while (step + 1 == leaf_end && leaf < end_leaf) end_of_leaf();
  }
  finish<T>(p, work, cut.pairs, shares, run, shared);
}

}  // namespace rarefy::cuda
