#include "cuda/decode/launch.cuh"

namespace rarefy::cuda {

cudaError_t launch_decode_e4m3_f16(const DecodeLaunch& launch, cudaStream_t stream) {
  return launch_decode<1, false>(launch, stream);
}

}  // namespace rarefy::cuda
