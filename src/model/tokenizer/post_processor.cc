#include "model/tokenizer/post_processor.h"

#include <string>

#include "model/tokenizer/fields.h"

namespace rarefy::model::tokenizer {
namespace {

using IsToken = std::function<bool(int32_t)>;

// Appends the ids that a template's special token stands for.
Status append_special(const Json& table, const std::string& name, std::string_view place, const IsToken& is_token,
                      std::vector<int32_t>& ids) {
  const Json* entry = find_member(table, name);
  const std::string entry_place = std::string(place) + ".special_tokens['" + brief(name) + "']";
  if (entry == nullptr) return Status::data_loss(entry_place + ": expected an object, found nothing");
  RAREFY_RETURN_IF_ERROR(expect_object(*entry, entry_place));
  RAREFY_ASSIGN_OR_RETURN(const Json* list, require_array(*entry, "ids", entry_place));
  for (const Json& value : *list) {
    RAREFY_ASSIGN_OR_RETURN(const int32_t id, token_id(value, entry_place + ".ids"));
    if (!is_token(id)) return unexpected(entry_place + ".ids", "ids of tokens that exist", value);
    ids.push_back(id);
  }
  return {};
}

Expected<PostProcessor> parse_template(const Json& value, std::string_view place, const IsToken& is_token) {
  RAREFY_ASSIGN_OR_RETURN(const Json* single, require_array(value, "single", place));
  static const Json no_tokens = Json::object();
  const Json* table = &no_tokens;
  if (find_member(value, "special_tokens") != nullptr) {
    RAREFY_ASSIGN_OR_RETURN(table, require_object(value, "special_tokens", place));
  }
  PostProcessor result;
  int num_texts = 0;
  for (std::size_t i = 0; i < single->size(); ++i) {
    const Json& item = (*single)[i];
    const std::string item_place = std::string(place) + ".single[" + std::to_string(i) + "]";
    RAREFY_RETURN_IF_ERROR(expect_object(item, item_place));
    if (find_member(item, "SpecialToken") != nullptr) {
      RAREFY_ASSIGN_OR_RETURN(const Json* special, require_object(item, "SpecialToken", item_place));
      RAREFY_ASSIGN_OR_RETURN(const std::string name, require_string(*special, "id", item_place + ".SpecialToken"));
      RAREFY_RETURN_IF_ERROR(append_special(*table, name, place, is_token, num_texts == 0 ? result.prefix : result.suffix));
      continue;
    }
    RAREFY_ASSIGN_OR_RETURN(const Json* sequence, require_object(item, "Sequence", item_place));
    RAREFY_ASSIGN_OR_RETURN(const std::string name, require_string(*sequence, "id", item_place + ".Sequence"));
    if (name != "A") return unexpected(item_place + ".Sequence.id", "\"A\", the only text of a single", (*sequence)["id"]);
    ++num_texts;
  }
  if (num_texts != 1) {
    return Status::unsupported(std::string(place) + ".single: expected the text (Sequence A) once, got it " +
                               std::to_string(num_texts) + " times");
  }
  return result;
}

}  // namespace

Expected<PostProcessor> parse_post_processor(const Json& value, std::string_view place, const IsToken& is_token) {
  PostProcessor result;
  if (value.is_null()) return result;
  RAREFY_RETURN_IF_ERROR(expect_object(value, place));
  RAREFY_ASSIGN_OR_RETURN(const std::string kind, require_string(value, "type", place));
  if (kind == "ByteLevel") return result;
  if (kind == "TemplateProcessing") return parse_template(value, place, is_token);
  if (kind != "Sequence")
    return unknown_kind(std::string(place) + ".type", kind, {"ByteLevel", "TemplateProcessing", "Sequence"});
  RAREFY_ASSIGN_OR_RETURN(const Json* list, require_array(value, "processors", place));
  for (std::size_t i = 0; i < list->size(); ++i) {
    const std::string item_place = std::string(place) + ".processors[" + std::to_string(i) + "]";
    RAREFY_ASSIGN_OR_RETURN(const PostProcessor outer, parse_post_processor((*list)[i], item_place, is_token));
    result.prefix.insert(result.prefix.begin(), outer.prefix.begin(), outer.prefix.end());
    result.suffix.insert(result.suffix.end(), outer.suffix.begin(), outer.suffix.end());
  }
  return result;
}

}  // namespace rarefy::model::tokenizer
