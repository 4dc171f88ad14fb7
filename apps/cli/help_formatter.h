// CLI11's help with descriptions wrapped to 80 columns.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

namespace rarefy::cli {

class HelpFormatter : public CLI::Formatter {
 public:
  HelpFormatter() { column_width(kColumn); }

  std::string make_option_desc(const CLI::Option* option) const override { return wrap(option->get_description()); }
  std::string make_option_opts(const CLI::Option* option) const override {
    // Without the limits that CLI11 appends after a colon: a refusal states them.
    std::string type = option->get_type_name();
    type = type.substr(0, type.find(':'));
    return type.empty() ? type : " " + type;
  }
  std::string make_subcommand(const CLI::App* verb) const override {
    std::string first_line = verb->get_description();
    first_line = first_line.substr(0, first_line.find('\n'));
    std::stringstream out;
    CLI::detail::format_help(out, verb->get_name(), wrap(first_line), column_width_);
    return out.str();
  }

 private:
  static constexpr size_t kColumn = 28, kLine = 80;

  static std::string wrap(const std::string& text) {
    std::stringstream words(text);
    std::string wrapped;
    size_t used = 0;
    for (std::string word; words >> word; used += word.size() + 1) {
      if (used > 0 && used + word.size() > kLine - kColumn) {
        wrapped.back() = '\n';
        used = 0;
      }
      wrapped += word + " ";
    }
    if (!wrapped.empty()) wrapped.pop_back();
    return wrapped;
  }
};

}  // namespace rarefy::cli
