// Status and Expected: how every public function of Rarefy reports failure.
//
// A Status is a code and one message that says what was expected, what came and what to do. Expected<T> holds a T or the
// Status that explains its absence. Nothing in the library throws across its boundary, aborts, exits or prints.
//
//   Expected<Policy> policy = Policy::parse("50x");
//   if (!policy) return policy.status();
//
// Both types are plain values without shared state; using one object from several threads needs the caller's lock.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

namespace rarefy {

enum class StatusCode {
  ok = 0,
  invalid_argument = 1,    // the caller's values do not make sense
  not_found = 2,           // a file, tensor, token or implementation is missing
  unsupported = 3,         // understood, but not offered here
  data_loss = 4,           // a file is truncated, overlapping or otherwise corrupt
  resource_exhausted = 5,  // memory, pages, context length or disk
  io_error = 6,            // the operating system refused
  cancelled = 7,           // the user asked to stop
  internal = 8,            // a bug in Rarefy
};

std::string_view to_string(StatusCode code);

class [[nodiscard]] Status {
 public:
  Status() = default;  // ok
  Status(StatusCode code, std::string message) : code_(code), message_(std::move(message)) {}

  bool ok() const { return code_ == StatusCode::ok; }
  StatusCode code() const { return code_; }
  const std::string& message() const { return message_; }
  // "invalid argument: expected ..., got ..."; "ok" for success.
  std::string to_string() const;
  // The same failure with `context: ` in front of its message; ok stays ok.
  Status with_context(std::string_view context) const;

  static Status invalid_argument(std::string message) { return {StatusCode::invalid_argument, std::move(message)}; }
  static Status not_found(std::string message) { return {StatusCode::not_found, std::move(message)}; }
  static Status unsupported(std::string message) { return {StatusCode::unsupported, std::move(message)}; }
  static Status data_loss(std::string message) { return {StatusCode::data_loss, std::move(message)}; }
  static Status resource_exhausted(std::string message) { return {StatusCode::resource_exhausted, std::move(message)}; }
  static Status io_error(std::string message) { return {StatusCode::io_error, std::move(message)}; }
  static Status cancelled(std::string message) { return {StatusCode::cancelled, std::move(message)}; }
  static Status internal(std::string message) { return {StatusCode::internal, std::move(message)}; }

 private:
  StatusCode code_ = StatusCode::ok;
  std::string message_;
};

// Debian 12 does not package tl::expected and the compilers it ships predate std::expected, hence these few lines
// (docs/adr/0002-expected.md).
template <typename T>
class [[nodiscard]] Expected {
 public:
  template <typename U = T>
    requires(std::is_constructible_v<T, U &&> && !std::is_same_v<std::remove_cvref_t<U>, Status> &&
             !std::is_same_v<std::remove_cvref_t<U>, Expected>)
  Expected(U&& value) : value_(std::in_place, std::forward<U>(value)) {}  // NOLINT: implicit by design
  Expected(Status status) : status_(std::move(status)) {                 // NOLINT: implicit by design
    if (status_.ok()) status_ = Status::internal("Expected was built from an ok Status, which carries no value");
  }

  explicit operator bool() const { return value_.has_value(); }
  bool has_value() const { return value_.has_value(); }
  const Status& status() const { return status_; }  // ok when a value is held

  // Pre: has_value().
  T& value() & { return *value_; }
  const T& value() const& { return *value_; }
  T&& value() && { return std::move(*value_); }
  T& operator*() & { return *value_; }
  const T& operator*() const& { return *value_; }
  T&& operator*() && { return std::move(*value_); }
  T* operator->() { return &*value_; }
  const T* operator->() const { return &*value_; }

 private:
  std::optional<T> value_;
  Status status_;
};

}  // namespace rarefy

// Returns from the enclosing function when `expression` (a Status) failed.
#define RAREFY_RETURN_IF_ERROR(expression)                      \
  do {                                                          \
    ::rarefy::Status rarefy_status_ = (expression);             \
    if (!rarefy_status_.ok()) return rarefy_status_;            \
  } while (false)

#define RAREFY_CONCAT_INNER(a, b) a##b
#define RAREFY_CONCAT(a, b) RAREFY_CONCAT_INNER(a, b)

// RAREFY_ASSIGN_OR_RETURN(auto x, make_x()); declares x from an Expected or returns its Status.
#define RAREFY_ASSIGN_OR_RETURN(declaration, expression) \
  RAREFY_ASSIGN_OR_RETURN_IMPL(RAREFY_CONCAT(rarefy_expected_, __LINE__), declaration, expression)
#define RAREFY_ASSIGN_OR_RETURN_IMPL(expected, declaration, expression) \
  auto expected = (expression);                                         \
  if (!expected) return expected.status();                              \
  declaration = *std::move(expected)
