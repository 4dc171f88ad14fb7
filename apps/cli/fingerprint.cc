#include "fingerprint.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <vector>

#include "failure.h"

namespace rarefy::cli {
namespace {

// FNV-1a, 64 bits.
void mix(uint64_t& hash, const std::string& bytes) {
  for (const char byte : bytes) hash = (hash ^ static_cast<uint8_t>(byte)) * 0x100000001b3ULL;
}

std::string last_bytes(const std::filesystem::path& path, std::uintmax_t size_bytes, std::uintmax_t count) {
  std::string bytes(static_cast<size_t>(std::min(size_bytes, count)), '\0');
  std::ifstream file(path, std::ios::binary);
  file.seekg(static_cast<std::streamoff>(size_bytes - bytes.size()));
  file.read(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  if (!file) fail(ExitCode::bad_input, path.string() + ": cannot read the file");
  return bytes;
}

}  // namespace

std::string checkpoint_fingerprint(const std::filesystem::path& folder) {
  constexpr std::uintmax_t kLargestConfig = 1 << 20, kTail = 1 << 16;
  std::vector<std::filesystem::path> files;
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator(folder, ignored)) {
    if (entry.path().extension() == ".safetensors") files.push_back(entry.path());
  }
  std::sort(files.begin(), files.end());
  uint64_t hash = 0xcbf29ce484222325ULL;
  const auto config = folder / "config.json";
  mix(hash, last_bytes(config, std::filesystem::file_size(config, ignored), kLargestConfig));
  for (const auto& file : files) {
    const std::uintmax_t size_bytes = std::filesystem::file_size(file, ignored);
    mix(hash, fmt::format("{}:{}:", file.filename().string(), size_bytes));
    mix(hash, last_bytes(file, size_bytes, kTail));
  }
  return fmt::format("{:016x}", hash);
}

}  // namespace rarefy::cli
