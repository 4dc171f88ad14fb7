#include "rarefy/select/registry.h"

#include <cmath>
#include <map>
#include <mutex>
#include <utility>

#include "select/builtin_selectors.h"
#include "select/two_level.h"

namespace rarefy {
namespace {

struct Entry {
  SelectorInfo info;
  SelectorFactory factory;
};

SelectorFactory product_code_factory(std::string_view name) {
  return [name = std::string(name)](const SelectorShape& shape, std::string_view options) {
    return make_product_code_selector(shape, name, options);
  };
}

class Registry {
 public:
  Registry() {
    const auto add = [this](SelectorInfo info, SelectorFactory factory) {
      const std::string name = info.name;
      entries_.emplace(name, Entry{std::move(info), std::move(factory)});
    };
    add({"oracle", "", "exact scores from the cached keys; reads all of them"}, make_oracle_selector);
    add({"quest16", "bf16 (default), int8, int4; bound", "element-wise bounds of 16 keys"}, make_quest16_selector);
    add({"quest32", "bf16 (default), int8, int4; bound", "element-wise bounds of 32 keys"}, make_quest32_selector);
    add({"ds16", "4bit (default), 2bit; channels=PATH", "16 channels of each key"}, make_ds16_selector);
    add({"ds32", "4bit (default), 2bit; channels=PATH", "32 channels of each key"}, make_ds32_selector);
    add({"magicpig", "KxL (default 8x75)", "how many of L hash tables of K signs agree with the query"},
        make_magicpig_selector);
    add({"socket", "KxL (default 11x55)", "soft collisions in L hash tables of K signs, times |v|"}, make_socket_selector);
    for (const char* name : {"pq16x4", "pq8x8", "pq4x8", "pq2x6"}) {
      add({name, "", "nearest of 2^B centroids for each of M pieces of a key; any pqMxB with B from 4 to 8"},
          product_code_factory(name));
    }
    add({"sign", "bound", "one sign per rotated dimension, one scale per token"}, make_sign_selector);
    add({"sign64", "bound", "signs of the difference to the mean of 64 keys, one scale per token; the default"},
        make_centred_sign_selector);
    add({"q2", "bound", "2-bit code per rotated dimension, one scale per token"}, make_q2_selector);
  }

  Status add(SelectorInfo info, SelectorFactory factory) {
    const std::lock_guard lock(mutex_);
    const std::string name = info.name;
    if (!entries_.emplace(name, Entry{std::move(info), std::move(factory)}).second) {
      return Status::invalid_argument("selector: '" + name + "' is registered already; choose another name");
    }
    return {};
  }

  std::vector<SelectorInfo> list() const {
    const std::lock_guard lock(mutex_);
    std::vector<SelectorInfo> result;
    for (const auto& [name, entry] : entries_) result.push_back(entry.info);
    return result;
  }

  Expected<SelectorFactory> find(std::string_view name) const {
    const std::lock_guard lock(mutex_);
    const auto found = entries_.find(name);
    if (found != entries_.end()) return found->second.factory;
    if (is_product_code_name(name)) return product_code_factory(name);
    std::string known;
    for (const auto& [key, entry] : entries_) known += (known.empty() ? "" : ", ") + key;
    return Status::not_found("selector: there is no '" + std::string(name) + "'; available: " + known);
  }

 private:
  mutable std::mutex mutex_;
  std::map<std::string, Entry, std::less<>> entries_;
};

Registry& registry() {
  static auto* const instance = new Registry;  // never destroyed: what plugins registered lives as long as the process
  return *instance;
}

Status check_shape(const SelectorShape& shape) {
  if (shape.num_layers < 1 || shape.num_kv_heads < 1 || shape.head_dim < 1 || shape.group < 1 || shape.group > kMaxGroup) {
    return Status::invalid_argument(
        "selector: expected at least one layer, KV head and dimension and a group of 1 to " + std::to_string(kMaxGroup) +
        " query heads; got num_layers=" + std::to_string(shape.num_layers) +
        " num_kv_heads=" + std::to_string(shape.num_kv_heads) + " head_dim=" + std::to_string(shape.head_dim) +
        " group=" + std::to_string(shape.group));
  }
  if (shape.kv_dtype != DType::f32 && shape.kv_dtype != DType::f16 && shape.kv_dtype != DType::bf16) {
    return Status::unsupported("selector: keys must be f32, f16 or bf16, got " + std::string(to_string(shape.kv_dtype)));
  }
  return {};
}

// Largest sizes that any selector may ask for: far above what is useful, far below what overflows.
constexpr int64_t kMaxBlockBytes = int64_t{1} << 24;
constexpr size_t kMaxQueryStateBytes = size_t{1} << 26;

Status check_sizes(std::string_view text, const Selector& selector) {
  const int32_t block_tokens = selector.block_tokens();
  if (block_tokens < 1 || block_tokens > kMaxBlockTokens || (block_tokens & (block_tokens - 1)) != 0) {
    return Status::unsupported("selector: '" + std::string(text) + "': expected blocks of a power of two of 1 to " +
                               std::to_string(kMaxBlockTokens) + " tokens, as pages are, got " +
                               std::to_string(block_tokens));
  }
  if (selector.block_bytes() < 0 || selector.block_bytes() > kMaxBlockBytes ||
      selector.query_state_bytes() > kMaxQueryStateBytes) {
    return Status::unsupported("selector: '" + std::string(text) + "': expected index entries of 0 to " +
                               std::to_string(kMaxBlockBytes) + " bytes and a query state of at most " +
                               std::to_string(kMaxQueryStateBytes) + ", got " + std::to_string(selector.block_bytes()) +
                               " and " + std::to_string(selector.query_state_bytes()));
  }
  if (!(selector.bytes_per_token() >= 0.0) || !std::isfinite(selector.bytes_per_token())) {
    return Status::unsupported("selector: '" + std::string(text) +
                               "': expected a finite bytes_per_token of at least 0, got " +
                               std::to_string(selector.bytes_per_token()));
  }
  return {};
}

}  // namespace

Status register_selector(SelectorInfo info, SelectorFactory factory) {
  if (info.name.empty() || info.name.find_first_of(" \t\n:,=+") != std::string::npos) {
    return Status::invalid_argument("selector: expected a name without spaces and without any of : , = +, got '" +
                                    info.name + "'");
  }
  if (!factory) return Status::invalid_argument("selector: '" + info.name + "' comes without a factory");
  return registry().add(std::move(info), std::move(factory));
}

std::vector<SelectorInfo> list_selectors() { return registry().list(); }

std::vector<SelectorInfo> list_selector_combinations() {
  return {{"COARSE+FINE", "@SHARE (default 0.25)",
           "page scores for all tokens, token codes in the best SHARE of the pages; like quest32:int4+sign"},
          {"hard:COARSE+FINE", "@SHARE (default 0.25)", "the same, and tokens elsewhere are not chosen: biased"}};
}

Status check_selector_names(std::string_view text) {
  const auto check = [](std::string_view one) { return registry().find(one.substr(0, one.find(':'))).status(); };
  if (!is_two_level_text(text)) return check(text);
  const TwoLevelText parts = split_two_level_text(text);
  RAREFY_RETURN_IF_ERROR(check(parts.coarse));
  return check(parts.fine);
}

Expected<std::shared_ptr<const Selector>> make_selector(std::string_view text, const SelectorShape& shape) {
  RAREFY_RETURN_IF_ERROR(check_shape(shape));
  if (is_two_level_text(text)) return make_two_level_selector(shape, text);
  const size_t colon = text.find(':');
  const std::string_view name = text.substr(0, colon);
  const std::string_view options = colon == std::string_view::npos ? std::string_view() : text.substr(colon + 1);
  RAREFY_ASSIGN_OR_RETURN(const SelectorFactory factory, registry().find(name));
  auto selector = factory(shape, options);
  if (selector && *selector == nullptr) {
    return Status::internal("selector: the factory of '" + std::string(name) + "' returned nothing");
  }
  if (selector) RAREFY_RETURN_IF_ERROR(check_sizes(text, **selector));
  return selector;
}

}  // namespace rarefy
