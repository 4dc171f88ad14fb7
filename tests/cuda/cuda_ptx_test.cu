// What ptx.cuh takes for granted about the device.
#include <gtest/gtest.h>

#include <cstdint>

#include "cuda/device/ptx.cuh"

namespace rarefy::test {
namespace {

__global__ void make_evict_first(uint64_t* policy) {  // policy [1] u64
  asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(*policy));
}

TEST(CudaPtx, EvictFirstIsWhatTheDeviceMakesOfIt) {
  uint64_t* device_policy = nullptr;
  ASSERT_EQ(cudaMalloc(&device_policy, sizeof(uint64_t)), cudaSuccess);
  make_evict_first<<<1, 1>>>(device_policy);
  uint64_t policy = 0;
  ASSERT_EQ(cudaMemcpy(&policy, device_policy, sizeof(policy), cudaMemcpyDeviceToHost), cudaSuccess);
  EXPECT_EQ(policy, cuda::kEvictFirst);
  EXPECT_EQ(cudaFree(device_policy), cudaSuccess);
}

}  // namespace
}  // namespace rarefy::test
