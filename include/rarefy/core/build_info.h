// What this library was built from and with, for version texts and result files. Thread-safe.
#pragma once

#include <string>

namespace rarefy {

struct BuildInfo {
  std::string version;       // "0.1.0"
  std::string commit;        // "0123456789ab", or "unknown" outside a git checkout
  bool modified = false;     // sources differed from that commit
  std::string compiler;      // "GNU 12.2.0"
  std::string build_type;    // "Release"
  std::string onednn;        // "2.6.3", or "none"
  std::string highway;       // "1.0.3"
  std::string simd_targets;  // compiled: "AVX3 AVX2 SSE2"
  std::string simd_target;   // the best of these that this machine has
  bool cuda = false;
};

const BuildInfo& build_info();

}  // namespace rarefy
