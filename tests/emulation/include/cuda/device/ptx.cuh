// What src/cuda/device/ptx.cuh and CUDA's built-in functions are on the emulated device (tests/emulation/device.h). The layouts of matrix
// operands are those of the PTX ISA (section on warp-level matrix instructions).
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

#include "rarefy/core/dtype.h"
#include "tests/emulation/device.h"

// What only nvcc knows.
#define __noinline__ __attribute__((noinline))
#ifndef __launch_bounds__
#define __launch_bounds__(...)
#endif

template <typename... Arguments>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Arguments...), cudaFuncAttribute attribute, int value) {
  return cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), attribute, value);
}

// Members that are looked up when they are read. Objects, because cudaLaunchConfig_t has members of the same names.
template <const rarefy::emulation::Index& (*kOf)()>
struct EmulatedIndex {
  template <unsigned rarefy::emulation::Index::*kMember>
  struct Member {
    operator unsigned() const { return kOf().*kMember; }
  };
  Member<&rarefy::emulation::Index::x> x;
  Member<&rarefy::emulation::Index::y> y;
  Member<&rarefy::emulation::Index::z> z;
};
inline constexpr EmulatedIndex<rarefy::emulation::thread_index> threadIdx;
inline constexpr EmulatedIndex<rarefy::emulation::block_index> blockIdx;
inline constexpr EmulatedIndex<rarefy::emulation::block_size> blockDim;
inline constexpr EmulatedIndex<rarefy::emulation::grid_size> gridDim;

using std::max;
using std::min;

inline void __syncthreads() { rarefy::emulation::wait_for_block(); }
inline void __syncwarp() { rarefy::emulation::wait_for_warp(); }

template <typename T>
T __shfl_sync(uint32_t, T value, int lane) {
  return rarefy::emulation::lanes_of(value)[static_cast<size_t>(lane) % 32];
}
template <typename T>
T __shfl_xor_sync(uint32_t, T value, int lanes) {
  return rarefy::emulation::lanes_of(value)[(rarefy::emulation::thread_index().x ^ static_cast<unsigned>(lanes)) % 32];
}
template <typename T>
T __shfl_up_sync(uint32_t, T value, int lanes) {
  const int lane = static_cast<int>(rarefy::emulation::thread_index().x % 32);
  const auto all = rarefy::emulation::lanes_of(value);
  return all[static_cast<size_t>(lane < lanes ? lane : lane - lanes)];
}
inline uint32_t __ballot_sync(uint32_t, bool value) {
  uint32_t result = 0;
  const auto all = rarefy::emulation::lanes_of(value);
  for (uint32_t lane = 0; lane < 32; ++lane) result |= static_cast<uint32_t>(all[lane]) << lane;
  return result;
}
inline bool __all_sync(uint32_t mask, bool value) { return __ballot_sync(mask, value) == 0xffffffffu; }
inline bool __any_sync(uint32_t mask, bool value) { return __ballot_sync(mask, value) != 0; }
template <typename T>
T __reduce_add_sync(uint32_t, T value) {
  T sum = 0;
  for (const T& each : rarefy::emulation::lanes_of(value)) sum += each;
  return sum;
}
template <typename T>
T __reduce_max_sync(uint32_t, T value) {
  const auto all = rarefy::emulation::lanes_of(value);
  return *std::max_element(all.begin(), all.end());
}

template <typename T>
T __ldg(const T* from) {  // from [1] T
  return *from;
}
template <typename T>
T __ldcg(const T* from) {  // from [1] T
  return *from;
}
inline int atomicCAS(int* at, int expected, int value) {  // at [1] i32
  const int before = *at;
  if (before == expected) *at = value;
  return before;
}
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdividef(float a, float b) { return a / b; }
inline int __ffs(int bits) { return bits == 0 ? 0 : std::countr_zero(static_cast<unsigned>(bits)) + 1; }
inline float __uint_as_float(uint32_t bits) { return std::bit_cast<float>(bits); }
inline float __int_as_float(int bits) { return std::bit_cast<float>(bits); }
inline int __float_as_int(float value) { return std::bit_cast<int>(value); }
inline uint32_t __byte_perm(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t bytes = uint64_t{b} << 32 | a;
  uint32_t result = 0;
  for (uint32_t i = 0; i < 4; ++i) result |= static_cast<uint32_t>(bytes >> (selector >> 4 * i & 7) * 8 & 0xff) << 8 * i;
  return result;
}

namespace rarefy::cuda {

inline char* block_memory() { return emulation::block_memory(); }
inline void wait_for_earlier_kernels() { emulation::wait_for_earlier_kernels(); }
inline void allow_next_kernel() {}
inline void arrive_early() { emulation::arrive_at_cluster(); }
inline void arrive_at_cluster() { emulation::arrive_at_cluster(); }
inline void wait_for_cluster() { emulation::wait_for_cluster(); }
template <typename T>
T* in_block(T* at, int rank) {  // not a tensor: any shared memory
  char* own = emulation::block_memory(emulation::block_rank_of(at));
  return reinterpret_cast<T*>(emulation::block_memory(rank) + (reinterpret_cast<char*>(at) - own));
}

template <typename T>
T load_if(bool wanted, const T* from, int64_t index, T otherwise) {  // from [> index] of 32 bits
  return wanted ? from[index] : otherwise;
}
inline uint4 load_if_any(const uint4* from) { return from != nullptr ? *from : uint4{}; }  // from [1] of 16 bytes
template <int kRowBytes>
void copy_16(uint32_t to, const char* from, bool wanted) {  // from [16] bytes
  emulation::start_copy(to, from, wanted);
}
inline void commit_copies() { emulation::commit_copies(); }
template <int kLater>
void wait_for_copies() {
  emulation::wait_for_copies(kLater);
}
inline void prefetch_l2(const void*) {}

inline uint32_t shared_address(const void* pointer) {  // not a tensor: any shared memory
  return static_cast<uint32_t>(static_cast<const char*>(pointer) - block_memory());
}
template <typename T>
T load_shared_as(uint32_t address) {
  T value;
  std::memcpy(&value, block_memory() + address, sizeof(T));
  return value;
}
inline uint32_t load_shared(uint32_t address) { return load_shared_as<uint32_t>(address); }
inline uint2 load_shared2(uint32_t address) { return load_shared_as<uint2>(address); }
inline void store_shared(uint32_t address, float value) { std::memcpy(block_memory() + address, &value, sizeof(value)); }

inline uint4 load_matrices(uint32_t address) {
  const auto rows = emulation::lanes_of(address);
  const uint32_t lane = threadIdx.x % 32, g = lane / 4, c = lane % 4;
  const auto matrix = [&](uint32_t m) { return load_shared(rows[m * 8 + g] + 4 * c); };
  return {matrix(0), matrix(1), matrix(2), matrix(3)};
}
inline uint4 load_matrices_transposed(uint32_t address) {
  const auto rows = emulation::lanes_of(address);
  const uint32_t lane = threadIdx.x % 32, g = lane / 4, c = lane % 4;
  const auto element = [&](uint32_t m, uint32_t row) {
    return uint32_t{load_shared_as<uint16_t>(rows[m * 8 + row] + 2 * g)};
  };
  const auto matrix = [&](uint32_t m) { return element(m, 2 * c) | element(m, 2 * c + 1) << 16; };
  return {matrix(0), matrix(1), matrix(2), matrix(3)};
}
inline uint32_t transpose_matrix(uint32_t value) {
  const auto all = emulation::lanes_of(value);
  const uint32_t lane = threadIdx.x % 32, g = lane / 4, c = lane % 4;
  const auto element = [&](uint32_t row, uint32_t column) {
    return all[row * 4 + column / 2] >> column % 2 * 16 & 0xffffu;
  };
  return element(2 * c, g) | element(2 * c + 1, g) << 16;
}
inline int32_t arrive(int32_t* counter) { return (*counter)++; }  // counter [1] i32

template <bool kBf16>
float element_of(uint32_t bits) {
  const auto narrow = static_cast<uint16_t>(bits);
  if constexpr (kBf16) return to_float(BFloat16{narrow});
  return to_float(Float16{narrow});
}
template <bool kBf16>
uint32_t bits_of(float value) {
  if constexpr (kBf16) return to_bfloat16(value).bits;
  return to_float16(value).bits;
}
template <bool kBf16>
uint32_t pack2(float low, float high) {
  return bits_of<kBf16>(low) | bits_of<kBf16>(high) << 16;
}
template <bool kBf16>
float2 unpack2(uint32_t packed) {
  return {element_of<kBf16>(packed), element_of<kBf16>(packed >> 16)};
}

template <bool kBf16>
void mma_16x8x16(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
  struct Operands {
    uint32_t a[4], b[2];
  };
  const auto all = emulation::lanes_of(Operands{{a0, a1, a2, a3}, {b0, b1}});
  const uint32_t lane = threadIdx.x % 32, g = lane / 4, c = lane % 4;
  for (uint32_t i = 0; i < 4; ++i) {
    const uint32_t row_half = i / 2, column = 2 * c + i % 2;
    float sum = d[i];
    for (uint32_t pair = 0; pair < 8; ++pair) {  // k = 2 * pair + (0, 1)
      const float2 a = unpack2<kBf16>(all[g * 4 + pair % 4].a[row_half + pair / 4 * 2]);
      const float2 b = unpack2<kBf16>(all[column * 4 + pair % 4].b[pair / 4]);
      sum += a.x * b.x + a.y * b.y;
    }
    d[i] = sum;
  }
}

inline float exp2_approximate(float x) { return exp2f(x); }
inline float tanh_approximate(float x) { return tanhf(x); }

template <bool kBf16>
uint2 widen_e4m3(uint32_t word) {
  const auto element = [&](uint32_t i) {
    return bits_of<kBf16>(to_float(Float8E4M3{static_cast<uint8_t>(word >> 8 * i)}));
  };
  return {element(0) | element(1) << 16, element(2) | element(3) << 16};
}

}  // namespace rarefy::cuda
