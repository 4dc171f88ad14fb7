#include "line_reader.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "failure.h"
#include "interrupt.h"

namespace rarefy::cli {

bool stdin_is_terminal() { return isatty(STDIN_FILENO) == 1; }

LineReader::Outcome LineReader::read_one(std::string& line) {
  while (true) {
    if (const size_t end = buffer_.find('\n'); end != std::string::npos) {
      line = buffer_.substr(0, end);
      buffer_.erase(0, end + 1);
      if (line.ends_with('\r')) line.pop_back();
      return Outcome::line;
    }
    if (at_end_) {
      if (buffer_.empty()) return Outcome::end;
      line = std::exchange(buffer_, {});
      return Outcome::line;
    }
    if (interrupted()) return Outcome::interrupted;
    char bytes[4096];
    const ssize_t count = ::read(STDIN_FILENO, bytes, sizeof bytes);
    if (count > 0) buffer_.append(bytes, static_cast<size_t>(count));
    if (count == 0) at_end_ = true;
    if (count < 0 && errno != EINTR) {
      fail(ExitCode::bad_input, fmt::format("standard input: cannot be read: {}", std::strerror(errno)));
    }
  }
}

LineReader::Outcome LineReader::read(const std::string& prompt, std::string& line) {
  line.clear();
  std::string shown = prompt;
  while (true) {
    if (stdin_is_terminal()) fmt::print(stderr, "{}", shown);
    std::string part;
    const Outcome outcome = read_one(part);
    if (outcome == Outcome::end && !line.empty()) return Outcome::line;
    if (outcome != Outcome::line) return outcome;
    line += part;
    if (!line.ends_with('\\')) return Outcome::line;
    line.back() = '\n';
    shown = ". ";
  }
}

}  // namespace rarefy::cli
