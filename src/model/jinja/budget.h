// What one rendering may cost, and how template code gives up.
//
// A template comes from the same place as the weights and is no more trusted than they are: every node that is evaluated, every
// byte that is copied and every byte that is held is counted, and the first limit that is passed ends the rendering.
// One Budget per rendering; it outlives the values that are charged to it. One thread.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

#include "rarefy/core/status.h"
#include "rarefy/model/chat_template.h"

namespace rarefy::model::jinja {

// Thrown inside the interpreter and caught by ChatTemplate: nearly every operation on values can fail, at any depth, and the
// place where it failed is known only at the node being evaluated. Nothing of it leaves the library.
struct TemplateError {
  StatusCode code = StatusCode::invalid_argument;
  std::string message;
  int32_t line = 0;  // 0 = that of the node being evaluated
};

[[noreturn]] void fail(std::string message, StatusCode code = StatusCode::invalid_argument);

class Budget {
 public:
  explicit Budget(const ChatTemplateLimits& limits) : limits_(limits) {}
  Budget(const Budget&) = delete;
  Budget& operator=(const Budget&) = delete;

  void step(int64_t count = 1) {
    steps_ += count;
    if (steps_ > limits_.max_steps) refuse_steps();
  }
  // Bytes looked at or copied: a step moves this many, about as long as evaluating a node takes.
  void work(std::size_t num_bytes) { step(static_cast<int64_t>(num_bytes / kBytesPerStep)); }
  // Fails when values of this size cannot be held beside those that live.
  void expect(std::size_t num_bytes) const {
    if (num_bytes > static_cast<std::size_t>(limits_.max_value_bytes - held_)) refuse_bytes();
  }
  void hold(int64_t num_bytes) {
    held_ += num_bytes;
    if (held_ > limits_.max_value_bytes) refuse_bytes();
  }
  void release(int64_t num_bytes) { held_ -= num_bytes; }
  // Text that a template writes, into its output or into what a macro returns.
  void write(std::size_t num_bytes);

  const ChatTemplateLimits& limits() const { return limits_; }
  int64_t steps() const { return steps_; }

 private:
  static constexpr std::size_t kBytesPerStep = 128;
  [[noreturn]] void refuse_steps() const;
  [[noreturn]] void refuse_bytes() const;

  ChatTemplateLimits limits_;
  int64_t steps_ = 0, held_ = 0, written_ = 0;
};

// The bytes that an object holds, given back with it.
class Charge {
 public:
  Charge() = default;
  Charge(Budget* budget, std::size_t num_bytes) : bytes_(static_cast<int64_t>(num_bytes)) {
    if (budget == nullptr) return;
    budget->expect(num_bytes);
    budget->hold(bytes_);
    budget_ = budget;
  }
  Charge(Charge&& other) noexcept : budget_(std::exchange(other.budget_, nullptr)), bytes_(other.bytes_) {}
  Charge& operator=(Charge&&) = delete;
  ~Charge() {
    if (budget_ != nullptr) budget_->release(bytes_);
  }

 private:
  Budget* budget_ = nullptr;  // null: not counted (constants of the template)
  int64_t bytes_ = 0;
};

// Text being built, bounded by the budget at every append.
class Text {
 public:
  explicit Text(Budget& budget) : budget_(budget) {}
  void append(std::string_view piece) {
    budget_.work(piece.size());
    budget_.expect(text_.size() + piece.size());
    text_ += piece;
  }
  void append(char c) { append(std::string_view(&c, 1)); }
  void append(std::size_t count, std::string_view piece);  // `count` times
  Budget& budget() { return budget_; }
  std::string take() { return std::move(text_); }

 private:
  Budget& budget_;
  std::string text_;
};

}  // namespace rarefy::model::jinja
