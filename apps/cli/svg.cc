#include "svg.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

namespace rarefy::cli {
namespace {

constexpr int kNumColours = 10;  // classes c0 .. c9 of the style sheet

constexpr const char* kStyle = R"(
:root { color-scheme: light dark; --text: #1b1f24; --back: #ffffff; --grid: #d8dde3; --soft: #667080;
  --c0: #0b62d6; --c1: #d6560b; --c2: #16874b; --c3: #b3219b; --c4: #8a6d00; --c5: #0a8a96; --c6: #c2223f; --c7: #6a4fd0;
  --c8: #5d7a1f; --c9: #7a5542; }
@media (prefers-color-scheme: dark) { :root { --text: #e6e9ed; --back: #14171b; --grid: #39414b; --soft: #9aa5b1;
  --c0: #6aa8ff; --c1: #ff9b5c; --c2: #5ad08e; --c3: #f08be0; --c4: #e0c04a; --c5: #55d0dc; --c6: #ff7f96; --c7: #ab97ff;
  --c8: #a9cc5e; --c9: #cfa48d; } }
body { font: 15px/1.45 system-ui, sans-serif; color: var(--text); background: var(--back); max-width: 1080px; margin: 2em auto;
  padding: 0 1em; }
h1 { font-size: 1.5em; } h2 { font-size: 1.15em; margin-top: 2em; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px; }
th, td { padding: .2em .7em; text-align: right; border-bottom: 1px solid var(--grid); }
th:first-child, td:first-child { text-align: left; }
figure { margin: 1em 0; overflow-x: auto; } .note { color: var(--soft); }
.small { display: inline-block; margin: 0 .6em .6em 0; }
svg { font: 12px system-ui, sans-serif; } svg text { fill: var(--text); } .grid { stroke: var(--grid); }
.guide { stroke: var(--soft); stroke-dasharray: 4 4; fill: none; } .soft { fill: var(--soft); }
.c0 { --c: var(--c0); } .c1 { --c: var(--c1); } .c2 { --c: var(--c2); } .c3 { --c: var(--c3); } .c4 { --c: var(--c4); }
.c5 { --c: var(--c5); } .c6 { --c: var(--c6); } .c7 { --c: var(--c7); } .c8 { --c: var(--c8); } .c9 { --c: var(--c9); }
.dot { fill: var(--c); } .line { stroke: var(--c); fill: none; stroke-width: 1.5; } .cloud { fill: var(--c); fill-opacity: .35; }
.dash { stroke-dasharray: 5 3; }
)";

// One axis: from values to pixels, and its ticks.
class Axis {
 public:
  Axis(bool log, double from_pixel, double to_pixel) : log_(log), from_(from_pixel), to_(to_pixel) {}

  bool shows(double value) const { return std::isfinite(value) && (!log_ || value > 0.0); }
  void cover(double value) {
    if (!shows(value)) return;
    low_ = std::min(low_, place(value));
    high_ = std::max(high_, place(value));
  }
  void finish() {
    if (low_ > high_) low_ = log_ ? -2.0 : 0.0, high_ = low_ + 1.0;
    const double margin = std::max(0.05 * (high_ - low_), log_ ? 0.05 : 1e-6);
    low_ -= margin;
    high_ += margin;
  }
  double pixel(double value) const { return from_ + (place(value) - low_) / (high_ - low_) * (to_ - from_); }
  std::vector<double> ticks() const {
    std::vector<double> result;
    if (log_) {
      for (int exponent = static_cast<int>(std::floor(low_)); exponent <= static_cast<int>(std::ceil(high_)); ++exponent) {
        for (const double factor : {1.0, 2.0, 5.0}) {
          if (factor > 1.0 && high_ - low_ > 3.0) continue;
          const double value = factor * std::pow(10.0, exponent);
          if (place(value) >= low_ && place(value) <= high_) result.push_back(value);
        }
      }
      return result;
    }
    const double rough = (high_ - low_) / 6.0, unit = std::pow(10.0, std::floor(std::log10(rough)));
    const double step = rough / unit > 5.0 ? 10.0 * unit : rough / unit > 2.0 ? 5.0 * unit : 2.0 * unit;
    for (double value = std::ceil(low_ / step) * step; value <= high_; value += step) result.push_back(value);
    return result;
  }

 private:
  double place(double value) const { return log_ ? std::log10(value) : value; }

  bool log_;
  double from_, to_;
  double low_ = std::numeric_limits<double>::infinity(), high_ = -std::numeric_limits<double>::infinity();
};

std::string text_at(double x, double y, const char* anchor, std::string_view text, const char* more = "") {
  return fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\"{}>{}</text>\n", x, y, anchor, more,
                     escape_html(text));
}

std::string line(const char* css_class, double x1, double y1, double x2, double y2) {
  return fmt::format("<line class=\"{}\" x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\"/>\n", css_class, x1, y1,
                     x2, y2);
}

std::string series_svg(const PlotSeries& one, const Axis& x, const Axis& y) {
  std::string text, path;
  for (const PlotPoint& point : one.points) {
    if (!x.shows(point.x) || !y.shows(point.y)) continue;
    const double at_x = x.pixel(point.x), at_y = y.pixel(point.y);
    if (one.line) path += fmt::format("{}{:.1f},{:.1f}", path.empty() ? "" : " ", at_x, at_y);
    if (point.y_high > point.y && y.shows(point.y_high)) text += line("line", at_x, at_y, at_x, y.pixel(point.y_high));
    text += fmt::format("<circle class=\"{}\" cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"{}\">", one.small ? "cloud" : "dot", at_x,
                        at_y, one.small ? "2" : "4");
    if (!point.note.empty()) text += "<title>" + escape_html(point.note) + "</title>";
    text += "</circle>\n";
  }
  if (!path.empty()) text = "<polyline class=\"line\" points=\"" + path + "\"/>\n" + text;
  return text;
}

}  // namespace

std::string plot_svg(const std::vector<PlotSeries>& series, const PlotOptions& options) {
  size_t longest = 0, named = 0;
  for (const PlotSeries& one : series) {
    longest = std::max(longest, one.name.size());
    named += one.name.empty() ? 0 : 1;
  }
  const double legend = named > 0 ? 30.0 + 6.6 * static_cast<double>(longest) : 0.0;
  const double left = 64.0, right = options.width - 12.0 - legend, top = 12.0;
  const double height = std::max<double>(options.height, 60.0 + 17.0 * static_cast<double>(named));
  const double bottom = height - 44.0;
  Axis x(options.log_x, left, right), y(options.log_y, bottom, top);
  for (const PlotSeries& one : series) {
    for (const PlotPoint& point : one.points) {
      if (!x.shows(point.x) || !y.shows(point.y)) continue;
      x.cover(point.x);
      y.cover(point.y);
      if (point.y_high > point.y) y.cover(point.y_high);
    }
  }
  x.finish();
  y.finish();
  std::string text = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0}\" height=\"{1:.0f}\" viewBox=\"0 0 {0} {1:.0f}\">\n",
      options.width, height);
  for (const double tick : x.ticks()) {
    text += line("grid", x.pixel(tick), top, x.pixel(tick), bottom);
    text += text_at(x.pixel(tick), bottom + 16.0, "middle", fmt::format("{:g}", tick));
  }
  for (const double tick : y.ticks()) {
    text += line("grid", left, y.pixel(tick), right, y.pixel(tick));
    text += text_at(left - 6.0, y.pixel(tick) + 4.0, "end", fmt::format("{:g}", tick));
  }
  text += text_at((left + right) / 2.0, height - 10.0, "middle", options.x_label);
  text += text_at(0.0, 0.0, "middle", options.y_label,
                  fmt::format(" transform=\"translate(14 {:.1f}) rotate(-90)\"", (top + bottom) / 2.0).c_str());
  // Plots of one page may share this definition: the name says all that is in it.
  const std::string area = fmt::format("area-{:.0f}-{:.0f}-{:.0f}-{:.0f}", left, top, right, bottom);
  text +=
      fmt::format("<clipPath id=\"{}\"><rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.1f}\"/></clipPath>\n",
                  area, left, top, right - left, bottom - top);
  for (const double guide : options.guides) {
    std::string path;
    for (int i = 0; i <= 60; ++i) {
      // In plot coordinates a line through both ends of the x range; straight on two axes of one kind.
      const double value = std::pow(10.0, -9.0 + 12.0 * i / 60.0);
      path += fmt::format("{:.1f},{:.1f} ", x.pixel(value), y.pixel(guide * value));
    }
    text += "<polyline class=\"guide\" clip-path=\"url(#" + area + ")\" points=\"" + path + "\"/>\n";
  }
  double legend_y = top + 10.0;
  for (size_t i = 0; i < series.size(); ++i) {
    text += fmt::format("<g class=\"c{}{}\">\n", i % kNumColours, i / kNumColours % 2 == 1 ? " dash" : "");
    text += series_svg(series[i], x, y);
    if (!series[i].name.empty()) {
      text += fmt::format("<circle class=\"dot\" cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"4\"/>\n", right + 16.0, legend_y - 4.0);
      text += text_at(right + 26.0, legend_y, "start", series[i].name);
      legend_y += 17.0;
    }
    text += "</g>\n";
  }
  return text + "</svg>\n";
}

std::string heat_map_svg(const HeatMap& map) {
  size_t longest = 4;
  for (const std::string& name : map.row_names) longest = std::max(longest, name.size());
  const size_t columns = map.column_names.size(), rows = map.row_names.size();
  const double left = 10.0 + 6.8 * static_cast<double>(longest), top = 22.0, cell = 22.0;
  const double width = std::clamp(700.0 / static_cast<double>(std::max<size_t>(1, columns)), 18.0, 58.0);
  double low = std::numeric_limits<double>::infinity(), high = -low;
  for (const double value : map.values) {
    if (!(value > 0.0)) continue;
    low = std::min(low, std::log(value));
    high = std::max(high, std::log(value));
  }
  const int total_width = static_cast<int>(left + width * static_cast<double>(columns) + 10.0);
  const int total_height = static_cast<int>(top + cell * static_cast<double>(rows) + 8.0);
  std::string text =
      fmt::format("<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0}\" height=\"{1}\" viewBox=\"0 0 {0} {1}\">\n",
                  total_width, total_height);
  for (size_t column = 0; column < columns; ++column) {
    text += text_at(left + width * (static_cast<double>(column) + 0.5), top - 7.0, "middle", map.column_names[column]);
  }
  for (size_t row = 0; row < rows; ++row) {
    const double y = top + cell * static_cast<double>(row);
    text += text_at(left - 6.0, y + 15.0, "end", map.row_names[row]);
    for (size_t column = 0; column < columns; ++column) {
      const double value = map.values[row * columns + column];
      if (!(value > 0.0)) continue;
      // From a pale yellow to a dark red; figures in a colour that stands out from the cell on any page.
      const double share = high > low ? (std::log(value) - low) / (high - low) : 0.5;
      const auto mix = [&](double from, double to) { return static_cast<int>(std::lround(from + share * (to - from))); };
      const double x = left + width * static_cast<double>(column);
      text += fmt::format("<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.1f}\" fill=\"rgb({},{},{})\"/>\n",
                          x, y, width - 1.0, cell - 1.0, mix(255, 150), mix(240, 20), mix(190, 45));
      if (width >= 38.0) {
        text += text_at(x + width / 2.0, y + 15.0, "middle", fmt::format("{:.3f}", value),
                        share > 0.55 ? " style=\"fill:#fff\"" : " style=\"fill:#1b1f24\"");
      }
    }
  }
  return text + "</svg>\n";
}

std::string escape_html(std::string_view text) {
  std::string result;
  for (const char c : text) {
    switch (c) {
      case '&': result += "&amp;"; break;
      case '<': result += "&lt;"; break;
      case '>': result += "&gt;"; break;
      case '"': result += "&quot;"; break;
      default: result += c;
    }
  }
  return result;
}

std::string html_page(const std::string& title, const std::string& body) {
  return fmt::format(
      "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{}</title>\n<style>{}</style>\n"
      "</head>\n<body>\n<h1>{}</h1>\n{}</body>\n</html>\n",
      escape_html(title), kStyle, escape_html(title), body);
}

}  // namespace rarefy::cli
