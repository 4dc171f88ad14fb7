#include "kv/kv_pool.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <optional>

namespace rarefy {
namespace {

// Address spaces end at 2^47 bytes on common machines; anything near that is a mistake.
constexpr int64_t kMaxBytes = int64_t{1} << 46;

// Product of positive numbers, if it is at most kMaxBytes.
std::optional<int64_t> bounded_product(std::initializer_list<int64_t> factors) {
  int64_t product = 1;
  for (const int64_t factor : factors) {
    if (__builtin_mul_overflow(product, factor, &product) || product > kMaxBytes) return std::nullopt;
  }
  return product;
}

int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

Status check(const KvCacheConfig& config) {
  const auto expected = [](const char* field, const std::string& what, int64_t got) {
    return Status::invalid_argument(std::string("KV cache: ") + field + ": expected " + what + ", got " +
                                    std::to_string(got));
  };
  if (config.num_layers < 1) return expected("num_layers", "at least 1", config.num_layers);
  if (config.num_kv_heads < 1) return expected("num_kv_heads", "at least 1", config.num_kv_heads);
  if (config.head_dim < 1) return expected("head_dim", "at least 1", config.head_dim);
  if (config.page_size < 1 || config.page_size > 256 || !std::has_single_bit(static_cast<uint32_t>(config.page_size))) {
    return expected("page_size", "a power of two from 1 to 256 tokens", config.page_size);
  }
  // Positions are 32-bit.
  const int64_t most = std::numeric_limits<int32_t>::max() - int64_t{256};
  if (config.max_tokens < 1 || config.max_tokens > most) {
    return expected("max_tokens", "1 to " + std::to_string(most), config.max_tokens);
  }
  if (config.dtype != DType::f32 && config.dtype != DType::f16 && config.dtype != DType::bf16) {
    return Status::invalid_argument("KV cache: dtype: expected f32, f16 or bf16, got " +
                                    std::string(to_string(config.dtype)));
  }
  return {};
}

}  // namespace

Expected<std::shared_ptr<KvCache>> KvCache::create(const KvCacheConfig& config) {
  RAREFY_RETURN_IF_ERROR(check(config));
  const int64_t num_pages = (config.max_tokens + config.page_size - 1) / config.page_size;
  RAREFY_ASSIGN_OR_RETURN(auto pool, KvPool::create(config, static_cast<int32_t>(num_pages)));
  return std::shared_ptr<KvCache>(std::move(pool));
}

Expected<std::shared_ptr<KvPool>> KvPool::create(const KvCacheConfig& config, int32_t num_pages) {
  const auto element_bytes = static_cast<int64_t>(size_of(config.dtype));
  const auto row_bytes = bounded_product({config.head_dim, element_bytes});
  const auto region =
      row_bytes ? bounded_product({*row_bytes, config.page_size, num_pages, config.num_kv_heads}) : std::nullopt;
  const auto total = region ? bounded_product({round_up(*region, 4096), 2, config.num_layers}) : std::nullopt;
  if (!total) {
    return Status::resource_exhausted(
        "KV cache: expected at most " + std::to_string(kMaxBytes) +
        " bytes, got max_tokens=" + std::to_string(config.max_tokens) +
        " times num_layers=" + std::to_string(config.num_layers) + " num_kv_heads=" + std::to_string(config.num_kv_heads) +
        " head_dim=" + std::to_string(config.head_dim) + ", which is more; use a smaller max_tokens");
  }
  RAREFY_ASSIGN_OR_RETURN(MappedMemory memory, MappedMemory::reserve(*total));
  auto pool = std::shared_ptr<KvPool>(new KvPool(config, num_pages));
  pool->row_bytes_ = *row_bytes;
  pool->region_bytes_ = round_up(*region, 4096);
  pool->memory_ = std::move(memory);
  return pool;
}

Expected<int32_t> KvPool::add_index(std::string_view name, int32_t block_tokens, int64_t block_bytes) {
  const std::string context = "KV cache: index '" + std::string(name) + "': ";
  if (block_tokens < 1 || config_.page_size % block_tokens != 0) {
    return Status::invalid_argument(context + "expected block_tokens that divide page_size " +
                                    std::to_string(config_.page_size) + ", got " + std::to_string(block_tokens));
  }
  if (block_bytes < 1) {
    return Status::invalid_argument(context + "expected block_bytes of at least 1, got " + std::to_string(block_bytes));
  }
  const std::lock_guard lock(index_mutex_);
  const int32_t count = num_indexes_.load(std::memory_order_relaxed);
  for (int32_t number = 0; number < count; ++number) {
    const KvIndex& known = *indexes_[number];
    if (known.name != name) continue;
    if (known.block_tokens == block_tokens && known.block_bytes == block_bytes) return number;
    return Status::invalid_argument(context + "expected the blocks it was added with (" +
                                    std::to_string(known.block_tokens) + " tokens, " + std::to_string(known.block_bytes) +
                                    " bytes), got " + std::to_string(block_tokens) + " tokens, " +
                                    std::to_string(block_bytes) + " bytes");
  }
  if (count == kMaxIndexes) {
    return Status::resource_exhausted(context + "a cache holds at most " + std::to_string(kMaxIndexes) +
                                      " indexes; create another cache");
  }
  auto index = std::make_unique<KvIndex>();
  index->name = name;
  index->block_tokens = block_tokens;
  index->blocks_per_page = config_.page_size / block_tokens;
  index->block_bytes = block_bytes;
  const auto head_bytes = bounded_product({block_bytes, index->blocks_per_page, num_pages()});
  const auto total =
      head_bytes ? bounded_product({round_up(*head_bytes, 64), config_.num_kv_heads, config_.num_layers}) : std::nullopt;
  if (!total) {
    return Status::resource_exhausted(context + "expected at most " + std::to_string(kMaxBytes) + " bytes, got " +
                                      std::to_string(block_bytes) + " bytes a block for " + std::to_string(num_pages()) +
                                      " pages, which is more");
  }
  index->head_stride_bytes = round_up(*head_bytes, 64);
  RAREFY_ASSIGN_OR_RETURN(index->memory, MappedMemory::reserve(*total));
  index->encoded = std::vector<std::atomic<int32_t>>(static_cast<size_t>(num_pages()) * config_.num_layers);
  indexes_[count] = std::move(index);
  num_indexes_.store(count + 1, std::memory_order_release);
  return count;
}

std::byte* KvPool::index_entry(const KvIndex& index, int32_t layer, int32_t kv_head, int32_t page) const {
  const int64_t head = int64_t{layer} * config_.num_kv_heads + kv_head;
  return index.memory.data() + head * index.head_stride_bytes + int64_t{page} * index.blocks_per_page * index.block_bytes;
}

void KvPool::copy_page(int32_t from, int32_t to, int32_t num_tokens) {
  const auto rows = static_cast<size_t>(num_tokens * row_bytes_);
  for (int32_t layer = 0; layer < config_.num_layers; ++layer) {
    for (int32_t kv_head = 0; kv_head < config_.num_kv_heads; ++kv_head) {
      const auto offset = [&](int32_t page) {
        return (int64_t{kv_head} * pages_.num_pages() + page) * config_.page_size * row_bytes_;
      };
      std::memcpy(keys(layer) + offset(to), keys(layer) + offset(from), rows);
      std::memcpy(values(layer) + offset(to), values(layer) + offset(from), rows);
    }
  }
  // Another holder of the page may be encoding it (KvSequence::lock_index).
  const std::lock_guard lock(index_mutex_);
  const int32_t count = num_indexes_.load(std::memory_order_relaxed);
  for (int32_t number = 0; number < count; ++number) {
    KvIndex& index = *indexes_[number];
    const auto entry_bytes = static_cast<size_t>(index.blocks_per_page * index.block_bytes);
    for (int32_t layer = 0; layer < config_.num_layers; ++layer) {
      const int32_t tokens = encoded(index, layer, from).load(std::memory_order_relaxed);
      encoded(index, layer, to).store(tokens, std::memory_order_relaxed);
      if (tokens == 0) continue;
      for (int32_t kv_head = 0; kv_head < config_.num_kv_heads; ++kv_head) {
        std::memcpy(index_entry(index, layer, kv_head, to), index_entry(index, layer, kv_head, from), entry_bytes);
      }
    }
  }
}

void KvPool::keep_encoded(int32_t page, int32_t num_tokens) {
  const int32_t count = num_indexes_.load(std::memory_order_acquire);
  for (int32_t number = 0; number < count; ++number) {
    KvIndex& index = *indexes_[number];
    const int32_t whole_blocks = num_tokens / index.block_tokens * index.block_tokens;
    for (int32_t layer = 0; layer < config_.num_layers; ++layer) {
      std::atomic<int32_t>& tokens = encoded(index, layer, page);
      if (tokens.load(std::memory_order_relaxed) > num_tokens) tokens.store(whole_blocks, std::memory_order_relaxed);
    }
  }
}

}  // namespace rarefy
