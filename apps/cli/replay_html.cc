// The HTML page of `replay`.
#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "layer_list.h"
#include "replay_report.h"
#include "run_record.h"
#include "svg.h"
#include "terminal.h"

#include <nlohmann/json.hpp>

namespace rarefy::cli {
namespace {

constexpr size_t kMostClouds = 24;  // certificate plots on a page
constexpr size_t kPointsOfCloud = 600;

std::string figure_of(const std::string& svg, const std::string& note) {
  return "<figure>\n" + svg + "<figcaption class=\"note\">" + note + "</figcaption>\n</figure>\n";
}

std::string table_of(const std::vector<ReplaySummary>& arms) {
  std::string text = "<figure><table>\n<tr>";
  for (const char* title : {"policy", "density", "bytes_ratio", "error 50 %", "95 %", "99 %", "max", "exact 50 %",
                            "exact 95 %", "mass", "recall", "overlap", "estimated 50 %", "within 1.96"}) {
    text += fmt::format("<th>{}</th>", title);
  }
  text += "</tr>\n";
  for (const ReplaySummary& arm : arms) {
    text += fmt::format("<tr><td title=\"{}\">{}</td>", escape_html(arm.arm.policy), escape_html(fit(arm.name, 60)));
    for (const double value :
         {arm.arm.traffic.density(), arm.arm.traffic.bytes_ratio(), arm.error.p50, arm.error.p95, arm.error.p99,
          arm.error.max, arm.exact_error.p50, arm.exact_error.p95, arm.mass, arm.recall, arm.overlap}) {
      text += fmt::format("<td>{:.4f}</td>", value);
    }
    if (arm.certificate_pairs > 0) {
      text +=
          fmt::format("<td>{:.4f}</td><td>{:.1f} %</td></tr>\n", arm.estimated_error.p50,
                      100.0 * static_cast<double>(arm.certificate_covered) / static_cast<double>(arm.certificate_pairs));
    } else {
      text += "<td>-</td><td>-</td></tr>\n";
    }
  }
  return text + "</table></figure>\n";
}

// Error against bytes, a line for every selector and spending rule.
std::string pareto_svg(const std::vector<ReplaySummary>& arms) {
  std::map<std::string, PlotSeries> series;
  for (const ReplaySummary& arm : arms) {
    if (arm.arm.traffic.sparse_layer_steps == 0) continue;
    const std::string name = arm.stored ? arm.name : arm.selector() + ", " + arm.spend();
    PlotSeries& one = series[name];
    one.name = name;
    one.line = true;
    one.points.push_back({arm.arm.traffic.bytes_ratio(), arm.error.p50, arm.error.p95,
                          fmt::format("{}: bytes_ratio {:.4f}, error {:.4f} (95 %: {:.4f})", arm.name,
                                      arm.arm.traffic.bytes_ratio(), arm.error.p50, arm.error.p95)});
  }
  std::vector<PlotSeries> list;
  for (auto& [name, one] : series) {
    std::sort(one.points.begin(), one.points.end(), [](const PlotPoint& a, const PlotPoint& b) { return a.x < b.x; });
    list.push_back(std::move(one));
  }
  PlotOptions options;
  options.x_label = "bytes_ratio (keys, values and index read / what dense attention reads)";
  options.y_label = "error, audited";
  options.width = 960;
  return plot_svg(list, options);
}

std::string heat_map(const ReplayScope& scope, const std::vector<ReplaySummary>& arms) {
  HeatMap map;
  for (const int32_t layer : scope.layers) map.column_names.push_back(std::to_string(layer));
  for (const ReplaySummary& arm : arms) {
    if (arm.arm.traffic.sparse_layer_steps == 0) continue;
    map.row_names.push_back(fit(arm.name, 44));
    for (const ReplaySummary::Errors& errors : arm.layer_error) map.values.push_back(errors.p50);
  }
  return heat_map_svg(map);
}

std::string certificate_svg(const ReplaySummary& arm, size_t colour) {
  // Empty series before it give it the colour of its place among the arms.
  std::vector<PlotSeries> series(colour % 10 + 1);
  series.back().small = true;
  std::vector<PlotPoint> points;
  for (const ReplayRow& row : arm.arm.rows) {
    if (row.estimated_error > 0.0) {
      points.push_back(
          {row.estimated_error, row.error, 0.0, fmt::format("layer {}, step {}, head {}", row.layer, row.step, row.head)});
    }
  }
  const size_t stride = (points.size() + kPointsOfCloud - 1) / kPointsOfCloud;
  for (size_t i = 0; i < points.size(); i += stride) series.back().points.push_back(points[i]);
  PlotOptions options;
  options.x_label = "error, estimated";
  options.y_label = "error, audited";
  options.width = 340;
  options.height = 300;
  options.guides = {1.0, 1.96};
  return plot_svg(series, options);
}

}  // namespace

std::string replay_html(const ReplayScope& scope, const std::vector<ReplaySummary>& arms) {
  nlohmann::ordered_json origin;
  append_origin(origin);
  std::string body = fmt::format(
      "<p>{}: model {}, {} steps at {} to {} cached tokens, layers {}, {} query heads, {} cache, {} seed{}.<br>\n"
      "<span class=\"note\">{}; commit {}; {}<br><code>{}</code></span></p>\n",
      escape_html(scope.title()), escape_html(scope.origin("model")), scope.positions.size(),
      format_count(scope.shortest_kv_len()), format_count(scope.longest_kv_len()), format_layers(scope.layers),
      scope.info.num_q_heads, to_string(scope.info.kv_dtype), scope.num_seeds, scope.num_seeds == 1 ? "" : "s",
      escape_html(origin["device"].get<std::string>()), origin["commit"].get<std::string>(),
      origin["date"].get<std::string>(), escape_html(origin["command"].get<std::string>()));
  body +=
      "<p>Errors are audited: |out - dense| / |dense| of each query head, with dense attention in double precision over "
      "the\n"
      "rounded cache. <em>exact</em> is what the best tokens by true probability leave, as many as the policy took.</p>\n";
  body += table_of(arms);
  body += "<h2>Error against bytes</h2>\n" +
          figure_of(pareto_svg(arms), "Points: median over heads, layers and steps; whiskers reach the 95th percentile.");
  body += "<h2>Error by layer</h2>\n" + figure_of(heat_map(scope, arms), "Median audited error; one row per policy.");
  std::string clouds;
  size_t shown = 0, certified = 0;
  for (size_t i = 0; i < arms.size(); ++i) {
    if (arms[i].certificate_pairs == 0) continue;
    if (++certified > kMostClouds) continue;
    ++shown;
    clouds += fmt::format("<div class=\"small\"><div>{}</div>{}</div>\n", escape_html(fit(arms[i].name, 44)),
                          certificate_svg(arms[i], i));
  }
  if (shown > 0) {
    body += fmt::format(
        "<h2>Certificate against true error</h2>\n<p class=\"note\">One point per head, layer and step (at most {} a "
        "plot). Dashed:\n"
        "audited = estimated, and 1.96 times that, below which about 95 % lie where the certificate "
        "holds.{}</p>\n<div>{}</div>\n",
        kPointsOfCloud, certified > shown ? fmt::format(" The first {} of {} policies.", shown, certified) : "", clouds);
  }
  return html_page("Replay of " + scope.title(), body);
}

}  // namespace rarefy::cli
