// What the terminal looks like, and the progress bar. Everything here goes to standard error, and only to a terminal.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>

namespace rarefy::cli {

bool stderr_is_terminal();
int32_t terminal_columns();  // 80 where it cannot be asked
bool locale_is_utf8();

int32_t display_width(std::string_view utf8);           // in characters
std::string fit(std::string_view utf8, int32_t width);  // cut to `width` characters, with an ellipsis
std::string one_line(std::string_view text);            // white space collapsed, ends trimmed
std::string format_count(int64_t count);                // 17,120
std::string format_bytes(double bytes);                 // 1.8 GB
std::string format_seconds(double seconds);             // 12.3 s, 2 min 05 s

// One line with a bar, a rate and the time left, rewritten in place. The work of a prefill grows faster than its length, so
// the time left comes from a fit of a * done + b * done^2 to what has passed.
class ProgressBar {
 public:
  explicit ProgressBar(std::string label);
  ~ProgressBar();
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  void update(int64_t done, int64_t total);
  void clear();

 private:
  double seconds_left(double total) const;

  std::string label_;
  bool enabled_;
  bool drawn_ = false;
  std::chrono::steady_clock::time_point start_;
  double done_ = 0.0;
  // Sums of the least-squares fit: powers of `done`, and their products with the time.
  double d2_ = 0.0, d3_ = 0.0, d4_ = 0.0, td_ = 0.0, td2_ = 0.0;
};

}  // namespace rarefy::cli
