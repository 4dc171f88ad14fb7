// Counter-based randomness: the same counters give the same numbers, whatever the thread, batch or device.
//
// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) turns (seed, layer, kv head,
// sequence position) into the key of one list of one step. Inside a list every token needs one number and nothing else, so
// a three-multiply integer hash of (key, token) is used there: 3.4 to 3.8 times as fast as Philox per number (bench/rng.cc) and
// it vectorises on every device. tests/unit/rng_test.cc puts both through the same statistical tests.
#pragma once

#include <array>
#include <cstdint>

namespace rarefy {

// Ten rounds of Philox4x32.
std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key);

// Key of the random numbers of one list in one step.
struct ListKey {
  uint32_t add = 0;   // shifts the token counter
  uint32_t mask = 0;  // enters between the rounds of the hash, so that two lists never see shifted copies of each other
};

// Salts separate draws that must be independent of each other within one list.
enum class RngPurpose : uint32_t { select = 0, tail = 1, audit = 2, sample_token = 3 };

ListKey make_list_key(uint64_t seed, RngPurpose purpose, int32_t layer, int32_t kv_head, int64_t position);

// 32 uniformly distributed bits for one token of a list.
constexpr uint32_t token_hash(ListKey key, uint32_t token) {
  uint32_t x = token + key.add;
  x ^= x >> 17;
  x *= 0xed5ad4bbu;
  x ^= x >> 11;
  x ^= key.mask;
  x *= 0xac4c1b51u;
  x ^= x >> 15;
  x *= 0x31848babu;
  x ^= x >> 14;
  return x;
}

// Uniform in (0, 1]: 31 bits, centred, so that -ln u is finite and at most 22.2.
constexpr float uniform_from_hash(uint32_t hash) {
  return (static_cast<float>(static_cast<int32_t>(hash >> 1)) + 0.5f) * 0x1p-31f;
}

constexpr float token_uniform(ListKey key, uint32_t token) { return uniform_from_hash(token_hash(key, token)); }

}  // namespace rarefy
