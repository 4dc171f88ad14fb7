// Selectors by name. Built-in ones are always there; an application adds its own with register_selector(), or loads them from a
// shared object with load_plugin(), and finds them in policies, benchmarks and tools at once. Thread-safe.
#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "rarefy/select/selector.h"

struct rarefy_selector_type;  // of rarefy.h

namespace rarefy {

// Makes a selector from its options, the text after the colon in a policy ("int8" in "quest16:int8").
using SelectorFactory =
    std::function<Expected<std::shared_ptr<const Selector>>(const SelectorShape& shape, std::string_view options)>;

struct SelectorInfo {
  std::string name;         // "quest16"
  std::string options;      // what may follow the colon: "bf16 (default), int8"
  std::string description;  // one line
};

Status register_selector(SelectorInfo info, SelectorFactory factory);
std::vector<SelectorInfo> list_selectors();
// Ways to make one selector of two, by the form of their text.
std::vector<SelectorInfo> list_selector_combinations();

// Refuses a policy's index= value that names a selector which does not exist, without making it.
Status check_selector_names(std::string_view text);

// A selector behind the callbacks of the C interface. What its score() writes is made finite: NaN becomes the lowest score.
Status register_selector(const rarefy_selector_type& type);
// Loads a plugin (rarefy.h, "Selectors of one's own") and lets it register its selectors. It stays loaded; loading it again
// does nothing.
Status load_plugin(const std::filesystem::path& file);

// `text` is a policy's index= value, e.g. "sign" or "quest16:int8".
Expected<std::shared_ptr<const Selector>> make_selector(std::string_view text, const SelectorShape& shape);

}  // namespace rarefy
