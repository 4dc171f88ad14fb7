// The "model" member of tokenizer.json.
#include <cstdio>
#include <string>
#include <utility>

#include "model/tokenizer/bpe.h"
#include "model/tokenizer/fields.h"
#include "model/tokenizer/utf8.h"

namespace rarefy::model::tokenizer {
namespace {

// Refuses an option of BPE that changes ids and is not offered.
Status refuse_option(const Json& model, std::string_view key, std::string_view place) {
  const Json* value = find_member(model, key);
  const bool off = value == nullptr || (value->is_boolean() && !value->get<bool>()) ||
                   (value->is_string() && value->get_ref<const std::string&>().empty()) ||
                   (value->is_number() && value->get<double>() == 0.0);
  if (off) return {};
  return Status::unsupported(std::string(place) + "." + std::string(key) + ": expected it to be absent or off, got " +
                             brief_value(*value) + "; this version does not support it");
}

// A merge is "left right" or ["left", "right"].
bool split_merge(const Json& merge, std::string_view& left, std::string_view& right) {
  if (merge.is_array()) {
    if (merge.size() != 2 || !merge[0].is_string() || !merge[1].is_string()) return false;
    left = merge[0].get_ref<const std::string&>();
    right = merge[1].get_ref<const std::string&>();
  } else {
    if (!merge.is_string()) return false;
    const std::string_view both = merge.get_ref<const std::string&>();
    const std::size_t space = both.find(' ');
    if (space == std::string_view::npos || both.find(' ', space + 1) != std::string_view::npos) return false;
    left = both.substr(0, space);
    right = both.substr(space + 1);
  }
  return !left.empty() && !right.empty();
}

}  // namespace

Expected<Bpe> Bpe::parse(const Json& value, std::string_view place) {
  // Files written before 2021 leave the type out, and are BPE when they have merges.
  if (find_member(value, "type") != nullptr || find_member(value, "merges") == nullptr) {
    RAREFY_ASSIGN_OR_RETURN(const std::string kind, require_string(value, "type", place));
    if (kind != "BPE") return unknown_kind(std::string(place) + ".type", kind, {"BPE"});
  }
  Bpe bpe;
  RAREFY_RETURN_IF_ERROR(bpe.read_vocabulary(value, place));
  RAREFY_RETURN_IF_ERROR(bpe.read_merges(value, place));
  RAREFY_RETURN_IF_ERROR(bpe.read_options(value, place));
  bpe.index_characters();
  return bpe;
}

Status Bpe::read_vocabulary(const Json& model, std::string_view place) {
  RAREFY_ASSIGN_OR_RETURN(const Json* vocab, require_object(model, "vocab", place));
  const std::string vocab_place = std::string(place) + ".vocab";
  if (vocab->empty()) return unexpected(vocab_place, "at least one token", *vocab);
  for (const auto& [token, id_json] : vocab->items()) {
    const std::string token_place = vocab_place + "['" + brief(token) + "']";
    RAREFY_ASSIGN_OR_RETURN(const int32_t id, token_id(id_json, token_place));
    if (!vocabulary_.add(token, id)) {
      const std::string* other = vocabulary_.token(id);
      return Status::data_loss(token_place + ": expected an id of its own, got " + std::to_string(id) + ", which '" +
                               brief(other == nullptr ? std::string_view() : std::string_view(*other)) + "' has too");
    }
  }
  return {};
}

Status Bpe::read_merges(const Json& model, std::string_view place) {
  RAREFY_ASSIGN_OR_RETURN(const Json* merges, require_array(model, "merges", place));
  const std::string merges_place = std::string(place) + ".merges";
  uint32_t rank = 0;
  for (std::size_t i = 0; i < merges->size(); ++i) {
    const Json& merge = (*merges)[i];
    if (merge.is_string() && merge.get_ref<const std::string&>().starts_with("#version")) continue;
    const std::string merge_place = merges_place + "[" + std::to_string(i) + "]";
    std::string_view left, right;
    if (!split_merge(merge, left, right)) return unexpected(merge_place, "\"left right\" or [\"left\", \"right\"]", merge);
    const std::string whole = std::string(left) + std::string(right);
    const int32_t left_id = vocabulary_.id(left), right_id = vocabulary_.id(right), id = vocabulary_.id(whole);
    if (left_id < 0 || right_id < 0 || id < 0) {
      const std::string_view unknown = left_id < 0 ? left : right_id < 0 ? right : std::string_view(whole);
      return Status::data_loss(merge_place + ": expected tokens of the vocabulary, got '" + brief(unknown) +
                               "', which is none; vocab and merges belong to different files, or one is cut off");
    }
    // As in `tokenizers`, the last of equal pairs counts.
    merges_.insert_or_assign(pair_key(left_id, right_id), Merge{rank++, id});
    joined_.add(utf8_step(left.substr(last_character(left))).code_point, utf8_step(right).code_point);
  }
  joined_.finish();
  return {};
}

Status Bpe::read_options(const Json& model, std::string_view place) {
  for (const std::string_view key : {"dropout", "continuing_subword_prefix", "end_of_word_suffix"}) {
    RAREFY_RETURN_IF_ERROR(refuse_option(model, key, place));
  }
  RAREFY_ASSIGN_OR_RETURN(fuse_unk_, optional_bool(model, "fuse_unk", false, place));
  RAREFY_ASSIGN_OR_RETURN(byte_fallback_, optional_bool(model, "byte_fallback", false, place));
  RAREFY_ASSIGN_OR_RETURN(ignore_merges_, optional_bool(model, "ignore_merges", false, place));
  if (find_member(model, "unk_token") != nullptr) {
    RAREFY_ASSIGN_OR_RETURN(const std::string token, require_string(model, "unk_token", place));
    unk_id_ = vocabulary_.id(token);
    if (unk_id_ < 0) {
      return Status::data_loss(std::string(place) + ".unk_token: expected a token of the vocabulary, got '" + brief(token) +
                               "'");
    }
  }
  return {};
}

void Bpe::index_characters() {
  low_character_ids_.fill(-1);
  vocabulary_.for_each([this](std::string_view token, int32_t id) {
    const Utf8Step step = token.empty() ? Utf8Step{Utf8Step::Kind::malformed, 0} : utf8_step(token);
    if (step.kind != Utf8Step::Kind::character || step.num_bytes != token.size()) return;
    if (step.code_point < low_character_ids_.size()) {
      low_character_ids_[step.code_point] = id;
    } else {
      character_ids_.insert_or_assign(step.code_point, id);
    }
  });
  for (std::size_t byte = 0; byte < byte_ids_.size(); ++byte) {
    char token[8];
    std::snprintf(token, sizeof(token), "<0x%02X>", static_cast<unsigned>(byte));
    byte_ids_[byte] = vocabulary_.id(token);
  }
}

}  // namespace rarefy::model::tokenizer
