/* Selectors from C99: one that this program registers itself, one from a plugin, and what is refused. ctest runs it on a small
   checkpoint.   c_selector MODEL_FOLDER PLUGIN  (examples/selectors/int8_codes) */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "c_check.h"
#include "rarefy/rarefy.h"

enum { NUM_CONTEXT = 300, BLOCK_TOKENS = 16 };

static int num_alive = 0; /* selectors */

/* The first component of every key. */
typedef struct first_component {
  int32_t group;
  int32_t head_dim;
  int fails; /* score does, with NaN before it */
} first_component;

static rarefy_status encode(void* user, int32_t layer, int32_t kv_head, const float* keys, int32_t num_tokens,
                            int32_t first_new, void* entry) {
  const first_component* self = user;
  int32_t token;
  (void)layer, (void)kv_head;
  for (token = first_new; token < num_tokens; ++token) ((float*)entry)[token] = keys[(ptrdiff_t)token * self->head_dim];
  return RAREFY_OK;
}

static rarefy_status prepare(void* user, int32_t layer, int32_t kv_head, const float* q, void* state) {
  const first_component* self = user;
  int32_t query;
  (void)layer, (void)kv_head;
  for (query = 0; query < self->group; ++query) ((float*)state)[query] = q[(ptrdiff_t)query * self->head_dim];
  return RAREFY_OK;
}

static rarefy_status score(void* user, const void* state, const rarefy_score_blocks* blocks, float* scores,
                           int64_t score_stride) {
  const first_component* self = user;
  int32_t query, block, token;
  if (self->fails) return RAREFY_UNSUPPORTED;
  for (query = 0; query < self->group; ++query) {
    for (block = 0; block < blocks->num_blocks; ++block) {
      for (token = 0; token < BLOCK_TOKENS; ++token) {
        scores[query * score_stride + block * BLOCK_TOKENS + token] =
            ((const float*)state)[query] * ((const float*)blocks->entries[block])[token];
      }
    }
  }
  return RAREFY_OK;
}

static const char* last_error(void* user) { return ((const first_component*)user)->fails ? "fails as asked" : ""; }

static void destroy(void* user) {
  free(user);
  --num_alive;
}

static rarefy_status create(void* user, const rarefy_selector_shape* shape, const char* options, rarefy_selector* selector,
                            char* message, size_t message_bytes) {
  first_component* self;
  if (options[0] != '\0' && strcmp(options, "fails") != 0) {
    snprintf(message, message_bytes, "first takes 'fails' or nothing, got '%s'", options);
    return RAREFY_INVALID_ARGUMENT;
  }
  self = malloc(sizeof *self);
  if (self == NULL) return RAREFY_RESOURCE_EXHAUSTED;
  ++*(int*)user;
  ++num_alive;
  self->group = shape->group, self->head_dim = shape->head_dim, self->fails = options[0] != '\0';
  selector->user = self;
  selector->block_tokens = BLOCK_TOKENS;
  selector->block_bytes = BLOCK_TOKENS * (int64_t)sizeof(float);
  selector->query_state_bytes = sizeof(float) * (size_t)shape->group;
  selector->encode = encode, selector->prepare = prepare, selector->score = score;
  selector->last_error = last_error, selector->destroy = destroy;
  return RAREFY_OK;
}

static int register_first(int* num_created) {
  rarefy_selector_type type;
  memset(&type, 0, sizeof type);
  CHECK(rarefy_register_selector(NULL) == RAREFY_INVALID_ARGUMENT);
  CHECK(rarefy_register_selector(&type) == RAREFY_UNSUPPORTED); /* no struct_size */
  type.struct_size = sizeof type;
  type.abi = RAREFY_PLUGIN_ABI + 1;
  CHECK(rarefy_register_selector(&type) == RAREFY_UNSUPPORTED);
  CHECK(strstr(rarefy_last_error(), "interface") != NULL);
  type.abi = RAREFY_PLUGIN_ABI;
  type.name = "first";
  CHECK(rarefy_register_selector(&type) == RAREFY_INVALID_ARGUMENT); /* no create */
  type.create = create;
  type.user = num_created;
  REQUIRE(rarefy_register_selector(&type) == RAREFY_OK);
  CHECK(rarefy_register_selector(&type) == RAREFY_INVALID_ARGUMENT);
  CHECK(strstr(rarefy_last_error(), "'first' is registered already") != NULL);
  return 0;
}

static int decode(rarefy_session* context, const char* policy, float* logits, int32_t vocab_size) {
  rarefy_session* fork = NULL;
  rarefy_stats stats;
  int32_t i;
  REQUIRE(rarefy_session_fork(context, &fork) == RAREFY_OK);
  REQUIRE(rarefy_session_set_policy(fork, policy) == RAREFY_OK);
  for (i = 0; i < 3; ++i) REQUIRE(rarefy_session_decode(fork, i, logits, vocab_size) == RAREFY_OK);
  for (i = 0; i < vocab_size; ++i) CHECK(!isnan(logits[i]));
  memset(&stats, 0, sizeof stats);
  stats.struct_size = sizeof stats;
  REQUIRE(rarefy_session_get_stats(fork, &stats) == RAREFY_OK);
  CHECK(stats.sparse_layer_steps > 0 && stats.index_bytes > 0);
  rarefy_session_free(fork);
  return 0;
}

static int run(const char* folder, const char* plugin) {
  rarefy_model* model = NULL;
  rarefy_engine* engine = NULL;
  rarefy_session* session = NULL;
  rarefy_session* failing = NULL;
  rarefy_model_info info;
  int32_t tokens[NUM_CONTEXT], i;
  float* logits;
  int num_created = 0;
  if (register_first(&num_created) != 0) return 1;
  CHECK(rarefy_load_plugin(NULL) == RAREFY_INVALID_ARGUMENT);
  CHECK(rarefy_load_plugin("no/such/plugin.so") == RAREFY_NOT_FOUND);
  REQUIRE(rarefy_load_plugin(plugin) == RAREFY_OK);
  CHECK(rarefy_load_plugin(plugin) == RAREFY_OK);

  REQUIRE(rarefy_model_load(folder, NULL, &model) == RAREFY_OK);
  memset(&info, 0, sizeof info);
  info.struct_size = sizeof info;
  REQUIRE(rarefy_model_get_info(model, &info) == RAREFY_OK);
  REQUIRE(rarefy_engine_create(model, NULL, &engine) == RAREFY_OK);
  REQUIRE(rarefy_session_create(engine, &session) == RAREFY_OK);
  logits = malloc(sizeof *logits * (size_t)info.vocab_size);
  REQUIRE(logits != NULL);
  for (i = 0; i < NUM_CONTEXT; ++i) tokens[i] = (i * i + 3) % (info.vocab_size < 200 ? info.vocab_size : 200);
  REQUIRE(rarefy_session_prefill(session, tokens, NUM_CONTEXT, NULL, NULL, NULL, 0) == RAREFY_OK);
  if (decode(session, "10x index=first min=1", logits, info.vocab_size) != 0) return 1;
  if (decode(session, "10x index=int8_codes min=1", logits, info.vocab_size) != 0) return 1;
  CHECK(num_created > 0);
  CHECK(num_alive == 0);

  REQUIRE(rarefy_session_fork(session, &failing) == RAREFY_OK);
  CHECK(rarefy_session_set_policy(failing, "10x index=first:never min=1") == RAREFY_INVALID_ARGUMENT);
  CHECK(strstr(rarefy_last_error(), "first takes 'fails' or nothing, got 'never'") != NULL);
  CHECK(rarefy_session_set_policy(failing, "10x index=first:fails min=1") == RAREFY_OK);
  CHECK(rarefy_session_decode(failing, 1, logits, info.vocab_size) == RAREFY_UNSUPPORTED);
  CHECK(strstr(rarefy_last_error(), "fails as asked") != NULL);
  CHECK(rarefy_session_length(failing, &i) == RAREFY_OK && i == NUM_CONTEXT); /* as before */
  CHECK(rarefy_session_set_policy(failing, "dense") == RAREFY_OK);
  CHECK(rarefy_session_decode(failing, 1, logits, info.vocab_size) == RAREFY_OK);

  rarefy_session_free(failing);
  rarefy_session_free(session);
  rarefy_engine_free(engine);
  rarefy_model_free(model);
  CHECK(num_alive == 0);
  free(logits);
  return num_failures != 0;
}

int main(int argc, char** argv) {
  int code;
  if (argc != 3) {
    fprintf(stderr, "use: c_selector MODEL_FOLDER PLUGIN\n");
    return 2;
  }
  code = run(argv[1], argv[2]);
  printf("c_selector: %s\n", code == 0 ? "ok" : "failed");
  return code;
}
