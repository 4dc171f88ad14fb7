#include "model/checkpoint.h"

#include "model/json_file.h"

namespace rarefy::model {
namespace {

constexpr std::string_view kSingleFile = "model.safetensors";
constexpr std::string_view kIndexFile = "model.safetensors.index.json";

// "'a', 'b', 'c' and 4 more"
std::string list_names(const std::vector<std::string>& names) {
  constexpr std::size_t kShown = 3;
  std::string text;
  for (std::size_t i = 0; i < names.size() && i < kShown; ++i) text += (i == 0 ? "'" : ", '") + brief(names[i]) + "'";
  if (names.size() > kShown) text += " and " + std::to_string(names.size() - kShown) + " more";
  return text;
}

// Names another kind of checkpoint that lies in the folder, so that the message can say what to do.
std::string other_formats(const std::filesystem::path& folder) {
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(folder, error)) {
    const auto name = entry.path().filename().string();
    for (const std::string_view suffix : {".bin", ".pth", ".pt", ".gguf"}) {
      if (name.ends_with(suffix)) return "; found " + brief(name) + ", which has to be converted to safetensors first";
    }
  }
  return "; fetch the model's *.safetensors files";
}

}  // namespace

Expected<Checkpoint> Checkpoint::open(const std::filesystem::path& folder) {
  Checkpoint checkpoint;
  std::error_code error;
  if (std::filesystem::exists(folder / kSingleFile, error)) {
    SafetensorsHeader header;
    RAREFY_RETURN_IF_ERROR(checkpoint.add_file(folder / kSingleFile, header));
    checkpoint.tensors_ = std::move(header.tensors);
  } else if (std::filesystem::exists(folder / kIndexFile, error)) {
    RAREFY_RETURN_IF_ERROR(checkpoint.open_shards(folder));
  } else {
    return Status::not_found(folder.string() + ": expected " + std::string(kSingleFile) + " or " + std::string(kIndexFile) +
                             ", found neither" + other_formats(folder));
  }
  return checkpoint;
}

Status Checkpoint::add_file(const std::filesystem::path& path, SafetensorsHeader& header) {
  RAREFY_ASSIGN_OR_RETURN(MappedFile file, MappedFile::open(path));
  auto parsed = parse_safetensors(file.bytes());
  if (!parsed) return parsed.status().with_context(path.string());
  header = *std::move(parsed);
  files_.push_back(std::move(file));
  return {};
}

Status Checkpoint::open_shards(const std::filesystem::path& folder) {
  const auto index_path = folder / kIndexFile;
  RAREFY_ASSIGN_OR_RETURN(const Json index, read_json_file(index_path));
  const auto map = index.is_object() ? index.find("weight_map") : index.end();
  if (!index.is_object() || map == index.end() || !map->is_object() || map->empty()) {
    return Status::data_loss(index_path.string() + ": expected an object weight_map from tensor names to files");
  }
  std::map<std::string, std::vector<std::string>> names_by_file;
  for (const auto& [name, file] : map->items()) {
    if (!file.is_string()) {
      return Status::data_loss(index_path.string() + ": expected a file name for tensor '" + brief(name) + "', got " +
                               brief_value(file));
    }
    const auto file_name = file.get<std::string>();
    // A shard lies beside its index; anything else could name a file outside the model's folder.
    if (file_name.empty() || file_name == "." || file_name == ".." || file_name.find('/') != std::string::npos ||
        file_name.find('\0') != std::string::npos) {
      return Status::data_loss(index_path.string() + ": expected the name of a file in the same folder for tensor '" +
                               brief(name) + "', got '" + brief(file_name) + "'");
    }
    names_by_file[file_name].push_back(name);
  }

  std::vector<std::string> missing_files;
  std::error_code error;
  for (const auto& [file_name, names] : names_by_file) {
    if (!std::filesystem::exists(folder / file_name, error)) missing_files.push_back(file_name);
  }
  if (!missing_files.empty()) {
    return Status::not_found(index_path.string() + ": expected " + std::to_string(names_by_file.size()) +
                             " shards, missing " + list_names(missing_files) + "; fetch them into the same folder");
  }

  for (const auto& [file_name, names] : names_by_file) {
    SafetensorsHeader header;
    RAREFY_RETURN_IF_ERROR(add_file(folder / file_name, header));
    std::vector<std::string> missing_tensors;
    for (const std::string& name : names) {
      const auto found = header.tensors.find(name);
      if (found == header.tensors.end()) {
        missing_tensors.push_back(name);
      } else {
        tensors_.insert(header.tensors.extract(found));
      }
    }
    if (!missing_tensors.empty()) {
      return Status::data_loss(index_path.string() + ": expected '" + brief(file_name) + "' to hold " +
                               list_names(missing_tensors) +
                               ", but it does not; shards and index are of different versions");
    }
  }
  return {};
}

const StoredTensor* Checkpoint::find(std::string_view name) const {
  const auto found = tensors_.find(name);
  return found == tensors_.end() ? nullptr : &found->second;
}

}  // namespace rarefy::model
