// The variable `loop`.
#include <algorithm>

#include "model/jinja/interpreter.h"
#include "model/jinja/operators.h"

namespace rarefy::model::jinja {

Loop::Loop(Interpreter& run, const Statement& statement, std::shared_ptr<const ListObject> items)
    : run_(run), statement_(statement), outer_(run.scope_), items_(std::move(items)) {}

std::optional<Value> Loop::fetch() {
  while (items_ != nullptr && next_ < items_->items.size()) {
    Value item = items_->items[next_++];
    if (statement_.filter == nullptr) return item;
    Interpreter::Scope scope;
    scope.parent = outer_;
    Interpreter::Scope* const before = std::exchange(run_.scope_, &scope);
    bool passes = false;
    try {
      run_.assign(statement_.target, item);
      passes = truthy(run_.evaluate(*statement_.filter));
    } catch (...) {
      run_.scope_ = before;
      throw;
    }
    run_.scope_ = before;
    if (passes) return item;
  }
  return {};
}

bool Loop::advance() {
  std::optional<Value> next;
  if (!ahead_.empty()) {
    next = std::move(ahead_.front());
    ahead_.pop_front();
  } else {
    next = fetch();
  }
  if (!next) return false;
  ++index0_;
  previous_ = std::exchange(current_, std::move(next));
  return true;
}

void Loop::finish() {
  items_.reset();
  ahead_.clear();
  previous_.reset();
  current_.reset();
  last_changed_.reset();
}

int64_t Loop::length() {
  if (!length_) {
    if (statement_.filter == nullptr && items_ != nullptr) {
      length_ = static_cast<int64_t>(items_->items.size());
    } else {
      run_.budget().expect(items_ == nullptr ? 0 : items_->items.size() * sizeof(Value));
      while (auto item = fetch()) ahead_.push_back(*std::move(item));
      length_ = index0_ + 1 + static_cast<int64_t>(ahead_.size());
    }
  }
  return *length_;
}

std::optional<Value> Loop::member(const std::string& name, const Value& self) {
  const auto peek = [&] {
    if (ahead_.empty()) {
      if (auto item = fetch()) ahead_.push_back(*std::move(item));
    }
    return !ahead_.empty();
  };
  const auto method = [&](std::string_view method_name, CallableObject::Function function) {
    auto object = std::make_shared<CallableObject>();
    object->name = method_name;
    object->function = function;
    object->self = self;
    return Value(std::move(object));
  };
  if (name == "index") return Value(index0_ + 1);
  if (name == "index0") return Value(index0_);
  if (name == "first") return Value(index0_ == 0);
  if (name == "last") return Value(!peek());
  if (name == "length") return Value(length());
  if (name == "revindex") return Value(length() - index0_);
  if (name == "revindex0") return Value(length() - index0_ - 1);
  if (name == "depth") return Value(int64_t{1});
  if (name == "depth0") return Value(int64_t{0});
  if (name == "previtem") return previous_ ? *previous_ : make_undefined("there is no previous item");
  if (name == "nextitem") return peek() ? ahead_.front() : make_undefined("there is no next item");
  if (name == "cycle") {
    return method("cycle", [](Interpreter&, const Value& loop, const Arguments& arguments) {
      if (arguments.positional.empty()) fail("cycle: expected values to cycle through, got none");
      const auto count = static_cast<int64_t>(arguments.positional.size());
      return arguments.positional[static_cast<std::size_t>(std::max<int64_t>(0, loop.loop()->index0_) % count)];
    });
  }
  if (name == "changed") {
    return method("changed", [](Interpreter& run, const Value& value, const Arguments& arguments) {
      Loop& loop = *value.loop();
      const auto& now = arguments.positional;
      const bool same = loop.last_changed_ && loop.last_changed_->size() == now.size() &&
                        std::equal(now.begin(), now.end(), loop.last_changed_->begin(),
                                   [&](const Value& a, const Value& b) { return equals(a, b, run.budget()); });
      // A loop that is over keeps nothing, so that it cannot come to hold itself.
      if (!same && loop.items_ != nullptr) loop.last_changed_ = now;
      return Value(!same);
    });
  }
  return {};
}

}  // namespace rarefy::model::jinja
