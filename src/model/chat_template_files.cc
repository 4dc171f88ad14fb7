// Where a model folder keeps its chat template and the special tokens that it names.
#include <fstream>

#include "model/json_file.h"
#include "rarefy/model/chat_template.h"

namespace rarefy {
namespace {

using model::Json;

constexpr std::size_t kMaxTemplateBytes = std::size_t{1} << 20;

Status none_of_that_name(const std::filesystem::path& path, std::string_view name, const std::string& known) {
  return Status::not_found(path.string() + ": expected a chat template named '" + model::brief(name) + "', found " +
                           (known.empty() ? "none" : known));
}

// `chat_template` of a JSON file: a text, or a list of {"name", "template"}. Empty when the file or the member is missing.
Expected<std::string> template_of(const std::filesystem::path& path, std::string_view name) {
  std::error_code error;
  if (!std::filesystem::exists(path, error)) return std::string();
  RAREFY_ASSIGN_OR_RETURN(const Json json, model::read_json_file(path));
  const auto found = json.is_object() ? json.find("chat_template") : json.end();
  if (found == json.end() || found->is_null()) return std::string();
  if (found->is_string()) {
    if (name != "default") return none_of_that_name(path, name, "one without a name");
    return found->get<std::string>();
  }
  std::string known;
  if (found->is_array()) {
    for (const Json& entry : *found) {
      const auto entry_name = entry.is_object() ? entry.find("name") : entry.end();
      const auto text = entry.is_object() ? entry.find("template") : entry.end();
      if (!entry.is_object() || entry_name == entry.end() || text == entry.end() || !entry_name->is_string() ||
          !text->is_string()) {
        return Status::data_loss(path.string() +
                                 ": chat_template: expected objects with the strings name and template, got " +
                                 model::brief_value(entry));
      }
      if (entry_name->get<std::string>() == name) return text->get<std::string>();
      known += (known.empty() ? "'" : ", '") + model::brief(entry_name->get<std::string>()) + "'";
    }
    return none_of_that_name(path, name, known);
  }
  return Status::data_loss(path.string() + ": chat_template: expected a string or a list, got " +
                           model::brief_value(*found));
}

Expected<std::string> find_template(const std::filesystem::path& folder, std::string_view name) {
  std::error_code error;
  if (name.find('/') != std::string_view::npos || name.find('\0') != std::string_view::npos) {
    return Status::invalid_argument("expected the name of a chat template, got '" + model::brief(name) + "'");
  }
  const auto file = name == "default" ? folder / "chat_template.jinja"
                                      : folder / "additional_chat_templates" / (std::string(name) + ".jinja");
  if (std::filesystem::exists(file, error)) return model::read_text_file(file, kMaxTemplateBytes);
  for (const char* json : {"tokenizer_config.json", "chat_template.json"}) {
    RAREFY_ASSIGN_OR_RETURN(std::string text, template_of(folder / json, name));
    if (!text.empty()) return text;
  }
  return Status::not_found(
      folder.string() +
      ": expected a chat template (chat_template.jinja, or chat_template in tokenizer_config.json), found "
      "none; this is no chat model");
}

}  // namespace

Expected<ChatTemplate::SpecialTokens> ChatTemplate::load_special_tokens(const std::filesystem::path& folder) {
  SpecialTokens tokens;
  std::error_code error;
  for (const char* name : {"special_tokens_map.json", "tokenizer_config.json"}) {
    const auto path = folder / name;
    if (!std::filesystem::exists(path, error)) continue;
    RAREFY_ASSIGN_OR_RETURN(const Json json, model::read_json_file(path));
    if (!json.is_object())
      return Status::data_loss(path.string() + ": expected an object, got " + model::brief_value(json));
    for (const auto& [key, value] : json.items()) {
      if (!key.ends_with("_token")) continue;
      // Either the text itself or an object that describes an added token.
      const auto content = value.is_object() ? value.find("content") : value.end();
      if (value.is_string()) tokens[key] = value.get<std::string>();
      if (value.is_object() && content != value.end() && content->is_string()) tokens[key] = content->get<std::string>();
    }
  }
  return tokens;
}

Expected<ChatTemplate> ChatTemplate::load(const std::filesystem::path& folder, std::string_view name) {
  RAREFY_ASSIGN_OR_RETURN(const std::string source, find_template(folder, name));
  RAREFY_ASSIGN_OR_RETURN(SpecialTokens tokens, load_special_tokens(folder));
  auto chat = parse(source, std::move(tokens));
  if (!chat) return chat.status().with_context(folder.string());
  return chat;
}

}  // namespace rarefy
