// Selectors behind the callbacks of rarefy.h: what they are asked for is checked, what they answer too.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <exception>
#include <mutex>
#include <utility>

#include "cpu/select/candidates.h"
#include "rarefy/rarefy.h"
#include "rarefy/select/registry.h"

namespace rarefy {
namespace {

// Runs a callback; what it throws, which it must not, becomes a failure with a message.
template <typename Callback>
rarefy_status guarded(Callback&& callback, std::string& message) {
  try {
    return std::forward<Callback>(callback)();
  } catch (const std::exception& error) {
    message = error.what();
  } catch (...) {
    message = "an unknown exception";
  }
  return RAREFY_INTERNAL;
}

StatusCode code_of(rarefy_status status) {
  return status > RAREFY_OK && status <= RAREFY_INTERNAL ? static_cast<StatusCode>(status) : StatusCode::internal;
}

int32_t dtype_code(DType dtype) {
  return dtype == DType::f32 ? RAREFY_DTYPE_F32 : dtype == DType::f16 ? RAREFY_DTYPE_F16 : RAREFY_DTYPE_BF16;
}

class ForeignSelector final : public Selector {
 public:
  ForeignSelector(std::string name, int32_t group, const rarefy_selector& callbacks)
      : name_(std::move(name)), group_(group), callbacks_(callbacks) {}
  ForeignSelector(const ForeignSelector&) = delete;
  ForeignSelector& operator=(const ForeignSelector&) = delete;
  ~ForeignSelector() override {
    std::string ignored;
    if (callbacks_.destroy == nullptr) return;
    guarded([&] { return callbacks_.destroy(callbacks_.user), RAREFY_OK; }, ignored);
  }

  std::string name() const override { return name_; }
  int32_t block_tokens() const override { return callbacks_.block_tokens; }
  int64_t block_bytes() const override { return callbacks_.block_bytes; }
  double bytes_per_token() const override {
    return callbacks_.bytes_per_token != 0.0 ? callbacks_.bytes_per_token : Selector::bytes_per_token();
  }
  size_t query_state_bytes() const override { return callbacks_.query_state_bytes; }

  int32_t first_key_read(int32_t first_new, int32_t num_tokens) const override {
    if (callbacks_.first_key_read == nullptr) return 0;
    int32_t first = -1;
    run("first_key_read", [&] {
      first = callbacks_.first_key_read(callbacks_.user, first_new, num_tokens);
      return RAREFY_OK;
    });
    if (first >= 0 && first <= first_new) return first;
    fail(Status::invalid_argument("selector: '" + name_ + "': first_key_read: expected 0 to " + std::to_string(first_new) +
                                  ", got " + std::to_string(first)));
    return 0;
  }
  void encode(HeadId head, const BlockKeys& block, std::byte* entry) const override {
    run("encode", [&] {
      return callbacks_.encode(callbacks_.user, head.layer, head.kv_head, block.keys, block.num_tokens, block.first_new,
                               entry);
    });
  }
  void prepare(HeadId head, const float* q, std::byte* state) const override {
    run("prepare", [&] { return callbacks_.prepare(callbacks_.user, head.layer, head.kv_head, q, state); });
  }
  void score(const std::byte* state, const ScoreBlocks& blocks, float* scores, int64_t score_stride) const override {
    rarefy_score_blocks to{};
    to.struct_size = sizeof(to);
    to.layer = blocks.head.layer;
    to.kv_head = blocks.head.kv_head;
    to.num_blocks = blocks.num_blocks;
    to.num_ahead = blocks.num_ahead;
    to.entries = reinterpret_cast<const void* const*>(blocks.entries);
    to.keys = blocks.keys;
    to.key_token_stride = blocks.key_token_stride;
    const bool scored = run("score", [&] { return callbacks_.score(callbacks_.user, state, &to, scores, score_stride); });
    const int64_t num_tokens = int64_t{blocks.num_blocks} * callbacks_.block_tokens;
    for (int32_t query = 0; query < group_; ++query) {
      float* row = scores + query * score_stride;  // [num_tokens] f32
      if (!scored) std::fill_n(row, num_tokens, 0.0f);
      for (int64_t i = 0; i < num_tokens; ++i) {
        row[i] = row[i] > -cpu::kLargestScore ? std::min(row[i], cpu::kLargestScore) : -cpu::kLargestScore;
      }
    }
  }

  Status failure() const override {
    if (!failed_.load(std::memory_order_acquire)) return {};
    const std::lock_guard lock(mutex_);
    return failure_;
  }

 private:
  template <typename Callback>
  bool run(const char* what, Callback&& callback) const {
    std::string message;
    const rarefy_status status = guarded(std::forward<Callback>(callback), message);
    if (status == RAREFY_OK) return true;
    if (message.empty() && callbacks_.last_error != nullptr) {
      guarded(
          [&] {
            const char* text = callbacks_.last_error(callbacks_.user);
            if (text != nullptr) message = text;
            return RAREFY_OK;
          },
          message);
    }
    fail({code_of(status), "selector: '" + name_ + "': " + what + " failed with status " + std::to_string(status) +
                               (message.empty() ? "" : ": " + message)});
    return false;
  }
  void fail(Status status) const {
    const std::lock_guard lock(mutex_);
    if (failed_) return;
    failure_ = std::move(status);
    failed_.store(true, std::memory_order_release);
  }

  std::string name_;
  int32_t group_;
  rarefy_selector callbacks_;
  mutable std::atomic<bool> failed_{false};
  mutable std::mutex mutex_;
  mutable Status failure_;  // the first one
};

using CreateCallback = decltype(rarefy_selector_type::create);

Expected<std::shared_ptr<const Selector>> make_foreign(const std::string& type_name, CreateCallback create,
                                                       void* user,  // not a tensor: the type's
                                                       const SelectorShape& shape, std::string_view options) {
  rarefy_selector_shape to{};
  to.struct_size = sizeof(to);
  to.num_layers = shape.num_layers;
  to.num_kv_heads = shape.num_kv_heads;
  to.group = shape.group;
  to.head_dim = shape.head_dim;
  to.kv_dtype = dtype_code(shape.kv_dtype);
  const std::string option_text(options);
  const std::string name = option_text.empty() ? type_name : type_name + ":" + option_text;
  rarefy_selector callbacks{};
  callbacks.struct_size = sizeof(callbacks);
  char text[512] = "";
  std::string message;
  const rarefy_status status =
      guarded([&] { return create(user, &to, option_text.c_str(), &callbacks, text, sizeof(text)); }, message);
  if (status != RAREFY_OK) {
    if (message.empty()) message.assign(text, strnlen(text, sizeof(text)));
    if (message.empty()) message = "create failed with status " + std::to_string(status) + " and no message";
    return Status(code_of(status), "selector: '" + name + "': " + message);
  }
  // From here on the selector's destroy runs, whatever else is wrong.
  auto selector = std::make_shared<const ForeignSelector>(name, shape.group, callbacks);
  if (callbacks.struct_size != sizeof(callbacks)) {
    return Status::invalid_argument("selector: '" + name + "': create must leave struct_size at " +
                                    std::to_string(sizeof(callbacks)) + ", got " + std::to_string(callbacks.struct_size));
  }
  if (callbacks.encode == nullptr || callbacks.prepare == nullptr || callbacks.score == nullptr) {
    return Status::invalid_argument("selector: '" + name + "': expected the callbacks encode, prepare and score, got NULL");
  }
  return selector;
}

}  // namespace

Status register_selector(const rarefy_selector_type& type) {
  // These two stand first in every version of the struct.
  if (type.struct_size != sizeof(type) || type.abi != RAREFY_PLUGIN_ABI) {
    return Status::unsupported("selector: expected a rarefy_selector_type of interface " +
                               std::to_string(RAREFY_PLUGIN_ABI) + " with " + std::to_string(sizeof(type)) +
                               " bytes, got interface " + std::to_string(type.abi) + " with " +
                               std::to_string(type.struct_size) + "; build it with the headers of this version");
  }
  if (type.name == nullptr || type.create == nullptr) {
    return Status::invalid_argument("selector: expected a name and a create callback, got NULL");
  }
  SelectorInfo info;
  info.name = type.name;
  if (type.options != nullptr) info.options = type.options;
  if (type.description != nullptr) info.description = type.description;
  auto factory = [name = info.name, create = type.create, user = type.user](const SelectorShape& shape,
                                                                            std::string_view options) {
    return make_foreign(name, create, user, shape, options);
  };
  return register_selector(std::move(info), std::move(factory));
}

}  // namespace rarefy
