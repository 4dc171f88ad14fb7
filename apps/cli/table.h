// A plain text table: first column to the left, the others to the right. No colours, no lines.
#pragma once

#include <string>
#include <vector>

namespace rarefy::cli {

class Table {
 public:
  explicit Table(std::vector<std::string> header);  // not a tensor: column titles
  void add_row(std::vector<std::string> cells);
  std::string text() const;

 private:
  std::vector<std::vector<std::string>> rows_;  // the header first
};

}  // namespace rarefy::cli
