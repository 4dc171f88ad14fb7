/* Continues a text from C: the text is read densely, what follows is decoded through a policy.

     02_c_interface MODEL_FOLDER "The text to continue" [POLICY] [NUM_TOKENS]          e.g. models/rarefy-8m "..." 50x 32  */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "rarefy/rarefy.h"

static void must(rarefy_status status) {
  if (status == RAREFY_OK) return;
  fprintf(stderr, "%s: %s\n", rarefy_status_name(status), rarefy_last_error());
  exit(1);
}

static int32_t most_likely(const float* logits, int32_t vocab_size) {
  int32_t best = 0, i;
  for (i = 1; i < vocab_size; ++i) {
    if (logits[i] > logits[best]) best = i;
  }
  return best;
}

int main(int argc, char** argv) {
  rarefy_model* model;
  rarefy_engine* engine;
  rarefy_session* session;
  rarefy_model_info info;
  rarefy_stats stats;
  int64_t num_tokens, num_bytes;
  int32_t* tokens;
  float* logits;
  char* text;
  const char* policy = argc > 3 ? argv[3] : "50x";
  const int num_new = argc > 4 ? atoi(argv[4]) : 32;
  int i;
  if (argc < 3 || num_new < 1) {
    fprintf(stderr, "use: 02_c_interface MODEL_FOLDER TEXT [POLICY] [NUM_TOKENS]\n");
    return 2;
  }

  must(rarefy_model_load(argv[1], NULL, &model));
  memset(&info, 0, sizeof info);
  info.struct_size = sizeof info;
  must(rarefy_model_get_info(model, &info));
  must(rarefy_tokenize(model, argv[2], -1, 0, NULL, 0, &num_tokens));
  tokens = malloc(sizeof *tokens * (size_t)(num_tokens + num_new));
  logits = malloc(sizeof *logits * (size_t)info.vocab_size);
  if (tokens == NULL || logits == NULL) return 1;
  must(rarefy_tokenize(model, argv[2], -1, 0, tokens, num_tokens, &num_tokens));

  must(rarefy_engine_create(model, NULL, &engine));
  must(rarefy_session_create(engine, &session));
  must(rarefy_session_prefill(session, tokens, num_tokens, NULL, NULL, logits, info.vocab_size));
  must(rarefy_session_set_policy(session, policy));
  for (i = 0; i < num_new; ++i) {
    tokens[num_tokens + i] = most_likely(logits, info.vocab_size);
    must(rarefy_session_decode(session, tokens[num_tokens + i], logits, info.vocab_size));
  }

  must(rarefy_detokenize(model, tokens + num_tokens, num_new, 0, NULL, 0, &num_bytes));
  text = malloc((size_t)num_bytes + 1);
  if (text == NULL) return 1;
  must(rarefy_detokenize(model, tokens + num_tokens, num_new, 0, text, num_bytes + 1, &num_bytes));
  memset(&stats, 0, sizeof stats);
  stats.struct_size = sizeof stats;
  must(rarefy_session_get_stats(session, &stats));
  printf("%s\n\n%s: density %.3f, bytes_ratio %.3f, %.1f tokens/s\n", text, policy, stats.density, stats.bytes_ratio,
         stats.decode_seconds > 0 ? (double)stats.decode_tokens / stats.decode_seconds : 0.0);

  rarefy_session_free(session);
  rarefy_engine_free(engine);
  rarefy_model_free(model);
  free(text);
  free(logits);
  free(tokens);
  return 0;
}
