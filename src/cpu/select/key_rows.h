// Dot products of a few queries with stored rows, and conversion of rows to f32. Used by selectors that read keys or page
// bounds as they are. Thread-safe; nothing is kept; pointers need no alignment beyond that of their elements.
#pragma once

#include <cstdint>

#include "rarefy/core/dtype.h"

namespace rarefy::cpu {

// dots[query * dot_stride + row] = sum over dim of q[query][dim] * rows[row][dim], accumulated in f32.
void dot_rows(const float* q,           // [num_queries, dim] f32
              int32_t num_queries, int32_t dim,
              const void* const* rows,  // [num_rows] pointers to [dim] dtype; f32, f16, bf16 or u8
              int32_t num_rows, DType dtype,
              float* dots,              // [num_queries, num_rows] f32; rows dot_stride elements apart
              int64_t dot_stride);

// The same for rows of 4-bit numbers 0 .. 15: byte j holds number j in its low half and number j + dim / 2 in its high half.
void dot_nibble_rows(const float* q,                    // [num_queries, dim] f32
                     int32_t num_queries, int32_t dim,  // even
                     const void* const* rows,           // [num_rows] pointers to [dim / 2] bytes
                     int32_t num_rows,
                     float* dots,                       // [num_queries, num_rows] f32; rows dot_stride elements apart
                     int64_t dot_stride);

void rows_to_float(const void* rows,  // [num_rows, dim] dtype; f32, f16 or bf16; row_stride elements apart
                   DType dtype, int64_t row_stride, int32_t num_rows, int32_t dim,
                   float* out);       // [num_rows, dim] f32

}  // namespace rarefy::cpu
