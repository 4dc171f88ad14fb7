#include "cpu/decode/amx.h"

#if RAREFY_HAS_AMX
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace rarefy::cpu {

bool amx_is_allowed() {
  static const bool allowed = [] {
    constexpr unsigned kBf16 = 1u << 22, kTiles = 1u << 24;  // EDX of leaf 7
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0 || (d & (kBf16 | kTiles)) != (kBf16 | kTiles)) return false;
    constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  }();
  return allowed;
}

}  // namespace rarefy::cpu
#endif
