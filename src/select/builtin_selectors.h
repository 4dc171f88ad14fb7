// Factories of the built-in selectors (select/registry.h). `options` is the text after the colon in a policy.
#pragma once

#include <memory>
#include <string_view>

#include "rarefy/select/selector.h"

namespace rarefy {

// Takes the next of several options off the front of a text in which colons separate them.
inline std::string_view take_option(std::string_view& rest) {
  const size_t colon = rest.find(':');
  const std::string_view option = rest.substr(0, colon);
  rest = colon == std::string_view::npos ? std::string_view() : rest.substr(colon + 1);
  return option;
}

// Exact scores from the cached keys: what a perfect index would give. Reads every key.
Expected<std::shared_ptr<const Selector>> make_oracle_selector(const SelectorShape& shape, std::string_view options);
// Element-wise bounds of 16 or 32 keys (Quest, arXiv 2406.10774); options: bf16 (default), int8, int4; bound.
Expected<std::shared_ptr<const Selector>> make_quest16_selector(const SelectorShape& shape, std::string_view options);
Expected<std::shared_ptr<const Selector>> make_quest32_selector(const SelectorShape& shape, std::string_view options);
// One sign per rotated dimension and one scale per token.
Expected<std::shared_ptr<const Selector>> make_sign_selector(const SelectorShape& shape, std::string_view options);
// Signs of the difference to the mean of 64 keys.
Expected<std::shared_ptr<const Selector>> make_centred_sign_selector(const SelectorShape& shape, std::string_view options);
// Double Sparsity with 16 or 32 channels; options: 4bit (default), 2bit; channels=PATH.
Expected<std::shared_ptr<const Selector>> make_ds16_selector(const SelectorShape& shape, std::string_view options);
Expected<std::shared_ptr<const Selector>> make_ds32_selector(const SelectorShape& shape, std::string_view options);
// Hash tables of signs: collisions (MagicPIG) and soft collisions (SOCKET); options: KxL, K signs in each of L tables.
Expected<std::shared_ptr<const Selector>> make_magicpig_selector(const SelectorShape& shape, std::string_view options);
Expected<std::shared_ptr<const Selector>> make_socket_selector(const SelectorShape& shape, std::string_view options);
bool parse_signs_and_tables(std::string_view options, int32_t& num_signs, int32_t& num_tables);  // "8x75"
// Product quantisation, any pqMxB.
bool is_product_code_name(std::string_view name);
Expected<std::shared_ptr<const Selector>> make_product_code_selector(const SelectorShape& shape, std::string_view name,
                                                                     std::string_view options);
// A 2-bit code per rotated dimension and one scale per token.
Expected<std::shared_ptr<const Selector>> make_q2_selector(const SelectorShape& shape, std::string_view options);

}  // namespace rarefy
