// Decoder: the bytes that token strings stand for, token by token, so that text can be decoded as a stream. Bytes that are no
// UTF-8 are replaced at the end, by the caller. Immutable after the file is read; shareable between threads.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "model/json_file.h"
#include "rarefy/core/status.h"

namespace rarefy::model::tokenizer {

class Decoder {
 public:
  // Kinds: ByteLevel, ByteFallback, Replace (of a string), Fuse, Sequence; null joins the tokens with spaces.
  static Expected<Decoder> parse(const Json& value, std::string_view place);

  // Appends what a token stands for. `byte_run` keeps the bytes that byte-fallback tokens (<0x00> to <0xFF>) gave so far: what
  // they mean is known when the run of such tokens ends, because one wrong byte spoils the whole run.
  void push(std::string_view token, std::string& byte_run, std::string& bytes) const;
  // Appends what is left of a run.
  void end_run(std::string& byte_run, std::string& bytes) const;

  std::string_view separator() const { return separator_; }  // between tokens

 private:
  struct Step {
    bool is_byte_fallback;
    std::string from, to;  // of Replace
  };
  class Parser;
  void push_from(std::size_t step, std::string_view token, std::string& byte_run, std::string& bytes) const;

  std::vector<Step> steps_;
  std::size_t byte_fallback_step_ = 0;  // steps_.size(): none
  bool byte_level_ = false;             // a token's characters stand for bytes; else for themselves
  std::string_view separator_;
};

}  // namespace rarefy::model::tokenizer
