// Tokenizer: text to ids and back, from a Hugging Face tokenizer.json. Immutable after loading; thread-safe.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "rarefy/core/status.h"

namespace rarefy {

struct EncodeOptions {
  bool add_special_tokens = true;  // what the post-processor adds, such as a begin-of-text token
  bool parse_special = true;       // added tokens in the text become their ids; false treats them as plain text
};

class Tokenizer {
 public:
  static Expected<Tokenizer> load(const std::filesystem::path& tokenizer_json);
  static Expected<Tokenizer> parse(std::string_view json);

  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;
  ~Tokenizer();

  // Refuses text that is not UTF-8 (with the offset of the first bad byte).
  Expected<std::vector<int32_t>> encode(std::string_view text, const EncodeOptions& options = {}) const;
  // Bytes of the ids; ids outside the vocabulary are an error. Invalid UTF-8 becomes U+FFFD, as in `tokenizers`.
  Expected<std::string> decode(const std::vector<int32_t>& ids, bool skip_special_tokens = false) const;

  int32_t vocab_size() const;  // largest id + 1, added tokens included
  // Id of an exact token string, or -1.
  int32_t token_to_id(std::string_view token) const;
  Expected<std::string> id_to_token(int32_t id) const;

  // Decodes a stream of ids without ever emitting half a character.
  class Stream {
   public:
    explicit Stream(const Tokenizer& tokenizer, bool skip_special_tokens = true)
        : tokenizer_(&tokenizer), skip_special_tokens_(skip_special_tokens) {}
    Expected<std::string> push(int32_t id);  // complete characters that this id finishes
    std::string flush();                     // what is left at the end, incomplete characters as U+FFFD

   private:
    const Tokenizer* tokenizer_;
    bool skip_special_tokens_;
    std::string pending_bytes_;
  };

  class Impl;
  explicit Tokenizer(std::unique_ptr<Impl> impl);

 private:
  std::unique_ptr<Impl> impl_;
};

}  // namespace rarefy
