#include "rarefy/core/build_info.h"

// The switches of src/cpu: what is named here is what is compiled there.
#include "hwy/highway.h"
#include "rarefy_build_commit.h"

namespace rarefy {
namespace {

struct Target {
  const char* name;
  int64_t bit;
};
// Best first; what src/cpu/simd/targets.h enumerates.
constexpr Target kTargets[] = {{"AVX3", HWY_AVX3},
                               {"AVX2", HWY_AVX2},
#ifdef HWY_SSE2  // Highway 1.0.4 and later
                               {"SSE2", HWY_SSE2},
#endif
                               {"NEON", HWY_NEON}};

BuildInfo make_build_info() {
  BuildInfo info;
  info.version = RAREFY_VERSION;
  info.commit = RAREFY_BUILD_COMMIT;
  info.modified = RAREFY_BUILD_MODIFIED != 0;
  info.compiler = RAREFY_COMPILER;
  info.build_type = RAREFY_BUILD_TYPE;
  info.onednn = RAREFY_ONEDNN_VERSION;
  info.highway = std::to_string(HWY_MAJOR) + "." + std::to_string(HWY_MINOR) + "." + std::to_string(HWY_PATCH);
#ifdef RAREFY_WITH_CUDA
  info.cuda = true;
#endif
  const int64_t supported = hwy::SupportedTargets();
  for (const Target& target : kTargets) {
    if ((HWY_TARGETS & target.bit) == 0) continue;
    if (!info.simd_targets.empty()) info.simd_targets += ' ';
    info.simd_targets += target.name;
    if (info.simd_target.empty() && (supported & target.bit) != 0) info.simd_target = target.name;
  }
  return info;
}

}  // namespace

const BuildInfo& build_info() {
  static const BuildInfo info = make_build_info();
  return info;
}

}  // namespace rarefy
