#include "kv/page_group.h"

#include <cstring>

#include "kv/bounded.h"

namespace rarefy {

PageGroup::PageGroup(const KvCacheConfig& config, int32_t num_layers, int32_t num_pages)
    : num_layers_(num_layers),
      num_kv_heads_(config.num_kv_heads),
      page_size_(config.page_size),
      head_dim_(config.head_dim),
      max_tokens_(config.max_tokens),
      row_bytes_(config.head_dim * static_cast<int64_t>(size_of(config.dtype))),
      pages_(num_pages) {}

Status PageGroup::reserve() {
  const auto region = bounded_product({row_bytes_, page_size_, pages_.num_pages(), num_kv_heads_});
  const auto total = region ? bounded_product({round_up(*region, 4096), 2, num_layers_}) : std::nullopt;
  if (!total) {
    return Status::resource_exhausted(
        "KV cache: expected at most " + std::to_string(kMaxCacheBytes) +
        " bytes, got max_tokens=" + std::to_string(max_tokens_) + " times num_layers=" + std::to_string(num_layers_) +
        " num_kv_heads=" + std::to_string(num_kv_heads_) + " head_dim=" + std::to_string(head_dim_) +
        ", which is more; use a smaller max_tokens");
  }
  RAREFY_ASSIGN_OR_RETURN(memory_, MappedMemory::reserve(*total));
  region_bytes_ = round_up(*region, 4096);
  return {};
}

void PageGroup::copy_page(int32_t from, int32_t to, int32_t num_tokens) {
  const auto bytes = static_cast<size_t>(num_tokens * row_bytes_);
  for (int32_t layer = 0; layer < num_layers_; ++layer) {
    for (int32_t kv_head = 0; kv_head < num_kv_heads_; ++kv_head) {
      const int64_t source = row_offset_bytes(kv_head, from, 0), target = row_offset_bytes(kv_head, to, 0);
      std::memcpy(keys(layer) + target, keys(layer) + source, bytes);
      std::memcpy(values(layer) + target, values(layer) + source, bytes);
    }
  }
}

}  // namespace rarefy
