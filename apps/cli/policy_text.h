// Policies as users write them: the text itself, or @FILE with the text in it. Every --policy comes through here.
#pragma once

#include <string>

#include "rarefy/select/policy.h"

namespace rarefy::cli {

// In a file, # begins a comment up to the end of its line. Fails with ExitCode::usage for a policy that does not parse, with
// bad_input for a file that cannot be read.
Policy read_policy(const std::string& text);

}  // namespace rarefy::cli
