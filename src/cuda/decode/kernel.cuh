// Decode attention of some quads of one list. Each warp copies the rows of its steps into a ring of its own and attends to them there;
// the warps of a block meet only at the end. docs/kernels/sparse_decode.md explains the layout and has the numbers.
#pragma once

#include "cuda/decode/attend.cuh"
#include "cuda/decode/finish.cuh"
#include "cuda/decode/rows.cuh"

namespace rarefy::cuda {

template <typename T>
__global__ __launch_bounds__(T::kThreads,
                             kBlocksPerMultiprocessor) void decode_kernel(const __grid_constant__ DecodeParams p) {
  extern __shared__ __align__(16) char memory[];
  Shared<T>& shared = *reinterpret_cast<Shared<T>*>(memory);
  Work work;
  work.place = Place(p);
  allow_next_kernel();
  prefetch_lists(p, work.place, T::kThreads);
  work.kv_head = p.lists_per_kv_head == 1 ? work.place.list : work.place.list / p.lists_per_kv_head;
  Rows<T> rows(p, work.place, work.kv_head, shared_address(shared.ring(p, threadIdx.x / 32)));
  wait_for_earlier_kernels();
  // Lists are mostly as long as they can be: ids are under way before the count is known.
  work.extent.num_tokens = p.full_tokens, work.extent.dense = p.token_ids == nullptr;
  Cut cut = p.full;
  Shares shares = p.full_shares;
  int leaf = 0, end_leaf = 0, first_step = 0;  // of a warp
  const auto begin = [&] {
    const int warp = static_cast<int>(blockIdx.x) * T::kWarps + static_cast<int>(threadIdx.x) / 32;
    leaf = shares.first_leaf(cut.quads, warp);
    end_leaf = shares.first_leaf(cut.quads, warp + 1);
    first_step = cut.first_step(leaf);
    rows.begin(p, work, first_step, cut.first_step(end_leaf));
  };
  begin();
  const Extent extent(p, work.place);
  const bool as_guessed = extent.num_tokens == work.extent.num_tokens && extent.dense == work.extent.dense;
  work.extent = extent;
  if (!as_guessed) {
    cut = Cut(extent.num_tokens);
    shares = Shares(cut.quads, gridDim.x);
    begin();
  }
  if (static_cast<int>(blockIdx.x) >= shares.blocks) return;
  rows.look_up_first(p, work);

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

  Running<T> run, folded;  // of the present leaf; of the quad's leaves before it
  run.clear();
  folded.clear();
  // The second of two warps does not have the quad's first leaves: its last leaf stays apart, for the fold is in order.
  const bool apart = shares.warps_per_quad == 2 && threadIdx.x / 32 % 2 == 1;
  int leaf_end = cut.first_step(leaf + 1) - first_step;
  const auto end_of_leaf = [&] {
    run.add_lanes();
    ++leaf;
    if (apart && leaf == end_leaf) return;
    if (shares.warps_per_quad == 4) {
      folded = run;
      return;
    }
    fold<T>(folded, run);
    run.clear();
    leaf_end = cut.first_step(leaf + 1) - first_step;
    if (shares.warps_per_quad == 1 && leaf % kQuadLeaves == 0) {
      store_quad<T>(p, work.place, leaf / kQuadLeaves - 1, folded);
      folded.clear();
    }
  };
#pragma unroll 1  // one place that starts copies, those of the first steps too
  for (int step = -p.num_stages; step < rows.num_steps(); ++step) {
    if (step >= 0) {
      attend_step<T>(run, rows.wait(p), lane, queries, p, scale);
      __syncwarp();
    }
    rows.start(p, work, step + p.num_stages);
    if (step == -1) {
      store_queries<T>(p, work.place, shared.queries);
      __syncthreads();
    }
#pragma unroll 1
    while (step + 1 == leaf_end && leaf < end_leaf) end_of_leaf();
  }
  finish<T>(p, work, cut.quads, shares, folded, run, shared);
}

}  // namespace rarefy::cuda
