/* rarefy.h: the C interface of Rarefy, for every language that can call C. C99; needs the C standard headers only.

   A minimal client:
     rarefy_model* model;  rarefy_engine* engine;  rarefy_session* session;
     rarefy_model_load("models/rarefy-8m", NULL, &model);
     rarefy_engine_create(model, NULL, &engine);
     rarefy_session_create(engine, &session);
     rarefy_session_prefill(session, tokens, num_tokens, NULL, NULL, NULL, 0);    dense
     rarefy_session_set_policy(session, "50x");
     rarefy_session_decode(session, token, logits, vocab_size);                   sparse
   examples/02_c_interface.c is a whole program.

   Errors. Every function that can fail returns a rarefy_status. rarefy_last_error() then says what was expected, what came and
   what to do. A NULL handle or a wrong struct_size is an error, never a crash. No function throws, prints, aborts or exits.
   When a function fails, what its output parameters point to is unchanged unless its comment says otherwise.

   Structs start with struct_size, which the caller sets to sizeof(the struct): later versions add fields at the end and still
   accept the smaller struct. In options, 0 means the default, so zero a struct, set struct_size and what you need. A NULL
   options pointer means all defaults.

   Ownership. Handles are owned by the caller, who frees each once; freeing NULL does nothing. They may be freed in any order: a
   session keeps its engine alive, an engine its model. Buffers belong to the caller and are not kept after the call.

   Threads. Models, engines and plans may be used from several threads at once, a session by one at a time. Sessions of one engine may
   run in different threads. The log callback and the thread count are process-wide.

   Texts are UTF-8. Sizes of buffers count elements, of texts bytes. Functions that fill a buffer store the needed size in any
   case; a NULL buffer of size 0 only asks for it, a buffer that is too small is left as it was and gives
   RAREFY_BUFFER_TOO_SMALL. */
#ifndef RAREFY_RAREFY_H
#define RAREFY_RAREFY_H

#include <stddef.h>
#include <stdint.h>

#ifdef __GNUC__
#define RAREFY_API __attribute__((visibility("default")))
#else
#define RAREFY_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* --- Version ------------------------------------------------------------------------------------------------------------ */

#define RAREFY_VERSION_MAJOR 0
#define RAREFY_VERSION_MINOR 1
#define RAREFY_VERSION_PATCH 0

/* Of the library that is loaded: major * 10000 + minor * 100 + patch. Before 1.0 a minor version may break the interface. */
RAREFY_API int32_t rarefy_version(void);
/* "0.1.0". */
RAREFY_API const char* rarefy_version_string(void);

/* --- Status ------------------------------------------------------------------------------------------------------------- */

typedef enum rarefy_status {
  RAREFY_OK = 0,
  RAREFY_INVALID_ARGUMENT = 1,   /* the caller's values do not make sense */
  RAREFY_NOT_FOUND = 2,          /* a file, tensor, token or implementation is missing */
  RAREFY_UNSUPPORTED = 3,        /* understood, but not offered here */
  RAREFY_DATA_LOSS = 4,          /* a file is truncated, overlapping or otherwise corrupt */
  RAREFY_RESOURCE_EXHAUSTED = 5, /* memory, pages, context length or disk */
  RAREFY_IO_ERROR = 6,           /* the operating system refused */
  RAREFY_CANCELLED = 7,          /* a callback asked to stop */
  RAREFY_INTERNAL = 8,           /* a bug in Rarefy */
  RAREFY_BUFFER_TOO_SMALL = 9    /* the needed size was stored; call again with a larger buffer */
} rarefy_status;

/* "invalid argument", ...; "unknown status" for other numbers. Static. */
RAREFY_API const char* rarefy_status_name(rarefy_status status);
/* Message of the last call that failed in this thread; "" when none has. Valid until the next failure in this thread. */
RAREFY_API const char* rarefy_last_error(void);

/* --- Process ------------------------------------------------------------------------------------------------------------ */

typedef enum rarefy_log_level { RAREFY_LOG_INFO = 0, RAREFY_LOG_WARNING = 1 } rarefy_log_level;

/* `message` is valid during the call only. May be called from any thread. Must not throw. */
typedef void (*rarefy_log_callback)(rarefy_log_level level, const char* message,
                                    void* user_data); /* not a tensor: the caller's */

/* Receives the library's messages; NULL, the state at the start, silences them. RAREFY_VERBOSE=1 in the environment adds
   informational ones. */
RAREFY_API void rarefy_set_log_callback(rarefy_log_callback callback, void* user_data); /* not a tensor: the caller's */

/* Threads of the CPU backend; 0 = all processors (OMP_NUM_THREADS, if set). */
RAREFY_API rarefy_status rarefy_set_num_threads(int32_t num_threads);
RAREFY_API int32_t rarefy_num_threads(void);

/* --- Model and tokenizer ------------------------------------------------------------------------------------------------ */

typedef struct rarefy_model rarefy_model;

typedef enum rarefy_compute {
  RAREFY_COMPUTE_AUTOMATIC = 0, /* bf16 weights where the CPU multiplies them fast, else f32 */
  RAREFY_COMPUTE_F32 = 1,
  RAREFY_COMPUTE_BF16 = 2
} rarefy_compute;

typedef struct rarefy_model_options {
  size_t struct_size;
  int32_t compute; /* a rarefy_compute */
} rarefy_model_options;

/* `folder` is a Hugging Face checkpoint: config.json, tokenizer.json and safetensors files. */
RAREFY_API rarefy_status rarefy_model_load(const char* folder, const rarefy_model_options* options, rarefy_model** model);
RAREFY_API void rarefy_model_free(rarefy_model* model);

typedef struct rarefy_model_info {
  size_t struct_size;
  int32_t vocab_size; /* logits per token */
  int32_t num_layers;
  int32_t num_q_heads;
  int32_t num_kv_heads;
  int32_t head_dim;
  int32_t max_ctx_size; /* longest sequence the model was made for, in tokens */
  int32_t bos_token_id; /* -1 = none */
  int64_t weight_bytes; /* in memory */
} rarefy_model_info;

RAREFY_API rarefy_status rarefy_model_get_info(const rarefy_model* model, rarefy_model_info* info);

/* Token ids that end a generated text. */
RAREFY_API rarefy_status rarefy_model_stop_tokens(const rarefy_model* model, int32_t* tokens, /* [capacity] i32; nullable */
                                                  int64_t capacity,
                                                  int64_t* num_tokens); /* [1] i64; receives the needed capacity */

#define RAREFY_NO_SPECIAL_TOKENS 1u /* tokenize: add none (such as begin-of-text); detokenize: leave them out */
#define RAREFY_PLAIN_TEXT 2u        /* tokenize: special tokens in the text are plain text */

/* Ids of a text of `text_bytes` bytes; -1: up to its terminating NUL. `flags`: 0 or RAREFY_NO_SPECIAL_TOKENS |
   RAREFY_PLAIN_TEXT. Refuses text that is not UTF-8. */
RAREFY_API rarefy_status rarefy_tokenize(const rarefy_model* model, const char* text, int64_t text_bytes, uint32_t flags,
                                         int32_t* tokens,                        /* [capacity] i32; nullable */
                                         int64_t capacity, int64_t* num_tokens); /* [1] i64; receives the needed capacity */

/* Text of some ids and a terminating NUL. `num_bytes` counts without the NUL: a capacity of num_bytes + 1 is needed. Ids that end
   inside a character give U+FFFD there. `flags`: 0 or RAREFY_NO_SPECIAL_TOKENS. */
RAREFY_API rarefy_status rarefy_detokenize(const rarefy_model* model, const int32_t* tokens, /* [num_tokens] i32 */
                                           int64_t num_tokens, uint32_t flags, char* text, int64_t capacity,
                                           int64_t* num_bytes); /* [1] i64; receives the length of the text */

/* --- Engine: a model and a pool of KV pages that its sessions share ------------------------------------------------------- */

typedef struct rarefy_engine rarefy_engine;

typedef enum rarefy_kv_dtype {
  RAREFY_KV_DEFAULT = 0, /* bf16 */
  RAREFY_KV_F32 = 1,
  RAREFY_KV_F16 = 2,
  RAREFY_KV_BF16 = 3
} rarefy_kv_dtype;

typedef struct rarefy_engine_options {
  size_t struct_size;
  int32_t ctx_size;      /* longest sequence in tokens; 0 = the model's */
  int32_t kv_dtype;      /* a rarefy_kv_dtype */
  int32_t page_size;     /* tokens; a power of two; 0 = 16 */
  int32_t prefill_chunk; /* tokens per forward pass of a prefill; 0 = 512 */
  int64_t max_tokens;    /* cached tokens over all sessions, shared pages counted once; 0 = twice ctx_size */
} rarefy_engine_options;

RAREFY_API rarefy_status rarefy_engine_create(const rarefy_model* model, const rarefy_engine_options* options,
                                              rarefy_engine** engine);
RAREFY_API void rarefy_engine_free(rarefy_engine* engine);

/* --- Session: one sequence and how it decodes --------------------------------------------------------------------------- */

typedef struct rarefy_session rarefy_session;

RAREFY_API rarefy_status rarefy_session_create(rarefy_engine* engine, rarefy_session** session);
/* A second session with the same cached tokens, policy, audit and seed, and empty statistics. Shares every page; copies none. */
RAREFY_API rarefy_status rarefy_session_fork(const rarefy_session* session, rarefy_session** copy);
RAREFY_API void rarefy_session_free(rarefy_session* session);

RAREFY_API rarefy_status rarefy_session_length(const rarefy_session* session,
                                               int32_t* num_tokens); /* [1] i32; tokens in the cache */
/* Drops cached tokens past `length`. */
RAREFY_API rarefy_status rarefy_session_truncate(rarefy_session* session, int32_t length);

/* How decode steps from now on choose what they attend to: "dense" (the state at the start), "50x",
   "total=0.02 sink=4 local=32 index=sign spend=priority". docs/guide/policies.md explains the text. */
RAREFY_API rarefy_status rarefy_session_set_policy(rarefy_session* session, const char* policy);
/* The resolved text, every default written out, and a terminating NUL; sizes as in rarefy_detokenize. */
RAREFY_API rarefy_status rarefy_session_policy(const rarefy_session* session, char* text, int64_t capacity,
                                               int64_t* num_bytes); /* [1] i64; receives the length of the text */
/* Of token selection and audits; 0 at the start. The same seed gives the same result, whatever else runs. */
RAREFY_API rarefy_status rarefy_session_set_seed(rarefy_session* session, uint64_t seed);
/* Recomputes dense attention for this share (0 to 1) of sparse layers and steps, and compares; 0 at the start. */
RAREFY_API rarefy_status rarefy_session_set_audit(rarefy_session* session, double fraction);

/* Called after each chunk; returning 0 stops the prefill, which then gives RAREFY_CANCELLED. Must not throw, and must not use
   the session. */
typedef int32_t (*rarefy_progress_callback)(int64_t done_tokens, int64_t total_tokens,
                                            void* user_data); /* not a tensor: the caller's */

/* Appends tokens with dense attention. After a failure the session holds the chunks that were finished before it (see
   rarefy_session_length). `logits` receives those of the last token. */
RAREFY_API rarefy_status rarefy_session_prefill(rarefy_session* session, const int32_t* tokens, /* [num_tokens] i32 */
                                                int64_t num_tokens, rarefy_progress_callback progress, /* nullable */
                                                void* user_data, /* not a tensor: the caller's */
                                                float* logits,   /* [vocab_size] f32; nullable */
                                                int64_t logits_capacity);
/* Appends one token through the policy. After a failure the session is as before. */
RAREFY_API rarefy_status rarefy_session_decode(rarefy_session* session, int32_t token,
                                               float* logits, /* [vocab_size] f32; nullable */
                                               int64_t logits_capacity);

/* --- Statistics --------------------------------------------------------------------------------------------------------- */

/* Since the session was made or its statistics were reset. Errors are relative errors of attention outputs, per layer, step and
   query head. Estimated ones come from the certificate of the sampling and say nothing about tokens that the index scored far
   too low; audited ones were measured against dense attention. */
typedef struct rarefy_stats {
  size_t struct_size;
  int64_t prefill_tokens;
  double prefill_seconds;
  int64_t decode_tokens;
  double decode_seconds; /* audits excluded */
  double audit_seconds;
  int64_t dense_layer_steps;  /* (layer, decode step) pairs that ran dense */
  int64_t sparse_layer_steps; /* and those that attended to selected tokens */
  int64_t row_bytes;          /* keys and values read by decode steps */
  int64_t index_bytes;        /* index entries read by decode steps */
  int64_t dense_bytes;        /* what dense attention would have read */
  double density;             /* tokens read / tokens cached; 1 before the first step */
  double bytes_ratio;         /* (row_bytes + index_bytes) / dense_bytes; 1 before the first step */
  int64_t estimated_count;    /* estimated errors; 0: the three that follow are 0 */
  double estimated_error_p50;
  double estimated_error_p95;
  double estimated_error_max;
  int64_t audited_count; /* audited errors; 0: the four that follow are 0 */
  double audited_error_p50;
  double audited_error_p95;
  double audited_error_max;
  double audited_mass_mean; /* attention probability of the selected tokens under dense attention */
} rarefy_stats;

RAREFY_API rarefy_status rarefy_session_get_stats(const rarefy_session* session, rarefy_stats* stats);
/* All of it, audits per layer and head included, as one line of JSON and a terminating NUL; sizes as in rarefy_detokenize. */
RAREFY_API rarefy_status rarefy_session_stats_json(const rarefy_session* session, char* text, int64_t capacity,
                                                   int64_t* num_bytes); /* [1] i64; receives the length of the text */
RAREFY_API rarefy_status rarefy_session_reset_stats(rarefy_session* session);

/* --- Selectors of one's own ----------------------------------------------------------------------------------------------

   A selector keeps an index over the cached keys and estimates from it what the attention logit of every token is; budgets, group
   scores, sampling, certificates, page sharing and audits are the library's. A program registers one with
   rarefy_register_selector(); a shared object (a plugin) with the function that rarefy_plugin_init() is given, and is then
   loaded by rarefy_load_plugin(), `rarefy --plugin FILE` or RAREFY_PLUGINS. It links against nothing of Rarefy. The name is
   known to policies, benchmarks and tools at once. rarefy/select/plugin.h is the same for C++; docs/guide/write_a_selector.md
   a tutorial; examples/selectors has both.

   The index is a sequence of entries of block_bytes bytes, one for every block_tokens consecutive tokens of a KV head. encode must
   be a pure function of the keys of its block: then pages can be shared, copied and rebuilt, and one token at a time gives the
   bytes of all at once. encode, prepare and score are called from several threads at once. A status other than RAREFY_OK fails
   the step, and every later one, with what last_error says. No callback may throw. */

#define RAREFY_PLUGIN_ABI 1 /* of the structs of this section */

#ifdef __GNUC__
#define RAREFY_PLUGIN_EXPORT __attribute__((visibility("default")))
#else
#define RAREFY_PLUGIN_EXPORT
#endif

typedef struct rarefy_selector_shape {
  size_t struct_size;
  int32_t num_layers;
  int32_t num_kv_heads;
  int32_t group; /* query heads per KV head, 1 to 16 */
  int32_t head_dim;
  int32_t kv_dtype; /* a rarefy_dtype: f32, f16 or bf16 */
} rarefy_selector_shape;

/* Some blocks of one KV head, to be scored. */
typedef struct rarefy_score_blocks {
  size_t struct_size;
  int32_t layer;
  int32_t kv_head;
  int32_t num_blocks;
  int32_t num_ahead;          /* more pointers behind the last block, to what is scored next: prefetch or ignore them */
  const void* const* entries; /* [num_blocks + num_ahead] pointers to [block_bytes] bytes */
  const void* const* keys;    /* [num_blocks + num_ahead] pointers to [block_tokens, head_dim] kv_dtype */
  int64_t key_token_stride;   /* elements from one key to the next */
} rarefy_score_blocks;

/* One selector for one shape. Filled by the create callback below, which gets it zeroed but for struct_size. */
typedef struct rarefy_selector {
  size_t struct_size;
  void* user;               /* not a tensor: the first argument of the callbacks */
  int32_t block_tokens;     /* 1 to 256; the page size must be a multiple of it */
  int64_t block_bytes;      /* of one entry; 0 = no index, score reads the keys */
  size_t query_state_bytes; /* what prepare leaves for score */
  double bytes_per_token;   /* read per token and KV head by score; 0 = block_bytes / block_tokens */
  /* Writes or extends the entry of a block. Tokens before `first_new` were there in an earlier call with this entry. */
  rarefy_status (*encode)(void* user,                                        /* not a tensor: the selector's */
                          int32_t layer, int32_t kv_head, const float* keys, /* [num_tokens, head_dim] f32; as cached */
                          int32_t num_tokens, int32_t first_new,
                          void* entry); /* [block_bytes] bytes; 64-byte aligned when block_bytes is a multiple of 64 */
  /* Once per step, layer and KV head. */
  rarefy_status (*prepare)(void* user, /* not a tensor: the selector's */
                           int32_t layer, int32_t kv_head,
                           const float* q, /* [group, head_dim] f32; multiplied by the attention scale */
                           void* state);   /* [query_state_bytes] bytes; 64-byte aligned */
  /* Estimated logits of every token of the blocks. NaN counts as the lowest score. */
  rarefy_status (*score)(void* user,        /* not a tensor: the selector's */
                         const void* state, /* [query_state_bytes] bytes */
                         const rarefy_score_blocks* blocks,
                         float* scores, /* [group, score_stride] f32; token t of block b at [b * block_tokens + t] */
                         int64_t score_stride);
  /* The first token of the block whose key encode reads when tokens [first_new, num_tokens) come in, 0 to first_new: keys before
     it are not converted. NULL = 0. */
  int32_t (*first_key_read)(void* user, /* not a tensor: the selector's */
                            int32_t first_new, int32_t num_tokens);
  /* Why a callback failed; valid until the selector is destroyed. Nullable. */
  const char* (*last_error)(void* user); /* not a tensor: the selector's */
  /* Nullable. */
  void (*destroy)(void* user); /* not a tensor: the selector's */
} rarefy_selector;

/* A kind of selector. Texts are copied. */
typedef struct rarefy_selector_type {
  size_t struct_size;
  int32_t abi;             /* RAREFY_PLUGIN_ABI */
  const char* name;        /* index=NAME in a policy; no spaces, none of : , = + */
  const char* options;     /* what may follow the colon, for people: "bf16 (default), int8"; NULL = nothing */
  const char* description; /* one line */
  void* user;              /* not a tensor: the first argument of create */
  /* Makes a selector for a shape from the text after the colon of a policy ("" when there is none). On failure: another status and,
     in `message`, what was expected, what came and what to do. */
  rarefy_status (*create)(void* user, /* not a tensor: the type's */
                          const rarefy_selector_shape* shape, const char* options, rarefy_selector* selector, char* message,
                          size_t message_bytes);
} rarefy_selector_type;

/* Once per name and process; there is no way back. `type` may go afterwards, what its callbacks need may not. */
RAREFY_API rarefy_status rarefy_register_selector(const rarefy_selector_type* type);

/* What a plugin gets. The first three fields stay what they are in every version. */
typedef struct rarefy_plugin_api {
  size_t struct_size;
  int32_t abi;     /* RAREFY_PLUGIN_ABI of the program; a plugin of another one is refused by register_selector */
  int32_t version; /* rarefy_version() of the program */
  /* As rarefy_register_selector; the status may be handed on by rarefy_plugin_init as it is. */
  rarefy_status (*register_selector)(const rarefy_selector_type* type);
  void (*log)(rarefy_log_level level, const char* message);
} rarefy_plugin_api;

/* The one function that a plugin defines, with C linkage and RAREFY_PLUGIN_EXPORT. */
typedef rarefy_status (*rarefy_plugin_init_function)(const rarefy_plugin_api* api);

/* Loads a plugin and calls its rarefy_plugin_init(). It stays loaded; loading it again does nothing. */
RAREFY_API rarefy_status rarefy_load_plugin(const char* path);

/* --- Attention: decode over a paged KV cache of the caller's ---------------------------------------------------------------

   A plan is made once per shape and device, and run per layer and step. What the operations compute, what they refuse and what
   a device reports later is written in rarefy/attention/decode.h; this is the same, field by field:
     rarefy_decode_plan_create(&problem, &plan);
     rarefy_decode_plan_workspace_bytes(plan, &workspace_bytes);      allocate it on the plan's device, then once:
     rarefy_decode_plan_prepare_workspace(plan, workspace, workspace_bytes, stream);
     rarefy_decode_plan_run(plan, &args, stream);                     no allocation, no synchronisation
   Plans may be used from several threads at once, a workspace by one call at a time. All pointers are memory of the plan's device.
   `stream` is the caller's cudaStream_t; NULL = the default stream; the CPU ignores it and returns when the result is there. */

typedef enum rarefy_device_kind { RAREFY_DEVICE_CPU = 0, RAREFY_DEVICE_CUDA = 1 } rarefy_device_kind;

typedef enum rarefy_dtype {
  RAREFY_DTYPE_DEFAULT = 0, /* bf16 for caches, f32 for q and out */
  RAREFY_DTYPE_F32 = 1,
  RAREFY_DTYPE_F16 = 2,
  RAREFY_DTYPE_BF16 = 3,
  RAREFY_DTYPE_F8_E4M3 = 4 /* caches only; OCP "FN", with scales per KV head */
} rarefy_dtype;

typedef enum rarefy_decode_op {
  RAREFY_DECODE_DENSE = 0, /* every cached token */
  RAREFY_DECODE_SPARSE = 1 /* the tokens of an index set */
} rarefy_decode_op;

typedef enum rarefy_list_scope {
  RAREFY_LISTS_PER_KV_HEAD = 0, /* the query heads of a KV head share a list */
  RAREFY_LISTS_PER_QUERY_HEAD = 1
} rarefy_list_scope;

typedef struct rarefy_decode_plan rarefy_decode_plan;

typedef struct rarefy_decode_problem {
  size_t struct_size;
  int32_t op;           /* a rarefy_decode_op */
  int32_t device_kind;  /* a rarefy_device_kind */
  int32_t device_index; /* of the CUDA device */
  int32_t num_q_heads;  /* a multiple of num_kv_heads; 1 to 16 per KV head */
  int32_t num_kv_heads;
  int32_t head_dim;
  int32_t q_dtype;      /* a rarefy_dtype */
  int32_t kv_dtype;     /* a rarefy_dtype */
  int32_t out_dtype;    /* a rarefy_dtype */
  int32_t page_size;    /* tokens; a power of two, 1 to 256; 0 = 16 */
  int32_t num_queries;  /* per sequence, 1 to 8, the last ones of the sequence; 0 = 1 */
  int32_t scope;        /* a rarefy_list_scope; sparse only */
  float logit_soft_cap; /* c > 0: s <- c tanh(s / c); 0 = none */
  int32_t sink_logit;   /* not 0: a logit per query head enters the denominator only */
  int32_t max_batch;    /* sequences of one run; 0 = 1 */
  int32_t max_selected; /* capacity of one list; sparse only */
  int32_t max_kv_len;   /* longest sequence, for the size of a CUDA workspace; 0 = any */
} rarefy_decode_problem;

/* One layer of a cache. A row, one token of one KV head, is contiguous. Strides count elements; all three 0: pages are
   contiguous as [page_size, num_kv_heads, head_dim]. dtype, page_size, num_kv_heads and head_dim are the plan's. */
typedef struct rarefy_paged_kv {
  size_t struct_size;
  const void* keys;   /* [num_pages, page_size, num_kv_heads, head_dim] kv_dtype; by the strides */
  const void* values; /* [num_pages, page_size, num_kv_heads, head_dim] kv_dtype; by the strides */
  int64_t page_stride;
  int64_t token_stride;
  int64_t head_stride;
  int32_t num_pages;
  int32_t max_pages_per_sequence;
  const int32_t* page_table; /* [batch, max_pages_per_sequence] i32; physical page of each logical page */
  const int32_t* kv_lens;    /* [batch] i32; cached tokens, the current ones included */
  const float* key_scales;   /* [num_kv_heads] f32; f8_e4m3 only; NULL = all 1 */
  const float* value_scales; /* [num_kv_heads] f32; f8_e4m3 only; NULL = all 1 */
} rarefy_paged_kv;

/* num_lists is num_kv_heads or num_q_heads, by the plan's scope. Ids are positions in the sequence, unique and ascending. */
typedef struct rarefy_index_set {
  size_t struct_size;
  int32_t max_selected;     /* row length of the lists, at most the plan's */
  const int32_t* token_ids; /* [batch, num_lists, max_selected] i32 */
  const int32_t* counts;    /* [batch, num_lists] i32; -1 = all tokens */
  const float* log_weight;  /* [batch, num_lists, max_selected] f32; >= 0; NULL = all zero */
} rarefy_index_set;

typedef struct rarefy_decode_args {
  size_t struct_size;
  int32_t batch; /* 0 = 1 */
  float scale;   /* multiplies q . k; 0 = 1 / sqrt(head_dim) */
  const void* q; /* [batch, num_queries, num_q_heads, head_dim] q_dtype; contiguous */
  const rarefy_paged_kv* kv;
  const rarefy_index_set* index; /* sparse only; NULL for dense */
  const float* sink_logits;      /* [num_q_heads] f32; NULL without sink_logit */
  void* out;                     /* [batch, num_queries, num_q_heads, head_dim] out_dtype; contiguous */
  float* lse;                    /* [batch, num_queries, num_q_heads] f32; natural log; nullable */
  float* rel_std;     /* [batch, num_queries, num_q_heads] f32; estimated error of the denominator; nullable; sparse only */
  float* out_rel_std; /* [batch, num_queries, num_q_heads] f32; estimated error of out; nullable; sparse only */
  void* workspace;    /* [workspace_bytes] bytes; 64-byte aligned; NULL when the plan needs none */
  size_t workspace_bytes;
} rarefy_decode_args;

RAREFY_API rarefy_status rarefy_decode_plan_create(const rarefy_decode_problem* problem, rarefy_decode_plan** plan);
RAREFY_API void rarefy_decode_plan_free(rarefy_decode_plan* plan);
/* "cpu_avx3", "ref", ...; "" for NULL. Valid until the plan is freed. */
RAREFY_API const char* rarefy_decode_plan_implementation(const rarefy_decode_plan* plan);
RAREFY_API rarefy_status rarefy_decode_plan_workspace_bytes(const rarefy_decode_plan* plan, size_t* workspace_bytes);
/* Once for a workspace, before its first run. */
RAREFY_API rarefy_status rarefy_decode_plan_prepare_workspace(
    const rarefy_decode_plan* plan, void* workspace, /* [workspace_bytes] bytes; 64-byte aligned */
    size_t workspace_bytes, void* stream);           /* not a tensor: a cudaStream_t */
RAREFY_API rarefy_status rarefy_decode_plan_run(const rarefy_decode_plan* plan, const rarefy_decode_args* args,
                                                void* stream); /* not a tensor: a cudaStream_t */
/* Waits for the stream; reports the first bad count or token id that runs met on a device since the last check. */
RAREFY_API rarefy_status rarefy_decode_plan_check(const rarefy_decode_plan* plan,
                                                  const void* workspace, /* [workspace_bytes] bytes */
                                                  void* stream);         /* not a tensor: a cudaStream_t */

/* Merging (out, lse) pairs of disjoint sets of tokens, in the order given. Needs no workspace. */
typedef struct rarefy_merge_plan rarefy_merge_plan;

typedef struct rarefy_merge_problem {
  size_t struct_size;
  int32_t device_kind; /* a rarefy_device_kind */
  int32_t device_index;
  int32_t head_dim; /* 1 to 256 */
} rarefy_merge_problem;

typedef struct rarefy_merge_args {
  size_t struct_size;
  int32_t num_parts;
  int64_t num_rows;
  const float* part_out; /* [num_parts, num_rows, head_dim] f32 */
  const float* part_lse; /* [num_parts, num_rows] f32; natural log; -inf = nothing attended to */
  float* out;            /* [num_rows, head_dim] f32; may be the first part */
  float* lse;            /* [num_rows] f32; nullable; may be the first part's */
} rarefy_merge_args;

RAREFY_API rarefy_status rarefy_merge_plan_create(const rarefy_merge_problem* problem, rarefy_merge_plan** plan);
RAREFY_API void rarefy_merge_plan_free(rarefy_merge_plan* plan);
RAREFY_API const char* rarefy_merge_plan_implementation(const rarefy_merge_plan* plan);
RAREFY_API rarefy_status rarefy_merge_plan_run(const rarefy_merge_plan* plan, const rarefy_merge_args* args,
                                               void* stream); /* not a tensor: a cudaStream_t */

#ifdef __cplusplus
}
#endif

#endif
