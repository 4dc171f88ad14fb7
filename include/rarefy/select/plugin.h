// For plugins in C++: turns a subclass of Selector into the callbacks of rarefy.h. Header only; a plugin links against nothing of
// Rarefy, may be built by another compiler, and meets the program that loads it through C alone.
//
//   extern "C" RAREFY_PLUGIN_EXPORT rarefy_status rarefy_plugin_init(const rarefy_plugin_api* api) {
//     return rarefy::plugin::register_selector(api, {"pagemean", "", "q . mean of 16 keys"}, make);
//   }
//
// `make` is a SelectorFactory. Of Selector, a plugin may override everything but failure(): what its functions throw is reported in
// its place. name() is not asked for: the selector has the name it is registered under. docs/guide/write_a_selector.md is a tutorial.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstring>
#include <exception>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "rarefy/rarefy.h"
#include "rarefy/select/registry.h"
#include "rarefy/select/selector.h"

namespace rarefy::plugin {

// One selector and the message of its first failure.
class Instance {
 public:
  explicit Instance(std::shared_ptr<const Selector> selector) : selector_(std::move(selector)) {}

  const Selector& selector() const { return *selector_; }
  // Runs part of the selector; an exception becomes a status.
  template <typename Body>
  rarefy_status run(Body&& body) noexcept {
    try {
      body();
      return RAREFY_OK;
    } catch (const std::exception& error) {
      keep(error.what());
    } catch (...) {
      keep("an unknown exception");
    }
    return RAREFY_INTERNAL;
  }
  const char* message() const { return failed_.load(std::memory_order_acquire) ? message_ : ""; }

  static void fill(Instance* instance, rarefy_selector& to) {
    const Selector& selector = instance->selector();
    to.user = instance;
    to.block_tokens = selector.block_tokens();
    to.block_bytes = selector.block_bytes();
    to.query_state_bytes = selector.query_state_bytes();
    to.bytes_per_token = to.block_tokens > 0 ? selector.bytes_per_token() : 0.0;
    to.encode = encode;
    to.prepare = prepare;
    to.score = score;
    to.first_key_read = first_key_read;
    to.last_error = [](void* user) { return of(user).message(); };
    to.destroy = [](void* user) { delete static_cast<Instance*>(user); };
  }

 private:
  static Instance& of(void* user) { return *static_cast<Instance*>(user); }  // not a tensor: an Instance

  // `keys` [num_tokens, head_dim] f32; `entry` [block_bytes] bytes; `user` not a tensor: an Instance
  static rarefy_status encode(void* user, int32_t layer, int32_t kv_head, const float* keys, int32_t num_tokens,
                              int32_t first_new, void* entry) {
    return of(user).run([&] {
      of(user).selector().encode({layer, kv_head}, {keys, num_tokens, first_new}, static_cast<std::byte*>(entry));
    });
  }
  // `q` [group, head_dim] f32; `state` [query_state_bytes] bytes; `user` not a tensor: an Instance
  static rarefy_status prepare(void* user, int32_t layer, int32_t kv_head, const float* q, void* state) {
    return of(user).run([&] { of(user).selector().prepare({layer, kv_head}, q, static_cast<std::byte*>(state)); });
  }
  // `state` [query_state_bytes] bytes; `scores` [group, score_stride] f32; `user` not a tensor: an Instance
  static rarefy_status score(void* user, const void* state, const rarefy_score_blocks* from, float* scores,
                             int64_t score_stride) {
    ScoreBlocks blocks;
    blocks.head = {from->layer, from->kv_head};
    blocks.num_blocks = from->num_blocks;
    blocks.num_ahead = from->num_ahead;
    blocks.entries = reinterpret_cast<const std::byte* const*>(from->entries);
    blocks.keys = from->keys;
    blocks.key_token_stride = from->key_token_stride;
    return of(user).run(
        [&] { of(user).selector().score(static_cast<const std::byte*>(state), blocks, scores, score_stride); });
  }
  static int32_t first_key_read(void* user,  // not a tensor: an Instance
                                int32_t first_new, int32_t num_tokens) {
    int32_t first = -1;  // refused
    of(user).run([&] { first = of(user).selector().first_key_read(first_new, num_tokens); });
    return first;
  }
  void keep(const char* text) noexcept {
    const std::lock_guard lock(mutex_);
    if (failed_) return;
    std::strncpy(message_, text, sizeof(message_) - 1);
    failed_.store(true, std::memory_order_release);
  }

  std::shared_ptr<const Selector> selector_;
  std::atomic<bool> failed_{false};
  std::mutex mutex_;
  char message_[256] = "";
};

namespace detail {

inline void copy_message(const std::string& from, char* message, size_t message_bytes) {
  if (message_bytes == 0) return;
  const size_t count = std::min(from.size(), message_bytes - 1);
  std::memcpy(message, from.data(), count);
  message[count] = '\0';
}

// `user` not a tensor: the factory, which lives as long as the process
inline rarefy_status create(void* user, const rarefy_selector_shape* from, const char* options, rarefy_selector* selector,
                            char* message, size_t message_bytes) {
  try {
    SelectorShape shape;
    shape.num_layers = from->num_layers;
    shape.num_kv_heads = from->num_kv_heads;
    shape.group = from->group;
    shape.head_dim = from->head_dim;
    shape.kv_dtype = from->kv_dtype == RAREFY_DTYPE_F32   ? DType::f32
                     : from->kv_dtype == RAREFY_DTYPE_F16 ? DType::f16
                                                          : DType::bf16;
    auto made = (*static_cast<SelectorFactory*>(user))(shape, options);
    if (made && *made == nullptr) made = Status::internal("the factory returned nothing");
    if (made) {
      auto instance = std::make_unique<Instance>(*std::move(made));
      Instance::fill(instance.get(), *selector);
      static_cast<void>(instance.release());
      return RAREFY_OK;
    }
    copy_message(made.status().message(), message, message_bytes);
    return static_cast<rarefy_status>(made.status().code());
  } catch (const std::exception& error) {
    copy_message(error.what(), message, message_bytes);
  } catch (...) {
    copy_message("an unknown exception", message, message_bytes);
  }
  return RAREFY_INTERNAL;
}

}  // namespace detail

inline rarefy_status register_selector(const rarefy_plugin_api* api, const SelectorInfo& info,
                                       SelectorFactory factory) noexcept {
  try {
    auto kept = std::make_unique<SelectorFactory>(std::move(factory));
    rarefy_selector_type type{};
    type.struct_size = sizeof(type);
    type.abi = RAREFY_PLUGIN_ABI;
    type.name = info.name.c_str();
    type.options = info.options.c_str();
    type.description = info.description.c_str();
    type.user = kept.get();
    type.create = detail::create;
    const rarefy_status status = api->register_selector(&type);
    if (status == RAREFY_OK) static_cast<void>(kept.release());  // a registered selector is never withdrawn
    return status;
  } catch (...) {
    return RAREFY_RESOURCE_EXHAUSTED;
  }
}

}  // namespace rarefy::plugin
