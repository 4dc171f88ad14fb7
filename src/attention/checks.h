// Argument checks that every attention plan shares. Each returns ok or one message: what was expected, what came.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "rarefy/attention/paged_kv.h"
#include "rarefy/core/device.h"
#include "rarefy/core/status.h"

namespace rarefy {

Status check_heads(int32_t num_q_heads, int32_t num_kv_heads, int32_t head_dim);
Status check_float_dtype(std::string_view what, DType dtype);  // f32, f16 or bf16
Status check_kv_dtype(std::string_view what, DType dtype);     // these and f8_e4m3
Status check_page_size(int32_t page_size);
// 0 = none.
Status check_sliding_window(int32_t sliding_window);
Status check_soft_cap(float logit_soft_cap);
// Not null and aligned. not a tensor: pointer is any argument.
Status check_pointer(std::string_view what, const void* pointer, std::size_t alignment);
Status check_workspace(const void* workspace,  // [workspace_bytes] bytes
                       std::size_t workspace_bytes, std::size_t needed_bytes);
// The cache view against the shape a plan was made for, then the view itself; in host memory also what its pointers lead to.
Status check_kv(const PagedKvView& kv, int32_t batch, int32_t num_kv_heads, int32_t head_dim, DType dtype,
                int32_t page_size, DeviceKind memory);

}  // namespace rarefy
