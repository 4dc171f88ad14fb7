// Intel's matrix unit (AMX): whether it can be compiled for, and whether this process may use it.
#pragma once

// The permission is Linux's; GCC has the intrinsics since 11, clang since 12.
#if defined(__x86_64__) && defined(__linux__)
#define RAREFY_HAS_AMX 1
#else
#define RAREFY_HAS_AMX 0
#endif

namespace rarefy::cpu {

// Whether this machine multiplies bf16 matrices, and the kernel lets this process keep their registers: asked for once. From then on Linux
// wants room for them (8 KiB more) on alternate signal stacks, and refuses where a thread has a smaller one already.
bool amx_is_allowed();  // with RAREFY_HAS_AMX only

}  // namespace rarefy::cpu
