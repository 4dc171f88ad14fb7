// Decode attention of one split of one list: scores and weighted sums by matrix instructions, rows gathered straight from the
// cache into registers in the layout that the instructions want. README.md of this folder explains the layout and the numbers.
#pragma once

#include <cmath>

#include "cuda/decode/finish.cuh"
#include "cuda/decode/params.h"
#include "cuda/decode/stage.cuh"
#include "cuda/decode/traits.cuh"
#include "cuda/device/ptx.cuh"

namespace rarefy::cuda {

// Rows of one step in registers.
template <typename T>
struct Rows {
  uint32_t keys[T::kTiles][2][T::kKeyLoads][4];
  uint32_t values[T::kTiles][4][T::kValueLoads][T::kValueBytes / 4];
};

// What a lane needs to know of its block: bases and the shared addresses of its own entries for the first token of the stage.
struct Lane {
  const char* keys;    // [num_rows, head_dim] kv_dtype; this lane's 16 bytes of a row
  const char* values;  // [num_rows, head_dim] kv_dtype; this lane's kValueBytes of a row
  uint32_t key_rows, value_rows, log2_weight, missing, token, queries;  // shared addresses
};

template <typename T>
__device__ __forceinline__ void load_keys(Rows<T>& rows, const Lane& lane, int first) {
#pragma unroll
  for (int tile = 0; tile < T::kTiles; ++tile) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const char* address = lane.keys + uint64_t{load_shared(lane.key_rows + (first + tile * 16 + half * 8) * 4)} * 16;
#pragma unroll
      for (int i = 0; i < T::kKeyLoads; ++i) load_streaming<16, T::kRowBytes>(rows.keys[tile][half][i], address + i * 64);
    }
  }
}

template <typename T>
__device__ __forceinline__ void load_values(Rows<T>& rows, const Lane& lane, int first) {
#pragma unroll
  for (int tile = 0; tile < T::kTiles; ++tile) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint2 pair = load_shared2(lane.value_rows + (first + tile * 16 + half * 8) * 4);
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const char* address = lane.values + uint64_t{r == 0 ? pair.x : pair.y} * 16;
#pragma unroll
        for (int j = 0; j < T::kValueLoads; ++j) {
          load_streaming<T::kValueBytes, T::kRowBytes>(rows.values[tile][half * 2 + r][j],
                                                       address + j * 8 * T::kValueBytes);
        }
      }
    }
  }
}

// scores[tile][half][0..3] = q . k of (slot g, token 2c), (g, 2c + 1), (g + 8, 2c), (g + 8, 2c + 1), tokens 8 * half on.
template <typename T>
__device__ __forceinline__ void score(const Rows<T>& rows, const Lane& lane, float (&scores)[T::kTiles][2][4]) {
#pragma unroll
  for (int tile = 0; tile < T::kTiles; ++tile) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int e = 0; e < 4; ++e) scores[tile][half][e] = 0.0f;
    }
  }
#pragma unroll
  for (int i = 0; i < T::kKeyLoads; ++i) {
#pragma unroll
    for (int k = 0; k < T::kKeySteps; ++k) {
      const uint4 a = load_shared4_again(lane.queries + (i * T::kKeySteps + k) * 512);
#pragma unroll
      for (int tile = 0; tile < T::kTiles; ++tile) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const uint32_t(&key)[4] = rows.keys[tile][half][i];
          uint2 b;
          if constexpr (T::kKvBytes == 2) {
            b = {key[2 * k], key[2 * k + 1]};
          } else {
            b = widen_e4m3<T::kBf16>(key[k]);
          }
          mma_16x8x16<T::kBf16>(scores[tile][half], a.x, a.y, a.z, a.w, b.x, b.y);
        }
      }
    }
  }
}

// One warp's running result. Lane (g, c): maximum, total and norms of slots g and g + 8 (of its own tokens, but for the maximum); sums
// of slots 2c and 2c + 1 of each column tile, dims g * kValueElements + ... of each load. A slot holds a column's weighted sum or,
// with certificates, the sum under the weights of its variance.
template <typename T>
struct Running {
  float maximum[T::kColumnTiles];  // log2 units
  float total[T::kColumnTiles];
  float norms[T::kColumnTiles];  // sum of variance weight times |v|^2
  float sums[T::kDimTiles][T::kColumnTiles][4];
};

// Whether slot n * 8 + g holds variance sums: the upper half of the slots does, with certificates.
template <typename T>
__device__ __forceinline__ bool holds_variance(int n) {
  return T::kCertificates && (T::kColumnTiles == 1 ? threadIdx.x % 32 >= 16 : n == 1);
}

// Raises the maxima to cover new scores and rescales what was summed under the old ones. While no score is more than kSlackBits above
// its maximum nothing is done: weights above 1 lose no precision, and after the first step or two that is nearly always so.
template <typename T>
__device__ __forceinline__ void raise_maximum(Running<T>& run, const float (&scores)[T::kTiles][2][4]) {
  bool raised = false;
  float raised_to[T::kColumnTiles];
#pragma unroll
  for (int n = 0; n < T::kColumnTiles; ++n) {
    float largest = run.maximum[n];
#pragma unroll
    for (int tile = 0; tile < T::kTiles; ++tile) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        largest = fmaxf(largest, fmaxf(scores[tile][half][2 * n], scores[tile][half][2 * n + 1]));
      }
    }
    largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 1));
    largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 2));
    raised_to[n] = largest;
    raised = raised || largest > run.maximum[n] + T::kSlackBits;
  }
  if (!__any_sync(0xffffffffu, raised)) return;
  const int c = threadIdx.x % 4;
#pragma unroll
  for (int n = 0; n < T::kColumnTiles; ++n) {
    float factor = raised_to[n] > run.maximum[n] ? exp2_approximate(run.maximum[n] - raised_to[n]) : 1.0f;
    if (holds_variance<T>(n)) factor *= factor;
    run.maximum[n] = raised_to[n];
    run.total[n] *= factor;
    run.norms[n] *= factor;
    const float even = __shfl_sync(0xffffffffu, factor, 8 * c), odd = __shfl_sync(0xffffffffu, factor, 8 * c + 4);
#pragma unroll
    for (int tile = 0; tile < T::kDimTiles; ++tile) {
      run.sums[tile][n][0] *= even, run.sums[tile][n][1] *= odd;
      run.sums[tile][n][2] *= even, run.sums[tile][n][3] *= odd;
    }
  }
}

// Weighted sums of the values of one tile; `weights` is the tile's transposed matrix of weights [tokens, slots] as it comes out of the
// scores: no shuffle between the two products.
template <typename T>
__device__ __forceinline__ void add_values(Running<T>& run, const uint32_t (&values)[4][T::kValueLoads][T::kValueBytes / 4],
                                           const uint32_t (&weights)[2][T::kColumnTiles]) {
  float norm[4] = {};  // |v|^2 of this lane's four tokens, this lane's dims
#pragma unroll
  for (int j = 0; j < T::kValueLoads; ++j) {
    constexpr int kWords = T::kValueElements / 2;  // pairs of 16-bit elements in one load
    uint32_t wide[4][kWords];
#pragma unroll
    for (int r = 0; r < 4; ++r) {
#pragma unroll
      for (int word = 0; word < T::kValueBytes / 4; ++word) {
        if constexpr (T::kKvBytes == 2) {
          wide[r][word] = values[r][j][word];
        } else {
          const uint2 pair = widen_e4m3<T::kBf16>(values[r][j][word]);
          wide[r][2 * word] = pair.x, wide[r][2 * word + 1] = pair.y;
        }
      }
    }
    if constexpr (T::kCertificates) {
#pragma unroll
      for (int r = 0; r < 4; ++r) {
#pragma unroll
        for (int word = 0; word < kWords; ++word) {
          const float2 v = unpack2<T::kBf16>(wide[r][word]);
          norm[r] = fmaf(v.x, v.x, fmaf(v.y, v.y, norm[r]));
        }
      }
    }
#pragma unroll
    for (int word = 0; word < kWords; ++word) {
      const uint32_t a0 = __byte_perm(wide[0][word], wide[1][word], 0x5410);
      const uint32_t a1 = __byte_perm(wide[0][word], wide[1][word], 0x7632);
      const uint32_t a2 = __byte_perm(wide[2][word], wide[3][word], 0x5410);
      const uint32_t a3 = __byte_perm(wide[2][word], wide[3][word], 0x7632);
#pragma unroll
      for (int n = 0; n < T::kColumnTiles; ++n) {
        mma_16x8x16<T::kBf16>(run.sums[j * kWords + word][n], a0, a1, a2, a3, weights[0][n], weights[1][n]);
      }
    }
  }
  if constexpr (T::kCertificates) {
#pragma unroll
    for (int r = 0; r < 4; ++r) {
#pragma unroll
      for (int lanes = 4; lanes < 32; lanes *= 2) norm[r] += __shfl_xor_sync(0xffffffffu, norm[r], lanes);
    }
#pragma unroll
    for (int n = 0; n < T::kColumnTiles; ++n) {
      const float2 low = unpack2<T::kBf16>(weights[0][n]), high = unpack2<T::kBf16>(weights[1][n]);
      run.norms[n] += low.x * norm[0] + low.y * norm[1] + high.x * norm[2] + high.y * norm[3];
    }
  }
}

// Attends to kStepTokens tokens, from `first` of the stage on, whose rows are in registers. Once their keys are used, the keys of
// `next` are fetched in their place, and so for the values, so that every warp always has rows under way; next < 0: no more.
template <typename T>
__device__ __forceinline__ void attend_step(Running<T>& run, Rows<T>& rows, const Lane& lane, int first, int next,
                                            const DecodeParams& p, float scale,
                                            const int* last_visible) {  // last_visible [kSlots] i32
  constexpr float kLog2E = 1.4426950408889634f;
  float scores[T::kTiles][2][4];
  score<T>(rows, lane, scores);
  if (next >= 0) load_keys<T>(rows, lane, next);

  // Logits in log2 units, log weight included; a missing token's log weight is -inf.
  const bool capped = p.soft_cap > 0.0f;
  const float log2_scale = capped ? kLog2E : scale * kLog2E;
#pragma unroll
  for (int tile = 0; tile < T::kTiles; ++tile) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint2 pair = load_shared2(lane.log2_weight + (first + tile * 16 + half * 8) * 4);
#pragma unroll
      for (int e = 0; e < T::kColumnTiles * 2; ++e) {
        float& logit = scores[tile][half][e];
        if (capped) logit = p.soft_cap * tanhf(logit * scale * p.inverse_soft_cap);
        logit = fmaf(logit, log2_scale, __uint_as_float(e % 2 == 0 ? pair.x : pair.y));
      }
    }
  }
  if (p.num_queries > 1) {
    const int g = threadIdx.x % 32 / 4;
#pragma unroll
    for (int tile = 0; tile < T::kTiles; ++tile) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint2 token = load_shared2(lane.token + (first + tile * 16 + half * 8) * 4);
#pragma unroll
        for (int e = 0; e < T::kColumnTiles * 2; ++e) {
          if (static_cast<int>(e % 2 == 0 ? token.x : token.y) > last_visible[e / 2 * 8 + g])
            scores[tile][half][e] = -INFINITY;
        }
      }
    }
  }
  raise_maximum<T>(run, scores);

  uint32_t weights[T::kTiles][2][T::kColumnTiles];
#pragma unroll
  for (int tile = 0; tile < T::kTiles; ++tile) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint2 missing = {};  // floats: 1 - inclusion probability of the two tokens
      if constexpr (T::kCertificates) missing = load_shared2(lane.missing + (first + tile * 16 + half * 8) * 4);
#pragma unroll
      for (int n = 0; n < T::kColumnTiles; ++n) {
        const float maximum = run.maximum[n] == -INFINITY ? 0.0f : run.maximum[n];
        float even = exp2_approximate(scores[tile][half][2 * n] - maximum);
        float odd = exp2_approximate(scores[tile][half][2 * n + 1] - maximum);
        if (holds_variance<T>(n)) {
          even *= even * __uint_as_float(missing.x);
          odd *= odd * __uint_as_float(missing.y);
        }
        const uint32_t packed = pack2<T::kBf16>(even * T::kWeightScale, odd * T::kWeightScale);
        // The total sums the weights as rounded, so that rounding cancels between the sums and the total.
        const float2 rounded = unpack2<T::kBf16>(packed);
        run.total[n] += rounded.x + rounded.y;
        weights[tile][half][n] = packed;
      }
    }
  }
#pragma unroll
  for (int tile = 0; tile < T::kTiles; ++tile) add_values<T>(run, rows.values[tile], weights[tile]);
  if (next >= 0) load_values<T>(rows, lane, next);
}

template <typename T>
__global__ __launch_bounds__(T::kThreads,
                             T::kBlocksPerMultiprocessor) void decode_kernel(const __grid_constant__ DecodeParams p) {
  __shared__ Stage<T> stage;
  __shared__ uint4 queries[T::kHeadDim / 16 * 32];  // by step of 16 dims and lane, as the matrix instruction wants them
  __shared__ Combine<T> combine;
  __shared__ int last_visible[T::kSlots];  // token that a slot's query stands at
  __shared__ Work work;                    // kept out of registers, which the loop below needs for rows

  float scale = p.scale;
  Lane lane;
  {
    const Place place(p);
    allow_next_kernel();
    prefetch_lists(p, place, T::kThreads);
    wait_for_earlier_kernels();
    const Extent extent(p, place);
    load_queries<T>(p, place, queries);
    if (static_cast<int>(blockIdx.x) >= extent.num_splits) return;
    const int kv_head = p.lists_per_kv_head == 1 ? place.list : place.list / p.lists_per_kv_head;
    if (p.key_scales != nullptr) scale *= p.key_scales[kv_head];
    if (p.num_queries > 1 && threadIdx.x < T::kSlots) {
      last_visible[threadIdx.x] = extent.kv_len - p.num_queries + place.query_of(p, threadIdx.x % T::kColumns);
    }
    lane.keys = p.keys + kv_head * p.head_bytes + threadIdx.x % 4 * 16;
    lane.values = p.values + kv_head * p.head_bytes + threadIdx.x % 32 / 4 * T::kValueBytes;
    if (threadIdx.x == 0) work = {place, extent, kv_head};
    __syncthreads();
  }
  const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, c = threadIdx.x % 4;
  asm volatile("" : "+l"(lane.keys), "+l"(lane.values));  // kept in registers, not rebuilt from the parameters at every use
  lane.key_rows = shared_address(stage.row + g);
  lane.value_rows = shared_address(stage.row + 2 * c);
  lane.log2_weight = shared_address(stage.log2_weight + 2 * c);
  lane.missing = shared_address(stage.missing) + 8 * c;
  lane.token = shared_address(stage.token + 2 * c);
  lane.queries = shared_address(queries + threadIdx.x % 32);

  for (int split = blockIdx.x; split < work.extent.num_splits; split += gridDim.x) {
    Running<T> run = {};
#pragma unroll
    for (int n = 0; n < T::kColumnTiles; ++n) run.maximum[n] = -INFINITY;
    const int split_end = min((split + 1) * work.extent.split_tokens, work.extent.num_tokens);
    for (int segment = split * work.extent.split_tokens; segment < split_end; segment += T::kSegment) {
      const int count = min(T::kSegment, split_end - segment);
      __syncthreads();  // the stage is no longer read
      if (!fill_stage<T>(p, work, segment, count, stage)) continue;
      constexpr int kStride = T::kWarps * T::kStepTokens;
      int first = warp * T::kStepTokens;
      if (first >= count) continue;
      Rows<T> rows;
      load_keys<T>(rows, lane, first);
      load_values<T>(rows, lane, first);
      for (; first < count; first += kStride) {
        attend_step<T>(run, rows, lane, first, first + kStride < count ? first + kStride : -1, p, scale, last_visible);
      }
    }
    finish_split<T>(p, work, split, run, combine);
  }
}

}  // namespace rarefy::cuda
