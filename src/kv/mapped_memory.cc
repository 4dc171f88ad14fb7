#include "kv/mapped_memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>

namespace rarefy {

Expected<MappedMemory> MappedMemory::reserve(int64_t bytes) {
  MappedMemory memory;
  memory.bytes_ = std::max<int64_t>(bytes, 1);
  void* address = mmap(nullptr, static_cast<size_t>(memory.bytes_), PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (address == MAP_FAILED) {
    const std::string reason = std::strerror(errno);
    memory.bytes_ = 0;
    return Status::resource_exhausted("KV cache: expected " + std::to_string(bytes) +
                                      " bytes of address space, the system refused (" + reason +
                                      "); use a smaller max_tokens");
  }
  memory.data_ = static_cast<std::byte*>(address);
#ifdef MADV_HUGEPAGE
  // Advice only: a kernel without transparent huge pages refuses, and everything still works.
  static_cast<void>(madvise(address, static_cast<size_t>(memory.bytes_), MADV_HUGEPAGE));
#endif
  return memory;
}

MappedMemory::~MappedMemory() {
  if (data_ != nullptr) munmap(data_, static_cast<size_t>(bytes_));
}

}  // namespace rarefy
