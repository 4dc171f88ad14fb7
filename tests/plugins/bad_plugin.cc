// Plugins that do what a plugin must not. BAD_PLUGIN picks one: each is a shared object of its own.
#include <limits>
#include <stdexcept>

#include "rarefy/select/plugin.h"

namespace {

using namespace rarefy;

// One f32 per block of 16 tokens. `options` says what goes wrong, and where.
class Misbehaving final : public Selector {
 public:
  Misbehaving(const SelectorShape& shape, std::string_view options) : shape_(shape), options_(options) {}
  std::string name() const override { return "misbehaving"; }
  int32_t block_tokens() const override { return options_ == "block_0" ? 0 : options_ == "block_24" ? 24 : 16; }
  int64_t block_bytes() const override { return options_ == "bytes" ? -1 : 4; }
  std::size_t query_state_bytes() const override { return 4; }
  int32_t first_key_read(int32_t first_new, int32_t) const override { return options_ == "first_key" ? first_new + 1 : 0; }
  void encode(HeadId, const BlockKeys&, std::byte*) const override {
    if (options_ == "encode") throw std::runtime_error("no encoding today");
  }
  void prepare(HeadId, const float*, std::byte*) const override {
    if (options_ == "prepare") throw 7;
  }
  void score(const std::byte*, const ScoreBlocks& blocks, float* scores, int64_t score_stride) const override {
    if (options_ == "score") throw std::runtime_error("no scores today");
    constexpr float kValues[] = {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
                                 -std::numeric_limits<float>::infinity(), std::numeric_limits<float>::max(), 1.0f};
    for (int32_t query = 0; query < shape_.group; ++query) {
      for (int64_t i = 0; i < int64_t{blocks.num_blocks} * 16; ++i) scores[query * score_stride + i] = kValues[i % 5];
    }
  }

 private:
  SelectorShape shape_;
  std::string options_;
};

Expected<std::shared_ptr<const Selector>> make(const SelectorShape& shape, std::string_view options) {
  if (options == "factory") throw std::runtime_error("no selector today");
  if (options == "refused") return Status::unsupported("refused as asked");
  if (options == "null") return std::shared_ptr<const Selector>();
  return std::make_shared<const Misbehaving>(shape, options);
}

}  // namespace

#ifdef BAD_PLUGIN_NO_ENTRY
extern "C" RAREFY_PLUGIN_EXPORT int not_a_plugin() { return make({}, {}) ? 1 : 0; }
#else
extern "C" RAREFY_PLUGIN_EXPORT rarefy_status rarefy_plugin_init(const rarefy_plugin_api* api) {
#if defined(BAD_PLUGIN_THROWS)
  static_cast<void>(make), static_cast<void>(api);
  throw std::runtime_error("not today");
#elif defined(BAD_PLUGIN_OTHER_ABI)
  static_cast<void>(make);
  rarefy_selector_type type{};
  type.struct_size = sizeof(type) + 8;
  type.abi = RAREFY_PLUGIN_ABI + 1;
  return api->register_selector(&type);
#elif defined(BAD_PLUGIN_DUPLICATE)
  static_cast<void>(plugin::register_selector(api, {"oracle", "", "a name that is taken"}, make));
  return RAREFY_OK;  // as if nothing had happened
#elif defined(BAD_PLUGIN_GIVES_UP)
  static_cast<void>(make);
  api->log(RAREFY_LOG_WARNING, "bad plugin: gives up");
  return RAREFY_UNSUPPORTED;
#else
  return plugin::register_selector(api, {"misbehaving", "what goes wrong", "does what it must not"}, make);
#endif
}
#endif
