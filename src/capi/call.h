// What every function of the C interface shares: no exception leaves it, the thread's last error is kept, handles, structs and
// buffers are checked in one way. Thread-safe: the only state is thread-local.
#pragma once

#include <cstddef>
#include <cstdint>
#include <exception>
#include <new>
#include <span>
#include <string_view>
#include <utility>

#include "rarefy/core/status.h"
#include "rarefy/rarefy.h"

namespace rarefy::capi {

// Keeps the message and returns the code.
rarefy_status report(const Status& status);
rarefy_status report(rarefy_status code, std::string_view message) noexcept;
inline rarefy_status report(rarefy_status code) { return code; }  // was reported already

// Runs `body`, which returns a Status or a rarefy_status.
template <typename Body>
rarefy_status call(Body&& body) noexcept {
  try {
    return report(std::forward<Body>(body)());
  } catch (const std::bad_alloc&) {
    return report(RAREFY_RESOURCE_EXHAUSTED, "out of memory");
  } catch (const std::exception& error) {
    return report(RAREFY_INTERNAL, error.what());
  } catch (...) {
    return report(RAREFY_INTERNAL, "an unknown exception; please report this");
  }
}
// A pointer that must not be NULL; `name` is the parameter's.
Status require(const void* pointer,  // not a tensor: only compared with NULL
               std::string_view name);
Status check_struct_size(std::string_view type, size_t got, size_t expected);
// A buffer of the caller for logits; NULL is fine.
Status check_logits(const float* logits,  // [capacity] f32; nullable
                    int64_t capacity, int64_t vocab_size);

// Hand a result over by the rules of rarefy.h.
rarefy_status fill_text(std::string_view result, char* text, int64_t capacity,
                        int64_t* num_bytes);  // [1] i64
rarefy_status fill_tokens(std::span<const int32_t> result,
                          int32_t* tokens,  // [capacity] i32; nullable
                          int64_t capacity,
                          int64_t* num_tokens);  // [1] i64

}  // namespace rarefy::capi
