// The body of every launch_decode_*: picks the instantiation and starts it with programmatic dependent launch, so that the
// start-up of this kernel overlaps the end of the one before (from sm_90 on; elsewhere the attribute is left out).
#pragma once

#include <algorithm>
#include <atomic>

#include "cuda/decode/kernel.cuh"
#include "cuda/decode/launch.h"

namespace rarefy::cuda {

// Whether the current device starts such clusters. More than 8 blocks are not guaranteed; asked once for each kernel and device.
template <typename T>
bool starts_clusters(const cudaLaunchConfig_t& config, int32_t blocks) {
  constexpr int kAlways = 8, kDevices = 64;
  if (blocks <= kAlways) return true;
  static std::atomic<int> known[kDevices];  // 0 = not asked yet, 1 = no, 2 = yes
  int device = 0, clusters = 0;
  if (cudaGetDevice(&device) != cudaSuccess || device >= kDevices) return false;
  int answer = known[device].load(std::memory_order_relaxed);
  if (answer == 0) {
    const bool allowed =
        cudaFuncSetAttribute(decode_kernel<T>, cudaFuncAttributeNonPortableClusterSizeAllowed, 1) == cudaSuccess &&
        cudaOccupancyMaxActiveClusters(&clusters, decode_kernel<T>, &config) == cudaSuccess && clusters > 0;
    if (!allowed) static_cast<void>(cudaGetLastError());  // a refusal is an answer
    known[device].store(answer = allowed ? 2 : 1, std::memory_order_relaxed);
  }
  return answer == 2;
}

template <typename T>
cudaError_t launch_kernel(const DecodeLaunch& launch, cudaStream_t stream) {
  DecodeParams p = launch.params;
  const auto blocks = static_cast<unsigned>(launch.blocks.per_list);
  cudaLaunchAttribute attributes[2] = {};
  cudaLaunchAttribute &overlap = attributes[0], &cluster = attributes[1];
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {blocks, 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim =
      dim3(blocks, static_cast<unsigned>(p.num_lists * p.num_column_blocks), static_cast<unsigned>(launch.batch));
  config.blockDim = dim3(static_cast<unsigned>(32 * launch.blocks.warps));
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = !launch.overlap ? 0 : blocks > 1 ? 2 : 1;
  // So much that no more blocks than planned fit on a multiprocessor: where one was left over, the next kernel's blocks would start early
  // on some multiprocessors, three or four on one of them, and 50x at batch 16 took 18 % longer.
  constexpr int kReserved = 1024;  // the system's share of a block's shared memory
  const int planned = T::kBlocks * kBlockWarps / launch.blocks.warps;
  const int least = launch.shared_bytes / (planned + 1) - kReserved + 16, most = launch.shared_bytes / planned - kReserved;
  const int bytes = Shared<T>::bytes(launch.blocks.warps);
  const auto set_bytes = [&](int needed) {
    config.dynamicSmemBytes = static_cast<size_t>(std::max(least, needed));
    return cudaFuncSetAttribute(decode_kernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                static_cast<int>(config.dynamicSmemBytes));
  };
  p.parts_at = 0;
  if (launch.parts_in_shared) {
    p.parts_pairs = p.full.pairs();
    p.parts_column_bits = 0;
    while (2 << p.parts_column_bits <= std::min(p.full_shares.blocks, p.columns_per_block)) ++p.parts_column_bits;
    const int rows = ceil_div(p.columns_per_block, 1 << p.parts_column_bits) * PartRow<T, true>::kKinds * p.parts_pairs;
    const int with_parts = bytes + rows * PartRow<T, true>::kFloats * static_cast<int>(sizeof(float));
    if (with_parts <= most && set_bytes(with_parts) == cudaSuccess && starts_clusters<T>(config, launch.blocks.per_list)) {
      p.parts_at = bytes;
    }
  }
  if (p.parts_at == 0) {
    // Side by side two blocks of a list take 1 % less time, although they meet in device memory.
    cluster.val.clusterDim.x = 2;
    const cudaError_t error = set_bytes(bytes);
    if (error != cudaSuccess) return error;
  }
  return cudaLaunchKernelEx(&config, decode_kernel<T>, p);
}

template <int kHeadDim, int kKvBytes, bool kBf16, int kColumnTiles>
cudaError_t launch_with_slots(const DecodeLaunch& launch, cudaStream_t stream) {
  return launch.certificates ? launch_kernel<DecodeTraits<kHeadDim, kKvBytes, kBf16, kColumnTiles, true>>(launch, stream)
                             : launch_kernel<DecodeTraits<kHeadDim, kKvBytes, kBf16, kColumnTiles, false>>(launch, stream);
}

template <int kKvBytes, bool kBf16>
cudaError_t launch_decode(const DecodeLaunch& launch, cudaStream_t stream) {
  const bool one = launch.slots == 8;
  switch (launch.head_dim) {
    case 64:
      return one ? launch_with_slots<64, kKvBytes, kBf16, 1>(launch, stream)
                 : launch_with_slots<64, kKvBytes, kBf16, 2>(launch, stream);
    case 128:
      return one ? launch_with_slots<128, kKvBytes, kBf16, 1>(launch, stream)
                 : launch_with_slots<128, kKvBytes, kBf16, 2>(launch, stream);
    default: return launch_with_slots<256, kKvBytes, kBf16, 1>(launch, stream);
  }
}

}  // namespace rarefy::cuda
