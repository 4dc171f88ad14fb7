// Any bytes as a safetensors file: no crash, and what is accepted lies inside the file, without overlap.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>
#include <vector>

#include "model/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto file = std::as_bytes(std::span(data, size));
  const auto parsed = rarefy::model::parse_safetensors(file);
  if (!parsed) return parsed.status().message().empty() ? std::abort(), 0 : 0;
  std::vector<bool> taken(size);
  for (const auto& [name, tensor] : parsed->tensors) {
    if (tensor.data < file.data() || tensor.data + tensor.size_bytes > file.data() + size) std::abort();
    for (size_t i = 0; i < tensor.size_bytes; ++i) {
      const size_t at = static_cast<size_t>(tensor.data - file.data()) + i;
      if (taken[at]) std::abort();
      taken[at] = true;
    }
  }
  return 0;
}
