// rarefy capture: queries, keys and values of real decoding, for replay and calibration.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>

#include "evaluation.h"
#include "failure.h"
#include "files.h"
#include "fingerprint.h"
#include "interrupt.h"
#include "layer_list.h"
#include "model_flags.h"
#include "passages.h"
#include "rarefy/engine/capture.h"
#include "run_record.h"
#include "terminal.h"
#include "verbs.h"

namespace rarefy::cli {
namespace {

struct Flags {
  ModelFlags model;
  std::string file, output, layers, policy = "dense";
  int32_t tokens = 16384;
  int32_t steps = 16;
  int32_t every = 1;
  bool generate = false;
};

// What the decode steps leave, beside what stays in the cache.
struct Record {
  std::vector<int32_t> tokens;              // [kv_len] i32
  std::vector<int32_t> positions;           // [num_steps] i32
  std::vector<std::vector<float>> queries;  // [num_captured][num_steps, num_q_heads, head_dim] f32
};

Record decode(Session& session, const Flags& flags, const CaptureInfo& info, const Passage& passage, int64_t num_decoded) {
  Record record;
  record.queries.resize(info.layers.size());
  record.tokens = passage.context;
  const int64_t width = int64_t{info.num_q_heads} * info.head_dim;
  bool wanted = false;  // this step
  session.set_query_observer([&](int32_t layer, int64_t, const float* q) {
    const auto found = std::lower_bound(info.layers.begin(), info.layers.end(), layer);
    if (!wanted || found == info.layers.end() || *found != layer) return;
    std::vector<float>& queries = record.queries[static_cast<size_t>(found - info.layers.begin())];
    queries.insert(queries.end(), q, q + width);
  });
  std::vector<float> logits(static_cast<size_t>(session.engine().model().config().vocab_size));  // [vocab_size] f32
  Sampler greedy = unwrap(Sampler::make({}));
  ProgressBar bar("decode");
  for (int64_t i = 0; i < num_decoded; ++i) {
    wanted = i % flags.every == 0;
    if (wanted) record.positions.push_back(session.length());
    timed_decode(session, record.tokens.back(), flags.generate ? &logits : nullptr, nullptr);
    bar.update(i + 1, num_decoded);
    if (i + 1 == num_decoded) break;
    record.tokens.push_back(flags.generate ? greedy.sample(logits, session.length())
                                           : passage.continuation[static_cast<size_t>(i)]);
  }
  return record;
}

// Rows of one layer in the order of tokens.
void write_rows(Output& output, const PagedKvView& kv, const void* pool) {
  const size_t row_bytes = static_cast<size_t>(kv.head_dim) * size_of(kv.dtype);
  for (int32_t token = 0; token < kv.kv_lens[0]; ++token) {
    for (int32_t head = 0; head < kv.num_kv_heads; ++head) {
      const int64_t offset = kv.row_offset(0, token, head);
      output.write_bytes(static_cast<const std::byte*>(pool) + static_cast<size_t>(offset) * size_of(kv.dtype), row_bytes);
    }
  }
}

void add_origin(CaptureInfo& info, const Flags& flags, const LoadedModel& loaded, const Session& session) {
  info.origin["model"] = loaded.folder.filename().string();
  info.origin["checkpoint"] = checkpoint_fingerprint(loaded.folder);
  info.origin["source"] = std::filesystem::path(flags.file).filename().string();
  info.origin["continuation"] = flags.generate ? "greedy" : "text";
  info.origin["policy"] = session.policy().to_string();
  nlohmann::ordered_json origin;
  append_origin(origin);
  for (const auto& [name, value] : origin.items()) {
    info.origin[name] = value.is_string() ? value.get<std::string>() : value.dump();
  }
}

void run(const Flags& flags) {
  const LoadedModel loaded = load_model(flags.model);
  const ModelConfig& config = loaded.model->config();
  const Arm arm = {"capture", parse_policy(flags.policy, config)};
  CaptureInfo info = CaptureInfo::of_model(config, parse_cache_type(flags.model.cache_type_k, flags.model.cache_type_v));
  info.layers = parse_layers("--layers", flags.layers, config.layers_of(LayerKind::full_attention),
                             "full-attention layers of the model");
  // The query of step 0 is that of the context's last token: it sees the whole context.
  const int64_t num_decoded = int64_t{flags.every} * (flags.steps - 1) + 1;
  const int64_t needed = flags.generate ? 0 : num_decoded - 1;
  const Passage passage =
      read_passages({flags.file, flags.tokens, static_cast<int32_t>(needed), 1}, loaded.model->tokenizer()).front();
  if (static_cast<int64_t>(passage.continuation.size()) < needed) {
    fail(ExitCode::bad_input, fmt::format("{}: expected {} tokens after the context for {} steps, got {}; ask for fewer "
                                          "--steps, a smaller --every, or --generate",
                                          flags.file, needed, flags.steps, passage.continuation.size()));
  }
  const auto context = static_cast<int64_t>(passage.context.size());
  if (context < 2)
    fail(ExitCode::bad_input, fmt::format("{}: expected a context of at least 2 tokens, got {}", flags.file, context));
  const int32_t ctx_size = choose_ctx_size(flags.model, config, context + num_decoded);
  Output output(flags.output);  // before the work: a place that cannot be written is refused at once
  const auto engine = make_engine(flags.model, loaded.model, ctx_size, 1, num_decoded);
  Session session = engine->new_session();
  prefill(session, {passage.context.begin(), passage.context.end() - 1}, "prefill");
  session = fork_for_arm(session, arm, flags.model.seed, flags.model.audit);
  const Record record = decode(session, flags, info, passage, num_decoded);

  info.kv_len = session.length();
  info.num_steps = flags.steps;
  add_origin(info, flags, loaded, session);
  output.write(unwrap(capture_header(info)));
  output.write_bytes(record.tokens.data(), record.tokens.size() * sizeof(int32_t));
  output.write_bytes(record.positions.data(), record.positions.size() * sizeof(int32_t));
  for (size_t slot = 0; slot < info.layers.size(); ++slot) {
    check_interrupt();
    const PagedKvView kv = unwrap(session.cached(info.layers[slot]));
    output.write_bytes(record.queries[slot].data(), record.queries[slot].size() * sizeof(float));
    write_rows(output, kv, kv.keys);
    write_rows(output, kv, kv.values);
  }
  output.commit();
  const double bytes = 2.0 * info.kv_len * info.num_kv_heads * info.head_dim * static_cast<double>(size_of(info.kv_dtype)) *
                       static_cast<double>(info.layers.size());
  fmt::print(stderr, "{}: {} steps of layers {} at {} to {} cached tokens, {} of keys and values\n", flags.output,
             info.num_steps, format_layers(info.layers), format_count(record.positions.front() + 1),
             format_count(info.kv_len), format_bytes(bytes));
}

}  // namespace

void add_capture(CLI::App& parent) {
  auto flags = std::make_shared<Flags>();
  CLI::App* verb = add_verb(parent, "capture",
                            "Queries, keys and values of real decoding in one safetensors file.\n"
                            "Dense prefill, then decode steps over the text that follows; replay reads it.",
                            "  rarefy capture -f text.txt --tokens 16384 --steps 16 -o capture.safetensors");
  add_model_flags(*verb, flags->model);
  verb->add_option("-f,--file", flags->file,
                   "text file, UTF-8 (- is standard input), or NAME.jsonl with {\"context\", \"continuation\"}, of\n"
                   "which the first line is used")
      ->required()
      ->type_name("FILE");
  verb->add_option("--tokens", flags->tokens, "tokens of the context of a text file (default 16384)")
      ->check(CLI::Range(2, 1 << 30))
      ->type_name("N");
  verb->add_option("--steps", flags->steps, "decode steps to capture (default 16)")
      ->check(CLI::Range(1, 1 << 20))
      ->type_name("N");
  verb->add_option("--every", flags->every, "capture every Nth decode step (default 1)")
      ->check(CLI::Range(1, 1 << 20))
      ->type_name("N");
  verb->add_option("--layers", flags->layers, "layers to capture, like 0,2-3 (default: all full-attention layers)")
      ->type_name("LAYERS");
  verb->add_option("--policy", flags->policy, "policy of the decode steps (default dense)")->type_name("POLICY");
  verb->add_flag("--generate", flags->generate, "go on with the model's own tokens (greedy) instead of the text's");
  verb->add_option("-o,--output", flags->output, "file to write")->required()->type_name("FILE.safetensors");
  verb->callback([flags] { run(*flags); });
}

}  // namespace rarefy::cli
