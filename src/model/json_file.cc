#include "model/json_file.h"

#include <fstream>
#include <set>
#include <vector>

namespace rarefy::model {
namespace {

constexpr int kMaxDepth = 64;
// The largest JSON of a model folder, a tokenizer of 260,000 tokens, has 35 MB; configurations have a few KB.
constexpr std::size_t kMaxConfigBytes = std::size_t{64} << 20;

}  // namespace

Expected<std::string> read_text_file(const std::filesystem::path& path, std::size_t max_bytes) {
  std::error_code error;
  const auto status = std::filesystem::status(path, error);
  if (!std::filesystem::exists(status)) return Status::not_found(path.string() + ": expected a file, found none");
  if (!std::filesystem::is_regular_file(status))
    return Status::io_error(path.string() + ": expected a file, found something else");
  const auto size = std::filesystem::file_size(path, error);
  if (error) return Status::io_error(path.string() + ": " + error.message());
  if (size > max_bytes) {
    return Status::invalid_argument(path.string() + ": expected at most " + std::to_string(max_bytes) + " bytes, found " +
                                    std::to_string(size));
  }
  std::ifstream stream(path, std::ios::binary);
  std::string text(static_cast<std::size_t>(size), '\0');
  stream.read(text.data(), static_cast<std::streamsize>(size));
  if (!stream || stream.gcount() != static_cast<std::streamsize>(size)) {
    return Status::io_error(path.string() + ": cannot be read; check its permissions");
  }
  return text;
}

Expected<Json> parse_json(std::string_view text) {
  std::vector<std::set<std::string>> keys;  // of the objects that are open
  Status refused;
  const Json::parser_callback_t check = [&](int depth, Json::parse_event_t event, Json& value) {
    if (!refused.ok()) return false;
    if (depth > kMaxDepth) {
      refused = Status::data_loss("expected JSON of at most " + std::to_string(kMaxDepth) + " levels, got more");
      return false;
    }
    if (event == Json::parse_event_t::object_start) keys.emplace_back();
    if (event == Json::parse_event_t::object_end && !keys.empty()) keys.pop_back();
    if (event == Json::parse_event_t::key && !keys.empty() && !keys.back().insert(value.get<std::string>()).second) {
      refused =
          Status::data_loss("expected every key once, got '" + brief(value.get<std::string>()) + "' twice in one object");
      return false;
    }
    return true;
  };
  try {
    Json value = Json::parse(text.begin(), text.end(), check);
    if (!refused.ok()) return refused;
    return value;
  } catch (const Json::exception& error) {
    if (!refused.ok()) return refused;
    return Status::data_loss("expected JSON, got: " + brief(error.what()));
  } catch (const std::bad_alloc&) {
    return Status::resource_exhausted("out of memory while reading JSON");
  }
}

Expected<Json> read_json_file(const std::filesystem::path& path) {
  RAREFY_ASSIGN_OR_RETURN(const std::string text, read_text_file(path, kMaxConfigBytes));
  auto value = parse_json(text);
  if (!value) return value.status().with_context(path.string());
  return value;
}

std::string brief_value(const Json& value) {
  return brief(std::string_view(value.dump(-1, ' ', /*ensure_ascii=*/true, Json::error_handler_t::replace)).substr(0, 60));
}

std::string brief(std::string_view text) {
  constexpr std::size_t kMaxShown = 120;
  std::string shown(text.substr(0, kMaxShown));
  // Not to cut a UTF-8 sequence in half.
  while (text.size() > kMaxShown && !shown.empty() && (static_cast<unsigned char>(text[shown.size()]) & 0xc0) == 0x80)
    shown.pop_back();
  for (char& c : shown) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = '?';
  }
  if (text.size() > kMaxShown) shown += "...";
  return shown;
}

}  // namespace rarefy::model
