// Writing the safetensors format: the first bytes of a file. What follows are the tensors' bytes, in the order of the entries,
// little-endian, without gaps; whoever writes the file writes them (and decides how it appears: under a temporary name first).
//
//   file.write(*safetensors_header({{"tokens", DType::i32, {n}}, {"keys", DType::bf16, {n, 2, 64}}}, {{"format", "..."}}));
//   file.write(tokens); file.write(keys);
//
// The header is padded so that the first tensor starts at a multiple of 64 bytes. Pure function; thread-safe.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "rarefy/core/dtype.h"
#include "rarefy/core/status.h"

namespace rarefy {

struct TensorEntry {
  std::string name;
  DType dtype = DType::f32;
  std::vector<int64_t> shape;  // extents >= 0
};

Expected<std::string> safetensors_header(const std::vector<TensorEntry>& tensors,
                                         const std::map<std::string, std::string>& metadata = {});

}  // namespace rarefy
