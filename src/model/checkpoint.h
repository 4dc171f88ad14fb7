// Checkpoint: the tensors of a Hugging Face model folder by name, from model.safetensors or from the shards that
// model.safetensors.index.json lists. Files stay mapped, and views stay valid, as long as the object lives. Immutable after
// open(); thread-safe.
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "model/mapped_file.h"
#include "model/safetensors.h"
#include "rarefy/core/status.h"

namespace rarefy::model {

class Checkpoint {
 public:
  static Expected<Checkpoint> open(const std::filesystem::path& folder);

  // Null when there is no tensor of this name.
  const StoredTensor* find(std::string_view name) const;
  const std::map<std::string, StoredTensor, std::less<>>& tensors() const { return tensors_; }

 private:
  Status add_file(const std::filesystem::path& path, SafetensorsHeader& header);
  Status open_shards(const std::filesystem::path& folder);

  std::vector<MappedFile> files_;
  std::map<std::string, StoredTensor, std::less<>> tensors_;
};

}  // namespace rarefy::model
