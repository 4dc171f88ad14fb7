#include "capi/call.h"

#include <cstring>
#include <string>

namespace rarefy::capi {
namespace {

static_assert(RAREFY_INVALID_ARGUMENT == static_cast<int>(StatusCode::invalid_argument));
static_assert(RAREFY_NOT_FOUND == static_cast<int>(StatusCode::not_found));
static_assert(RAREFY_UNSUPPORTED == static_cast<int>(StatusCode::unsupported));
static_assert(RAREFY_DATA_LOSS == static_cast<int>(StatusCode::data_loss));
static_assert(RAREFY_RESOURCE_EXHAUSTED == static_cast<int>(StatusCode::resource_exhausted));
static_assert(RAREFY_IO_ERROR == static_cast<int>(StatusCode::io_error));
static_assert(RAREFY_CANCELLED == static_cast<int>(StatusCode::cancelled));
static_assert(RAREFY_INTERNAL == static_cast<int>(StatusCode::internal));

struct LastError {
  std::string message;
  const char* text = "";  // of `message`, or a static text when there was no memory for one
};
thread_local LastError last_error;

std::string too_small(const char* what, int64_t needed, int64_t capacity) {
  return std::string("expected a buffer for ") + std::to_string(needed) + " " + what + ", got a capacity of " +
         std::to_string(capacity);
}

Status check_buffer(const void* buffer,  // not a tensor: only compared with NULL
                    int64_t capacity,
                    const int64_t* count) {  // [1] i64
  RAREFY_RETURN_IF_ERROR(require(count, "the place for the needed size"));
  if (capacity < 0 || (buffer == nullptr && capacity != 0)) {
    return Status::invalid_argument("expected a buffer and its capacity, or NULL and 0, got a capacity of " +
                                    std::to_string(capacity) + (buffer == nullptr ? " and NULL" : ""));
  }
  return {};
}

}  // namespace

rarefy_status report(rarefy_status code, std::string_view message) noexcept {
  try {
    last_error.message = message;
    last_error.text = last_error.message.c_str();
  } catch (...) {
    last_error.text = "out of memory";
  }
  return code;
}

rarefy_status report(const Status& status) {
  return status.ok() ? RAREFY_OK : report(static_cast<rarefy_status>(status.code()), status.message());
}

Status require(const void* pointer, std::string_view name) {
  if (pointer != nullptr) return {};
  return Status::invalid_argument("expected " + std::string(name) + ", got NULL");
}

Status check_struct_size(std::string_view type, size_t got, size_t expected) {
  if (got == expected) return {};
  return Status::invalid_argument(std::string(type) + ": expected struct_size " + std::to_string(expected) + " (sizeof(" +
                                  std::string(type) + ")), got " + std::to_string(got) +
                                  "; set it before the call, and use the header of this version");
}

Status check_logits(const float* logits, int64_t capacity, int64_t vocab_size) {
  if (logits == nullptr || capacity >= vocab_size) return {};
  return Status::invalid_argument(too_small("logits (vocab_size)", vocab_size, capacity));
}

rarefy_status fill_text(std::string_view result, char* text, int64_t capacity, int64_t* num_bytes) {
  const Status status = check_buffer(text, capacity, num_bytes);
  if (!status.ok()) return report(status);
  *num_bytes = static_cast<int64_t>(result.size());
  if (text == nullptr) return RAREFY_OK;
  if (capacity < *num_bytes + 1)
    return report(RAREFY_BUFFER_TOO_SMALL, too_small("bytes, NUL included", *num_bytes + 1, capacity));
  std::memcpy(text, result.data(), result.size());
  text[result.size()] = '\0';
  return RAREFY_OK;
}

rarefy_status fill_tokens(std::span<const int32_t> result, int32_t* tokens, int64_t capacity, int64_t* num_tokens) {
  const Status status = check_buffer(tokens, capacity, num_tokens);
  if (!status.ok()) return report(status);
  *num_tokens = static_cast<int64_t>(result.size());
  if (tokens == nullptr) return RAREFY_OK;
  if (capacity < *num_tokens) return report(RAREFY_BUFFER_TOO_SMALL, too_small("tokens", *num_tokens, capacity));
  if (!result.empty()) std::memcpy(tokens, result.data(), result.size_bytes());
  return RAREFY_OK;
}

}  // namespace rarefy::capi

const char* rarefy_last_error(void) { return rarefy::capi::last_error.text; }

const char* rarefy_status_name(rarefy_status status) {
  switch (status) {
    case RAREFY_OK: return "ok";
    case RAREFY_INVALID_ARGUMENT: return "invalid argument";
    case RAREFY_NOT_FOUND: return "not found";
    case RAREFY_UNSUPPORTED: return "unsupported";
    case RAREFY_DATA_LOSS: return "data loss";
    case RAREFY_RESOURCE_EXHAUSTED: return "resource exhausted";
    case RAREFY_IO_ERROR: return "I/O error";
    case RAREFY_CANCELLED: return "cancelled";
    case RAREFY_INTERNAL: return "internal error";
    case RAREFY_BUFFER_TOO_SMALL: return "buffer too small";
  }
  return "unknown status";
}
