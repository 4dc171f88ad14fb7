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

// `row_of` points to the step's first token.
template <typename T>
__device__ __forceinline__ void load_keys(Rows<T>& rows, const char* lane_keys,  // lane_keys [num_rows, head_dim] kv_dtype
                                          const uint32_t* row_of) {              // row_of [kStepTokens] u32
  const int g = threadIdx.x % 32 / 4;
#pragma unroll
  for (int tile = 0; tile < T::kTiles; ++tile) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const char* address = lane_keys + static_cast<uint64_t>(row_of[tile * 16 + half * 8 + g]) * 16;
#pragma unroll
      for (int i = 0; i < T::kKeyLoads; ++i) load_streaming<16, T::kRowBytes>(rows.keys[tile][half][i], address + i * 64);
    }
  }
}

template <typename T>
__device__ __forceinline__ void load_values(Rows<T>& rows,
                                            const char* lane_values,   // lane_values [num_rows, head_dim] kv_dtype
                                            const uint32_t* row_of) {  // row_of [kStepTokens] u32
  const int c = threadIdx.x % 4;
#pragma unroll
  for (int tile = 0; tile < T::kTiles; ++tile) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint2 pair = *reinterpret_cast<const uint2*>(row_of + tile * 16 + half * 8 + 2 * c);
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const char* address = lane_values + static_cast<uint64_t>(r == 0 ? pair.x : pair.y) * 16;
#pragma unroll
        for (int j = 0; j < T::kValueLoads; ++j) {
          load_streaming<T::kValueBytes, T::kRowBytes>(rows.values[tile][half * 2 + r][j],
                                                       address + j * 8 * T::kValueBytes);
        }
      }
    }
  }
}

// scores[tile][n][0..3] = k . q of (token g, slot 2c), (g, 2c + 1), (g + 8, 2c), (g + 8, 2c + 1) of column tile n.
template <typename T>
__device__ __forceinline__ void score(const Rows<T>& rows, const uint4* q,  // q [kSlots, head_dim] 16 bits; padded rows
                                      float (&scores)[T::kTiles][T::kColumnTiles][4]) {
  constexpr int kQueryStride = T::kHeadDim / 8 + 1;  // in uint4; the pad spreads rows over the banks
  const int g = threadIdx.x % 32 / 4, c = threadIdx.x % 4;
#pragma unroll
  for (int tile = 0; tile < T::kTiles; ++tile) {
#pragma unroll
    for (int n = 0; n < T::kColumnTiles; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) scores[tile][n][e] = 0.0f;
    }
  }
#pragma unroll
  for (int i = 0; i < T::kKeyLoads; ++i) {
#pragma unroll
    for (int n = 0; n < T::kColumnTiles; ++n) {
      constexpr int kQueryLoads = 2 / T::kKvBytes;  // 16 bytes of 16-bit elements match 16 / kKvBytes key elements
      uint4 q_part[kQueryLoads];
#pragma unroll
      for (int part = 0; part < kQueryLoads; ++part) {
        q_part[part] = q[(n * 8 + g) * kQueryStride + (i * 4 + c) * kQueryLoads + part];
      }
#pragma unroll
      for (int tile = 0; tile < T::kTiles; ++tile) {
        const uint32_t(&low)[4] = rows.keys[tile][0][i], (&high)[4] = rows.keys[tile][1][i];
        float(&d)[4] = scores[tile][n];
        if constexpr (T::kKvBytes == 2) {
          mma_16x8x16<T::kBf16>(d, low[0], high[0], low[1], high[1], q_part[0].x, q_part[0].y);
          mma_16x8x16<T::kBf16>(d, low[2], high[2], low[3], high[3], q_part[0].z, q_part[0].w);
        } else {
#pragma unroll
          for (int word = 0; word < 4; ++word) {
            const uint2 wide_low = widen_e4m3<T::kBf16>(low[word]), wide_high = widen_e4m3<T::kBf16>(high[word]);
            const uint4 q_words = q_part[word / 2];
            mma_16x8x16<T::kBf16>(d, wide_low.x, wide_high.x, wide_low.y, wide_high.y,
                                  word % 2 == 0 ? q_words.x : q_words.z, word % 2 == 0 ? q_words.y : q_words.w);
          }
        }
      }
    }
  }
}

// One warp's running result. Lane (g, c): slots 2c and 2c + 1 of each column tile; sums of dims g * kValueElements + ... of each
// load. A slot holds a column's weighted sum or, with certificates, the sum under the weights of its variance.
template <typename T>
struct Running {
  float maximum[T::kColumnTiles][2];  // log2 units; the same in all lanes of equal c
  float total[T::kColumnTiles][2];    // this lane's tokens only
  float norms[T::kColumnTiles];       // slot g: sum of variance weight times |v|^2, this lane's tokens only
  float sums[T::kDimTiles][T::kColumnTiles][4];
};

// Whether this lane's slots of column tile n hold variance sums: the upper half of the slots, with certificates.
template <typename T>
__device__ __forceinline__ bool holds_variance(int n) {
  return T::kCertificates && (T::kColumnTiles == 1 ? threadIdx.x % 4 >= 2 : n == 1);
}

// Raises the maxima to cover new scores and rescales what was summed under the old ones.
template <typename T>
__device__ __forceinline__ void raise_maximum(Running<T>& run, const float (&scores)[T::kTiles][T::kColumnTiles][4]) {
  bool raised = false;
  float raised_to[T::kColumnTiles][2];
#pragma unroll
  for (int n = 0; n < T::kColumnTiles; ++n) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      float largest = run.maximum[n][e];
#pragma unroll
      for (int tile = 0; tile < T::kTiles; ++tile)
        largest = fmaxf(largest, fmaxf(scores[tile][n][e], scores[tile][n][e + 2]));
#pragma unroll
      for (int lanes = 4; lanes < 32; lanes *= 2) largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, lanes));
      raised_to[n][e] = largest;
      raised = raised || largest > run.maximum[n][e];
    }
  }
  if (!__any_sync(0xffffffffu, raised)) return;
#pragma unroll
  for (int n = 0; n < T::kColumnTiles; ++n) {
    float factor[2];
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      factor[e] = raised_to[n][e] > run.maximum[n][e] ? exp2_approximate(run.maximum[n][e] - raised_to[n][e]) : 1.0f;
      if (holds_variance<T>(n)) factor[e] *= factor[e];
      run.maximum[n][e] = raised_to[n][e];
      run.total[n][e] *= factor[e];
    }
#pragma unroll
    for (int tile = 0; tile < T::kDimTiles; ++tile) {
#pragma unroll
      for (int e = 0; e < 4; ++e) run.sums[tile][n][e] *= factor[e & 1];
    }
    if constexpr (T::kCertificates) {
      const int g = threadIdx.x % 32 / 4;
      const float even = __shfl_sync(0xffffffffu, factor[0], g / 2), odd = __shfl_sync(0xffffffffu, factor[1], g / 2);
      run.norms[n] *= (g & 1) != 0 ? odd : even;
    }
  }
}

// Attends to kStepTokens tokens whose rows are in registers. After their keys are used, `load_next_keys` may fill them again, after
// the values `load_next_values`: so that every warp always has rows in flight.
template <typename T, typename LoadKeys, typename LoadValues>
__device__ __forceinline__ void attend_step(Running<T>& run, Rows<T>& rows, const Stage<T>& stage, int first,
                                            const uint4* q, const DecodeParams& p, float scale,
                                            const int* last_visible,  // [kSlots] i32
                                            LoadKeys load_next_keys, LoadValues load_next_values) {
  constexpr float kLog2E = 1.4426950408889634f;
  const int g = threadIdx.x % 32 / 4, c = threadIdx.x % 4;
  float scores[T::kTiles][T::kColumnTiles][4];
  score<T>(rows, q, scores);
  load_next_keys();

  const bool capped = p.soft_cap > 0.0f, causal = p.num_queries > 1;
  const float log2_scale = capped ? kLog2E : scale * kLog2E, cap_scale = capped ? scale / p.soft_cap : 0.0f;
  // Logits in log2 units, log weight included; a missing token's log weight is -inf.
#pragma unroll
  for (int tile = 0; tile < T::kTiles; ++tile) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int token = first + tile * 16 + half * 8 + g;
      const float log_weight = stage.log2_weight[token];
#pragma unroll
      for (int n = 0; n < T::kColumnTiles; ++n) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float& logit = scores[tile][n][half * 2 + e];
          if (capped) logit = p.soft_cap * tanhf(logit * cap_scale);
          logit = fmaf(logit, log2_scale, log_weight);
          if (causal && stage.token[token] > last_visible[n * 8 + 2 * c + e]) logit = -INFINITY;
        }
      }
    }
  }
  raise_maximum<T>(run, scores);

  uint32_t weights[T::kTiles][T::kColumnTiles][2];
#pragma unroll
  for (int tile = 0; tile < T::kTiles; ++tile) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float missing =
          T::kCertificates ? stage.missing[T::kCertificates ? first + tile * 16 + half * 8 + g : 0] : 0.0f;
#pragma unroll
      for (int n = 0; n < T::kColumnTiles; ++n) {
        float weight[2];
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const float maximum = run.maximum[n][e] == -INFINITY ? 0.0f : run.maximum[n][e];
          weight[e] = exp2_approximate(scores[tile][n][half * 2 + e] - maximum);
          if (holds_variance<T>(n)) weight[e] = weight[e] * weight[e] * missing;
          weight[e] *= T::kWeightScale;
        }
        const uint32_t packed = pack2<T::kBf16>(weight[0], weight[1]);
        // The total sums the weights as rounded, so that rounding cancels between the sums and the total.
        const float2 rounded = unpack2<T::kBf16>(packed);
        run.total[n][0] += rounded.x;
        run.total[n][1] += rounded.y;
        weights[tile][n][half] = transpose_8x8(packed);
      }
    }
  }

#pragma unroll
  for (int tile = 0; tile < T::kTiles; ++tile) {
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
            wide[r][word] = rows.values[tile][r][j][word];
          } else {
            const uint2 pair = widen_e4m3<T::kBf16>(rows.values[tile][r][j][word]);
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
          mma_16x8x16<T::kBf16>(run.sums[j * kWords + word][n], a0, a1, a2, a3, weights[tile][n][0], weights[tile][n][1]);
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
        const float2 low = unpack2<T::kBf16>(weights[tile][n][0]), high = unpack2<T::kBf16>(weights[tile][n][1]);
        run.norms[n] += low.x * norm[0] + low.y * norm[1] + high.x * norm[2] + high.y * norm[3];
      }
    }
  }
  load_next_values();
}

template <typename T>
__global__ __launch_bounds__(T::kThreads,
                             T::kBlocksPerMultiprocessor) void decode_kernel(const __grid_constant__ DecodeParams p) {
  __shared__ Stage<T> stage;
  __shared__ uint4 q[T::kSlots * (T::kHeadDim / 8 + 1)];
  __shared__ Combine<T> combine;
  __shared__ int last_visible[T::kSlots];  // token that a slot's query stands at

  const Place place(p);
  allow_next_kernel();
  prefetch_lists(p, place, T::kThreads);
  wait_for_earlier_kernels();

  const Extent extent(p, place);
  load_queries<T>(p, place, q);
  if (static_cast<int>(blockIdx.x) >= extent.num_splits) return;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, c = lane % 4;
  const int kv_head = p.lists_per_kv_head == 1 ? place.list : place.list / p.lists_per_kv_head;
  const float scale = p.scale * (p.key_scales != nullptr ? p.key_scales[kv_head] : 1.0f);
  const char* lane_keys = p.keys + kv_head * p.head_bytes + c * 16;
  const char* lane_values = p.values + kv_head * p.head_bytes + g * T::kValueBytes;
  if (p.num_queries > 1 && threadIdx.x < T::kSlots) {
    last_visible[threadIdx.x] = extent.kv_len - p.num_queries + place.query_of(p, threadIdx.x % T::kColumns);
  }

  for (int split = blockIdx.x; split < extent.num_splits; split += gridDim.x) {
    Running<T> run = {};
#pragma unroll
    for (int n = 0; n < T::kColumnTiles; ++n) run.maximum[n][0] = run.maximum[n][1] = -INFINITY;
    const int split_end = min((split + 1) * extent.split_tokens, extent.num_tokens);
    for (int segment = split * extent.split_tokens; segment < split_end; segment += T::kSegment) {
      const int count = min(T::kSegment, split_end - segment);
      __syncthreads();  // the stage is no longer read
      if (!fill_stage<T>(p, place, extent, segment, count, stage)) continue;
      constexpr int kStride = T::kWarps * T::kStepTokens;
      int first = warp * T::kStepTokens;
      Rows<T> rows;
      if (first < count) {
        load_keys<T>(rows, lane_keys, stage.row + first);
        load_values<T>(rows, lane_values, stage.row + first);
      }
      for (; first < count; first += kStride) {
        const bool more = first + kStride < count;
        const auto next_keys = [&] {
          if (more) load_keys<T>(rows, lane_keys, stage.row + first + kStride);
        };
        const auto next_values = [&] {
          if (more) load_values<T>(rows, lane_values, stage.row + first + kStride);
        };
        attend_step<T>(run, rows, stage, first, q, p, scale, last_visible, next_keys, next_values);
      }
    }
    finish_split<T>(p, place, extent, split, kv_head, run, combine);
  }
}

}  // namespace rarefy::cuda
