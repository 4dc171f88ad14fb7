// "0,2-3": a list of numbers and ranges, for flags that name layers.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace rarefy::cli {

// The layers that `text` names, ascending, each of which must be in `known` (ascending); all of `known` when it is empty. `flag`
// and `what` are for messages ("--layers", "full-attention layers of the model"). Fails with ExitCode::usage.
std::vector<int32_t> parse_layers(const std::string& flag, const std::string& text, const std::vector<int32_t>& known,
                                  const std::string& what);

std::string format_layers(const std::vector<int32_t>& layers);  // the same form

}  // namespace rarefy::cli
