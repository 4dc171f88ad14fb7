// The safetensors format: an 8-byte little-endian header length, a JSON header, and the tensors' bytes.
//
// parse_safetensors() trusts nothing: lengths against the file, shapes against bytes, offsets in range, in order, without
// overlap and without bytes that belong to no tensor (as the format demands). Views point into the caller's memory and need
// not be aligned. Pure functions; thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "rarefy/core/dtype.h"
#include "rarefy/core/status.h"

namespace rarefy::model {

inline constexpr std::uint64_t kMaxHeaderBytes = 100'000'000;  // the limit of the reference implementation

struct StoredTensor {
  std::string dtype_name;           // as in the file: "BF16"
  std::optional<DType> dtype;       // where Rarefy has the type
  std::vector<int64_t> shape;       // empty = scalar
  const std::byte* data = nullptr;  // [shape...] dtype; contiguous, any alignment
  std::size_t size_bytes = 0;

  std::string to_string() const;  // "BF16[384, 64]"
};

struct SafetensorsHeader {
  std::map<std::string, StoredTensor, std::less<>> tensors;
  std::map<std::string, std::string, std::less<>> metadata;
};

Expected<SafetensorsHeader> parse_safetensors(std::span<const std::byte> file);

}  // namespace rarefy::model
