#include "rarefy/attention/paged_kv.h"

#include <string>

#include "attention/checks.h"

namespace rarefy {

Status validate_layout(const PagedKvView& kv) {
  RAREFY_RETURN_IF_ERROR(check_kv_dtype("dtype", kv.dtype));
  if (kv.dtype != DType::f8_e4m3 && (kv.key_scales != nullptr || kv.value_scales != nullptr)) {
    return Status::invalid_argument("key_scales, value_scales: expected null with dtype " +
                                    std::string(to_string(kv.dtype)) + "; only an f8_e4m3 cache has scales");
  }
  RAREFY_RETURN_IF_ERROR(check_page_size(kv.page_size));
  if (kv.num_kv_heads < 1 || kv.head_dim < 1 || kv.num_pages < 0 || kv.max_pages_per_sequence < 0) {
    return Status::invalid_argument(
        "expected num_kv_heads >= 1, head_dim >= 1, num_pages >= 0 and max_pages_per_sequence >= 0");
  }
  if (kv.page_stride < 0 || kv.token_stride < 0 || kv.head_stride < 0) {
    return Status::invalid_argument("strides: expected values >= 0, got page_stride=" + std::to_string(kv.page_stride) +
                                    " token_stride=" + std::to_string(kv.token_stride) +
                                    " head_stride=" + std::to_string(kv.head_stride));
  }
  return check_pointer("kv_lens", kv.kv_lens, alignof(int32_t));
}

Status validate(const PagedKvView& kv, int32_t batch) {
  RAREFY_RETURN_IF_ERROR(validate_layout(kv));
  const int64_t capacity = int64_t{kv.max_pages_per_sequence} * kv.page_size;
  bool empty = true;
  for (int32_t sequence = 0; sequence < batch; ++sequence) {
    const int32_t kv_len = kv.kv_lens[sequence];
    if (kv_len < 0 || kv_len > capacity) {
      return Status::invalid_argument("kv_lens[" + std::to_string(sequence) + "]: expected 0 to " +
                                      std::to_string(capacity) + " (max_pages_per_sequence * page_size), got " +
                                      std::to_string(kv_len) + "; give the sequence a longer page table");
    }
    empty = empty && kv_len == 0;
  }
  if (empty) return {};
  RAREFY_RETURN_IF_ERROR(check_pointer("keys", kv.keys, size_of(kv.dtype)));
  RAREFY_RETURN_IF_ERROR(check_pointer("values", kv.values, size_of(kv.dtype)));
  RAREFY_RETURN_IF_ERROR(check_pointer("page_table", kv.page_table, alignof(int32_t)));
  for (int32_t sequence = 0; sequence < batch; ++sequence) {
    const int32_t pages = (kv.kv_lens[sequence] + kv.page_size - 1) / kv.page_size;
    const int32_t* row = kv.page_table + int64_t{sequence} * kv.max_pages_per_sequence;  // [max_pages_per_sequence] i32
    // One comparison a page; the slow loop runs only to name the culprit.
    bool inside = true;
    for (int32_t page = 0; page < pages; ++page) {
      inside &= static_cast<uint32_t>(row[page]) < static_cast<uint32_t>(kv.num_pages);
    }
    for (int32_t page = 0; !inside && page < pages; ++page) {
      if (row[page] >= 0 && row[page] < kv.num_pages) continue;
      return Status::invalid_argument("page_table[" + std::to_string(sequence) + "][" + std::to_string(page) +
                                      "]: expected a page from 0 to " + std::to_string(kv.num_pages - 1) + ", got " +
                                      std::to_string(row[page]));
    }
  }
  return {};
}

}  // namespace rarefy
