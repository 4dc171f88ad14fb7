#include "rarefy/engine/session.h"

#include <algorithm>
#include <chrono>

#include "engine/decode_attention.h"

namespace rarefy {

// --- Engine -----------------------------------------------------------------------------------------------------------

Engine::Engine(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Engine::~Engine() = default;
const Model& Engine::model() const { return *impl_->model; }
const EngineOptions& Engine::options() const { return impl_->options; }

namespace {

Status check_options(const EngineOptions& options, const ModelConfig& config) {
  if (options.ctx_size < 1 || options.ctx_size > config.max_position_embeddings) {
    return Status::invalid_argument("ctx_size: expected 1 to " + std::to_string(config.max_position_embeddings) +
                                    " tokens (the model's max_position_embeddings), got " +
                                    std::to_string(options.ctx_size));
  }
  if (options.max_tokens < options.ctx_size) {
    return Status::invalid_argument("max_tokens: expected at least ctx_size (" + std::to_string(options.ctx_size) +
                                    "), got " + std::to_string(options.max_tokens));
  }
  if (options.prefill_chunk < 1) {
    return Status::invalid_argument("prefill_chunk: expected at least 1 token, got " +
                                    std::to_string(options.prefill_chunk));
  }
  if (options.snapshot_tokens < 0) {
    return Status::invalid_argument("snapshot_tokens: expected at least 0, got " + std::to_string(options.snapshot_tokens));
  }
  return {};
}

CacheKind cache_kind(LayerKind kind) {
  switch (kind) {
    case LayerKind::full_attention: return CacheKind::paged;
    case LayerKind::sliding_attention: return CacheKind::window;
    case LayerKind::linear_attention: return CacheKind::recurrent;
  }
  return CacheKind::paged;
}

Expected<AttentionPlans> make_plans(DecodeProblem decode, const EngineOptions& options, int32_t sliding_window) {
  decode.sliding_window = sliding_window;
  PrefillProblem prefill;
  prefill.num_q_heads = decode.num_q_heads;
  prefill.num_kv_heads = decode.num_kv_heads;
  prefill.head_dim = decode.head_dim;
  prefill.kv_dtype = decode.kv_dtype;
  prefill.page_size = decode.page_size;
  prefill.logit_soft_cap = decode.logit_soft_cap;
  prefill.sliding_window = sliding_window;
  prefill.max_new_tokens = options.prefill_chunk;
  RAREFY_ASSIGN_OR_RETURN(DecodePlan decode_plan, DecodePlan::make(DecodeOp::dense, Device{}, decode));
  RAREFY_ASSIGN_OR_RETURN(PrefillPlan prefill_plan, PrefillPlan::make(Device{}, prefill));
  return AttentionPlans{std::move(decode_plan), std::move(prefill_plan)};
}

}  // namespace

Expected<std::shared_ptr<Engine>> Engine::make(std::shared_ptr<const Model> model, const EngineOptions& options_in) {
  if (model == nullptr) return Status::invalid_argument("Engine::make: expected a model, got null");
  const ModelConfig& config = model->config();
  EngineOptions options = options_in;
  if (options.ctx_size == 0) options.ctx_size = config.max_position_embeddings;
  if (options.max_tokens == 0) options.max_tokens = 2 * int64_t{options.ctx_size};
  RAREFY_RETURN_IF_ERROR(check_options(options, config));
  options.prefill_chunk = std::min(options.prefill_chunk, options.ctx_size);

  KvCacheConfig cache_config;
  cache_config.num_layers = config.num_layers;
  cache_config.num_kv_heads = config.num_kv_heads;
  cache_config.head_dim = config.head_dim;
  cache_config.dtype = options.kv_dtype;
  cache_config.page_size = options.page_size;
  cache_config.max_tokens = options.max_tokens;
  cache_config.layer_kinds.reserve(config.layers.size());
  for (const LayerKind kind : config.layers) cache_config.layer_kinds.push_back(cache_kind(kind));
  cache_config.window_tokens = config.sliding_window;
  cache_config.state_floats = config.linear.state_floats();
  RAREFY_ASSIGN_OR_RETURN(auto cache, KvCache::create(cache_config));

  DecodeProblem decode;
  decode.num_q_heads = config.num_q_heads;
  decode.num_kv_heads = config.num_kv_heads;
  decode.head_dim = config.head_dim;
  decode.kv_dtype = options.kv_dtype;
  decode.page_size = options.page_size;
  decode.logit_soft_cap = config.attention_soft_cap;
  RAREFY_ASSIGN_OR_RETURN(AttentionPlans full, make_plans(decode, options, 0));
  RAREFY_ASSIGN_OR_RETURN(AttentionPlans sliding, make_plans(decode, options, config.sliding_window));

  SelectorShape shape;
  shape.num_layers = config.num_layers;
  shape.num_kv_heads = config.num_kv_heads;
  shape.group = config.num_q_heads / config.num_kv_heads;
  shape.head_dim = config.head_dim;
  shape.kv_dtype = options.kv_dtype;
  auto impl = std::make_unique<Impl>(std::move(model), options, std::move(cache), shape, decode, std::move(full),
                                     std::move(sliding));
  return std::shared_ptr<Engine>(new Engine(std::move(impl)));
}

// --- Session ----------------------------------------------------------------------------------------------------------

class Session::Impl {
 public:
  Impl(std::shared_ptr<Engine> engine_in, KvSequence sequence_in)
      : engine(std::move(engine_in)), sequence(std::move(sequence_in)), attention(engine->impl()) {
    attention.stats.policy = attention.policy().to_string();
  }

  // Appends tokens in one forward pass; on failure the sequence is as before.
  Status forward(std::span<const int32_t> tokens, DecodeAttention::Mode mode, float* logits);
  Status check_tokens(std::span<const int32_t> tokens) const;

  std::shared_ptr<Engine> engine;
  KvSequence sequence;
  DecodeAttention attention;
  ForwardScratch scratch;
};

Status Session::Impl::check_tokens(std::span<const int32_t> tokens) const {
  const ModelConfig& config = engine->model().config();
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i] < 0 || tokens[i] >= config.vocab_size) {
      return Status::invalid_argument("token " + std::to_string(i) + ": expected an id in 0.." +
                                      std::to_string(config.vocab_size - 1) + ", got " + std::to_string(tokens[i]));
    }
  }
  const int64_t ctx_size = engine->options().ctx_size;
  if (sequence.length() + static_cast<int64_t>(tokens.size()) > ctx_size) {
    return Status::resource_exhausted("context: " + std::to_string(sequence.length()) + " cached and " +
                                      std::to_string(tokens.size()) + " new tokens exceed ctx_size " +
                                      std::to_string(ctx_size) + "; raise ctx_size (the model allows " +
                                      std::to_string(config.max_position_embeddings) + ") or shorten the text");
  }
  return {};
}

Status Session::Impl::forward(std::span<const int32_t> tokens, DecodeAttention::Mode mode, float* logits) {
  RAREFY_RETURN_IF_ERROR(sequence.begin_append(static_cast<int32_t>(tokens.size())));
  attention.begin(sequence, mode);
  const Status status = engine->model().forward(tokens, sequence.length(), attention, scratch,
                                                logits != nullptr ? LogitRows::last : LogitRows::none, logits);
  if (!status.ok()) {
    sequence.abort_append();
    return status;
  }
  sequence.commit();
  return {};
}

Session::Session(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Session::Session(Session&&) noexcept = default;
Session& Session::operator=(Session&&) noexcept = default;
Session::~Session() = default;

Session Engine::new_session() {
  return Session(std::make_unique<Session::Impl>(shared_from_this(), impl_->cache->new_sequence()));
}

Engine& Session::engine() const { return *impl_->engine; }
int32_t Session::length() const { return impl_->sequence.length(); }
Status Session::set_policy(const Policy& policy) { return impl_->attention.set_policy(policy, impl_->sequence); }
const Policy& Session::policy() const { return impl_->attention.policy(); }
void Session::set_seed(uint64_t seed) { impl_->attention.seed = seed; }
void Session::set_audit(const AuditOptions& options) { impl_->attention.audit = options; }
const RunStats& Session::stats() const { return impl_->attention.stats; }

void Session::set_query_observer(QueryObserver observer) { impl_->attention.query_observer = std::move(observer); }

Expected<PagedKvView> Session::cached(int32_t layer) const {
  const ModelConfig& config = impl_->engine->model().config();
  if (layer < 0 || layer >= config.num_layers) {
    return Status::invalid_argument("layer: expected 0.." + std::to_string(config.num_layers - 1) + ", got " +
                                    std::to_string(layer));
  }
  const LayerKind kind = config.layers[static_cast<size_t>(layer)];
  if (kind != LayerKind::full_attention) {
    return Status::unsupported("layer " + std::to_string(layer) + ": expected full_attention, which keeps all keys, got " +
                               std::string(to_string(kind)));
  }
  return impl_->sequence.view(layer);
}

void Session::reset_stats() {
  impl_->attention.stats = {};
  impl_->attention.stats.policy = impl_->attention.policy().to_string();
}

Status Session::prefill(std::span<const int32_t> tokens, const Progress& progress, float* logits) {
  RAREFY_RETURN_IF_ERROR(impl_->check_tokens(tokens));
  const auto total = static_cast<int64_t>(tokens.size());
  const int64_t chunk = impl_->engine->options().prefill_chunk;
  RunStats& stats = impl_->attention.stats;
  for (int64_t done = 0; done < total;) {
    const int64_t count = std::min(chunk, total - done);
    const bool last = done + count == total;
    const auto start = std::chrono::steady_clock::now();
    RAREFY_RETURN_IF_ERROR(
        impl_->forward(tokens.subspan(done, count), DecodeAttention::Mode::prefill, last ? logits : nullptr));
    const int64_t every = impl_->engine->options().snapshot_tokens;
    const int64_t length = impl_->sequence.length();
    if (last || (every > 0 && length / every > (length - count) / every)) impl_->sequence.keep_snapshot();
    stats.prefill_seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    stats.prefill_tokens += count;
    done += count;
    if (progress && !progress(done, total) && done < total) {
      return Status::cancelled("prefill stopped after " + std::to_string(done) + " of " + std::to_string(total) +
                               " tokens");
    }
  }
  return {};
}

Status Session::decode(int32_t token, float* logits) {
  RAREFY_RETURN_IF_ERROR(impl_->check_tokens({&token, 1}));
  RunStats& stats = impl_->attention.stats;
  const double audit_before = stats.audit_seconds;
  const auto start = std::chrono::steady_clock::now();
  RAREFY_RETURN_IF_ERROR(impl_->forward({&token, 1}, DecodeAttention::Mode::decode, logits));
  const double elapsed = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  stats.decode_seconds += elapsed - (stats.audit_seconds - audit_before);
  ++stats.decode_tokens;
  return {};
}

Session Session::fork() const {
  auto copy = std::make_unique<Impl>(impl_->engine, impl_->sequence.fork());
  copy->attention.seed = impl_->attention.seed;
  copy->attention.audit = impl_->attention.audit;
  copy->attention.adopt_policy(impl_->attention);
  return Session(std::move(copy));
}

Status Session::truncate(int32_t length) { return impl_->sequence.truncate(length); }
int32_t Session::reusable_length(int32_t length) const { return impl_->sequence.reusable_length(length); }

}  // namespace rarefy
