/* A C99 client of librarefy_c: everything that rarefy.h promises, used once, and what it refuses. ctest runs it on a small
   checkpoint.   c_client MODEL_FOLDER */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "c_check.h"
#include "rarefy/rarefy.h"

#define NUM_CONTEXT 300

static int32_t count_chunks(int64_t done_tokens, int64_t total_tokens, void* user_data) {
  ++*(int*)user_data;
  return done_tokens <= total_tokens;
}

static int32_t stop_at_once(int64_t done_tokens, int64_t total_tokens, void* user_data) {
  (void)done_tokens, (void)total_tokens, (void)user_data;
  return 0;
}

static void count_messages(rarefy_log_level level, const char* message, void* user_data) {
  if (level == RAREFY_LOG_WARNING && message != NULL) ++*(int*)user_data;
}

static int check_text(const rarefy_model* model) {
  const char* text = "The code is 123456.";
  int32_t tokens[64];
  char back[256];
  int64_t num_tokens = 0, num_bytes = 0;
  REQUIRE(rarefy_tokenize(model, text, -1, RAREFY_NO_SPECIAL_TOKENS, NULL, 0, &num_tokens) == RAREFY_OK);
  REQUIRE(num_tokens > 0 && num_tokens <= 64);
  CHECK(rarefy_tokenize(model, text, -1, RAREFY_NO_SPECIAL_TOKENS, tokens, num_tokens - 1, &num_tokens) ==
        RAREFY_BUFFER_TOO_SMALL);
  REQUIRE(rarefy_tokenize(model, text, -1, RAREFY_NO_SPECIAL_TOKENS, tokens, 64, &num_tokens) == RAREFY_OK);
  REQUIRE(rarefy_detokenize(model, tokens, num_tokens, 0, back, sizeof back, &num_bytes) == RAREFY_OK);
  CHECK(num_bytes == (int64_t)strlen(text) && strcmp(back, text) == 0);
  CHECK(rarefy_tokenize(NULL, text, -1, 0, NULL, 0, &num_tokens) == RAREFY_INVALID_ARGUMENT);
  return 0;
}

static int check_decode(rarefy_session* context, int32_t vocab_size, float* logits) {
  rarefy_session* fork = NULL;
  rarefy_stats stats;
  char json[1 << 16];
  int64_t num_bytes = 0;
  int32_t length = 0, i;
  REQUIRE(rarefy_session_fork(context, &fork) == RAREFY_OK);
  CHECK(rarefy_session_set_policy(fork, "half=50x") == RAREFY_INVALID_ARGUMENT);
  CHECK(strlen(rarefy_last_error()) > 0);
  REQUIRE(rarefy_session_set_policy(fork, "10x index=sign min=1") == RAREFY_OK);
  CHECK(rarefy_session_set_audit(fork, 1.0) == RAREFY_OK);
  CHECK(rarefy_session_set_seed(fork, 7) == RAREFY_OK);
  for (i = 0; i < 3; ++i) REQUIRE(rarefy_session_decode(fork, i, logits, vocab_size) == RAREFY_OK);
  for (i = 0; i < vocab_size; ++i) CHECK(!isnan(logits[i]));
  CHECK(rarefy_session_decode(fork, 1, logits, vocab_size - 1) == RAREFY_INVALID_ARGUMENT);
  CHECK(rarefy_session_decode(fork, -1, logits, vocab_size) == RAREFY_INVALID_ARGUMENT);

  memset(&stats, 0, sizeof stats);
  CHECK(rarefy_session_get_stats(fork, &stats) == RAREFY_INVALID_ARGUMENT);
  stats.struct_size = sizeof stats;
  REQUIRE(rarefy_session_get_stats(fork, &stats) == RAREFY_OK);
  CHECK(stats.decode_tokens == 3 && stats.sparse_layer_steps > 0);
  CHECK(stats.density > 0.05 && stats.density < 0.15);
  CHECK(stats.bytes_ratio > stats.density && stats.bytes_ratio < 1.0);
  CHECK(stats.audited_count > 0 && stats.audited_error_max >= stats.audited_error_p50);
  REQUIRE(rarefy_session_stats_json(fork, json, sizeof json, &num_bytes) == RAREFY_OK);
  CHECK(json[0] == '{' && strlen(json) == (size_t)num_bytes);

  CHECK(rarefy_session_length(fork, &length) == RAREFY_OK && length == NUM_CONTEXT + 3);
  CHECK(rarefy_session_truncate(fork, NUM_CONTEXT) == RAREFY_OK);
  CHECK(rarefy_session_length(context, &length) == RAREFY_OK && length == NUM_CONTEXT);
  rarefy_session_free(fork);
  return 0;
}

/* Two tokens with equal keys: the mean of their values, by attention over both and by merging one and one. */
static int check_attention(void) {
  enum { DIM = 16, TOKENS = 2 };
  const float keys[TOKENS * DIM] = {0}, q[DIM] = {1.0f, 2.0f};
  float values[TOKENS * DIM], out[DIM], parts[2 * DIM], lse = 0.0f, part_lse[2];
  const int32_t page_table[1] = {0}, kv_lens[1] = {TOKENS}, counts[1] = {1}, ids[2] = {0, 1};
  rarefy_decode_plan* plan = NULL;
  rarefy_decode_plan* sparse_plan = NULL;
  rarefy_merge_plan* merge = NULL;
  rarefy_decode_problem problem;
  rarefy_decode_args args;
  rarefy_paged_kv kv;
  rarefy_index_set index;
  rarefy_merge_problem merge_problem;
  rarefy_merge_args merge_args;
  size_t bytes = 0, sparse_bytes = 0;
  void* workspace = NULL;
  int i;
  for (i = 0; i < TOKENS * DIM; ++i) values[i] = (float)i;
  memset(&problem, 0, sizeof problem);
  CHECK(rarefy_decode_plan_create(&problem, &plan) == RAREFY_INVALID_ARGUMENT && plan == NULL);
  problem.struct_size = sizeof problem;
  problem.num_q_heads = problem.num_kv_heads = 1;
  problem.head_dim = DIM;
  problem.kv_dtype = RAREFY_DTYPE_F32;
  REQUIRE(rarefy_decode_plan_create(&problem, &plan) == RAREFY_OK);
  CHECK(strlen(rarefy_decode_plan_implementation(plan)) > 0);
  problem.op = RAREFY_DECODE_SPARSE;
  problem.max_selected = 1;
  REQUIRE(rarefy_decode_plan_create(&problem, &sparse_plan) == RAREFY_OK);
  REQUIRE(rarefy_decode_plan_workspace_bytes(plan, &bytes) == RAREFY_OK);
  REQUIRE(rarefy_decode_plan_workspace_bytes(sparse_plan, &sparse_bytes) == RAREFY_OK);
  if (sparse_bytes > bytes) bytes = sparse_bytes;
  workspace = malloc(bytes + 64);
  REQUIRE(workspace != NULL);

  memset(&kv, 0, sizeof kv);
  kv.struct_size = sizeof kv;
  kv.keys = keys, kv.values = values, kv.page_table = page_table, kv.kv_lens = kv_lens;
  kv.num_pages = kv.max_pages_per_sequence = 1;
  memset(&args, 0, sizeof args);
  args.struct_size = sizeof args;
  args.q = q, args.kv = &kv, args.out = out, args.lse = &lse;
  args.workspace = (void*)(((uintptr_t)workspace + 63) / 64 * 64), args.workspace_bytes = bytes;
  REQUIRE(rarefy_decode_plan_prepare_workspace(plan, args.workspace, bytes, NULL) == RAREFY_OK);
  REQUIRE(rarefy_decode_plan_run(plan, &args, NULL) == RAREFY_OK);
  CHECK(rarefy_decode_plan_check(plan, args.workspace, NULL) == RAREFY_OK);
  for (i = 0; i < DIM; ++i) CHECK(fabs(out[i] - (i + DIM / 2.0)) < 1e-5);
  CHECK(fabs(lse - log(2.0)) < 1e-5);

  memset(&index, 0, sizeof index);
  index.struct_size = sizeof index;
  index.max_selected = 1, index.counts = counts;
  args.index = &index;
  for (i = 0; i < 2; ++i) {
    index.token_ids = ids + i;
    args.out = parts + i * DIM, args.lse = part_lse + i;
    REQUIRE(rarefy_decode_plan_run(sparse_plan, &args, NULL) == RAREFY_OK);
  }
  memset(&merge_problem, 0, sizeof merge_problem);
  merge_problem.struct_size = sizeof merge_problem;
  merge_problem.head_dim = DIM;
  REQUIRE(rarefy_merge_plan_create(&merge_problem, &merge) == RAREFY_OK);
  CHECK(strlen(rarefy_merge_plan_implementation(merge)) > 0);
  memset(&merge_args, 0, sizeof merge_args);
  merge_args.struct_size = sizeof merge_args;
  merge_args.num_parts = 2, merge_args.num_rows = 1;
  merge_args.part_out = parts, merge_args.part_lse = part_lse, merge_args.out = out;
  memset(out, 0, sizeof out);
  REQUIRE(rarefy_merge_plan_run(merge, &merge_args, NULL) == RAREFY_OK);
  for (i = 0; i < DIM; ++i) CHECK(fabs(out[i] - (i + DIM / 2.0)) < 1e-5);
  rarefy_merge_plan_free(merge);
  rarefy_decode_plan_free(sparse_plan);
  rarefy_decode_plan_free(plan);
  free(workspace);
  return 0;
}

static int run(const char* folder) {
  rarefy_model* model = NULL;
  rarefy_engine* engine = NULL;
  rarefy_session* session = NULL;
  rarefy_model_info info;
  rarefy_engine_options options;
  int32_t tokens[NUM_CONTEXT], i;
  float* logits;
  int num_chunks = 0, num_messages = 0;

  CHECK(rarefy_version() == RAREFY_VERSION_MAJOR * 10000 + RAREFY_VERSION_MINOR * 100 + RAREFY_VERSION_PATCH);
  if (check_attention() != 0) return 1;
  rarefy_set_log_callback(count_messages, &num_messages);
  CHECK(rarefy_model_load("no such folder", NULL, &model) != RAREFY_OK && model == NULL);
  REQUIRE(rarefy_model_load(folder, NULL, &model) == RAREFY_OK);
  memset(&info, 0, sizeof info);
  info.struct_size = sizeof info;
  REQUIRE(rarefy_model_get_info(model, &info) == RAREFY_OK);
  if (check_text(model) != 0) return 1;

  memset(&options, 0, sizeof options);
  options.struct_size = sizeof options;
  options.ctx_size = info.max_ctx_size < 1024 ? info.max_ctx_size : 1024;
  options.prefill_chunk = NUM_CONTEXT / 3;
  REQUIRE(options.ctx_size > NUM_CONTEXT + 3);
  REQUIRE(rarefy_engine_create(model, &options, &engine) == RAREFY_OK);
  REQUIRE(rarefy_session_create(engine, &session) == RAREFY_OK);
  logits = malloc(sizeof *logits * (size_t)info.vocab_size);
  REQUIRE(logits != NULL);
  for (i = 0; i < NUM_CONTEXT; ++i) tokens[i] = (i * i + 3) % (info.vocab_size < 200 ? info.vocab_size : 200);
  REQUIRE(rarefy_session_prefill(session, tokens, NUM_CONTEXT, count_chunks, &num_chunks, logits, info.vocab_size) ==
          RAREFY_OK);
  CHECK(num_chunks == 3);
  CHECK(!isnan(logits[0]));
  if (check_decode(session, info.vocab_size, logits) != 0) return 1;
  CHECK(rarefy_session_truncate(session, 0) == RAREFY_OK);
  CHECK(rarefy_session_prefill(session, tokens, NUM_CONTEXT, stop_at_once, NULL, NULL, 0) == RAREFY_CANCELLED);

  /* Any order will do. */
  rarefy_model_free(model);
  rarefy_engine_free(engine);
  rarefy_session_free(session);
  rarefy_set_log_callback(NULL, NULL);
  free(logits);
  return num_failures != 0;
}

int main(int argc, char** argv) {
  int code;
  if (argc != 2) {
    fprintf(stderr, "use: c_client MODEL_FOLDER\n");
    return 2;
  }
  code = run(argv[1]);
  printf("c_client: %s\n", code == 0 ? "ok" : "failed");
  return code;
}
