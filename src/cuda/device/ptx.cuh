// The few PTX instructions that have no CUDA C++ spelling, one function each. All need sm_80; the dependent-launch pair and clusters do
// nothing before sm_90. tests/emulation has the same functions for a CPU.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace rarefy::cuda {

// A block's shared memory.
__device__ __forceinline__ char* block_memory() {
  extern __shared__ __align__(128) char memory[];
  return memory;
}

// Waits until the kernels before this one in the stream have finished and their writes are visible.
__device__ __forceinline__ void wait_for_earlier_kernels() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// From here on the next kernel of the stream may be put on the device, up to its own wait.
__device__ __forceinline__ void allow_next_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// The blocks of a cluster meet: all arrive, some wait; who has left counts as arrived. What was written to another block's shared memory
// before arrive_at_cluster() is there after wait_for_cluster(); arrive_early() only says that this block runs.
__device__ __forceinline__ void arrive_early() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
#endif
}
__device__ __forceinline__ void arrive_at_cluster() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}
__device__ __forceinline__ void wait_for_cluster() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}
// The same place in the shared memory of block `rank` of the cluster.
template <typename T>
__device__ __forceinline__ T* in_block(T* at, int rank) {  // not a tensor: any shared memory, by its generic address
#if __CUDA_ARCH__ >= 900
  uint64_t result;
  asm volatile("mapa.u64 %0, %1, %2;" : "=l"(result) : "l"(at), "r"(rank));
  return reinterpret_cast<T*>(result);
#else
  return at;
#endif
}

// For what is read once, so that it leaves the L2 cache first: what createpolicy.fractional.L2::evict_first makes of 1.0 on every architecture
// here (tests/cuda compares them). As a constant it comes from uniform registers; made by that instruction it stays in two registers of every
// lane and is moved from there for each copy.
inline constexpr uint64_t kEvictFirst = 0x12F0000000000000;

// Starts a copy of 16 bytes from device to shared memory past the L1 cache; zeros if not `wanted`, and then nothing is read. kRowBytes
// of the row are contiguous and all wanted, so that the L2 cache may fetch 128 of them at once: 256 at once took 1 to 3 % longer.
template <int kRowBytes>
__device__ __forceinline__ void copy_16(uint32_t to, const char* from, bool wanted) {  // from [16] bytes; aligned
  const int bytes = wanted ? 16 : 0;
  if constexpr (kRowBytes >= 128) {
    asm volatile(
        "{\n.reg .b64 policy;\nmov.b64 policy, %3;\n"
        "cp.async.cg.shared.global.L2::cache_hint.L2::128B [%0], [%1], 16, %2, policy;\n}" ::"r"(to),
        "l"(from), "r"(bytes), "n"(kEvictFirst)
        : "memory");
  } else {
    asm volatile(
        "{\n.reg .b64 policy;\nmov.b64 policy, %3;\n"
        "cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2, policy;\n}" ::"r"(to),
        "l"(from), "r"(bytes), "n"(kEvictFirst)
        : "memory");
  }
}
// Ends a group of copies of this thread. wait_for_copies waits for all groups but the last kLater.
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kLater>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kLater) : "memory");
}

// Brings a line into the L2 cache. Reads nothing into the kernel: what is written later is seen by later loads all the same.
__device__ __forceinline__ void prefetch_l2(const void* address) {  // not a tensor: any address
  asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
}

// from[index], or `otherwise` if not `wanted`, and then nothing is read: `from` may be null. Without a branch, which would part the loads around
// it: the compiler then waits for one before it has asked for the next.
template <typename T>
__device__ __forceinline__ T load_if(bool wanted, const T* from, int64_t index, T otherwise) {  // from [> index] of 32 bits
  static_assert(sizeof(T) == 4);
  auto value = reinterpret_cast<const uint32_t&>(otherwise);
  asm volatile("{\n.reg .pred wanted;\nsetp.ne.b32 wanted, %2, 0;\n@wanted ld.global.b32 %0, [%1];\n}"
               : "+r"(value)
               : "l"(reinterpret_cast<uint64_t>(from) + static_cast<uint64_t>(index) * 4), "r"(static_cast<int>(wanted)));
  return reinterpret_cast<const T&>(value);
}
// *from, which nothing writes while the kernel runs; zeros for null.
__device__ __forceinline__ uint4 load_if_any(const uint4* from) {  // from [1] of 16 bytes
  uint4 value = {};
  asm volatile("{\n.reg .pred any;\nsetp.ne.b64 any, %4, 0;\n@any ld.global.nc.v4.b32 {%0, %1, %2, %3}, [%4];\n}"
               : "+r"(value.x), "+r"(value.y), "+r"(value.z), "+r"(value.w)
               : "l"(from));
  return value;
}

// Shared memory by its 32-bit address, which the compiler would otherwise rebuild from a generic one at every use.
__device__ __forceinline__ uint32_t shared_address(const void* pointer) {  // not a tensor: any shared memory
  uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
  asm volatile("" : "+r"(address));
  return address;
}
__device__ __forceinline__ uint32_t load_shared(uint32_t address) {
  uint32_t value;
  asm volatile("ld.shared.b32 %0, [%1];" : "=r"(value) : "r"(address) : "memory");
  return value;
}
__device__ __forceinline__ uint2 load_shared2(uint32_t address) {  // 8-byte aligned
  uint2 value;
  asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];" : "=r"(value.x), "=r"(value.y) : "r"(address) : "memory");
  return value;
}
__device__ __forceinline__ void store_shared(uint32_t address, float value) {
  asm volatile("st.shared.f32 [%0], %1;" ::"r"(address), "f"(value) : "memory");
}

// Four matrices of 8 x 8 16-bit elements (or 8 rows of 16 bytes); lane l gives the address of row l % 8 of matrix l / 8. Lane (g, c)
// gets elements 2c, 2c + 1 of row g of each; transposed: of column g, from rows 2c, 2c + 1.
__device__ __forceinline__ uint4 load_matrices(uint32_t address) {
  uint4 value;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "r"(address)
               : "memory");
  return value;
}
__device__ __forceinline__ uint4 load_matrices_transposed(uint32_t address) {
  uint4 value;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "r"(address)
               : "memory");
  return value;
}
__device__ __forceinline__ uint32_t transpose_matrix(uint32_t value) {
  uint32_t result;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(result) : "r"(value));
  return result;
}

// One more arrival at a counter in device memory: what this thread (and, after a barrier, its block) wrote before is visible to
// whoever sees the count, and the other way round.
__device__ __forceinline__ int32_t arrive(int32_t* counter) {  // counter [1] i32
  int32_t before;
  asm volatile("atom.add.acq_rel.gpu.global.s32 %0, [%1], 1;" : "=r"(before) : "l"(counter) : "memory");
  return before;
}

// d += a b with a [16, 16] (row-major), b [16, 8] (column-major) of 16-bit elements, d [16, 8] f32. Lane (g, c) holds
// a: (g, 2c..), (g + 8, 2c..), (g, 2c + 8..), (g + 8, 2c + 8..); b: (2c.., g), (2c + 8.., g); d: (g, 2c..), (g + 8, 2c..).
template <bool kBf16>
__device__ __forceinline__ void mma_16x8x16(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                                            uint32_t b1) {
  if constexpr (kBf16) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
  } else {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
  }
}

__device__ __forceinline__ float exp2_approximate(float x) {  // 2 ulp; exp2(-inf) = 0
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Within 4e-7 of tanh, absolute; in six instructions, where tanhf has more than the rest of a step.
__device__ __forceinline__ float tanh_approximate(float x) {
  constexpr float kTwoLog2E = 2.8853900817779268f;
  return 1.0f - __fdividef(2.0f, exp2_approximate(x * kTwoLog2E) + 1.0f);
}

// Two floats rounded to 16-bit elements, the first in the low half.
template <bool kBf16>
__device__ __forceinline__ uint32_t pack2(float low, float high) {
  uint32_t packed;
  if constexpr (kBf16) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  }
  return packed;
}

template <bool kBf16>
__device__ __forceinline__ float2 unpack2(uint32_t packed) {
  if constexpr (kBf16) return {__uint_as_float(packed << 16), __uint_as_float(packed & 0xffff0000u)};
  return __half22float2(*reinterpret_cast<const __half2*>(&packed));
}

// Four e4m3 numbers of one word as two words of 16-bit elements, exact: the bits move to where the wider type keeps exponent
// and mantissa, and one product by a power of two corrects the exponent's bias, subnormals included. NaN becomes NaN: its bits
// give 480, which no number has, and are replaced.
template <bool kBf16>
__device__ __forceinline__ uint2 widen_e4m3(uint32_t word) {
  const uint32_t pairs[2] = {__byte_perm(word, 0, 0x1404),
                             __byte_perm(word, 0, 0x3424)};  // each byte in its half's upper byte
  uint32_t result[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint32_t magnitude = pairs[i] & 0x7f007f00u;
    const uint32_t moved = (pairs[i] & 0x80008000u) | (magnitude >> (kBf16 ? 4 : 1));
    if constexpr (kBf16) {
      const __nv_bfloat162 factor =
          __halves2bfloat162(__ushort_as_bfloat16(0x7b80), __ushort_as_bfloat16(0x7b80));  // 2^120
      const __nv_bfloat162 product = __hmul2(*reinterpret_cast<const __nv_bfloat162*>(&moved), factor);
      result[i] = *reinterpret_cast<const uint32_t*>(&product);
    } else {
      const __half2 factor = __halves2half2(__ushort_as_half(0x5c00), __ushort_as_half(0x5c00));  // 2^8
      const __half2 product = __hmul2(*reinterpret_cast<const __half2*>(&moved), factor);
      result[i] = *reinterpret_cast<const uint32_t*>(&product);
    }
    result[i] |= __vcmpeq2(magnitude, 0x7f007f00u);
  }
  return {result[0], result[1]};
}

}  // namespace rarefy::cuda
