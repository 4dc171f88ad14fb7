// Highway targets as explicit table entries: every kernel is compiled once per target and each copy can be called by name
// ("cpu_avx3"), which is what the registry, RAREFY_FORCE_IMPL and the tests need; Highway's own dispatch knows the best only.
//
// Use, after the per-target part of a foreach_target file:
//   #define RAREFY_ENTRY(lower, UPPER) {"cpu_" #lower, HWY_##UPPER, N_##UPPER::function},
//   const Entry kEntries[] = {RAREFY_FOREACH_SIMD(RAREFY_ENTRY)};    best first
// Include after hwy/highway.h; HWY_DISABLED_TARGETS (src/cpu/CMakeLists.txt) leaves these targets and no others.
#pragma once

#include "hwy/highway.h"

#if HWY_TARGETS & HWY_AVX3
#define RAREFY_SIMD_AVX3(X) X(avx3, AVX3)
#else
#define RAREFY_SIMD_AVX3(X)
#endif
#if HWY_TARGETS & HWY_AVX2
#define RAREFY_SIMD_AVX2(X) X(avx2, AVX2)
#else
#define RAREFY_SIMD_AVX2(X)
#endif
#if HWY_TARGETS & HWY_SSE2
#define RAREFY_SIMD_SSE2(X) X(sse2, SSE2)
#else
#define RAREFY_SIMD_SSE2(X)
#endif
#if HWY_TARGETS & HWY_NEON
#define RAREFY_SIMD_NEON(X) X(neon, NEON)
#else
#define RAREFY_SIMD_NEON(X)
#endif

#define RAREFY_FOREACH_SIMD(X) RAREFY_SIMD_AVX3(X) RAREFY_SIMD_AVX2(X) RAREFY_SIMD_SSE2(X) RAREFY_SIMD_NEON(X)
