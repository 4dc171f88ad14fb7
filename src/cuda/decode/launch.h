// Starts the decode kernel for one row format; one translation unit each, so that no compile takes long.
#pragma once

#include <cuda_runtime_api.h>

#include "cuda/decode/params.h"

namespace rarefy::cuda {

// Kernels exist for head_dim 64, 128 and 256. With head_dim 256 a block holds 8 slots, else 8 or 16.
struct DecodeLaunch {
  DecodeParams params;
  int32_t head_dim = 0, slots = 8;  // slots of a block: 8 or 16
  Blocks blocks;
  int32_t batch = 1;
  int32_t shared_bytes = 0;      // shared memory of a multiprocessor
  bool certificates = false;     // half of the slots for the variances
  bool overlap = false;          // programmatic dependent launch (sm_90)
  bool parts_in_shared = false;  // if there is room: of a list's only block, or of its blocks as a cluster (sm_90)
};

// 2 bytes an element, products in its own type; 1 byte (e4m3), products in the type of q.
cudaError_t launch_decode_bf16(const DecodeLaunch& launch, cudaStream_t stream);
cudaError_t launch_decode_f16(const DecodeLaunch& launch, cudaStream_t stream);
cudaError_t launch_decode_e4m3_bf16(const DecodeLaunch& launch, cudaStream_t stream);
cudaError_t launch_decode_e4m3_f16(const DecodeLaunch& launch, cudaStream_t stream);

}  // namespace rarefy::cuda
