// Encoding and decoding speed on one thread: each family on English text of several lengths, one long piece, and loading.
// RAREFY_BENCH_TOKENIZERS names a folder with other tokenizers than the small ones of the tests (for instance of the size of real
// ones, by `tests/golden/make_tokenizer_fixtures.py OUT --large NUM_MERGES FILE...`), RAREFY_BENCH_TEXT another text.
#include <benchmark/benchmark.h>

#include <cstdlib>
#include <fstream>
#include <iostream>
#include <iterator>
#include <map>
#include <string>

#include "rarefy/model/tokenizer.h"

namespace {

std::string from_environment(const char* name, const char* otherwise) {
  const char* value = std::getenv(name);
  return value != nullptr ? value : otherwise;
}

rarefy::Tokenizer tokenizer(const std::string& family) {
  const std::string folder = from_environment("RAREFY_BENCH_TOKENIZERS", RAREFY_SOURCE_DIR "/tests/golden/tokenizers");
  auto loaded = rarefy::Tokenizer::load(folder + "/" + family + ".tokenizer.json");
  if (!loaded) {
    std::cerr << loaded.status().message() << '\n';
    std::exit(1);
  }
  return *std::move(loaded);
}

// Loaded once: a large one takes longer than what is measured.
const rarefy::Tokenizer& loaded(const std::string& family) {
  static std::map<std::string, rarefy::Tokenizer> tokenizers;
  auto it = tokenizers.find(family);
  if (it == tokenizers.end()) it = tokenizers.emplace(family, tokenizer(family)).first;
  return it->second;
}

// A text that is too short is repeated.
std::string english(std::size_t num_bytes) {
  std::ifstream file(from_environment("RAREFY_BENCH_TEXT", RAREFY_SOURCE_DIR "/models/rarefy-8m/eval/demo_context.txt"),
                     std::ios::binary);
  const std::string source{std::istreambuf_iterator<char>(file), {}};
  std::string text;
  while (text.size() < num_bytes && !source.empty()) text += source;
  text.resize(num_bytes);
  while (!text.empty() && (text.back() & 0x80) != 0) text.pop_back();  // no half character
  return text;
}

void set_counters(benchmark::State& state, std::size_t num_bytes, std::size_t num_tokens) {
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations()) * static_cast<int64_t>(num_bytes));
  state.counters["bytes"] = static_cast<double>(num_bytes);
  state.counters["tokens"] = static_cast<double>(num_tokens);
}

void encode(benchmark::State& state, const std::string& family, const std::string& text) {
  const rarefy::Tokenizer& subject = loaded(family);
  std::size_t num_tokens = 0;
  while (state.KeepRunning()) num_tokens = subject.encode(text).value().size();
  set_counters(state, text.size(), num_tokens);
}

void encode_english(benchmark::State& state, const char* family) {
  encode(state, family, english(static_cast<std::size_t>(state.range(0))));
}

// Nothing repeats as a word here, and no piece ends.
void encode_one_piece(benchmark::State& state, const char* family) {
  encode(state, family, std::string(static_cast<std::size_t>(state.range(0)), 'a'));
}

void decode_english(benchmark::State& state, const char* family) {
  const rarefy::Tokenizer& subject = loaded(family);
  const auto ids = subject.encode(english(static_cast<std::size_t>(state.range(0)))).value();
  std::size_t num_bytes = 0;
  while (state.KeepRunning()) num_bytes = subject.decode(ids).value().size();
  set_counters(state, num_bytes, ids.size());
}

void load(benchmark::State& state, const char* family) {
  while (state.KeepRunning()) benchmark::DoNotOptimize(tokenizer(family));
}

void sizes(benchmark::internal::Benchmark* b) {
  b->Arg(1 << 16)->Arg(1 << 20)->Arg(1 << 21)->Unit(benchmark::kMicrosecond);
}
#define RAREFY_BENCH_FAMILY(family)                                                                  \
  BENCHMARK_CAPTURE(encode_english, family, #family)->Apply(sizes);                                  \
  BENCHMARK_CAPTURE(encode_one_piece, family, #family)->Arg(1 << 20)->Unit(benchmark::kMicrosecond); \
  BENCHMARK_CAPTURE(decode_english, family, #family)->Arg(1 << 20)->Unit(benchmark::kMicrosecond);   \
  BENCHMARK_CAPTURE(load, family, #family)->Unit(benchmark::kMicrosecond)
RAREFY_BENCH_FAMILY(llama3);
RAREFY_BENCH_FAMILY(qwen2);
RAREFY_BENCH_FAMILY(qwen35);
RAREFY_BENCH_FAMILY(ministral);
RAREFY_BENCH_FAMILY(gemma3);

}  // namespace
