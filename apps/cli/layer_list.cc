#include "layer_list.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <set>

#include "failure.h"

namespace rarefy::cli {

std::vector<int32_t> parse_layers(const std::string& flag, const std::string& text, const std::vector<int32_t>& known,
                                  const std::string& what) {
  if (text.empty()) return known;
  std::set<int32_t> chosen;
  const char* at = text.data();
  const char* const end = at + text.size();
  const auto refuse = [&](const std::string& got) {
    fail(ExitCode::usage, fmt::format("{}: expected {} ({}), like 0,2-3, got {}", flag, what, format_layers(known), got));
  };
  while (true) {
    int32_t first = 0;
    auto result = std::from_chars(at, end, first);
    if (result.ec != std::errc()) refuse("'" + text + "'");
    int32_t last = first;
    if (result.ptr != end && *result.ptr == '-') {
      result = std::from_chars(result.ptr + 1, end, last);
      if (result.ec != std::errc() || last < first) refuse("'" + text + "'");
    }
    for (int32_t layer = first; layer <= last; ++layer) {
      if (!std::binary_search(known.begin(), known.end(), layer)) refuse(std::to_string(layer));
      chosen.insert(layer);
    }
    if (result.ptr == end) break;
    if (*result.ptr != ',') refuse("'" + text + "'");
    at = result.ptr + 1;
  }
  return {chosen.begin(), chosen.end()};
}

std::string format_layers(const std::vector<int32_t>& layers) {
  std::string text;
  for (size_t first = 0, last = 0; first < layers.size(); first = last + 1) {
    for (last = first; last + 1 < layers.size() && layers[last + 1] == layers[last] + 1;) ++last;
    if (!text.empty()) text += ",";
    text += first == last ? std::to_string(layers[first]) : fmt::format("{}-{}", layers[first], layers[last]);
  }
  return text;
}

}  // namespace rarefy::cli
