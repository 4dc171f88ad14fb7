// Factories of the built-in selectors (select/registry.h). `options` is the text after the colon in a policy.
#pragma once

#include <memory>
#include <string_view>

#include "rarefy/select/selector.h"

namespace rarefy {

// Exact scores from the cached keys: what a perfect index would give. Reads every key.
Expected<std::shared_ptr<const Selector>> make_oracle_selector(const SelectorShape& shape, std::string_view options);
// Element-wise bounds of 16 keys (Quest, arXiv 2406.10774); options: bf16 (default), int8.
Expected<std::shared_ptr<const Selector>> make_quest_selector(const SelectorShape& shape, std::string_view options);
// One sign per rotated dimension and one scale per token.
Expected<std::shared_ptr<const Selector>> make_sign_selector(const SelectorShape& shape, std::string_view options);
// Signs of the difference to the mean of 64 keys.
Expected<std::shared_ptr<const Selector>> make_centred_sign_selector(const SelectorShape& shape, std::string_view options);
// A 2-bit code per rotated dimension and one scale per token.
Expected<std::shared_ptr<const Selector>> make_q2_selector(const SelectorShape& shape, std::string_view options);

}  // namespace rarefy
