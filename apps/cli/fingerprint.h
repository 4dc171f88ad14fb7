// Which checkpoint it is: 16 hexadecimal digits of its config.json and of the size and last bytes of each *.safetensors file.
// Tells checkpoints of one architecture apart; no protection against someone who wants two to look the same.
#pragma once

#include <filesystem>
#include <string>

namespace rarefy::cli {

std::string checkpoint_fingerprint(const std::filesystem::path& folder);

}  // namespace rarefy::cli
