// Plots as SVG text, for HTML reports that need neither a network nor JavaScript. Colours come from the page's style sheet
// (html_page), so that plots are readable on light and dark backgrounds. Plain functions.
#pragma once

#include <string>
#include <vector>

namespace rarefy::cli {

struct PlotPoint {
  double x = 0.0, y = 0.0;
  double y_high = 0.0;  // a whisker from y up to here, when larger
  std::string note;     // shown while the pointer rests on it
};

struct PlotSeries {
  std::string name;  // in the legend; empty = not there
  std::vector<PlotPoint> points;
  bool line = false;   // connects the points in their order
  bool small = false;  // small dots, for clouds
};

struct PlotOptions {
  std::string x_label, y_label;
  int width = 760, height = 440;
  bool log_x = true, log_y = true;
  std::vector<double> guides = {};  // lines y = guide * x
};

// Points that a logarithmic axis cannot show are left out.
std::string plot_svg(const std::vector<PlotSeries>& series, const PlotOptions& options);

struct HeatMap {
  std::vector<std::string> row_names, column_names;
  std::vector<double> values;  // [num_rows, num_columns] f64; coloured on a logarithmic scale; <= 0 and NaN stay blank
};
std::string heat_map_svg(const HeatMap& map);

std::string escape_html(std::string_view text);
// A whole page around `body`.
std::string html_page(const std::string& title, const std::string& body);

}  // namespace rarefy::cli
