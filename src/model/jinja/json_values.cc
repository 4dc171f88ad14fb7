#include "model/jinja/json_values.h"

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>

#include "model/json_file.h"

namespace rarefy::model::jinja {
namespace {

// Receives the parser's events and builds values from the inside out.
class Builder : public nlohmann::json_sax<nlohmann::json> {
 public:
  Builder(std::string_view where, Budget& budget) : where_(where), budget_(budget) {}

  Value take() { return std::move(result_); }

  bool null() override { return add(Value::None{}); }
  bool boolean(bool value) override { return add(Value(value)); }
  bool number_integer(number_integer_t value) override { return add(Value(int64_t{value})); }
  bool number_unsigned(number_unsigned_t value) override {
    if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
      fail(std::string(where_) + ": expected integers of at most 64 bits, got " + std::to_string(value));
    }
    return add(Value(static_cast<int64_t>(value)));
  }
  bool number_float(number_float_t value, const string_t& text) override {
    // The parser turns integers that are too large into floats.
    if (text.find_first_of(".eE") == std::string::npos) {
      fail(std::string(where_) + ": expected integers of at most 64 bits, got " + brief(text));
    }
    return add(Value(value));
  }
  bool string(string_t& value) override { return add(make_string(&budget_, std::move(value))); }
  bool binary(binary_t&) override { return false; }
  bool start_object(std::size_t) override { return open(true); }
  bool key(string_t& value) override {
    open_.back().keys.push_back(make_string(&budget_, std::move(value)));
    return true;
  }
  bool end_object() override {
    Frame frame = close();
    std::vector<std::pair<Value, Value>> items;
    for (std::size_t i = 0; i < frame.values.size(); ++i) {
      // Of a key that comes twice the last value counts, at the place of the first, as in Python.
      const auto known =
          frame.keys.size() > kMaxChecked ? items.end() : std::find_if(items.begin(), items.end(), [&](const auto& item) {
            return item.first.text() == frame.keys[i].text();
          });
      if (known != items.end()) {
        known->second = std::move(frame.values[i]);
      } else {
        items.emplace_back(std::move(frame.keys[i]), std::move(frame.values[i]));
      }
    }
    return add(make_dict(&budget_, std::move(items)));
  }
  bool start_array(std::size_t) override { return open(false); }
  bool end_array() override { return add(make_list(&budget_, ListObject::Form::list, close().values)); }
  bool parse_error(std::size_t position, const std::string&, const nlohmann::detail::exception& error) override {
    fail(std::string(where_) + ": expected JSON, got an error at byte " + std::to_string(position) + ": " +
         brief(error.what()));
  }

 private:
  struct Frame {
    bool is_object = false;
    std::vector<Value> keys, values;
  };
  static constexpr std::size_t kMaxDepth = 64;
  static constexpr std::size_t kMaxChecked = 4096;

  bool add(Value value) {
    budget_.step();
    if (open_.empty()) {
      result_ = std::move(value);
    } else {
      open_.back().values.push_back(std::move(value));
    }
    return true;
  }
  bool open(bool is_object) {
    if (open_.size() >= kMaxDepth) {
      fail(std::string(where_) + ": expected JSON of at most " + std::to_string(kMaxDepth) + " levels, got more");
    }
    open_.push_back({is_object, {}, {}});
    return true;
  }
  Frame close() {
    Frame frame = std::move(open_.back());
    open_.pop_back();
    return frame;
  }

  std::string_view where_;
  Budget& budget_;
  std::vector<Frame> open_;
  Value result_;
};

}  // namespace

Value parse_json_value(std::string_view json, std::string_view where, Budget& budget) {
  Builder builder(where, budget);
  nlohmann::json::sax_parse(json.begin(), json.end(), &builder);
  return builder.take();
}

}  // namespace rarefy::model::jinja
