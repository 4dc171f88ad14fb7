// Contexts with the text that follows them, as `perplexity` and `capture` read them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "rarefy/model/tokenizer.h"

namespace rarefy::cli {

// A context and what comes after it.
struct Passage {
  std::string id;
  std::vector<int32_t> context, continuation;  // [num_tokens] i32
};

struct PassageOptions {
  std::string file;     // text, or NAME.jsonl with {"context", "continuation"} on each line
  int32_t context = 0;  // tokens of each context of a text; lines have their own
  int32_t predict = 0;  // tokens after each context; of lines: at most
  int32_t chunks = 1;   // passages; 0 = as many as there are
};

// Fails with ExitCode::bad_input when the file has less than that.
std::vector<Passage> read_passages(const PassageOptions& options, const Tokenizer& tokenizer);

}  // namespace rarefy::cli
