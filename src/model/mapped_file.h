// MappedFile: a file's bytes, read-only, by mmap. The mapping lives as long as the object. A file that another program
// shortens while it is mapped makes reads past its new end fail with a signal; weights are copied out right after mapping.
#pragma once

#include <cstddef>
#include <filesystem>
#include <span>

#include "rarefy/core/status.h"

namespace rarefy::model {

class MappedFile {
 public:
  static Expected<MappedFile> open(const std::filesystem::path& path);

  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();

  std::span<const std::byte> bytes() const { return bytes_; }

  // Advice to the system about a part of a mapped file: it is about to be read, or it was read and its memory may be used
  // for something else (the bytes stay valid and are read from the file again).
  static void prefetch(std::span<const std::byte> part);  // part: [size] bytes
  static void release(std::span<const std::byte> part);   // part: [size] bytes

 private:
  explicit MappedFile(std::span<const std::byte> bytes) : bytes_(bytes) {}
  std::span<const std::byte> bytes_;  // [file size] bytes; page-aligned
};

}  // namespace rarefy::model
