#include "model/tokenizer/decoder.h"

#include "model/tokenizer/byte_level.h"
#include "model/tokenizer/fields.h"

namespace rarefy::model::tokenizer {
namespace {

Status add_steps(const Json& value, std::string_view place, bool& fused, Decoder& decoder) {
  RAREFY_RETURN_IF_ERROR(expect_object(value, place));
  RAREFY_ASSIGN_OR_RETURN(const std::string kind, require_string(value, "type", place));
  if (kind == "Fuse") {
    fused = true;
    return {};
  }
  if (kind == "ByteLevel") {
    // After another step this one would see the whole text instead of tokens.
    if (fused || decoder.byte_level) {
      return Status::unsupported(std::string(place) +
                                 ": expected ByteLevel once and before Fuse; this order is not supported");
    }
    decoder.byte_level = true;
    return {};
  }
  if (kind != "Sequence") return unknown_kind(std::string(place) + ".type", kind, {"ByteLevel", "Fuse", "Sequence"});
  RAREFY_ASSIGN_OR_RETURN(const Json* list, require_array(value, "decoders", place));
  for (std::size_t i = 0; i < list->size(); ++i) {
    RAREFY_RETURN_IF_ERROR(
        add_steps((*list)[i], std::string(place) + ".decoders[" + std::to_string(i) + "]", fused, decoder));
  }
  return {};
}

}  // namespace

void Decoder::append(std::string_view token, std::string& bytes) const {
  if (byte_level) {
    append_bytes_of_token(token, bytes);
  } else {
    bytes.append(token);
  }
}

Expected<Decoder> parse_decoder(const Json& value, std::string_view place) {
  Decoder decoder;
  if (value.is_null()) {
    decoder.separator = " ";
    return decoder;
  }
  bool fused = false;
  RAREFY_RETURN_IF_ERROR(add_steps(value, place, fused, decoder));
  return decoder;
}

}  // namespace rarefy::model::tokenizer
