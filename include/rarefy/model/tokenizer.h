// Tokenizer: text to ids and back, from a Hugging Face tokenizer.json (byte-level and SentencePiece-style BPE). Immutable after
// loading; thread-safe.
//
//   Expected<Tokenizer> tokenizer = Tokenizer::load(folder / "tokenizer.json");
//   Expected<std::vector<int32_t>> ids = tokenizer->encode("A text.");
//
// Ids equal those of the `tokenizers` package (Unicode 16 in regular expressions). A file that asks for something that is not
// offered is refused by name; docs/guide/tokenizers.md has the list. Limits: files of 64 MB and 64 levels, ids up to 2^24, added
// tokens of 1024 bytes, patterns of 64 KiB, texts of 1 GiB, 10^7 steps for one match of a pattern, a normalizer that makes a text
// at most 16 times as long (and 4 KiB).
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "rarefy/core/status.h"

namespace rarefy {

struct TokenizerOptions {
  // Not empty: stands for the pattern of the first Split of the pre-tokenizer, for files that were published with a wrong one
  // (some of Mistral were).
  std::string split_pattern;
};

struct EncodeOptions {
  bool add_special_tokens = true;  // what the post-processor adds, such as a begin-of-text token
  bool parse_special = true;       // special tokens in the text become their ids; false treats them as plain text (added
                                   // tokens that are not special are found in either case)
};

class Tokenizer {
 public:
  static Expected<Tokenizer> load(const std::filesystem::path& tokenizer_json, const TokenizerOptions& options = {});
  static Expected<Tokenizer> parse(std::string_view json, const TokenizerOptions& options = {});

  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;
  ~Tokenizer();

  // Refuses text that is not UTF-8 (with the offset of the first bad byte) and text that the vocabulary cannot express.
  Expected<std::vector<int32_t>> encode(std::string_view text, const EncodeOptions& options = {}) const;
  // Bytes of the ids; ids outside the vocabulary are an error. Invalid UTF-8 becomes U+FFFD, as in `tokenizers`.
  Expected<std::string> decode(const std::vector<int32_t>& ids, bool skip_special_tokens = false) const;

  int32_t vocab_size() const;  // largest id + 1, added tokens included
  // Id of an exact token string, or -1.
  int32_t token_to_id(std::string_view token) const;
  Expected<std::string> id_to_token(int32_t id) const;

  // What decoding remembers between ids.
  struct DecodeState {
    bool is_first = true;
    std::string byte_run;  // of byte-fallback tokens that go on: one wrong byte makes U+FFFD of each
  };

  // Decodes a stream of ids without ever emitting half a character. Belongs to one thread at a time; the tokenizer outlives it
  // and is not moved meanwhile. What push and flush return, put together, equals decode. Characters that byte-fallback tokens
  // spell come when the run of such tokens ends.
  class Stream {
   public:
    explicit Stream(const Tokenizer& tokenizer, bool skip_special_tokens = true)
        : tokenizer_(&tokenizer), skip_special_tokens_(skip_special_tokens) {}
    Expected<std::string> push(int32_t id);  // complete characters that this id finishes
    std::string flush();                     // what is left at the end, incomplete characters as U+FFFD; then starts anew

   private:
    const Tokenizer* tokenizer_;
    bool skip_special_tokens_;
    DecodeState state_;
    std::string pending_bytes_;
  };

  class Impl;
  explicit Tokenizer(std::unique_ptr<Impl> impl);

 private:
  std::unique_ptr<Impl> impl_;
};

}  // namespace rarefy
