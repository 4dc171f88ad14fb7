#include "model/jinja/interpreter.h"

#include <algorithm>

#include "model/jinja/methods.h"
#include "model/jinja/operators.h"
#include "model/jinja/printing.h"

namespace rarefy::model::jinja {

// A scope for the life of this object.
class Interpreter::InnerScope {
 public:
  InnerScope(Interpreter& run, Scope* parent) : run_(run), before_(run.scope_) {
    scope_.parent = parent;
    run_.scope_ = &scope_;
  }
  ~InnerScope() { run_.scope_ = before_; }
  InnerScope(const InnerScope&) = delete;
  InnerScope& operator=(const InnerScope&) = delete;
  void clear() { scope_.variables.clear(); }

 private:
  Interpreter& run_;
  Scope* before_;
  Scope scope_;
};

Interpreter::Interpreter(const Tree& tree, Budget& budget, std::optional<int64_t> now)
    : tree_(tree), budget_(budget), now_(now) {
  root_.parent = &globals_;
  for (const auto& [name, value] : global_functions()) {
    const auto found = std::find(tree_.names.begin(), tree_.names.end(), name);
    if (found != tree_.names.end())
      globals_.variables.emplace_back(static_cast<int32_t>(found - tree_.names.begin()), value);
  }
  const auto loop = std::find(tree_.names.begin(), tree_.names.end(), "loop");
  if (loop != tree_.names.end()) loop_name_ = static_cast<int32_t>(loop - tree_.names.begin());
}

Interpreter::~Interpreter() = default;

void Interpreter::set_variable(std::string_view name, const Value& value) {
  const auto found = std::find(tree_.names.begin(), tree_.names.end(), name);
  if (found == tree_.names.end()) return;
  scope_ = &root_;
  set(static_cast<int32_t>(found - tree_.names.begin()), value);
}

std::string Interpreter::run() {
  std::string out;
  out_ = &out;
  execute(tree_.body);
  return out;
}

Namespace* Interpreter::new_namespace() {
  namespace_charges_.emplace_back(&budget_, sizeof(Namespace) + 256);
  namespaces_.push_back(std::make_unique<Namespace>());
  return namespaces_.back().get();
}

void Interpreter::write(std::string_view text) {
  budget_.write(text.size());
  *out_ += text;
}

void Interpreter::set(int32_t name, const Value& value) {
  for (auto& [known, held] : scope_->variables) {
    if (known == name) {
      held = value;
      return;
    }
  }
  scope_->variables.emplace_back(name, value);
}

Value Interpreter::lookup(int32_t name) {
  for (const Scope* scope = scope_; scope != nullptr; scope = scope->parent) {
    for (const auto& [known, value] : scope->variables) {
      if (known == name) return value;
    }
    budget_.step(static_cast<int64_t>(scope->variables.size() / 16));
  }
  return make_undefined("'" + tree_.names[static_cast<std::size_t>(name)] + "' is undefined");
}

void Interpreter::assign(const Target& target, const Value& value) {
  switch (target.kind) {
    case Target::Kind::name: return set(target.name, value);
    case Target::Kind::attribute: {
      const Value object = lookup(target.name);
      require_defined(object);
      if (!object.is(Kind::name_space)) {
        fail("expected a namespace to assign ." + target.text + " of, got a " + std::string(type_name(object)));
      }
      auto& members = object.name_space()->members;
      const auto known =
          std::find_if(members.begin(), members.end(), [&](const auto& m) { return m.first == target.text; });
      budget_.step(static_cast<int64_t>(members.size() / 4));
      if (known != members.end()) {
        known->second = value;
      } else {
        members.emplace_back(target.text, value);
      }
      return;
    }
    case Target::Kind::tuple: break;
  }
  require_defined(value);
  const auto items = iterate(value, budget_);
  if (items.size() != target.elements.size()) {
    fail("expected " + std::to_string(target.elements.size()) + " values to unpack, got " + std::to_string(items.size()));
  }
  for (std::size_t i = 0; i < target.elements.size(); ++i) assign(target.elements[i], items[i]);
}

Interpreter::Flow Interpreter::execute(const Body& body) {
  for (const auto& statement : body) {
    const Flow flow = execute_one(*statement);
    if (flow != Flow::go_on) return flow;
  }
  return Flow::go_on;
}

Interpreter::Flow Interpreter::execute_one(const Statement& statement) {
  budget_.step();
  line_ = statement.line;
  switch (statement.kind) {
    case Statement::Kind::text: write(statement.text); return Flow::go_on;
    case Statement::Kind::output: {
      const Value value = evaluate(*statement.expression);
      if (value.is(Kind::string)) {
        write(value.text());
      } else {
        write(to_str(value, budget_));
      }
      return Flow::go_on;
    }
    case Statement::Kind::set: assign(statement.target, evaluate(*statement.expression)); return Flow::go_on;
    case Statement::Kind::set_block: {
      Value value = text(capture(statement.body));
      if (statement.expression != nullptr) value = apply_filter(*statement.expression, &value);
      assign(statement.target, value);
      return Flow::go_on;
    }
    case Statement::Kind::conditional:
      for (const auto& [test, body] : statement.branches) {
        if (test == nullptr || truthy(evaluate(*test))) return execute(body);
      }
      return Flow::go_on;
    case Statement::Kind::loop: return execute_loop(statement);
    case Statement::Kind::macro: {
      auto object = std::make_shared<CallableObject>();
      object->name = statement.macro->name;
      object->macro = statement.macro.get();
      set(statement.target.name, Value(std::move(object)));
      return Flow::go_on;
    }
    case Statement::Kind::with: {
      std::vector<Value> values;
      for (const auto& [target, expression] : statement.assignments) values.push_back(evaluate(*expression));
      const InnerScope scope(*this, scope_);
      for (std::size_t i = 0; i < values.size(); ++i) assign(statement.assignments[i].first, values[i]);
      return execute(statement.body);
    }
    case Statement::Kind::scope: {
      const InnerScope scope(*this, scope_);
      return execute(statement.body);
    }
    case Statement::Kind::break_loop: return Flow::break_loop;
    case Statement::Kind::continue_loop: return Flow::continue_loop;
  }
  return Flow::go_on;
}

std::string Interpreter::capture(const Body& body) {
  std::string text;
  std::string* const before = std::exchange(out_, &text);
  try {
    const InnerScope scope(*this, scope_);
    execute(body);
  } catch (...) {
    out_ = before;
    throw;
  }
  out_ = before;
  return text;
}

Interpreter::Flow Interpreter::execute_loop(const Statement& statement) {
  struct Finish {
    std::shared_ptr<Loop> loop;
    ~Finish() { loop->finish(); }
  };
  const auto items = iterate(evaluate(*statement.expression), budget_);
  const auto loop = std::make_shared<Loop>(*this, statement, items.object());
  const Finish finish{loop};
  bool any =
      false;  // an iteration that came to its end: one that was left by break or continue does not count, as in Jinja
  {
    InnerScope scope(*this, scope_);
    while (loop->advance()) {
      budget_.step(2);
      scope.clear();
      if (loop_name_ >= 0) set(loop_name_, Value(loop));
      assign(statement.target, loop->current());
      const Flow flow = execute(statement.body);
      if (flow == Flow::break_loop) break;
      any = any || flow == Flow::go_on;
    }
  }
  if (any || statement.else_body.empty()) return Flow::go_on;
  const InnerScope scope(*this, scope_);
  return execute(statement.else_body);
}

Value Interpreter::call_macro(const MacroNode& macro, const Arguments& arguments) {
  const std::size_t num_parameters = macro.parameters.size();
  if (arguments.positional.size() > num_parameters) {
    fail("macro '" + macro.name + "' takes at most " + std::to_string(num_parameters) + " arguments, got " +
         std::to_string(arguments.positional.size()));
  }
  std::vector<const Value*> given(num_parameters, nullptr);
  for (std::size_t i = 0; i < arguments.positional.size(); ++i) given[i] = &arguments.positional[i];
  for (const auto& [name, value] : arguments.keywords) {
    const auto found = std::find(macro.parameter_texts.begin(), macro.parameter_texts.end(), name);
    const auto i = static_cast<std::size_t>(found - macro.parameter_texts.begin());
    if (found == macro.parameter_texts.end() || given[i] != nullptr) {
      fail("macro '" + macro.name + "' takes no " + (i < num_parameters ? "second " : "") + "argument '" + name + "'");
    }
    given[i] = &value;
  }
  const int32_t line = line_;
  std::string text;
  std::string* const before = std::exchange(out_, &text);
  try {
    const InnerScope scope(*this, &root_);
    for (std::size_t i = 0; i < num_parameters; ++i) {
      const std::size_t first_default = num_parameters - macro.defaults.size();
      if (given[i] != nullptr) {
        set(macro.parameters[i], *given[i]);
      } else if (i >= first_default) {
        set(macro.parameters[i], evaluate(*macro.defaults[i - first_default]));
      } else {
        set(macro.parameters[i], make_undefined("parameter '" + macro.parameter_texts[i] + "' was not provided"));
      }
    }
    execute(macro.body);
  } catch (...) {
    out_ = before;
    throw;
  }
  out_ = before;
  line_ = line;
  return make_string(&budget_, std::move(text));
}

}  // namespace rarefy::model::jinja
