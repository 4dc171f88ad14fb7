// A warp's way from list entries to rows in shared memory. Ids, page table entries and rows of three different places of the list are
// under way at the same time, so that none waits for another once the first have come. Rows go to a ring of T::kStages stages that no
// other warp touches. Everything that comes from device memory is checked here: what does not fit becomes zeros under weight 0.
#pragma once

#include <cmath>

#include "cuda/decode/traits.cuh"
#include "cuda/decode/work.cuh"
#include "cuda/device/ptx.cuh"

namespace rarefy::cuda {

// What a step attends to: 16 tokens. Pieces of 16 bytes of a row are permuted within each 128 bytes (piece_offset), so that the eight rows that
// ldmatrix reads at a time lie in different banks. A pad behind each row does that too, but then 128 bytes of a row lie across two lines of
// shared memory, and the copy fetches half of them twice: 12.9 instead of 8.6 GB out of the L2 cache for dense decode, 4 % more time.
template <typename T>
struct alignas(128) Stage {
  char keys[kStepTokens][T::kRowBytes], values[kStepTokens][T::kRowBytes];
  float log2_weight[kStepTokens];                     // log weight in log2 units; -inf for what fills the step up
  float missing[T::kCertificates ? kStepTokens : 4];  // 1 - inclusion probability
  int token[kStepTokens];                             // token id; with several queries
};

// Where a piece of 16 bytes of a row lies in Stage::keys or values. Of rows of 64 bytes two share 128.
template <typename T>
RAREFY_HOST_DEVICE constexpr uint32_t piece_offset(uint32_t row, uint32_t piece) {
  return row * T::kRowBytes + (piece ^ (T::kRowBytes >= 128 ? row % 8 : row / 2 % 4)) * 16;
}
// Whether a piece of eight rows lies in different banks, and the pieces of a line of device memory in one line of shared memory.
template <typename T>
constexpr bool is_well_placed() {
  for (uint32_t piece = 0; piece < T::kRowBytes / 16; ++piece) {
    uint32_t banks = 0;
    for (uint32_t row = 0; row < 8; ++row) {
      const uint32_t at = piece_offset<T>(row, piece);
      if (at / 128 != piece_offset<T>(row, piece / 8 * 8) / 128) return false;
      banks |= 1u << at / 16 % 8;
    }
    if (banks != 0xff) return false;
  }
  return true;
}

template <typename T>
class Rows {
  static_assert(is_well_placed<T>());

 public:
  // What needs no memory, before the kernel's wait.
  __device__ __forceinline__ Rows(const DecodeParams& p, const Place& place, uint32_t ring)
      : ring_(ring), next_(ring), read_(ring) {
    to_ = piece_offset<T>(lane() / kPieces, lane() % kPieces);
    asm volatile("" : "+r"(to_));
    move_to(p, place);
  }
  __device__ __forceinline__ void move_to(const DecodeParams& p, const Place& place) {
    const int64_t head = place.kv_head(p) * p.head_bytes + lane() % kPieces * 16;
    keys_ = p.keys + head, values_ = p.values + head;
    list_ = static_cast<int64_t>(place.list_row(p)) * p.max_selected;
    asm volatile("" : "+l"(keys_), "+l"(values_), "+l"(list_));
  }

  // To the warp's steps among those of the list.
  __device__ __forceinline__ void place(int first_step, int end_step, int num_tokens) {
    begin_ = first_step * kStepTokens;
    end_ = min(end_step * kStepTokens, num_tokens);
    asm volatile("" : "+r"(begin_), "+r"(end_));
  }
  // Where the lane's first entry is among all lists'; computed where it stands, before the kernel's wait.
  __device__ __forceinline__ int64_t first_entry() const {
    int64_t entry = list_ + position(0);
    asm volatile("" : "+l"(entry));
    return entry;
  }
  __device__ __forceinline__ void load_first(const DecodeParams& p, const Work& work, int64_t entry) {
    load_entries(p, work, 0, entry, soon_);
    load_entries(p, work, 1, entry + 2 * kStepTokens, later_);
  }
  // Once the sequence's length is known.
  __device__ __forceinline__ void look_up_first(const DecodeParams& p, const Work& work) {
    soon_.page = look_up(p, work, soon_);
  }

  __device__ int first_step() const { return begin_ / kStepTokens; }
  __device__ bool has(int step) const { return begin_ + step * kStepTokens < end_; }
  // Starts the copies of a step, if there is such a step. Steps come in ascending order, each when the stage it takes has been read. With
  // kKeysApart keys and values are started one after the other, each when those of the step before have been read.
  __device__ __forceinline__ void start(const DecodeParams& p, const Work& work, int step) {
    static_assert(!T::kKeysApart || T::kStages == 1);
    if (has(step)) {
      if (step % 2 == 0) take_rows(p, work, step / 2);
      copy<true, !T::kKeysApart>(p, step % 2);
      if (step % 2 == 0) look_ahead(p, work, step / 2);
      if constexpr (!T::kKeysApart) next_ = following(next_);
    }
    commit_copies();
  }
  __device__ __forceinline__ void start_values(const DecodeParams& p, int step) {
    if (has(step)) copy<false, true>(p, step % 2);
    commit_copies();
  }
  // Waits until the next step is there (kKeysApart: its keys), as many steps from it on having been started as there are stages; returns the
  // shared address of its stage.
  __device__ __forceinline__ uint32_t wait() {
    wait_for_copies<T::kKeysApart ? 1 : T::kStages - 1>();
    __syncwarp();
    const uint32_t stage = read_;
    read_ = following(read_);
    return stage;
  }
  // The next step's keys having been started.
  __device__ __forceinline__ void wait_for_values() {
    wait_for_copies<1>();
    __syncwarp();
  }

 private:
  static constexpr int kPieces = T::kRowBytes / 16;  // of a row

  // Of two steps: lanes 0 to 15 hold the tokens of the first, the others those of the second.
  struct Entries {
    int token, page;
    float log_weight;
  };

  static __device__ int lane() { return threadIdx.x % 32; }
  __device__ int position(int pair) const { return begin_ + pair * 2 * kStepTokens + lane(); }

  __device__ __forceinline__ void load_entries(const DecodeParams& p, const Work& work, int pair, int64_t entry,
                                               Entries& entries) const {
    const int at = position(pair);
    const bool listed = at < end_ && !work.extent.dense;
    entries.token = load_if(listed, p.token_ids, entry, at < end_ ? at : -1);
    entries.log_weight = load_if(listed && p.log_weight != nullptr, p.log_weight, entry, 0.0f);
  }
  __device__ __forceinline__ int look_up(const DecodeParams& p, const Work& work, const Entries& entries) const {
    return load_if(static_cast<uint32_t>(entries.token) < static_cast<uint32_t>(work.extent.kv_len), p.page_table,
                   static_cast<int64_t>(work.place.sequence) * p.max_pages + (entries.token >> p.page_shift), -1);
  }

  // From a pair of steps' pages to their rows.
  __device__ __forceinline__ void take_rows(const DecodeParams& p, const Work& work, int pair) {
    constexpr float kLog2E = 1.4426950408889634f;
    const bool good = static_cast<uint32_t>(soon_.page) < static_cast<uint32_t>(p.num_pages);
    const uint32_t within = static_cast<uint32_t>(soon_.token) & ((1u << p.page_shift) - 1u);
    row_ = good ? static_cast<uint32_t>(soon_.page) * p.page_units + within * p.token_units : 0;
    good_rows_ = __ballot_sync(0xffffffffu, good);
    if (!good && position(pair) < end_) report(p, work, position(pair), soon_.token, soon_.page);
    log2_weight_ = good ? soon_.log_weight * kLog2E : -INFINITY;
    if constexpr (T::kCertificates) missing_ = -expm1f(-soon_.log_weight);
    token_ = soon_.token;
  }
  // Asks for the pages of the next pair and the ids of the one behind it, once copies of this one have started.
  __device__ __forceinline__ void look_ahead(const DecodeParams& p, const Work& work, int pair) {
    soon_.token = later_.token;
    soon_.log_weight = later_.log_weight;
    soon_.page = look_up(p, work, soon_);
    load_entries(p, work, pair + 2, list_ + position(pair + 2), later_);
  }

  __device__ uint32_t following(uint32_t stage) const {
    constexpr uint32_t kBytes = sizeof(Stage<T>);
    return stage + kBytes == ring_ + T::kStages * kBytes ? ring_ : stage + kBytes;
  }

  // Entries go with the keys, once copies have started.
  template <bool kKeys, bool kValues>
  __device__ __forceinline__ void copy(const DecodeParams& p, int half) const {
    constexpr int kRowsAtOnce = 32 / kPieces, kTurns = kStepTokens / kRowsAtOnce;
    const int first = half * 16 + lane() / kPieces;
    const uint32_t to = next_ + to_;
#pragma unroll
    for (int i = 0; i < kTurns; ++i) {
      const uint64_t from = uint64_t{__shfl_sync(0xffffffffu, row_, first + i * kRowsAtOnce)} * 16;
      const bool wanted = (good_rows_ >> (first + i * kRowsAtOnce) & 1u) != 0;
      // piece_offset of a row i * kRowsAtOnce further on.
      constexpr int kMixed = T::kRowBytes >= 128 ? 7 : 0;
      const uint32_t keys = (to ^ (i * kRowsAtOnce & kMixed) * 16) + i * kRowsAtOnce * T::kRowBytes;
      const uint32_t values = keys + offsetof(Stage<T>, values);
      if constexpr (kKeys) copy_16<T::kRowBytes>(keys, keys_ + from, wanted);
      if constexpr (kValues) copy_16<T::kRowBytes>(values, values_ + from, wanted);
    }
    if (kKeys && lane() / 16 == half) {
      const uint32_t entry = next_ + lane() % 16 * 4;
      store_shared(entry + offsetof(Stage<T>, log2_weight), log2_weight_);
      if constexpr (T::kCertificates) store_shared(entry + offsetof(Stage<T>, missing), missing_);
      if (p.num_queries > 1) store_shared(entry + offsetof(Stage<T>, token), __int_as_float(token_));
    }
  }

  static __device__ __noinline__ void report(const DecodeParams& p, const Work& work, int position, int token, int page) {
    if (static_cast<uint32_t>(token) < static_cast<uint32_t>(work.extent.kv_len)) {
      record_error(p.error, kErrorPage, work.place.sequence, work.place.list, token >> p.page_shift, page, p.num_pages);
    } else {
      record_error(p.error, kErrorToken, work.place.sequence, work.place.list, position, token, work.extent.kv_len);
    }
  }

  uint32_t ring_, next_, read_;  // shared addresses: the ring, the stages to copy to and to read next
  uint32_t to_;                  // where this lane's 16 bytes of a row go in a stage
  const char* keys_;             // [num_rows, head_dim] kv_dtype; this lane's 16 bytes of a row
  const char* values_;           // the same
  int64_t list_;                 // where the list's ids and weights begin
  int begin_, end_;              // positions in the list: the warp's first, the end of its share
  Entries soon_, later_;         // pages on their way, ids on their way
  uint32_t row_ = 0;             // of the pair whose rows are copied: offset in units of 16 bytes
  uint32_t good_rows_ = 0;       // which lanes have one
  float log2_weight_ = 0.0f, missing_ = 0.0f;
  int token_ = 0;
};

}  // namespace rarefy::cuda
