#include "attention/checks.h"

#include <cmath>
#include <string>

namespace rarefy {
namespace {

std::string number(int64_t value) { return std::to_string(value); }

}  // namespace

Status check_heads(int32_t num_q_heads, int32_t num_kv_heads, int32_t head_dim) {
  if (num_kv_heads < 1 || num_q_heads < 1 || num_q_heads % num_kv_heads != 0) {
    return Status::invalid_argument("num_q_heads: expected a positive multiple of num_kv_heads, got num_q_heads=" +
                                    number(num_q_heads) + " num_kv_heads=" + number(num_kv_heads));
  }
  if (num_q_heads / num_kv_heads > 16) {
    return Status::unsupported("num_q_heads: expected at most 16 query heads per KV head, got " +
                               number(num_q_heads / num_kv_heads));
  }
  if (head_dim < 16 || head_dim > 256 || head_dim % 16 != 0) {
    return Status::unsupported("head_dim: expected a multiple of 16 from 16 to 256, got " + number(head_dim));
  }
  return {};
}

Status check_float_dtype(std::string_view what, DType dtype) {
  if (dtype == DType::f32 || dtype == DType::f16 || dtype == DType::bf16) return {};
  return Status::unsupported(std::string(what) + ": expected f32, f16 or bf16, got " + std::string(to_string(dtype)));
}

Status check_kv_dtype(std::string_view what, DType dtype) {
  if (dtype == DType::f8_e4m3) return {};
  if (check_float_dtype(what, dtype).ok()) return {};
  return Status::unsupported(std::string(what) + ": expected f32, f16, bf16 or f8_e4m3, got " +
                             std::string(to_string(dtype)));
}

Status check_page_size(int32_t page_size) {
  if (page_size >= 1 && page_size <= 256 && (page_size & (page_size - 1)) == 0) return {};
  return Status::unsupported("page_size: expected a power of two from 1 to 256, got " + number(page_size));
}

Status check_sliding_window(int32_t sliding_window) {
  if (sliding_window >= 0) return {};
  return Status::invalid_argument("sliding_window: expected at least 1 token, or 0 for none, got " +
                                  number(sliding_window));
}

Status check_soft_cap(float logit_soft_cap) {
  if (std::isfinite(logit_soft_cap) && logit_soft_cap >= 0.0f) return {};
  return Status::invalid_argument("logit_soft_cap: expected a finite value >= 0 (0 = none), got " +
                                  std::to_string(logit_soft_cap));
}

Status check_pointer(std::string_view what, const void* pointer, std::size_t alignment) {
  if (pointer == nullptr) return Status::invalid_argument(std::string(what) + ": expected a buffer, got null");
  if (reinterpret_cast<std::uintptr_t>(pointer) % alignment == 0) return {};
  return Status::invalid_argument(std::string(what) + ": expected an address aligned to " +
                                  number(static_cast<int64_t>(alignment)) + " bytes; allocate it aligned");
}

Status check_workspace(const void* workspace, std::size_t workspace_bytes, std::size_t needed_bytes) {
  if (needed_bytes == 0) return {};
  if (workspace_bytes < needed_bytes) {
    return Status::invalid_argument("workspace_bytes: expected at least " + number(static_cast<int64_t>(needed_bytes)) +
                                    " (the plan's workspace_bytes()), got " +
                                    number(static_cast<int64_t>(workspace_bytes)));
  }
  return check_pointer("workspace", workspace, 64);
}

Status check_kv(const PagedKvView& kv, int32_t batch, int32_t num_kv_heads, int32_t head_dim, DType dtype,
                int32_t page_size, DeviceKind memory) {
  if (kv.num_kv_heads != num_kv_heads || kv.head_dim != head_dim || kv.page_size != page_size || kv.dtype != dtype) {
    const auto text = [](int64_t heads, int64_t dim, int64_t page, DType type) {
      return "num_kv_heads=" + number(heads) + " head_dim=" + number(dim) + " page_size=" + number(page) +
             " dtype=" + std::string(to_string(type));
    };
    return Status::invalid_argument("kv: expected the shape the plan was made for, " +
                                    text(num_kv_heads, head_dim, page_size, dtype) + ", got " +
                                    text(kv.num_kv_heads, kv.head_dim, kv.page_size, kv.dtype));
  }
  const Status status = memory == DeviceKind::cpu ? validate(kv, batch) : validate_layout(kv);
  return status.with_context("kv");
}

}  // namespace rarefy
