#include "model/jinja/printing.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "model/jinja/characters.h"
#include "model/jinja/operators.h"

namespace rarefy::model::jinja {
namespace {

constexpr char kHex[] = "0123456789abcdef";

void append_hex(uint32_t value, int32_t digits, std::string& out) {
  for (int32_t shift = 4 * (digits - 1); shift >= 0; shift -= 4) out += kHex[value >> shift & 0xf];
}

// The shortest digits that read back as the same number, with an exponent below 1e-4 and from 1e16 on.
std::string real_text(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  char buffer[32];
  const double magnitude = std::fabs(value);
  const bool scientific = magnitude != 0.0 && (magnitude < 1e-4 || magnitude >= 1e16);
  const auto format = scientific ? std::chars_format::scientific : std::chars_format::fixed;
  const auto result = std::to_chars(buffer, buffer + sizeof buffer, value, format);
  std::string text(buffer, result.ptr);
  if (!scientific && text.find('.') == std::string::npos) text += ".0";
  return text;
}

void append_quoted(std::string_view text, Text& out) {
  out.budget().work(8 * text.size());
  const bool has_single = text.find('\'') != std::string_view::npos;
  const char quote = has_single && text.find('"') == std::string_view::npos ? '"' : '\'';
  std::string quoted(1, quote);
  for (std::size_t i = 0; i < text.size(); i += character_bytes(text[i])) {
    const std::string_view character = text.substr(i, character_bytes(text[i]));
    const uint32_t c = first_character(character);
    if (c == static_cast<unsigned char>(quote) || c == '\\') {
      quoted += '\\';
      quoted += character;
    } else if (c == '\n' || c == '\r' || c == '\t') {
      quoted += c == '\n' ? "\\n" : c == '\r' ? "\\r" : "\\t";
    } else if (c == 0x7f || c < 0x20 || (c > 0x7f && !is_printable(c))) {
      quoted += c < 0x100 ? "\\x" : c < 0x10000 ? "\\u" : "\\U";
      append_hex(c, c < 0x100 ? 2 : c < 0x10000 ? 4 : 8, quoted);
    } else {
      quoted += character;
    }
  }
  quoted += quote;
  out.append(quoted);
}

void append_json_string(std::string_view text, bool ensure_ascii, Text& out) {
  out.budget().work(4 * text.size());
  std::string quoted(1, '"');
  const auto escape = [&](uint32_t unit) {
    quoted += "\\u";
    append_hex(unit, 4, quoted);
  };
  for (std::size_t i = 0; i < text.size(); i += character_bytes(text[i])) {
    const std::string_view character = text.substr(i, character_bytes(text[i]));
    const uint32_t c = first_character(character);
    constexpr std::string_view kShort = "\"\\\b\f\n\r\t";
    if (const std::size_t known = c < 0x80 ? kShort.find(static_cast<char>(c)) : std::string_view::npos;
        known != std::string_view::npos) {
      quoted += '\\';
      quoted += "\"\\bfnrt"[known];
    } else if (c < 0x20 || (ensure_ascii && c > 0x7e && c < 0x10000)) {
      if (c == 0x7f) {
        quoted += character;
      } else {
        escape(c);
      }
    } else if (ensure_ascii && c >= 0x10000) {
      escape(0xd800 + ((c - 0x10000) >> 10));
      escape(0xdc00 + ((c - 0x10000) & 0x3ff));
    } else {
      quoted += character;
    }
  }
  quoted += '"';
  out.append(quoted);
}

std::string json_number(const Value& value) {
  if (value.is(Kind::integer)) return std::to_string(value.integer());
  const double number = value.real();
  if (std::isnan(number)) return "NaN";
  if (std::isinf(number)) return number > 0 ? "Infinity" : "-Infinity";
  return real_text(number);
}

[[noreturn]] void not_serializable(const Value& value) {
  fail("expected a value that JSON can express, got " +
       (value.is(Kind::undefined) ? "an undefined one" : "a " + std::string(type_name(value))));
}

void append_json_key(const Value& key, const JsonStyle& style, Text& out) {
  switch (key.kind()) {
    case Kind::string: return append_json_string(key.text(), style.ensure_ascii, out);
    case Kind::none: return out.append("\"null\"");
    case Kind::boolean: return out.append(key.boolean() ? "\"true\"" : "\"false\"");
    case Kind::integer:
    case Kind::real: return append_json_string(json_number(key), style.ensure_ascii, out);
    default: fail("expected keys that are strings or numbers, got a " + std::string(type_name(key)));
  }
}

class JsonWriter {
 public:
  JsonWriter(const JsonStyle& style, Text& out) : style_(style), out_(out) {}

  void write(const Value& value) {
    out_.budget().step();
    switch (value.kind()) {
      case Kind::none: return out_.append("null");
      case Kind::boolean: return out_.append(value.boolean() ? "true" : "false");
      case Kind::integer:
      case Kind::real: return out_.append(json_number(value));
      case Kind::string: return append_json_string(value.text(), style_.ensure_ascii, out_);
      case Kind::list: return write_list(value);
      case Kind::dict: return write_dict(value.dict());
      default: not_serializable(value);
    }
  }

 private:
  void new_line() {
    if (!style_.indent) return;
    out_.append('\n');
    out_.append(static_cast<std::size_t>(level_), *style_.indent);
  }
  void separate(bool is_first) {
    if (!is_first) out_.append(style_.item_separator);
    new_line();
  }
  void write_list(const Value& value) {
    const ListObject& list = value.list();
    if (list.form != ListObject::Form::list && list.form != ListObject::Form::tuple) not_serializable(value);
    if (list.items.empty()) return out_.append("[]");
    out_.append('[');
    ++level_;
    for (std::size_t i = 0; i < list.items.size(); ++i) {
      separate(i == 0);
      write(list.items[i]);
    }
    --level_;
    new_line();
    out_.append(']');
  }
  void write_dict(const DictObject& dict) {
    if (dict.items.empty()) return out_.append("{}");
    std::vector<const std::pair<Value, Value>*> items;
    for (const auto& item : dict.items) items.push_back(&item);
    if (style_.sort_keys) {
      out_.budget().step(static_cast<int64_t>(items.size()) * 8);
      std::stable_sort(items.begin(), items.end(),
                       [&](const auto* a, const auto* b) { return less(a->first, b->first, out_.budget()); });
    }
    out_.append('{');
    ++level_;
    for (std::size_t i = 0; i < items.size(); ++i) {
      separate(i == 0);
      append_json_key(items[i]->first, style_, out_);
      out_.append(style_.key_separator);
      write(items[i]->second);
    }
    --level_;
    new_line();
    out_.append('}');
  }

  const JsonStyle& style_;
  Text& out_;
  int32_t level_ = 0;
};

void append_list_repr(const ListObject& list, Text& out) {
  switch (list.form) {
    case ListObject::Form::iterator:
    case ListObject::Form::view: fail("expected a value that can be printed, got a generator; put |list behind it");
    case ListObject::Form::range: {
      const int64_t begin = list.items.empty() ? 0 : list.items[0].integer();
      const int64_t step = list.items.size() < 2 ? 1 : list.items[1].integer() - begin;
      const int64_t end = list.items.empty() ? 0 : list.items.back().integer() + (step > 0 ? 1 : -1);
      out.append("range(" + std::to_string(begin) + ", " + std::to_string(end));
      if (step != 1) out.append(", " + std::to_string(step));
      return out.append(')');
    }
    case ListObject::Form::list:
    case ListObject::Form::tuple: break;
  }
  const bool is_tuple = list.form == ListObject::Form::tuple;
  out.append(is_tuple ? '(' : '[');
  for (std::size_t i = 0; i < list.items.size(); ++i) {
    if (i > 0) out.append(", ");
    append_repr(list.items[i], out);
  }
  if (is_tuple && list.items.size() == 1) out.append(',');
  out.append(is_tuple ? ')' : ']');
}

}  // namespace

void append_repr(const Value& value, Text& out) {
  out.budget().step();
  switch (value.kind()) {
    case Kind::undefined: return out.append("Undefined");
    case Kind::none: return out.append("None");
    case Kind::boolean: return out.append(value.boolean() ? "True" : "False");
    case Kind::integer: return out.append(std::to_string(value.integer()));
    case Kind::real: return out.append(real_text(value.real()));
    case Kind::string: return append_quoted(value.text(), out);
    case Kind::list: return append_list_repr(value.list(), out);
    case Kind::dict: {
      out.append('{');
      for (std::size_t i = 0; i < value.dict().items.size(); ++i) {
        if (i > 0) out.append(", ");
        append_repr(value.dict().items[i].first, out);
        out.append(": ");
        append_repr(value.dict().items[i].second, out);
      }
      return out.append('}');
    }
    case Kind::callable:
    case Kind::name_space:
    case Kind::loop: fail("expected a value that can be printed, got a " + std::string(type_name(value)));
  }
}

void append_str(const Value& value, Text& out) {
  if (value.is(Kind::string)) return out.append(value.text());
  if (!value.is(Kind::undefined)) append_repr(value, out);
}

std::string to_str(const Value& value, Budget& budget) {
  Text text(budget);
  append_str(value, text);
  return text.take();
}

void append_json(const Value& value, const JsonStyle& style, Text& out) { JsonWriter(style, out).write(value); }

}  // namespace rarefy::model::jinja
