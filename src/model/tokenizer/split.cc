#include "model/tokenizer/split.h"

#include <algorithm>

namespace rarefy::model::tokenizer {
namespace {

struct Part {
  Range range;
  bool is_match;
};

std::vector<Part> cover(const std::vector<Range>& matches, std::size_t num_bytes, bool invert) {
  std::vector<Part> parts;
  parts.reserve(2 * matches.size() + 1);
  std::size_t at = 0;
  for (const Range& match : matches) {
    if (at != match.begin) parts.push_back({{at, match.begin}, invert});
    parts.push_back({match, !invert});
    at = match.end;
  }
  if (at != num_bytes) parts.push_back({{at, num_bytes}, invert});
  return parts;
}

// Joins a part with the one before it where `joins(part, previous)` says so.
template <typename Joins>
std::vector<Range> join(const std::vector<Part>& parts, Joins joins) {
  std::vector<Range> ranges;
  bool previous_match = false;
  for (const Part& part : parts) {
    if (!ranges.empty() && joins(part.is_match, previous_match)) {
      ranges.back().begin = std::min(ranges.back().begin, part.range.begin);
      ranges.back().end = std::max(ranges.back().end, part.range.end);
    } else {
      ranges.push_back(part.range);
    }
    previous_match = part.is_match;
  }
  return ranges;
}

}  // namespace

std::optional<SplitBehavior> split_behavior(std::string_view name) {
  if (name == "Isolated") return SplitBehavior::isolated;
  if (name == "Removed") return SplitBehavior::removed;
  if (name == "MergedWithPrevious") return SplitBehavior::merged_with_previous;
  if (name == "MergedWithNext") return SplitBehavior::merged_with_next;
  if (name == "Contiguous") return SplitBehavior::contiguous;
  return std::nullopt;
}

std::vector<Range> split_ranges(const std::vector<Range>& matches, std::size_t num_bytes, SplitBehavior behavior,
                                bool invert) {
  std::vector<Part> parts = cover(matches, num_bytes, invert);
  const auto starts_run = [](bool is_match, bool previous) { return is_match && !previous; };
  switch (behavior) {
    case SplitBehavior::isolated: return join(parts, [](bool, bool) { return false; });
    case SplitBehavior::contiguous: return join(parts, [](bool is_match, bool previous) { return is_match == previous; });
    case SplitBehavior::merged_with_previous: return join(parts, starts_run);
    case SplitBehavior::merged_with_next: {
      std::reverse(parts.begin(), parts.end());
      std::vector<Range> ranges = join(parts, starts_run);
      std::reverse(ranges.begin(), ranges.end());
      return ranges;
    }
    case SplitBehavior::removed: break;
  }
  std::erase_if(parts, [](const Part& part) { return part.is_match; });
  return join(parts, [](bool, bool) { return false; });
}

}  // namespace rarefy::model::tokenizer
