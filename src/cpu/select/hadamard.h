// Walsh-Hadamard transform in place, without scaling. Thread-safe.
#pragma once

#include <cstdint>

namespace rarefy::cpu {

void hadamard(float* values, int32_t size);  // [size] f32; size is a power of two

}  // namespace rarefy::cpu
