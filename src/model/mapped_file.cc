#include "model/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <utility>

namespace rarefy::model {

Expected<MappedFile> MappedFile::open(const std::filesystem::path& path) {
  const auto failure = [&](const char* what) {
    return Status(errno == ENOENT ? StatusCode::not_found : StatusCode::io_error,
                  path.string() + ": cannot " + what + ": " + std::strerror(errno));
  };
  // O_NONBLOCK: a named pipe in place of a file must not stop us.
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (file < 0) return failure("open");
  struct stat info {};
  if (::fstat(file, &info) != 0) {
    const Status status = failure("stat");
    ::close(file);
    return status;
  }
  if (!S_ISREG(info.st_mode)) {
    ::close(file);
    return Status::io_error(path.string() + ": expected a file, found something else");
  }
  const auto size_bytes = static_cast<std::size_t>(info.st_size);
  void* data = nullptr;
  if (size_bytes > 0) data = ::mmap(nullptr, size_bytes, PROT_READ, MAP_PRIVATE, file, 0);
  if (data == MAP_FAILED) {
    const Status status = failure("map");
    ::close(file);
    return status;
  }
  ::close(file);
  return MappedFile({static_cast<const std::byte*>(data), size_bytes});
}

namespace {

void advise(std::span<const std::byte> part, int advice) {
  static const auto kPageBytes = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto first = reinterpret_cast<std::uintptr_t>(part.data()) / kPageBytes * kPageBytes;
  const auto last = reinterpret_cast<std::uintptr_t>(part.data()) + part.size();
  // Advice only: where it is refused, everything still works.
  if (last > first) static_cast<void>(::madvise(reinterpret_cast<void*>(first), last - first, advice));
}

}  // namespace

void MappedFile::prefetch(std::span<const std::byte> part) { advise(part, MADV_WILLNEED); }
void MappedFile::release(std::span<const std::byte> part) { advise(part, MADV_DONTNEED); }

MappedFile::MappedFile(MappedFile&& other) noexcept : bytes_(std::exchange(other.bytes_, {})) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(bytes_, other.bytes_);
  return *this;
}

MappedFile::~MappedFile() {
  if (!bytes_.empty()) ::munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
}

}  // namespace rarefy::model
