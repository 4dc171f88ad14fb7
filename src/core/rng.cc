#include "rarefy/core/rng.h"

namespace rarefy {

std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{0xD2511F53u} * counter[0];
    const uint64_t product1 = uint64_t{0xCD9E8D57u} * counter[2];
    counter = {static_cast<uint32_t>(product1 >> 32) ^ counter[1] ^ key[0], static_cast<uint32_t>(product1),
               static_cast<uint32_t>(product0 >> 32) ^ counter[3] ^ key[1], static_cast<uint32_t>(product0)};
    key[0] += 0x9E3779B9u;
    key[1] += 0xBB67AE85u;
  }
  return counter;
}

ListKey make_list_key(uint64_t seed, RngPurpose purpose, int32_t layer, int32_t kv_head, int64_t position) {
  const auto packed = static_cast<uint32_t>(layer) << 16 | (static_cast<uint32_t>(kv_head) & 0xffffu);
  const std::array<uint32_t, 4> counter = {packed, static_cast<uint32_t>(purpose), static_cast<uint32_t>(position),
                                           static_cast<uint32_t>(static_cast<uint64_t>(position) >> 32)};
  const auto block = philox4x32(counter, {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
  return {block[0], block[1]};
}

}  // namespace rarefy
