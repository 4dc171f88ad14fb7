// The values of the template language, with Python's meaning: undefined, None, bool, int, float, str, list, tuple, dict, and what
// can be called. Values share their objects; objects do not change once made (namespaces do, and belong to the interpreter), so
// there are no cycles. Lists and dicts know how deep they are, which bounds every walk through them.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "model/jinja/budget.h"

namespace rarefy::model::jinja {

struct UndefinedObject;
struct StringObject;
struct ListObject;
struct DictObject;
struct CallableObject;
struct Namespace;
class Loop;

enum class Kind { undefined, none, boolean, integer, real, string, list, dict, callable, name_space, loop };

class Value {
 public:
  struct None {};

  Value() = default;                 // undefined, without saying what
  Value(None none) : data_(none) {}  // NOLINT: implicit by design
  explicit Value(bool value) : data_(value) {}
  explicit Value(int64_t value) : data_(value) {}
  explicit Value(double value) : data_(value) {}
  template <typename Object>
  explicit Value(std::shared_ptr<Object> object) : data_(std::shared_ptr<const Object>(std::move(object))) {}
  explicit Value(Namespace* object) : data_(object) {}
  explicit Value(std::shared_ptr<Loop> loop) : data_(std::move(loop)) {}

  Kind kind() const { return static_cast<Kind>(data_.index()); }
  bool is(Kind kind) const { return this->kind() == kind; }
  bool is_number() const { return is(Kind::boolean) || is(Kind::integer) || is(Kind::real); }
  bool is_whole() const { return is(Kind::boolean) || is(Kind::integer); }  // a bool counts as a number, as in Python

  // Pre: the value is of that kind.
  bool boolean() const { return std::get<bool>(data_); }
  int64_t integer() const { return std::get<int64_t>(data_); }
  double real() const { return std::get<double>(data_); }
  int64_t whole() const { return is(Kind::boolean) ? int64_t{boolean()} : integer(); }      // Pre: is_whole()
  double number() const { return is(Kind::real) ? real() : static_cast<double>(whole()); }  // Pre: is_number()
  const std::string& text() const;
  const ListObject& list() const { return *std::get<std::shared_ptr<const ListObject>>(data_); }
  const std::shared_ptr<const ListObject>& list_object() const {
    return std::get<std::shared_ptr<const ListObject>>(data_);
  }
  const DictObject& dict() const { return *std::get<std::shared_ptr<const DictObject>>(data_); }
  const CallableObject& callable() const { return *std::get<std::shared_ptr<const CallableObject>>(data_); }
  Namespace* name_space() const { return std::get<Namespace*>(data_); }
  const std::shared_ptr<Loop>& loop() const { return std::get<std::shared_ptr<Loop>>(data_); }
  const UndefinedObject* undefined() const { return std::get<std::shared_ptr<const UndefinedObject>>(data_).get(); }
  const void* identity() const;  // of the object behind it; null for plain values

 private:
  // In the order of Kind.
  std::variant<std::shared_ptr<const UndefinedObject>, None, bool, int64_t, double, std::shared_ptr<const StringObject>,
               std::shared_ptr<const ListObject>, std::shared_ptr<const DictObject>, std::shared_ptr<const CallableObject>,
               Namespace*, std::shared_ptr<Loop>>
      data_;
};

struct UndefinedObject {
  std::string what;  // "'tools' is undefined"
};

struct StringObject {
  std::string text;  // UTF-8
  Charge charge;
};

// Everything that is a row of values. Python tells these apart, and templates can see the difference.
struct ListObject {
  enum class Form {
    list,
    tuple,
    range,
    view,      // keys(), values(), items(): counted, not indexed
    iterator,  // map, select, ...: always true, walked once, neither counted nor indexed
  };
  Form form = Form::list;
  std::vector<Value> items;
  int32_t depth = 1;
  Charge charge;
  mutable bool consumed = false;  // of an iterator
};

struct DictObject {
  std::vector<std::pair<Value, Value>> items;  // in the order in which keys came
  int32_t depth = 1;
  Charge charge;

  const Value* find(std::string_view key) const;
};

struct MacroNode;
struct Arguments;
class Interpreter;

// A function of the language, a method bound to its object, or a macro.
struct CallableObject {
  using Function = Value (*)(Interpreter&, const Value& self, const Arguments&);
  std::string_view name;        // static text, or that of the macro
  Function function = nullptr;  // null for macros
  Value self;                   // of a method
  const MacroNode* macro = nullptr;
};

struct Namespace {
  std::vector<std::pair<std::string, Value>> members;
};

inline const std::string& Value::text() const { return std::get<std::shared_ptr<const StringObject>>(data_)->text; }

// Makers. A null budget is for constants, which the template owns.
Value make_undefined(std::string what);
Value make_string(Budget* budget, std::string text);
Value make_list(Budget* budget, ListObject::Form form, std::vector<Value> items);
Value make_dict(Budget* budget, std::vector<std::pair<Value, Value>> items);  // keys are unique: the caller has seen to it

// "str", "int", ... as Python names them, for messages.
std::string_view type_name(const Value& value);

}  // namespace rarefy::model::jinja
