// The body of every launch_decode_*: picks the instantiation and starts it with programmatic dependent launch, so that the
// start-up of this kernel overlaps the end of the one before (from sm_90 on; elsewhere the attribute is left out).
#pragma once

#include <algorithm>

#include "cuda/decode/kernel.cuh"
#include "cuda/decode/launch.h"

namespace rarefy::cuda {

template <typename T>
cudaError_t launch_kernel(const DecodeLaunch& launch, cudaStream_t stream) {
  const DecodeParams& p = launch.params;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(launch.blocks.per_list),
                        static_cast<unsigned>(p.num_lists * p.num_column_blocks), static_cast<unsigned>(launch.batch));
  config.blockDim = dim3(static_cast<unsigned>(32 * launch.blocks.warps));
  config.stream = stream;
  // So much that no more blocks than planned fit on a multiprocessor: where one was left over, the next kernel's blocks would start early
  // on some multiprocessors, three or four on one of them, and 50x at batch 16 took 18 % longer.
  constexpr int kReserved = 1024;  // the system's share of a block's shared memory
  const int planned = T::kBlocks * kMaxBlockWarps / launch.blocks.warps;
  const int least = launch.shared_bytes / (planned + 1) - kReserved + 16;
  config.dynamicSmemBytes = static_cast<size_t>(std::max(least, Shared<T>::bytes(launch.blocks.warps)));
  cudaLaunchAttribute overlap = {};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &overlap;
  config.numAttrs = launch.overlap ? 1 : 0;
  const cudaError_t error = cudaFuncSetAttribute(decode_kernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                 static_cast<int>(config.dynamicSmemBytes));
  return error != cudaSuccess ? error : cudaLaunchKernelEx(&config, decode_kernel<T>, p);
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
