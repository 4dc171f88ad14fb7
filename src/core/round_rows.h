// Rounding of f32 rows to the types of caches and outputs, to nearest, ties to even; the same bits as to_bfloat16 and to_float16, in loops
// that compilers vectorise.
#pragma once

#include <cstdint>

#include "rarefy/core/dtype.h"

namespace rarefy {

// dtype: f32, f16 or bf16.
void round_row(const float* from,  // [count] f32
               int64_t count, DType dtype,
               void* to);  // [count] dtype

}  // namespace rarefy
