// Engines, sessions and statistics.
#include <limits>
#include <string>

#include "capi/call.h"
#include "capi/handles.h"

using namespace rarefy;
using capi::call;
using capi::check_struct_size;
using capi::report;
using capi::require;

namespace {

Status apply(const rarefy_engine_options& from, EngineOptions& to) {
  RAREFY_RETURN_IF_ERROR(check_struct_size("rarefy_engine_options", from.struct_size, sizeof(from)));
  to.ctx_size = from.ctx_size;
  to.max_tokens = from.max_tokens;
  if (from.page_size != 0) to.page_size = from.page_size;
  if (from.prefill_chunk != 0) to.prefill_chunk = from.prefill_chunk;
  switch (from.kv_dtype) {
    case RAREFY_KV_DEFAULT: return {};
    case RAREFY_KV_F32: to.kv_dtype = DType::f32; return {};
    case RAREFY_KV_F16: to.kv_dtype = DType::f16; return {};
    case RAREFY_KV_BF16: to.kv_dtype = DType::bf16; return {};
  }
  return Status::invalid_argument("kv_dtype: expected a rarefy_kv_dtype, got " + std::to_string(from.kv_dtype));
}

void copy_stats(const RunStats& from, rarefy_stats& to) {
  to.prefill_tokens = from.prefill_tokens;
  to.prefill_seconds = from.prefill_seconds;
  to.decode_tokens = from.decode_tokens;
  to.decode_seconds = from.decode_seconds;
  to.audit_seconds = from.audit_seconds;
  to.dense_layer_steps = from.traffic.dense_layer_steps;
  to.sparse_layer_steps = from.traffic.sparse_layer_steps;
  to.row_bytes = from.traffic.row_bytes;
  to.index_bytes = from.traffic.index_bytes;
  to.dense_bytes = from.traffic.dense_bytes;
  to.density = from.traffic.density();
  to.bytes_ratio = from.traffic.bytes_ratio();
  to.estimated_count = from.estimated_error.count();
  to.estimated_error_p50 = from.estimated_error.quantile(0.5);
  to.estimated_error_p95 = from.estimated_error.quantile(0.95);
  to.estimated_error_max = from.estimated_error.max();
  to.audited_count = from.audit.error.count();
  to.audited_error_p50 = from.audit.error.quantile(0.5);
  to.audited_error_p95 = from.audit.error.quantile(0.95);
  to.audited_error_max = from.audit.error.max();
  to.audited_mass_mean = from.audit.mass.mean();
}

Status check_logits(const rarefy_session& session,
                    const float* logits,  // [capacity] f32; nullable
                    int64_t capacity) {
  return capi::check_logits(logits, capacity, session.session.engine().model().config().vocab_size);
}

}  // namespace

rarefy_status rarefy_engine_create(const rarefy_model* model, const rarefy_engine_options* options,
                                   rarefy_engine** engine) {
  return call([&]() -> Status {
    RAREFY_RETURN_IF_ERROR(require(model, "a model"));
    RAREFY_RETURN_IF_ERROR(require(engine, "a place for the engine"));
    EngineOptions resolved;
    if (options != nullptr) RAREFY_RETURN_IF_ERROR(apply(*options, resolved));
    RAREFY_ASSIGN_OR_RETURN(auto made, Engine::make(model->model, resolved));
    *engine = new rarefy_engine{std::move(made)};
    return {};
  });
}

void rarefy_engine_free(rarefy_engine* engine) { delete engine; }

rarefy_status rarefy_session_create(rarefy_engine* engine, rarefy_session** session) {
  return call([&]() -> Status {
    RAREFY_RETURN_IF_ERROR(require(engine, "an engine"));
    RAREFY_RETURN_IF_ERROR(require(session, "a place for the session"));
    *session = new rarefy_session{engine->engine->new_session()};
    return {};
  });
}

rarefy_status rarefy_session_fork(const rarefy_session* session, rarefy_session** copy) {
  return call([&]() -> Status {
    RAREFY_RETURN_IF_ERROR(require(session, "a session"));
    RAREFY_RETURN_IF_ERROR(require(copy, "a place for the copy"));
    *copy = new rarefy_session{session->session.fork()};
    return {};
  });
}

void rarefy_session_free(rarefy_session* session) { delete session; }

rarefy_status rarefy_session_length(const rarefy_session* session, int32_t* num_tokens) {
  return call([&]() -> Status {
    RAREFY_RETURN_IF_ERROR(require(session, "a session"));
    RAREFY_RETURN_IF_ERROR(require(num_tokens, "a place for the length"));
    *num_tokens = session->session.length();
    return {};
  });
}

rarefy_status rarefy_session_truncate(rarefy_session* session, int32_t length) {
  return call([&]() -> Status {
    RAREFY_RETURN_IF_ERROR(require(session, "a session"));
    return session->session.truncate(length);
  });
}

rarefy_status rarefy_session_set_policy(rarefy_session* session, const char* policy) {
  return call([&]() -> Status {
    RAREFY_RETURN_IF_ERROR(require(session, "a session"));
    RAREFY_RETURN_IF_ERROR(require(policy, "a policy"));
    RAREFY_ASSIGN_OR_RETURN(const Policy parsed, Policy::parse(policy));
    return session->session.set_policy(parsed);
  });
}

rarefy_status rarefy_session_policy(const rarefy_session* session, char* text, int64_t capacity, int64_t* num_bytes) {
  return call([&]() -> rarefy_status {
    if (const Status status = require(session, "a session"); !status.ok()) return report(status);
    return capi::fill_text(session->session.policy().to_string(), text, capacity, num_bytes);
  });
}

rarefy_status rarefy_session_set_seed(rarefy_session* session, uint64_t seed) {
  return call([&]() -> Status {
    RAREFY_RETURN_IF_ERROR(require(session, "a session"));
    session->session.set_seed(seed);
    return {};
  });
}

rarefy_status rarefy_session_set_audit(rarefy_session* session, double fraction) {
  return call([&]() -> Status {
    RAREFY_RETURN_IF_ERROR(require(session, "a session"));
    if (!(fraction >= 0.0 && fraction <= 1.0)) {
      return Status::invalid_argument("audit: expected a fraction from 0 to 1, got " + std::to_string(fraction));
    }
    session->session.set_audit({fraction});
    return {};
  });
}

rarefy_status rarefy_session_prefill(rarefy_session* session, const int32_t* tokens, int64_t num_tokens,
                                     rarefy_progress_callback progress, void* user_data, float* logits,
                                     int64_t logits_capacity) {
  return call([&]() -> Status {
    RAREFY_RETURN_IF_ERROR(require(session, "a session"));
    RAREFY_RETURN_IF_ERROR(require(tokens, "tokens"));
    if (num_tokens < 1 || num_tokens > std::numeric_limits<int32_t>::max()) {
      return Status::invalid_argument("expected at least 1 token to prefill, got " + std::to_string(num_tokens));
    }
    RAREFY_RETURN_IF_ERROR(check_logits(*session, logits, logits_capacity));
    Session::Progress report_progress;
    if (progress != nullptr) {
      report_progress = [&](int64_t done, int64_t total) { return progress(done, total, user_data) != 0; };
    }
    return session->session.prefill({tokens, static_cast<size_t>(num_tokens)}, report_progress, logits);
  });
}

rarefy_status rarefy_session_decode(rarefy_session* session, int32_t token, float* logits, int64_t logits_capacity) {
  return call([&]() -> Status {
    RAREFY_RETURN_IF_ERROR(require(session, "a session"));
    RAREFY_RETURN_IF_ERROR(check_logits(*session, logits, logits_capacity));
    return session->session.decode(token, logits);
  });
}

rarefy_status rarefy_session_get_stats(const rarefy_session* session, rarefy_stats* stats) {
  return call([&]() -> Status {
    RAREFY_RETURN_IF_ERROR(require(session, "a session"));
    RAREFY_RETURN_IF_ERROR(require(stats, "a place for the statistics"));
    RAREFY_RETURN_IF_ERROR(check_struct_size("rarefy_stats", stats->struct_size, sizeof(*stats)));
    copy_stats(session->session.stats(), *stats);
    return {};
  });
}

rarefy_status rarefy_session_stats_json(const rarefy_session* session, char* text, int64_t capacity, int64_t* num_bytes) {
  return call([&]() -> rarefy_status {
    if (const Status status = require(session, "a session"); !status.ok()) return report(status);
    return capi::fill_text(session->session.stats().to_json(), text, capacity, num_bytes);
  });
}

rarefy_status rarefy_session_reset_stats(rarefy_session* session) {
  return call([&]() -> Status {
    RAREFY_RETURN_IF_ERROR(require(session, "a session"));
    session->session.reset_stats();
    return {};
  });
}
