// Scores and weighted sums of one step of 16 tokens by matrix instructions, out of a stage in shared memory.
//
// Lane (g, c) = (lane / 4, lane % 4). Tokens are the rows of the first product: a lane gets the scores of tokens g and g + 8 with slots
// 2c and 2c + 1. Their weights, transposed, are the second operand of the second product, whose rows are dims and whose columns are
// again slots: a lane has the sums of slots 2c and 2c + 1, so that rescaling needs no exchange.
#pragma once

#include <cmath>

#include "cuda/decode/rows.cuh"

namespace rarefy::cuda {

// One warp's running result. Maximum and total of slots n * 8 + 2c + (0, 1), the total over the lane's own tokens; norms of slot n * 8 + g,
// over the lane's own tokens. A slot holds a column's weighted sum or, with certificates, the sum under the weights of its variance.
template <typename T>
struct Running {
  float maximum[T::kColumnTiles][2];  // log2 units
  float total[T::kColumnTiles][2];
  float norms[T::kColumnTiles];  // sum of variance weight times |v|^2
  float sums[T::kDimTiles][T::kColumnTiles][4];

  __device__ __forceinline__ void clear() {
    *this = {};
#pragma unroll
    for (int n = 0; n < T::kColumnTiles; ++n) maximum[n][0] = maximum[n][1] = -INFINITY;
  }
  // At the end of a leaf: totals and norms over all lanes' tokens.
  __device__ __forceinline__ void add_lanes() {
#pragma unroll
    for (int n = 0; n < T::kColumnTiles; ++n) {
#pragma unroll
      for (int lanes = 4; lanes < 32; lanes *= 2) {
#pragma unroll
        for (int e = 0; e < 2; ++e) total[n][e] += __shfl_xor_sync(0xffffffffu, total[n][e], lanes);
      }
      if constexpr (T::kCertificates) {
        norms[n] += __shfl_xor_sync(0xffffffffu, norms[n], 1);
        norms[n] += __shfl_xor_sync(0xffffffffu, norms[n], 2);
      }
    }
  }
};

// The list's queries in shared memory: what a block begins with.
template <typename T>
struct QueryRows {
  char rows[T::kSlots][T::kQueryStride];  // one row of q for each slot
  int last_visible[T::kSlots];            // token that a slot's query stands at; with several queries
};

// Where a lane reads them.
template <typename T>
struct Queries {
  uint32_t address;  // this lane's place in the first slots' rows, shared memory

  // Operands of slots n * 8 + g for dims 32 i + (0 to 15) and + (16 to 31).
  __device__ __forceinline__ uint4 read(int i, int n) const {
    const uint32_t at = address + static_cast<uint32_t>(n * 8 * T::kQueryStride + i * 64);
    if constexpr (T::kKvBytes == 2) return load_matrices(at);
    const uint2 low = load_shared2(at), high = load_shared2(at + 32);
    return {low.x, low.y, high.x, high.y};
  }
  // Those of slots n * 8 + 2c + (0, 1).
  static __device__ uint32_t last_visible(int n) {
    const uint32_t slot = n * 8 + threadIdx.x % 4 * 2;
    return shared_address(block_memory()) + offsetof(QueryRows<T>, last_visible) + slot * 4;
  }
  static __device__ uint32_t lane_offset() {
    const uint32_t lane = threadIdx.x % 32;
    return T::kKvBytes == 2 ? lane % 8 * T::kQueryStride + lane / 8 * 16 : lane / 4 * T::kQueryStride + lane % 4 * 8;
  }
};

// Whether slots n * 8 + 2c + (0, 1) hold variance sums: the upper half of the slots does, with certificates.
template <typename T>
__device__ __forceinline__ bool holds_variance(int n) {
  return T::kCertificates && (T::kColumnTiles == 1 ? threadIdx.x % 4 >= 2 : n == 1);
}

// Of this lane's place in a stage's keys or values the same 32 * step bytes further along the row: XOR, because pieces are permuted.
__device__ __forceinline__ uint32_t along_row(uint32_t address, int step) {
  return (address ^ step % 4 * 32) + step / 4 * 128;
}

// scores[n][0..3] = q . k of (token g, slot 2c), (g, 2c + 1), (g + 8, 2c), (g + 8, 2c + 1), slots from n * 8 on.
template <typename T>
__device__ __forceinline__ void score(uint32_t keys, const Queries<T>& queries, float (&scores)[T::kColumnTiles][4]) {
  // Chains of products, of which none waits for another. As many whatever else is asked for: it would change the rounding.
  constexpr int kChains = T::kHeadDim >= 128 ? 4 : 2;
  float parts[kChains][T::kColumnTiles][4] = {};
#pragma unroll
  for (int i = 0; i < T::kHeadDim / 32; ++i) {
    uint4 query[T::kColumnTiles];
#pragma unroll
    for (int n = 0; n < T::kColumnTiles; ++n) query[n] = queries.read(i, n);
    uint4 rows;
    if constexpr (T::kKvBytes == 1) rows = load_matrices(along_row(keys, i));
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint4 a;
      if constexpr (T::kKvBytes == 2) {
        a = load_matrices(along_row(keys, 2 * i + half));
      } else {
        // A lane's four bytes are dims 4c to 4c + 3 of 16; the query's operand is read in the same order.
        const uint2 low = widen_e4m3<T::kBf16>(half == 0 ? rows.x : rows.z);
        const uint2 high = widen_e4m3<T::kBf16>(half == 0 ? rows.y : rows.w);
        a = {low.x, high.x, low.y, high.y};
      }
#pragma unroll
      for (int n = 0; n < T::kColumnTiles; ++n) {
        mma_16x8x16<T::kBf16>(parts[(2 * i + half) % kChains][n], a.x, a.y, a.z, a.w, half == 0 ? query[n].x : query[n].z,
                              half == 0 ? query[n].y : query[n].w);
      }
    }
  }
#pragma unroll
  for (int n = 0; n < T::kColumnTiles; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      scores[n][e] = parts[0][n][e] + parts[1][n][e];
      if constexpr (kChains == 4) scores[n][e] += parts[2][n][e] + parts[3][n][e];
    }
  }
}

// Raises the maxima to cover new scores and rescales what was summed under the old ones. While no score is more than kSlackBits above
// its maximum nothing is done: weights above 1 lose no precision, and after the first step or two that is nearly always so.
template <typename T>
__device__ __forceinline__ void raise_maximum(Running<T>& run, const float (&scores)[T::kColumnTiles][4]) {
  bool raised = false;
#pragma unroll
  for (int n = 0; n < T::kColumnTiles; ++n) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      raised = raised || fmaxf(scores[n][e], scores[n][e + 2]) > run.maximum[n][e] + T::kSlackBits;
    }
  }
  if (!__any_sync(0xffffffffu, raised)) return;
#pragma unroll
  for (int n = 0; n < T::kColumnTiles; ++n) {
    float factors[2];
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      float largest = fmaxf(run.maximum[n][e], fmaxf(scores[n][e], scores[n][e + 2]));
#pragma unroll
      for (int lanes = 4; lanes < 32; lanes *= 2) largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, lanes));
      float factor = largest > run.maximum[n][e] ? exp2_approximate(run.maximum[n][e] - largest) : 1.0f;
      if (holds_variance<T>(n)) factor *= factor;
      run.maximum[n][e] = largest;
      run.total[n][e] *= factor;
#pragma unroll
      for (int tile = 0; tile < T::kDimTiles; ++tile) run.sums[tile][n][e] *= factor, run.sums[tile][n][e + 2] *= factor;
      factors[e] = factor;
    }
    if constexpr (T::kCertificates) {
      const int g = threadIdx.x % 32 / 4;
      const float even = __shfl_sync(0xffffffffu, factors[0], g / 2), odd = __shfl_sync(0xffffffffu, factors[1], g / 2);
      run.norms[n] *= g % 2 == 0 ? even : odd;
    }
  }
}

// Operands of the values of a step, out of a stage's values.
template <typename T>
struct ValueRows {
  uint4 rows[T::kRowBytes / 32];

  __device__ __forceinline__ void load(uint32_t values) {
#pragma unroll
    for (int i = 0; i < T::kRowBytes / 32; ++i) rows[i] = load_matrices_transposed(along_row(values, i));
  }
};

// Adds weighted values; weights[half][n]: of tokens half * 8 + 2c + (0, 1) in slot n * 8 + g.
template <typename T>
__device__ __forceinline__ void add_values(Running<T>& run, const ValueRows<T>& values,
                                           const uint32_t (&weights)[2][T::kColumnTiles]) {
  float norm[4] = {};  // |v|^2 of tokens 2c, 2c + 1, 2c + 8, 2c + 9, this lane's dims
  const auto add = [&](int tile, uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3) {
#pragma unroll
    for (int n = 0; n < T::kColumnTiles; ++n) {
      mma_16x8x16<T::kBf16>(run.sums[tile][n], a0, a1, a2, a3, weights[0][n], weights[1][n]);
    }
    if constexpr (T::kCertificates) {
      const float2 v0 = unpack2<T::kBf16>(a0), v1 = unpack2<T::kBf16>(a1), v2 = unpack2<T::kBf16>(a2),
                   v3 = unpack2<T::kBf16>(a3);
      norm[0] = fmaf(v0.x, v0.x, fmaf(v1.x, v1.x, norm[0]));
      norm[1] = fmaf(v0.y, v0.y, fmaf(v1.y, v1.y, norm[1]));
      norm[2] = fmaf(v2.x, v2.x, fmaf(v3.x, v3.x, norm[2]));
      norm[3] = fmaf(v2.y, v2.y, fmaf(v3.y, v3.y, norm[3]));
    }
  };
#pragma unroll
  for (int i = 0; i < T::kRowBytes / 32; ++i) {
    const uint4& rows = values.rows[i];
    if constexpr (T::kKvBytes == 2) {
      add(i, rows.x, rows.y, rows.z, rows.w);
    } else {
      // A lane has dims 2g, 2g + 1 of tokens 2c and then of 2c + 1: rows g of the operand are even dims, rows g + 8 odd ones.
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint2 low = widen_e4m3<T::kBf16>(__byte_perm(half == 0 ? rows.x : rows.z, 0, 0x3120));
        const uint2 high = widen_e4m3<T::kBf16>(__byte_perm(half == 0 ? rows.y : rows.w, 0, 0x3120));
        add(2 * i + half, low.x, low.y, high.x, high.y);
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

// Where a lane's parts of a stage begin.
template <typename T>
struct StageLane {
  uint32_t keys, values, entry;

  __device__ StageLane() {
    const uint32_t lane = threadIdx.x % 32, matrix = lane / 8, row = lane % 8;
    keys = piece_offset<T>(row + matrix % 2 * 8, matrix / 2);
    // 16 bits: matrices (tokens, dims) 0 and 0, 0 and 8, 8 and 0, 8 and 8. 8 bits: a matrix has 16 dims; 0 and 0, 8 and 0, ...
    values = T::kKvBytes == 2 ? piece_offset<T>(row + matrix / 2 * 8, matrix % 2)
                              : piece_offset<T>(row + matrix % 2 * 8, matrix / 2);
    values += offsetof(Stage<T>, values);
    static_assert(offsetof(Stage<T>, values) % 128 == 0, "along_row changes bits 5 and 6 only");
    entry = lane / 4 * 4;
  }
};

// What a lane has of the 16 tokens of a stage, once its keys and entries are read: slots n * 8 + 2c + (0, 1).
template <typename T>
struct Logits {
  float at[T::kColumnTiles][4];                  // of tokens g, g, g + 8, g + 8; log2 units, log weight included
  float missing[T::kCertificates ? 2 : 1] = {};  // 1 - inclusion probability, tokens g and g + 8

  // From products of queries and keys. A missing token's log weight is -inf. What few calls ask for is done for all at once: a branch for each kept the others from overlapping.
  __device__ __forceinline__ void scale_products(uint32_t stage, const StageLane<T>& lane, const DecodeParams& p,
                                                 float scale) {
    constexpr float kLog2E = 1.4426950408889634f;
    const bool capped = p.soft_cap > 0.0f;
    const float log2_scale = capped ? kLog2E : scale * kLog2E;
    if (capped) {
#pragma unroll
      for (int n = 0; n < T::kColumnTiles; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) at[n][e] = p.soft_cap * tanh_approximate(at[n][e] * scale * p.inverse_soft_cap);
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint32_t entry = stage + lane.entry + half * 32;
      const float log2_weight = __uint_as_float(load_shared(entry + offsetof(Stage<T>, log2_weight)));
      if constexpr (T::kCertificates) missing[half] = __uint_as_float(load_shared(entry + offsetof(Stage<T>, missing)));
#pragma unroll
      for (int n = 0; n < T::kColumnTiles; ++n) {
#pragma unroll
        for (int e = half * 2; e < half * 2 + 2; ++e) at[n][e] = fmaf(at[n][e], log2_scale, log2_weight);
      }
    }
    if (p.num_queries == 1) return;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int token = static_cast<int>(load_shared(stage + lane.entry + half * 32 + offsetof(Stage<T>, token)));
#pragma unroll
      for (int n = 0; n < T::kColumnTiles; ++n) {
        const uint2 last = load_shared2(Queries<T>::last_visible(n));  // registers for it would be taken from all
        if (token > static_cast<int>(last.x)) at[n][half * 2] = -INFINITY;
        if (token > static_cast<int>(last.y)) at[n][half * 2 + 1] = -INFINITY;
      }
    }
  }
};

// From logits to weights, which add_values() takes, and into the totals.
template <typename T>
__device__ __forceinline__ void weigh(Running<T>& run, const Logits<T>& logits, uint32_t (&weights)[2][T::kColumnTiles]) {
  raise_maximum<T>(run, logits.at);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int n = 0; n < T::kColumnTiles; ++n) {
      float weight[2];
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const float maximum = run.maximum[n][e] == -INFINITY ? 0.0f : run.maximum[n][e];
        weight[e] = exp2_approximate(logits.at[n][half * 2 + e] - maximum);
        if (holds_variance<T>(n)) weight[e] *= weight[e] * logits.missing[T::kCertificates ? half : 0];
      }
      const uint32_t packed = pack2<T::kBf16>(weight[0] * T::kWeightScale, weight[1] * T::kWeightScale);
      // The total sums the weights as rounded, so that rounding cancels between the sums and the total.
      const float2 rounded = unpack2<T::kBf16>(packed);
      run.total[n][0] += rounded.x, run.total[n][1] += rounded.y;
      weights[half][n] = transpose_matrix(packed);
    }
  }
}

// A thread's share of the list's queries on their way to shared memory: one row of q for each slot, zeros for slots that serve nothing.
template <typename T>
class QueryPieces {
 public:
  // Where they are, before the kernel's wait; null where there is none.
  __device__ __forceinline__ void place(const DecodeParams& p, const Place& place) {
#pragma unroll
    for (unsigned i = 0; i < kCount; ++i) {
      const int column = static_cast<int>(slot(i) % T::kColumns);
      from_[i] = nullptr;
      if (slot(i) < T::kSlots && column < place.num_columns) {
        const char* row = static_cast<const char*>(p.q) +
                          static_cast<int64_t>(place.output_row(p, column)) * (T::kHeadDim * 2);  // [head_dim] 16 bits
        from_[i] = reinterpret_cast<const uint4*>(row) + index(i) % kPieces;
      }
      asm volatile("" : "+l"(from_[i]));
    }
  }
  __device__ __forceinline__ void load() {
#pragma unroll
    for (unsigned i = 0; i < kCount; ++i) {
      pieces_[i] = load_if_any(from_[i]);
    }
  }
  __device__ __forceinline__ void store(char (*to)[T::kQueryStride]) const {  // to [kSlots, kQueryStride] bytes
#pragma unroll
    for (unsigned i = 0; i < kCount; ++i) {
      if (slot(i) < T::kSlots) *reinterpret_cast<uint4*>(to[slot(i)] + index(i) % kPieces * 16) = pieces_[i];
    }
  }

 private:
  static constexpr unsigned kPieces = T::kHeadDim / 8;  // of 16 bytes, in a row
  static constexpr unsigned kCount = ceil_div(T::kSlots * kPieces, 32 * kMinBlockWarps);
  static __device__ unsigned index(unsigned i) { return threadIdx.x + i * blockDim.x; }
  static __device__ unsigned slot(unsigned i) { return index(i) / kPieces; }

  const uint4* from_[kCount];  // [1] 16 bytes each
  uint4 pieces_[kCount];
};

}  // namespace rarefy::cuda
