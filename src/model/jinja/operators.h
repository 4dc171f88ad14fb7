// Truth, comparison and arithmetic of values, as in Python. Integers have 64 bits; what does not fit is an error.
#pragma once

#include "model/jinja/ast.h"
#include "model/jinja/value.h"

namespace rarefy::model::jinja {

bool truthy(const Value& value);
bool equals(const Value& a, const Value& b, Budget& budget);
// Fails for values that have no order.
bool less(const Value& a, const Value& b, Budget& budget);
bool contains(const Value& container, const Value& value, Budget& budget);

Value arithmetic(Operator op, const Value& a, const Value& b, Budget& budget);
Value unary(Operator op, const Value& value);

// The values that a loop over a value sees; keeps them alive.
class Items {
 public:
  explicit Items(std::shared_ptr<const ListObject> object) : object_(std::move(object)) {}
  auto begin() const { return object_->items.begin(); }
  auto end() const { return object_->items.end(); }
  std::size_t size() const { return object_->items.size(); }
  bool empty() const { return object_->items.empty(); }
  const Value& operator[](std::size_t i) const { return object_->items[i]; }
  const std::shared_ptr<const ListObject>& object() const { return object_; }

 private:
  std::shared_ptr<const ListObject> object_;
};
// Characters, items, keys. Fails for what cannot be walked; an iterator is used up.
Items iterate(const Value& value, Budget& budget);
// Python's len(); fails for what has none.
int64_t length(const Value& value, Budget& budget);

// "'x' is undefined" for undefined values: using one where a value is needed.
void require_defined(const Value& value);

}  // namespace rarefy::model::jinja
