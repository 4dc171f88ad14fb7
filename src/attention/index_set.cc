#include "rarefy/attention/index_set.h"

#include <cmath>
#include <string>

namespace rarefy {
namespace {

std::string place(const char* what, int32_t sequence, int32_t list, int32_t entry) {
  std::string text = what;
  for (int32_t index : {sequence, list, entry}) {
    if (index >= 0) text.append("[").append(std::to_string(index)).append("]");
  }
  return text;
}

}  // namespace

void IndexSet::resize(int32_t batch, int32_t num_lists, int32_t max_selected) {
  batch_ = batch;
  num_lists_ = num_lists;
  max_selected_ = max_selected;
  const size_t lists = static_cast<size_t>(batch) * static_cast<size_t>(num_lists);
  const size_t entries = lists * static_cast<size_t>(max_selected);
  if (counts_.size() < lists) counts_.resize(lists);
  if (token_ids_.size() < entries) token_ids_.resize(entries);
  if (log_weight_.size() < entries) log_weight_.resize(entries);
}

int32_t* IndexSet::token_ids(int32_t sequence, int32_t list) {
  return token_ids_.data() + (int64_t{sequence} * num_lists_ + list) * max_selected_;
}

float* IndexSet::log_weight(int32_t sequence, int32_t list) {
  return log_weight_.data() + (int64_t{sequence} * num_lists_ + list) * max_selected_;
}

int32_t& IndexSet::count(int32_t sequence, int32_t list) {
  return counts_[static_cast<size_t>(int64_t{sequence} * num_lists_ + list)];
}

IndexSetView IndexSet::view() const {
  return {token_ids_.data(), counts_.data(), log_weight_.data(), num_lists_, max_selected_};
}

Status validate(const IndexSetView& set, int32_t batch, const int32_t* kv_lens) {
  if (set.num_lists < 1 || set.max_selected < 0) {
    return Status::invalid_argument("index set: expected num_lists >= 1 and max_selected >= 0, got num_lists=" +
                                    std::to_string(set.num_lists) + " max_selected=" + std::to_string(set.max_selected));
  }
  if (set.counts == nullptr || (set.token_ids == nullptr && set.max_selected > 0)) {
    return Status::invalid_argument("index set: expected counts and token_ids, got null");
  }
  for (int32_t sequence = 0; sequence < batch; ++sequence) {
    for (int32_t list = 0; list < set.num_lists; ++list) {
      const int64_t row = int64_t{sequence} * set.num_lists + list;
      const int32_t count = set.counts[row];
      if (count < kAllTokens || count > set.max_selected) {
        return Status::invalid_argument(place("counts", sequence, list, -1) +
                                        ": expected -1 (all tokens) to max_selected=" + std::to_string(set.max_selected) +
                                        ", got " + std::to_string(count));
      }
      for (int32_t i = 0; i < count; ++i) {
        const int32_t token = set.token_ids[row * set.max_selected + i];
        if (token < 0 || token >= kv_lens[sequence]) {
          return Status::invalid_argument(place("token_ids", sequence, list, i) +
                                          ": expected a token from 0 to kv_len - 1 = " +
                                          std::to_string(kv_lens[sequence] - 1) + ", got " + std::to_string(token));
        }
        if (i > 0 && token <= set.token_ids[row * set.max_selected + i - 1]) {
          return Status::invalid_argument(place("token_ids", sequence, list, i) + ": expected more than its predecessor " +
                                          std::to_string(set.token_ids[row * set.max_selected + i - 1]) + ", got " +
                                          std::to_string(token) + "; sort the list and drop duplicates");
        }
        if (set.log_weight == nullptr) continue;
        const float weight = set.log_weight[row * set.max_selected + i];
        if (!std::isfinite(weight) || weight < 0.0f) {
          return Status::invalid_argument(place("log_weight", sequence, list, i) + ": expected a finite value >= 0, got " +
                                          std::to_string(weight));
        }
      }
    }
  }
  return {};
}

}  // namespace rarefy
