// Decode attention of one split of one list. Each warp copies the rows of its steps into a ring of its own and attends to them there;
// the warps of a block meet only at the end of the split. docs/kernels/sparse_decode.md explains the layout and has the numbers.
#pragma once

#include "cuda/decode/attend.cuh"
#include "cuda/decode/finish.cuh"
#include "cuda/decode/rows.cuh"

namespace rarefy::cuda {

template <typename T>
__global__ __launch_bounds__(T::kThreads,
                             T::kBlocksPerMultiprocessor) void decode_kernel(const __grid_constant__ DecodeParams p) {
  extern __shared__ __align__(16) char memory[];
  Shared<T>& shared = *reinterpret_cast<Shared<T>*>(memory);
  Work work;
  work.place = Place(p);
  allow_next_kernel();
  prefetch_lists(p, work.place, T::kThreads);
  work.kv_head = p.lists_per_kv_head == 1 ? work.place.list : work.place.list / p.lists_per_kv_head;
  Rows<T> rows(p, work.place, work.kv_head, shared_address(shared.ring(p, threadIdx.x / 32)));
  wait_for_earlier_kernels();
  work.extent = Extent(p, work.place);
  if (static_cast<int>(blockIdx.x) >= work.extent.num_splits) return;

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

  for (int split = blockIdx.x; split < work.extent.num_splits; split += gridDim.x) {
    rows.begin(p, work, split);
    Running<T> run = {};
#pragma unroll
    for (int n = 0; n < T::kColumnTiles; ++n) run.maximum[n][0] = run.maximum[n][1] = -INFINITY;
#pragma unroll 1  // one place that starts copies, those of the first steps too
    for (int step = -p.num_stages; step < rows.num_steps(); ++step) {
      if (step >= 0) {
        attend_step<T>(run, rows.wait(p), lane, queries, p, scale);
        __syncwarp();
      }
      rows.start(p, work, step + p.num_stages);
      if (step == -1 && split == static_cast<int>(blockIdx.x)) {
        store_queries<T>(p, work.place, shared.queries);
        __syncthreads();
      }
    }
    __syncthreads();
    finish_split<T>(p, work, split, run, shared);
    __syncthreads();
  }
}

}  // namespace rarefy::cuda
