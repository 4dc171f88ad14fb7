#include "model/numpy.h"

#include <array>
#include <charconv>
#include <cstdint>
#include <string_view>

#include "model/json_file.h"

namespace rarefy::model {
namespace {

struct NumpyType {
  std::string_view descr, name;
  std::size_t size_bytes;
  std::optional<DType> dtype;
};
constexpr std::array kTypes = {
    NumpyType{"<f4", "F32", 4, DType::f32},   NumpyType{"<f2", "F16", 2, DType::f16},
    NumpyType{"<i4", "I32", 4, DType::i32},   NumpyType{"|i1", "I8", 1, DType::i8},
    NumpyType{"|u1", "U8", 1, DType::u8},     NumpyType{"<i8", "I64", 8, std::nullopt},
    NumpyType{"<f8", "F64", 8, std::nullopt},
};
constexpr std::size_t kMaxRank = 8;

// Little-endian number of `count` bytes. Pre: they are within the file.
std::uint64_t read_number(std::span<const std::byte> file, std::size_t at, std::size_t count) {
  std::uint64_t value = 0;
  for (std::size_t i = 0; i < count; ++i) value |= std::to_integer<std::uint64_t>(file[at + i]) << (8 * i);
  return value;
}

std::string_view text_of(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

// What follows 'key': in the header's Python dictionary.
Expected<std::string_view> value_of(std::string_view header, const std::string& key) {
  const std::string quoted = std::string("'").append(key).append("'");
  std::size_t at = header.find(quoted);
  if (at == std::string_view::npos)
    return Status::data_loss("NumPy header: expected " + quoted + ", got '" + brief(header) + "'");
  at = header.find_first_not_of(" :", at + quoted.size());
  if (at == std::string_view::npos)
    return Status::data_loss("NumPy header: expected a value of " + quoted + ", got nothing");
  return header.substr(at);
}

Expected<std::vector<int64_t>> parse_shape(std::string_view text) {
  const std::size_t end = text.find(')');
  if (text.front() != '(' || end == std::string_view::npos)
    return Status::data_loss("NumPy header: expected a shape like (2, 3), got '" + brief(text) + "'");
  std::vector<int64_t> shape;
  const char* at = text.data() + 1;
  const char* const last = text.data() + end;
  while (true) {
    while (at != last && (*at == ' ' || *at == ',')) ++at;
    if (at == last) return shape;
    int64_t extent = 0;
    const auto result = std::from_chars(at, last, extent);
    if (result.ec != std::errc() || extent < 0 || shape.size() == kMaxRank)
      return Status::data_loss("NumPy header: expected a shape like (2, 3), got '" + brief(text.substr(0, end + 1)) + "'");
    shape.push_back(extent);
    at = result.ptr;
  }
}

}  // namespace

Expected<StoredTensor> parse_npy(std::span<const std::byte> file) {
  constexpr std::string_view kMagic = "\x93NUMPY";
  if (file.size() < 10 || text_of(file.first(kMagic.size())) != kMagic) {
    return Status::data_loss("expected a NumPy file, which starts with \\x93NUMPY; got " + std::to_string(file.size()) +
                             " bytes of something else");
  }
  const auto version = std::to_integer<int32_t>(file[kMagic.size()]);
  const std::size_t length_bytes = version == 1 ? 2 : 4, at = kMagic.size() + 2;
  if (version < 1 || version > 3) {
    return Status::unsupported("expected a NumPy file of version 1 to 3, got " + std::to_string(version));
  }
  if (file.size() < at + length_bytes) return Status::data_loss("NumPy header: the file is truncated");
  const std::uint64_t header_bytes = read_number(file, at, length_bytes);
  if (header_bytes > file.size() - at - length_bytes) {
    return Status::data_loss("NumPy header: expected " + std::to_string(header_bytes) + " bytes, got " +
                             std::to_string(file.size() - at - length_bytes) + "; the file is truncated");
  }
  const std::string_view header = text_of(file.subspan(at + length_bytes, header_bytes));
  const auto data = file.subspan(at + length_bytes + header_bytes);
  RAREFY_ASSIGN_OR_RETURN(const std::string_view descr, value_of(header, "descr"));
  RAREFY_ASSIGN_OR_RETURN(const std::string_view order, value_of(header, "fortran_order"));
  RAREFY_ASSIGN_OR_RETURN(const std::string_view shape, value_of(header, "shape"));
  const NumpyType* type = nullptr;
  for (const NumpyType& known : kTypes) {
    if (descr.size() > 4 && descr[0] == '\'' && descr.substr(1, 3) == known.descr && descr[4] == '\'') type = &known;
  }
  if (type == nullptr) {
    return Status::unsupported("NumPy header: expected little-endian int32, int64 or float32, got descr " +
                               brief(descr.substr(0, 8)) + "; convert with astype()");
  }
  if (!order.starts_with("False"))
    return Status::unsupported("NumPy header: expected C order, got Fortran order; save np.ascontiguousarray(x)");
  StoredTensor tensor;
  tensor.dtype_name = type->name;
  tensor.dtype = type->dtype;
  RAREFY_ASSIGN_OR_RETURN(tensor.shape, parse_shape(shape));
  std::uint64_t bytes = type->size_bytes;
  for (const int64_t extent : tensor.shape) {
    if (__builtin_mul_overflow(bytes, static_cast<std::uint64_t>(extent), &bytes))
      return Status::data_loss("NumPy header: expected a shape that fits the file, got " + tensor.to_string());
  }
  if (bytes != data.size()) {
    return Status::data_loss("expected " + std::to_string(bytes) + " bytes for " + tensor.to_string() + ", got " +
                             std::to_string(data.size()) + "; the file is truncated or damaged");
  }
  tensor.data = data.data();
  tensor.size_bytes = bytes;
  return tensor;
}

Expected<std::map<std::string, StoredTensor, std::less<>>> parse_npz(std::span<const std::byte> file) {
  // The central directory at the end of a zip archive names all members; its own place is in a record behind it.
  constexpr std::uint64_t kEndSignature = 0x06054b50, kEntrySignature = 0x02014b50, kLocalSignature = 0x04034b50;
  constexpr std::size_t kEndBytes = 22, kEntryBytes = 46, kLocalBytes = 30, kLargestComment = 65535;
  const auto damaged = [](const std::string& what) {
    return Status::data_loss("zip archive: " + what + "; the file is truncated or damaged");
  };
  if (file.size() < kEndBytes) return damaged("expected at least 22 bytes, got " + std::to_string(file.size()));
  std::size_t end = file.size() - kEndBytes;
  const std::size_t first = end > kLargestComment ? end - kLargestComment : 0;
  while (read_number(file, end, 4) != kEndSignature) {
    if (end == first) return damaged("expected a directory at the end, found none");
    --end;
  }
  const std::uint64_t count = read_number(file, end + 10, 2);
  std::uint64_t at = read_number(file, end + 16, 4);
  std::map<std::string, StoredTensor, std::less<>> arrays;
  for (std::uint64_t i = 0; i < count; ++i) {
    if (at > end || end - at < kEntryBytes || read_number(file, at, 4) != kEntrySignature)
      return damaged("expected a directory entry");
    const std::uint64_t method = read_number(file, at + 10, 2), packed = read_number(file, at + 20, 4);
    const std::uint64_t name_bytes = read_number(file, at + 28, 2), local = read_number(file, at + 42, 4);
    const std::uint64_t more = read_number(file, at + 30, 2) + read_number(file, at + 32, 2);
    if (end - at - kEntryBytes < name_bytes + more) return damaged("expected a name");
    std::string name(text_of(file.subspan(at + kEntryBytes, name_bytes)));
    if (method != 0) {
      return Status::unsupported("array '" + brief(name) +
                                 "': expected an array without compression, got one with; save with np.savez");
    }
    if (local > end || end - local < kLocalBytes || read_number(file, local, 4) != kLocalSignature)
      return damaged("expected a member");
    const std::uint64_t skip = kLocalBytes + read_number(file, local + 26, 2) + read_number(file, local + 28, 2);
    if (end - local < skip || end - local - skip < packed)
      return damaged("expected " + std::to_string(packed) + " bytes of '" + brief(name) + "'");
    auto array = parse_npy(file.subspan(local + skip, packed));
    if (!array) return array.status().with_context("array '" + brief(name) + "'");
    if (name.ends_with(".npy")) name.resize(name.size() - 4);
    arrays.emplace(std::move(name), *std::move(array));
    at += kEntryBytes + name_bytes + more;
  }
  return arrays;
}

}  // namespace rarefy::model
