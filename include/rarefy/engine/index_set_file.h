// IndexSets in files, made here or elsewhere, for replay.
//
// safetensors, and NumPy .npz as np.savez writes it (not compressed), with these arrays for every layer N:
//
//   layers.N.token_ids    // [num_steps, num_lists, max_selected] i32 or i64; unique, ascending
//   layers.N.counts       // [num_steps, num_lists] i32 or i64; -1 = all tokens; without it every list is full
//   layers.N.log_weight   // [num_steps, num_lists, max_selected] f32; -ln(inclusion probability); without it all are 0
//
// Where one layer is asked for, "layers.N." may be left out, and a NumPy .npy file is its token_ids.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "rarefy/core/status.h"
#include "rarefy/engine/replay.h"

namespace rarefy {

// Lists of the given layers. Shapes agree and numbers fit their types; that ids are tokens of a capture is up to replay().
Expected<std::vector<LayerIndexSet>> load_index_sets(const std::filesystem::path& path, const std::vector<int32_t>& layers);

// The bytes of a safetensors file with these sets, in parts, as they are handed to `write`.
Status save_index_sets(const std::vector<LayerIndexSet>& sets,
                       const std::function<Status(std::span<const std::byte>)>& write);

}  // namespace rarefy
