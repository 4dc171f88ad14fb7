/* A selector from outside, in C99: every key is stored in 8 bits per dimension with one scale.

     rarefy bench attention --plugin ./int8_codes.so --policy '50x index=int8_codes'  */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "rarefy/rarefy.h"

enum { BLOCK_TOKENS = 16 };

/* An entry: [BLOCK_TOKENS] f32 scales, then [BLOCK_TOKENS, head_dim] i8 codes. */
typedef struct int8_codes {
  int32_t group;
  int32_t head_dim;
} int8_codes;

static rarefy_status encode(void* user, int32_t layer, int32_t kv_head, const float* keys, int32_t num_tokens,
                            int32_t first_new, void* entry) {
  const int32_t head_dim = ((const int8_codes*)user)->head_dim;
  float* scales = entry;
  int8_t* codes = (int8_t*)(scales + BLOCK_TOKENS);
  int32_t token, dim;
  (void)layer, (void)kv_head;
  for (token = first_new; token < num_tokens; ++token) {
    const float* key = keys + (ptrdiff_t)token * head_dim;
    float largest = 0.0f;
    for (dim = 0; dim < head_dim; ++dim) largest = fmaxf(largest, fabsf(key[dim]));
    scales[token] = largest / 127.0f;
    for (dim = 0; dim < head_dim; ++dim) {
      codes[token * head_dim + dim] = (int8_t)(largest > 0.0f ? lrintf(key[dim] / scales[token]) : 0);
    }
  }
  return RAREFY_OK;
}

/* Keys before it are in the entry already: one token at a time gives the same bytes as all at once. */
static int32_t first_key_read(void* user, int32_t first_new, int32_t num_tokens) {
  (void)user, (void)num_tokens;
  return first_new;
}

static rarefy_status prepare(void* user, int32_t layer, int32_t kv_head, const float* q, void* state) {
  const int8_codes* self = user;
  (void)layer, (void)kv_head;
  memcpy(state, q, sizeof(float) * (size_t)self->group * (size_t)self->head_dim);
  return RAREFY_OK;
}

static rarefy_status score(void* user, const void* state, const rarefy_score_blocks* blocks, float* scores,
                           int64_t score_stride) {
  const int8_codes* self = user;
  int32_t block, token, query, dim;
  for (block = 0; block < blocks->num_blocks; ++block) {
    const float* scales = blocks->entries[block];
    const int8_t* codes = (const int8_t*)(scales + BLOCK_TOKENS);
    for (token = 0; token < BLOCK_TOKENS; ++token, codes += self->head_dim) {
      for (query = 0; query < self->group; ++query) {
        const float* q = (const float*)state + query * self->head_dim;
        float sum = 0.0f;
        for (dim = 0; dim < self->head_dim; ++dim) sum += q[dim] * (float)codes[dim];
        scores[query * score_stride + block * BLOCK_TOKENS + token] = sum * scales[token];
      }
    }
  }
  return RAREFY_OK;
}

static rarefy_status create(void* user, const rarefy_selector_shape* shape, const char* options, rarefy_selector* selector,
                            char* message, size_t message_bytes) {
  int8_codes* self = malloc(sizeof *self);
  (void)user;
  if (self == NULL) return RAREFY_RESOURCE_EXHAUSTED;
  if (options[0] != '\0') {
    free(self);
    snprintf(message, message_bytes, "int8_codes takes no options, got '%s'", options);
    return RAREFY_INVALID_ARGUMENT;
  }
  self->group = shape->group;
  self->head_dim = shape->head_dim;
  selector->user = self;
  selector->block_tokens = BLOCK_TOKENS;
  selector->block_bytes = BLOCK_TOKENS * ((int64_t)sizeof(float) + shape->head_dim);
  selector->query_state_bytes = sizeof(float) * (size_t)shape->group * (size_t)shape->head_dim;
  selector->encode = encode, selector->prepare = prepare, selector->score = score;
  selector->first_key_read = first_key_read, selector->destroy = free;
  return RAREFY_OK;
}

RAREFY_PLUGIN_EXPORT rarefy_status rarefy_plugin_init(const rarefy_plugin_api* api) {
  const rarefy_selector_type type = {sizeof type, RAREFY_PLUGIN_ABI, "int8_codes", "",
                                     "8 bits per dimension, one scale per token", NULL, create};
  return api->register_selector(&type);
}
