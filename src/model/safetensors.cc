#include "model/safetensors.h"

#include <algorithm>
#include <array>

#include "model/json_file.h"
#include "rarefy/model/safetensors_header.h"

namespace rarefy::model {
namespace {

struct TypeName {
  std::string_view name;
  std::size_t size_bytes;
  std::optional<DType> dtype;
};
constexpr std::array kTypes = {
    TypeName{"F32", 4, DType::f32},         TypeName{"BF16", 2, DType::bf16},     TypeName{"F16", 2, DType::f16},
    TypeName{"I32", 4, DType::i32},         TypeName{"I8", 1, DType::i8},         TypeName{"U8", 1, DType::u8},
    TypeName{"F8_E4M3", 1, DType::f8_e4m3}, TypeName{"F8_E5M2", 1, std::nullopt}, TypeName{"F8_E8M0", 1, std::nullopt},
    TypeName{"F64", 8, std::nullopt},       TypeName{"I64", 8, std::nullopt},     TypeName{"U64", 8, std::nullopt},
    TypeName{"U32", 4, std::nullopt},       TypeName{"I16", 2, std::nullopt},     TypeName{"U16", 2, std::nullopt},
    TypeName{"BOOL", 1, std::nullopt},      TypeName{"C64", 8, std::nullopt},
};
constexpr std::size_t kMaxRank = 8;

const TypeName* find_type(std::string_view name) {
  const auto found = std::find_if(kTypes.begin(), kTypes.end(), [&](const TypeName& type) { return type.name == name; });
  return found == kTypes.end() ? nullptr : &*found;
}

std::string type_names() {
  std::string names;
  for (const TypeName& type : kTypes) names += (names.empty() ? "" : ", ") + std::string(type.name);
  return names;
}

struct Range {
  std::uint64_t begin, end;
  std::string_view name;
};

// One entry of the header. `data` is what follows the header.
Expected<StoredTensor> parse_tensor(const Json& entry, std::span<const std::byte> data) {
  if (!entry.is_object())
    return Status::data_loss("expected an object with dtype, shape and data_offsets, got " + brief_value(entry));
  const auto dtype = entry.find("dtype"), shape = entry.find("shape"), offsets = entry.find("data_offsets");
  if (dtype == entry.end() || !dtype->is_string())
    return Status::data_loss("expected dtype to be a string, got " +
                             (dtype == entry.end() ? "nothing" : brief_value(*dtype)));
  if (shape == entry.end() || !shape->is_array())
    return Status::data_loss("expected shape to be a list, got " +
                             (shape == entry.end() ? "nothing" : brief_value(*shape)));
  if (offsets == entry.end() || !offsets->is_array() || offsets->size() != 2 || !(*offsets)[0].is_number_unsigned() ||
      !(*offsets)[1].is_number_unsigned()) {
    return Status::data_loss("expected data_offsets to be two whole numbers, got " +
                             (offsets == entry.end() ? "nothing" : brief_value(*offsets)));
  }

  StoredTensor tensor;
  tensor.dtype_name = dtype->get<std::string>();
  const TypeName* type = find_type(tensor.dtype_name);
  if (type == nullptr) {
    return Status::unsupported("expected dtype to be one of " + type_names() + ", got '" + brief(tensor.dtype_name) + "'");
  }
  tensor.dtype = type->dtype;

  if (shape->size() > kMaxRank) {
    return Status::data_loss("expected at most " + std::to_string(kMaxRank) + " dimensions, got " +
                             std::to_string(shape->size()));
  }
  std::uint64_t bytes = type->size_bytes;
  bool overflow = false;
  for (const Json& extent : *shape) {
    if (!extent.is_number_unsigned() || extent.get<std::uint64_t>() > static_cast<std::uint64_t>(INT64_MAX)) {
      return Status::data_loss("expected shape to hold whole numbers, got " + brief_value(*shape));
    }
    overflow |= __builtin_mul_overflow(bytes, extent.get<std::uint64_t>(), &bytes);
    tensor.shape.push_back(extent.get<int64_t>());
  }
  const bool empty = std::find(tensor.shape.begin(), tensor.shape.end(), 0) != tensor.shape.end();
  if (empty) bytes = 0;

  const auto begin = (*offsets)[0].get<std::uint64_t>(), end = (*offsets)[1].get<std::uint64_t>();
  if (begin > end) return Status::data_loss("expected data_offsets in ascending order, got " + brief_value(*offsets));
  if (end > data.size()) {
    return Status::data_loss("expected data_offsets within the " + std::to_string(data.size()) +
                             " bytes after the header, got " + brief_value(*offsets) +
                             "; the file is truncated or damaged, fetch it again");
  }
  if ((overflow && !empty) || end - begin != bytes) {
    return Status::data_loss("expected data_offsets to span what " + tensor.to_string() + " takes" +
                             (overflow ? std::string() : ", " + std::to_string(bytes) + " bytes") + ", got " +
                             brief_value(*offsets));
  }
  tensor.data = data.data() + begin;
  tensor.size_bytes = static_cast<std::size_t>(bytes);
  return tensor;
}

Status check_coverage(std::vector<Range> ranges, std::uint64_t data_bytes) {
  std::sort(ranges.begin(), ranges.end(),
            [](const Range& a, const Range& b) { return a.begin != b.begin ? a.begin < b.begin : a.end < b.end; });
  std::uint64_t covered = 0;
  std::string_view previous;
  for (const Range& range : ranges) {
    if (range.begin < covered) {
      return Status::data_loss("expected tensors that do not overlap, got '" + brief(range.name) + "' at byte " +
                               std::to_string(range.begin) + " inside '" + brief(previous) + "'");
    }
    if (range.begin > covered) {
      return Status::data_loss("expected tensors without gaps, got " + std::to_string(range.begin - covered) +
                               " bytes that belong to no tensor before '" + brief(range.name) + "'");
    }
    covered = range.end;
    previous = range.name;
  }
  if (covered != data_bytes) {
    return Status::data_loss("expected the file to end with its last tensor, got " + std::to_string(data_bytes - covered) +
                             " bytes more");
  }
  return {};
}

}  // namespace

std::string StoredTensor::to_string() const {
  std::string text = dtype_name + "[";
  for (std::size_t i = 0; i < shape.size(); ++i) text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  return text + "]";
}

Expected<SafetensorsHeader> parse_safetensors(std::span<const std::byte> file) {
  constexpr std::size_t kLengthBytes = 8;
  if (file.size() < kLengthBytes) {
    return Status::data_loss("expected a safetensors file, which starts with an 8-byte length; got " +
                             std::to_string(file.size()) + " bytes");
  }
  std::uint64_t header_bytes = 0;
  for (std::size_t i = 0; i < kLengthBytes; ++i) header_bytes |= std::to_integer<std::uint64_t>(file[i]) << (8 * i);
  if (header_bytes > kMaxHeaderBytes) {
    return Status::data_loss("expected a safetensors header of at most " + std::to_string(kMaxHeaderBytes) +
                             " bytes, got " + std::to_string(header_bytes) + "; is this a safetensors file?");
  }
  if (header_bytes > file.size() - kLengthBytes) {
    return Status::data_loss("expected a header of " + std::to_string(header_bytes) + " bytes, got " +
                             std::to_string(file.size() - kLengthBytes) + "; the file is truncated, fetch it again");
  }
  const auto data = file.subspan(kLengthBytes + static_cast<std::size_t>(header_bytes));
  const std::string_view text(reinterpret_cast<const char*>(file.data()) + kLengthBytes,
                              static_cast<std::size_t>(header_bytes));
  if (text.empty() || text.front() != '{') return Status::data_loss("expected the safetensors header to start with '{'");
  auto json = parse_json(text);
  if (!json) return json.status().with_context("safetensors header");

  SafetensorsHeader header;
  std::vector<Range> ranges;
  for (const auto& [name, entry] : json->items()) {
    if (name == "__metadata__") {
      if (!entry.is_object()) return Status::data_loss("expected __metadata__ to be an object, got " + brief_value(entry));
      for (const auto& [key, value] : entry.items()) {
        if (!value.is_string())
          return Status::data_loss("expected __metadata__ to hold strings, got " + brief_value(value));
        header.metadata.emplace(key, value.get<std::string>());
      }
      continue;
    }
    auto tensor = parse_tensor(entry, data);
    if (!tensor) return tensor.status().with_context("tensor '" + brief(name) + "'");
    const auto place = header.tensors.emplace(name, *std::move(tensor)).first;
    const auto begin = static_cast<std::uint64_t>(place->second.data - data.data());
    ranges.push_back({begin, begin + place->second.size_bytes, place->first});
  }
  RAREFY_RETURN_IF_ERROR(check_coverage(std::move(ranges), data.size()));
  return header;
}

}  // namespace rarefy::model

namespace rarefy {

Expected<std::string> safetensors_header(const std::vector<TensorEntry>& tensors,
                                         const std::map<std::string, std::string>& metadata) {
  constexpr std::size_t kAlignmentBytes = 64;
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  std::uint64_t at = 0;
  for (const TensorEntry& tensor : tensors) {
    const auto type = std::find_if(model::kTypes.begin(), model::kTypes.end(),
                                   [&](const model::TypeName& known) { return known.dtype == tensor.dtype; });
    if (type == model::kTypes.end()) {
      return Status::unsupported("safetensors: expected one of " + model::type_names() + ", got " +
                                 std::string(to_string(tensor.dtype)));
    }
    std::uint64_t bytes = type->size_bytes;
    for (const int64_t extent : tensor.shape) bytes *= static_cast<std::uint64_t>(extent);
    if (header.contains(tensor.name)) {
      return Status::invalid_argument("safetensors: expected names that differ, got '" + tensor.name + "' twice");
    }
    header[tensor.name] = {{"dtype", type->name}, {"shape", tensor.shape}, {"data_offsets", {at, at + bytes}}};
    at += bytes;
  }
  std::string text = header.dump();
  const std::size_t end = (sizeof(std::uint64_t) + text.size() + kAlignmentBytes - 1) / kAlignmentBytes * kAlignmentBytes;
  text.resize(end - sizeof(std::uint64_t), ' ');
  std::string file(sizeof(std::uint64_t), '\0');
  for (std::size_t i = 0; i < sizeof(std::uint64_t); ++i) file[i] = static_cast<char>(text.size() >> (8 * i));
  return file + text;
}

}  // namespace rarefy
