// PageRun: the consecutive pages that one sequence holds of a PageGroup, from some page of the sequence on. Tokens are numbered
// from the start of the sequence. Holds a reference to each page until release(). Belongs to one thread at a time.
#pragma once

#include <vector>

#include "kv/kv_pool.h"

namespace rarefy {

class PageRun {
 public:
  explicit PageRun(CacheKind kind) : kind_(kind) {}

  int32_t first_page() const { return first_page_; }
  const std::vector<int32_t>& table() const { return table_; }  // [pages held] i32; physical page of each
  int32_t page_of(int32_t token, int32_t page_size) const {
    return table_[static_cast<size_t>(token / page_size - first_page_)];
  }

  // Room for tokens [length, length + num_tokens): takes pages, copies a partly filled last page that is shared. Nothing changes
  // on failure.
  Status grow(KvPool& pool, int32_t length, int32_t num_tokens);
  // Gives back every page that tokens before `length` do not need.
  void shrink_to(KvPool& pool, int32_t length);
  // Gives back every page that tokens from `token` on do not need.
  void drop_before(KvPool& pool, int32_t token);
  // The pages that tokens before `length` need, held once more.
  PageRun share(KvPool& pool, int32_t length) const;
  void release(KvPool& pool);  // all pages; an empty run from the start of the sequence is left

 private:
  CacheKind kind_;
  int32_t first_page_ = 0;
  std::vector<int32_t> table_;  // [pages held] i32
};

}  // namespace rarefy
