#include "terminal.h"

#include <fmt/format.h>
#include <langinfo.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstdio>

namespace rarefy::cli {

bool stderr_is_terminal() { return isatty(STDERR_FILENO) == 1; }

int32_t terminal_columns() {
  winsize size = {};
  if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) return size.ws_col;
  return 80;
}

bool locale_is_utf8() { return std::string_view(nl_langinfo(CODESET)) == "UTF-8"; }

int32_t display_width(std::string_view utf8) {
  return static_cast<int32_t>(std::count_if(utf8.begin(), utf8.end(), [](char c) { return (c & 0xC0) != 0x80; }));
}

std::string fit(std::string_view utf8, int32_t width) {
  if (display_width(utf8) <= width) return std::string(utf8);
  size_t end = 0;
  for (int32_t shown = 0; end < utf8.size(); ++end) {
    if ((utf8[end] & 0xC0) != 0x80 && shown++ == width - 3) break;
  }
  return std::string(utf8.substr(0, end)) + "...";
}

std::string one_line(std::string_view text) {
  std::string line;
  for (const char c : text) {
    const bool space = std::isspace(static_cast<unsigned char>(c)) != 0;
    if (!space) line += c;
    if (space && !line.empty() && line.back() != ' ') line += ' ';
  }
  while (!line.empty() && line.back() == ' ') line.pop_back();
  return line;
}

std::string format_count(int64_t count) {
  const std::string digits = std::to_string(count);
  std::string grouped;
  for (size_t i = 0; i < digits.size(); ++i) {
    if (i > 0 && (digits.size() - i) % 3 == 0 && digits[i - 1] != '-') grouped += ',';
    grouped += digits[i];
  }
  return grouped;
}

std::string format_bytes(double bytes) {
  constexpr const char* kUnits[] = {"B", "KB", "MB", "GB", "TB"};
  size_t unit = 0;
  while (bytes >= 999.5 && unit + 1 < std::size(kUnits)) bytes /= 1000.0, ++unit;
  if (unit == 0) return fmt::format("{:.0f} B", bytes);
  return fmt::format("{:.{}f} {}", bytes, bytes < 9.95 ? 2 : bytes < 99.5 ? 1 : 0, kUnits[unit]);
}

std::string format_seconds(double seconds) {
  if (seconds < 1.0) return fmt::format("{:.0f} ms", seconds * 1e3);
  if (seconds < 99.5) return fmt::format("{:.1f} s", seconds);
  const auto whole = static_cast<int64_t>(std::lround(seconds));
  if (whole < 3600) return fmt::format("{} min {:02} s", whole / 60, whole % 60);
  return fmt::format("{} h {:02} min", whole / 3600, whole % 3600 / 60);
}

ProgressBar::ProgressBar(std::string label)
    : label_(std::move(label)), enabled_(stderr_is_terminal()), start_(std::chrono::steady_clock::now()) {}

ProgressBar::~ProgressBar() { clear(); }

double ProgressBar::seconds_left(double total) const {
  const double determinant = d2_ * d4_ - d3_ * d3_;
  double a = d2_ > 0.0 ? td_ / d2_ : 0.0, b = 0.0;
  if (determinant > 1e-9 * d2_ * d4_) {
    const double fitted_a = (td_ * d4_ - td2_ * d3_) / determinant;
    const double fitted_b = (d2_ * td2_ - d3_ * td_) / determinant;
    if (fitted_a >= 0.0 && fitted_b >= 0.0) a = fitted_a, b = fitted_b;
  }
  return a * (total - done_) + b * (total * total - done_ * done_);
}

void ProgressBar::update(int64_t done, int64_t total) {
  if (!enabled_) return;
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  done_ = static_cast<double>(done);
  const double square = done_ * done_;
  d2_ += square, d3_ += square * done_, d4_ += square * square, td_ += seconds * done_, td2_ += seconds * square;

  const double share = total > 0 ? done_ / static_cast<double>(total) : 1.0;
  const std::string tail =
      fmt::format(" {:3.0f} %  {} of {} tokens  {:.0f}/s  {} left", 100.0 * share, format_count(done), format_count(total),
                  seconds > 0.0 ? done_ / seconds : 0.0, format_seconds(seconds_left(static_cast<double>(total))));
  const int32_t room = terminal_columns() - 1 - display_width(label_) - display_width(tail) - 4;
  std::string bar;
  if (room >= 8) {
    const int32_t width = std::min(room, 30);
    const auto filled = static_cast<int32_t>(std::lround(share * width));
    bar = fmt::format(" [{}{}]", std::string(filled, '#'), std::string(width - filled, '.'));
  }
  const std::string line = fit(label_ + bar + tail, terminal_columns() - 1);
  fmt::print(stderr, "\r{}\x1b[K", line);
  std::fflush(stderr);
  drawn_ = true;
}

void ProgressBar::clear() {
  if (!drawn_) return;
  std::fputs("\r\x1b[K", stderr);
  std::fflush(stderr);
  drawn_ = false;
}

}  // namespace rarefy::cli
