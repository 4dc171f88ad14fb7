#include "kv/kv_pool.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <utility>

#include "kv/bounded.h"

namespace rarefy {
namespace {

constexpr int32_t kSparePages = 1024;

Status check(const KvCacheConfig& config) {
  const auto expected = [](const char* field, const std::string& what, int64_t got) {
    return Status::invalid_argument(std::string("KV cache: ") + field + ": expected " + what + ", got " +
                                    std::to_string(got));
  };
  constexpr int32_t kMaxLayers = 1 << 16;
  if (config.num_layers < 1 || config.num_layers > kMaxLayers) {
    return expected("num_layers", "1 to " + std::to_string(kMaxLayers), config.num_layers);
  }
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
  if (!config.layer_kinds.empty() && config.layer_kinds.size() != static_cast<size_t>(config.num_layers)) {
    return expected("layer_kinds", "one for each of num_layers=" + std::to_string(config.num_layers) + ", or none",
                    static_cast<int64_t>(config.layer_kinds.size()));
  }
  for (const CacheKind kind : config.layer_kinds) {
    if (kind == CacheKind::window && config.window_tokens < 1) {
      return expected("window_tokens", "at least 1 with window layers", config.window_tokens);
    }
    if (kind == CacheKind::recurrent && config.state_floats < 1) {
      return expected("state_floats", "at least 1 with recurrent layers", config.state_floats);
    }
  }
  if (config.max_snapshots < 1) return expected("max_snapshots", "at least 1", config.max_snapshots);
  return {};
}

}  // namespace

Expected<std::shared_ptr<KvCache>> KvCache::create(const KvCacheConfig& config) {
  RAREFY_RETURN_IF_ERROR(check(config));
  const int64_t num_pages = (config.max_tokens + config.page_size - 1) / config.page_size;
  RAREFY_ASSIGN_OR_RETURN(auto pool, KvPool::create(config, static_cast<int32_t>(num_pages)));
  return std::shared_ptr<KvCache>(std::move(pool));
}

KvPool::KvPool(const KvCacheConfig& config, std::vector<int32_t> slots, const std::array<int32_t, 3>& counts,
               int32_t num_pages)
    : config_(config),
      slots_(std::move(slots)),
      counts_(counts),
      paged_(config, count(CacheKind::paged), num_pages),
      // A window holds no more pages than its sequence holds of paged layers, but for a last page that a snapshot keeps while the
      // sequence goes on in a copy. Only address space.
      window_(config, count(CacheKind::window), has(CacheKind::window) ? 2 * num_pages + kSparePages : 0),
      states_(count(CacheKind::recurrent) * config.state_floats) {}

Expected<std::shared_ptr<KvPool>> KvPool::create(const KvCacheConfig& config, int32_t num_pages) {
  std::array<int32_t, 3> counts = {};
  std::vector<int32_t> slots;
  slots.reserve(static_cast<size_t>(config.num_layers));
  for (int32_t layer = 0; layer < config.num_layers; ++layer) {
    slots.push_back(counts[static_cast<size_t>(config.kind(layer))]++);
  }
  if (!bounded_product({config.state_floats, counts[static_cast<size_t>(CacheKind::recurrent)], sizeof(float)})) {
    return Status::resource_exhausted("KV cache: expected states of at most " + std::to_string(kMaxCacheBytes) +
                                      " bytes, got state_floats=" + std::to_string(config.state_floats));
  }
  auto pool = std::shared_ptr<KvPool>(new KvPool(config, std::move(slots), counts, num_pages));
  RAREFY_RETURN_IF_ERROR(pool->paged_.reserve());
  if (pool->has(CacheKind::window)) RAREFY_RETURN_IF_ERROR(pool->window_.reserve());
  return pool;
}

Expected<int32_t> KvPool::add_index(std::string_view name, int32_t block_tokens, int64_t block_bytes,
                                    int64_t trained_bytes) {
  const std::string context = "KV cache: index '" + std::string(name) + "': ";
  if (block_tokens < 1 || config_.page_size % block_tokens != 0) {
    return Status::invalid_argument(context + "expected block_tokens that divide page_size " +
                                    std::to_string(config_.page_size) + ", got " + std::to_string(block_tokens));
  }
  if (block_bytes < 1) {
    return Status::invalid_argument(context + "expected block_bytes of at least 1, got " + std::to_string(block_bytes));
  }
  if (trained_bytes < 0) {
    return Status::invalid_argument(context + "expected trained_bytes of at least 0, got " + std::to_string(trained_bytes));
  }
  const std::lock_guard lock(index_mutex_);
  const int32_t num_known = num_indexes_.load(std::memory_order_relaxed);
  for (int32_t number = 0; number < num_known; ++number) {
    const KvIndex& known = *indexes_[number];
    if (known.name != name) continue;
    if (known.block_tokens == block_tokens && known.block_bytes == block_bytes && known.trained_bytes == trained_bytes) {
      return number;
    }
    const auto sizes = [](int32_t tokens, int64_t bytes, int64_t trained) {
      return std::to_string(tokens) + " tokens, " + std::to_string(bytes) + " bytes, " + std::to_string(trained) +
             " trained";
    };
    return Status::invalid_argument(context + "expected the blocks it was added with (" +
                                    sizes(known.block_tokens, known.block_bytes, known.trained_bytes) + "), got " +
                                    sizes(block_tokens, block_bytes, trained_bytes));
  }
  if (num_known == kMaxIndexes) {
    return Status::resource_exhausted(context + "a cache holds at most " + std::to_string(kMaxIndexes) +
                                      " indexes; create another cache");
  }
  auto index = std::make_unique<KvIndex>();
  index->name = name;
  index->block_tokens = block_tokens;
  index->blocks_per_page = config_.page_size / block_tokens;
  index->block_bytes = block_bytes;
  const auto head_bytes = bounded_product({block_bytes, index->blocks_per_page, num_pages()});
  const auto total = head_bytes
                         ? bounded_product({round_up(*head_bytes, 64), config_.num_kv_heads, count(CacheKind::paged)})
                         : std::nullopt;
  if (!total) {
    return Status::resource_exhausted(context + "expected at most " + std::to_string(kMaxCacheBytes) + " bytes, got " +
                                      std::to_string(block_bytes) + " bytes a block for " + std::to_string(num_pages()) +
                                      " pages, which is more");
  }
  index->head_stride_bytes = round_up(*head_bytes, 64);
  RAREFY_ASSIGN_OR_RETURN(index->memory, MappedMemory::reserve(*total));
  index->encoded = std::vector<std::atomic<int32_t>>(static_cast<size_t>(num_pages()) * count(CacheKind::paged));
  index->trained_bytes = trained_bytes;
  index->trained_stride_bytes = round_up(trained_bytes, 64);
  const auto trained_total = bounded_product({index->trained_stride_bytes, config_.num_kv_heads, count(CacheKind::paged)});
  if (!trained_total) {
    return Status::resource_exhausted(context + "expected trained data of at most " + std::to_string(kMaxCacheBytes) +
                                      " bytes, got " + std::to_string(trained_bytes) + " bytes a KV head and layer");
  }
  if (*trained_total > 0 && index->trained.reserve(static_cast<size_t>(*trained_total)) == nullptr) {
    return Status::resource_exhausted(context + "out of memory for " + std::to_string(*trained_total) +
                                      " bytes of trained data");
  }
  index->is_trained = std::vector<std::atomic<bool>>(static_cast<size_t>(count(CacheKind::paged)));
  indexes_[num_known] = std::move(index);
  num_indexes_.store(num_known + 1, std::memory_order_release);
  return num_known;
}

std::byte* KvPool::slot_entry(const KvIndex& index, int32_t slot, int32_t kv_head, int32_t page) const {
  const int64_t head = int64_t{slot} * config_.num_kv_heads + kv_head;
  return index.memory.data() + head * index.head_stride_bytes + int64_t{page} * index.blocks_per_page * index.block_bytes;
}

std::byte* KvPool::trained(int32_t index, int32_t layer, int32_t kv_head) const {
  const KvIndex& known = *indexes_[index];
  if (known.trained_bytes == 0) return nullptr;
  return known.trained.data() + (int64_t{slot(layer)} * config_.num_kv_heads + kv_head) * known.trained_stride_bytes;
}

void KvPool::copy_page(CacheKind kind, int32_t from, int32_t to, int32_t num_tokens) {
  group(kind).copy_page(from, to, num_tokens);
  if (kind != CacheKind::paged) return;
  // Another holder of the page may be encoding it (KvSequence::lock_index).
  const std::lock_guard lock(index_mutex_);
  const int32_t num_known = num_indexes_.load(std::memory_order_relaxed);
  for (int32_t number = 0; number < num_known; ++number) {
    KvIndex& index = *indexes_[number];
    const auto entry_bytes = static_cast<size_t>(index.blocks_per_page * index.block_bytes);
    for (int32_t slot = 0; slot < count(CacheKind::paged); ++slot) {
      const int32_t tokens = slot_encoded(index, slot, from).load(std::memory_order_relaxed);
      slot_encoded(index, slot, to).store(tokens, std::memory_order_relaxed);
      if (tokens == 0) continue;
      for (int32_t kv_head = 0; kv_head < config_.num_kv_heads; ++kv_head) {
        std::memcpy(slot_entry(index, slot, kv_head, to), slot_entry(index, slot, kv_head, from), entry_bytes);
      }
    }
  }
}

void KvPool::keep_encoded(CacheKind kind, int32_t page, int32_t num_tokens) {
  if (kind != CacheKind::paged) return;
  const int32_t num_known = num_indexes_.load(std::memory_order_acquire);
  for (int32_t number = 0; number < num_known; ++number) {
    KvIndex& index = *indexes_[number];
    const int32_t whole_blocks = num_tokens / index.block_tokens * index.block_tokens;
    for (int32_t slot = 0; slot < count(CacheKind::paged); ++slot) {
      std::atomic<int32_t>& tokens = slot_encoded(index, slot, page);
      if (tokens.load(std::memory_order_relaxed) > num_tokens) tokens.store(whole_blocks, std::memory_order_relaxed);
    }
  }
}

}  // namespace rarefy
