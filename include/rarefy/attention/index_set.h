// IndexSet: the tokens that one decode step attends to. A selector makes it, an attention kernel consumes it; nothing else
// couples the two, so that any selector runs with any backend and a set can be stored and replayed.
//
// Token ids are logical positions in the sequence, unique and ascending. A token taken for certain has log weight 0; a
// sampled one has -ln(inclusion probability) >= 0. Entries past the count are never read. A count of -1 stands for all
// tokens of the sequence with weight 0 (dense fallback of that list).
#pragma once

#include <cstdint>
#include <vector>

#include "rarefy/core/status.h"

namespace rarefy {

// Who shares a list: the query heads of one KV head (the default), or nobody.
enum class ListScope : int32_t { kv_head = 0, query_head = 1 };

inline constexpr int32_t kAllTokens = -1;

// Non-owning.
struct IndexSetView {
  const int32_t* token_ids = nullptr;  // [batch, num_lists, max_selected] i32; logical positions; unique, ascending
  const int32_t* counts = nullptr;     // [batch, num_lists] i32; kAllTokens = dense
  const float* log_weight = nullptr;   // [batch, num_lists, max_selected] f32; >= 0; nullable = all zero
  int32_t num_lists = 0;               // num_kv_heads or num_q_heads, by scope
  int32_t max_selected = 0;
};

// Owner, filled in place by the selection; never shrinks its buffers.
class IndexSet {
 public:
  void resize(int32_t batch, int32_t num_lists, int32_t max_selected);

  int32_t batch() const { return batch_; }
  int32_t num_lists() const { return num_lists_; }
  int32_t max_selected() const { return max_selected_; }

  int32_t* token_ids(int32_t sequence, int32_t list);  // [max_selected] i32
  float* log_weight(int32_t sequence, int32_t list);   // [max_selected] f32
  int32_t& count(int32_t sequence, int32_t list);
  IndexSetView view() const;

 private:
  int32_t batch_ = 0, num_lists_ = 0, max_selected_ = 0;
  std::vector<int32_t> token_ids_;  // [batch, num_lists, max_selected] i32
  std::vector<int32_t> counts_;     // [batch, num_lists] i32
  std::vector<float> log_weight_;   // [batch, num_lists, max_selected] f32
};

// Checks a set from outside: counts in range, ids inside the sequence, unique and ascending, weights finite and >= 0.
// `kv_lens` // [batch] i32
Status validate(const IndexSetView& set, int32_t batch, const int32_t* kv_lens);

}  // namespace rarefy
