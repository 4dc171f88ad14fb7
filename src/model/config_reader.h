// What the configuration files of a model folder say beyond ModelConfig.
#pragma once

#include <filesystem>
#include <string>

#include "rarefy/core/status.h"
#include "rarefy/model/config.h"

namespace rarefy::model {

// The token strings that tokenizer_config.json names; empty when it names none or does not exist.
struct SpecialTokens {
  std::string bos;
  std::string eos;
};
Expected<SpecialTokens> read_special_tokens(const std::filesystem::path& folder);

// Adds the ids of a generation_config.json to a configuration.
Status apply_generation_config(std::string_view generation_config_json, ModelConfig& config);

}  // namespace rarefy::model
