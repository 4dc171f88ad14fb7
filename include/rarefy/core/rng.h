// Counter-based randomness: the same counters give the same numbers, whatever the thread, batch or device.
//
// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) turns (seed, layer, kv head,
// sequence position) into the key of one list of one step. Inside a list every token needs one number and nothing else, so
// a three-multiply integer hash of (key, token) is used there, and one hash serves two tokens where 16 bits of a number will do:
// it vectorises on every device. tests/unit/rng_test.cc puts Philox and the numbers of tokens through the same statistical tests.
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

// 32 uniformly distributed bits for one counter of a list.
constexpr uint32_t counter_hash(ListKey key, uint32_t counter) {
  uint32_t x = counter + key.add;
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

// The upper 16 bits of a token's number: half of a hash that it shares with the token 16 places on. Of 32 tokens from a multiple of 32 on, the
// first 16 take upper halves and the others lower ones, so that a vector of hashes serves two vectors of tokens.
inline constexpr uint32_t kPairDistance = 16;
constexpr uint32_t token_pair(uint32_t token) {  // counter of the hash
  return token / (2 * kPairDistance) * kPairDistance + token % kPairDistance;
}
constexpr uint32_t upper_token_bits(ListKey key, uint32_t token) {
  const uint32_t hash = counter_hash(key, token_pair(token));
  return token % (2 * kPairDistance) < kPairDistance ? hash >> 16 : hash & 0xffffu;
}

// 32 uniformly distributed bits for one token of a list. The lower half is a hash of the token's own, by counters that no pair has: only
// tokens whose upper bits alone do not rule them out need it.
constexpr uint32_t token_hash(ListKey key, uint32_t token) {
  return upper_token_bits(key, token) << 16 | counter_hash(key, token ^ 0x80000000u) >> 16;
}

// Uniform in (0, 1]: 31 bits, centred, so that -ln u is finite and at most 22.2.
constexpr float uniform_from_hash(uint32_t hash) {
  return (static_cast<float>(static_cast<int32_t>(hash >> 1)) + 0.5f) * 0x1p-31f;
}

constexpr float token_uniform(ListKey key, uint32_t token) { return uniform_from_hash(token_hash(key, token)); }

}  // namespace rarefy
