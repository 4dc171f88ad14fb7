#include "cuda/decode/launch.cuh"

namespace rarefy::cuda {

cudaError_t launch_decode_bf16(const DecodeLaunch& launch, cudaStream_t stream) {
  return launch_decode<2, true>(launch, stream);
}

}  // namespace rarefy::cuda
