// Runs a template once: variables in nested scopes, statements, expressions. Reads nothing but its variables; what it may cost
// is in its Budget. One thread.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "model/jinja/arguments.h"
#include "model/jinja/ast.h"

namespace rarefy::model::jinja {

class Interpreter {
 public:
  Interpreter(const Tree& tree, Budget& budget, std::optional<int64_t> now);
  ~Interpreter();
  Interpreter(const Interpreter&) = delete;
  Interpreter& operator=(const Interpreter&) = delete;

  void set_variable(std::string_view name, const Value& value);  // names that the template does not use are ignored
  std::string run();
  int32_t line() const { return line_; }  // of the node being evaluated

  // For functions, filters and tests.
  Budget& budget() { return budget_; }
  std::optional<int64_t> now() const { return now_; }
  Value text(std::string value) { return make_string(&budget_, std::move(value)); }
  Value list(std::vector<Value> items) { return make_list(&budget_, ListObject::Form::list, std::move(items)); }
  Value tuple(std::vector<Value> items) { return make_list(&budget_, ListObject::Form::tuple, std::move(items)); }
  Value iterator(std::vector<Value> items) { return make_list(&budget_, ListObject::Form::iterator, std::move(items)); }
  Value attribute(const Value& object, const std::string& name);  // object.name
  Value item(const Value& object, const Value& key);              // object[key]
  Namespace* new_namespace();

 private:
  friend class Loop;
  struct Scope {
    Scope* parent = nullptr;
    std::vector<std::pair<int32_t, Value>> variables;
  };
  class InnerScope;
  class Depth;
  enum class Flow { go_on, break_loop, continue_loop };

  Value evaluate(const Expression& node);
  Value evaluate_in_place(const Expression& node);
  Value lookup(int32_t name);
  Value slice(const Expression& node);
  Value call(const Expression& node);
  Value call_macro(const MacroNode& macro, const Arguments& arguments);
  Value apply_filter(const Expression& node, const Value* input);
  bool compare(const Expression& node);
  Value make_dict_of(const Expression& node);
  Arguments evaluate_arguments(const Expression& node);

  Flow execute(const Body& body);
  Flow execute_one(const Statement& statement);
  Flow execute_loop(const Statement& statement);
  std::string capture(const Body& body);  // in a scope of its own
  void assign(const Target& target, const Value& value);
  void set(int32_t name, const Value& value);
  void write(std::string_view text);

  const Tree& tree_;
  Budget& budget_;
  std::optional<int64_t> now_;
  Scope globals_, root_;
  Scope* scope_ = &root_;
  std::string* out_ = nullptr;
  std::vector<std::unique_ptr<Namespace>> namespaces_;
  std::vector<Charge> namespace_charges_;
  int32_t loop_name_ = -1;  // of the variable `loop`
  int32_t line_ = 0;
  int32_t depth_ = 0;
};

// The variable `loop`, and the items that are still to come; a condition is asked item by item, one ahead at most.
class Loop {
 public:
  Loop(Interpreter& run, const Statement& statement, std::shared_ptr<const ListObject> items);

  bool advance();  // to the next item; false at the end
  // The statement is over: values that still name this loop see no further item, and nothing is held any more.
  void finish();
  const Value& current() const { return *current_; }
  // A member of `self`, which is this loop; null when there is none of that name.
  std::optional<Value> member(const std::string& name, const Value& self);

 private:
  std::optional<Value> fetch();  // the next item that passes the condition
  int64_t length();

  Interpreter& run_;
  const Statement& statement_;
  Interpreter::Scope* outer_;  // where the condition is asked
  std::shared_ptr<const ListObject> items_;
  std::size_t next_ = 0;
  int64_t index0_ = -1;
  std::optional<Value> previous_, current_;
  std::deque<Value> ahead_;  // fetched, not yet reached
  std::optional<int64_t> length_;
  std::optional<std::vector<Value>> last_changed_;
};

}  // namespace rarefy::model::jinja
