// Lines of standard input, as they come: from a terminal, a pipe or a file. A signal ends the wait for a line.
#pragma once

#include <string>

namespace rarefy::cli {

bool stdin_is_terminal();

class LineReader {
 public:
  enum class Outcome { line, end, interrupted };
  // A line without its end; a backslash at the end of a line joins it to the next one. On a terminal `prompt` goes to standard
  // error first.
  Outcome read(const std::string& prompt, std::string& line);

 private:
  Outcome read_one(std::string& line);

  std::string buffer_;  // read, not yet given out
  bool at_end_ = false;
};

}  // namespace rarefy::cli
