// NumPy files: one array (.npy, versions 1 to 3) or a zip archive of them without compression (.npz as np.savez writes it).
//
// Nothing in a file is trusted: lengths are checked against the file, shapes against bytes. Views point into the caller's
// memory and need not be aligned. Pure functions; thread-safe.
#pragma once

#include <cstddef>
#include <map>
#include <span>
#include <string>

#include "model/safetensors.h"

namespace rarefy::model {

// Types by their safetensors names: "I64". Refuses Fortran order, big-endian numbers and Python objects.
Expected<StoredTensor> parse_npy(std::span<const std::byte> file);

// Arrays by name, without ".npy".
Expected<std::map<std::string, StoredTensor, std::less<>>> parse_npz(std::span<const std::byte> file);

}  // namespace rarefy::model
