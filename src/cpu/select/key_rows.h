// Dot products of a few queries with stored rows, and conversion of rows to f32. Used by selectors that read keys or page
// bounds as they are. Thread-safe; nothing is kept; pointers need no alignment beyond that of their elements.
#pragma once

#include <cstdint>

#include "rarefy/core/dtype.h"

namespace rarefy::cpu {

// dots[query * dot_stride + row] = sum over dim of q[query][dim] * rows[row][dim], accumulated in f32.
void dot_rows(const float* q,  // [num_queries, dim] f32
              int32_t num_queries, int32_t dim,
              const void* const* rows,  // [num_rows] pointers to [dim] dtype; f32, f16, bf16 or u8
              int32_t num_rows, DType dtype,
              float* dots,  // [num_queries, num_rows] f32; rows dot_stride elements apart
              int64_t dot_stride);

// Rounds to the nearest multiples of the returned step, the largest value's 1 / 32,767. Values that are not finite, and zeros,
// give the step 0 and zeros.
float round_to_i16(const float* values, int32_t count,  // [count] f32
                   int16_t* rounded);                   // [count] i16

// Dot products with rows of 4-bit numbers 0 .. 15, exact: byte j of a row holds number j in its low half and number j + dim / 2
// in its high half.
void dot_nibble_rows(const int16_t* q,                  // [num_queries, dim] i16
                     int32_t num_queries, int32_t dim,  // even, at most 4096
                     const void* const* rows,           // [num_rows] pointers to [dim / 2] bytes
                     int32_t num_rows,
                     int32_t* dots,  // [num_queries, num_rows] i32; rows dot_stride elements apart
                     int64_t dot_stride);

void rows_to_float(const void* rows,  // [num_rows, dim] dtype; f32, f16 or bf16; row_stride elements apart
                   DType dtype, int64_t row_stride, int32_t num_rows, int32_t dim,
                   float* out);  // [num_rows, dim] f32

}  // namespace rarefy::cpu
