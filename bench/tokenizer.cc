// Encoding speed on one thread, on English text and on one long piece, with a fixture tokenizer of Llama 3's form.
#include <benchmark/benchmark.h>

#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>

#include "rarefy/model/tokenizer.h"

namespace {

// RAREFY_BENCH_TOKENIZER and RAREFY_BENCH_TEXT name other files.
rarefy::Tokenizer tokenizer() {
  const char* path = std::getenv("RAREFY_BENCH_TOKENIZER");
  return *rarefy::Tokenizer::load(path != nullptr ? path
                                                  : RAREFY_SOURCE_DIR "/tests/golden/tokenizers/llama3.tokenizer.json");
}

std::string english(std::size_t num_bytes) {
  const char* path = std::getenv("RAREFY_BENCH_TEXT");
  std::ifstream file(path != nullptr ? path : RAREFY_SOURCE_DIR "/LICENSE", std::ios::binary);
  const std::string source{std::istreambuf_iterator<char>(file), {}};
  std::string text;
  while (text.size() < num_bytes && !source.empty()) text += source;
  text.resize(num_bytes);
  return text;
}

void encode(benchmark::State& state, const std::string& text) {
  const rarefy::Tokenizer subject = tokenizer();
  std::size_t num_tokens = 0;
  for (auto _ : state) num_tokens = subject.encode(text).value().size();
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations()) * static_cast<int64_t>(text.size()));
  state.counters["tokens"] = static_cast<double>(num_tokens);
}

void encode_english(benchmark::State& state) { encode(state, english(1 << 20)); }
void encode_one_piece(benchmark::State& state) {
  encode(state, std::string(static_cast<std::size_t>(state.range(0)), 'a'));
}
void load(benchmark::State& state) {
  for (auto _ : state) benchmark::DoNotOptimize(tokenizer());
}

BENCHMARK(encode_english)->Unit(benchmark::kMillisecond);
BENCHMARK(encode_one_piece)->Arg(1 << 16)->Arg(1 << 20)->Unit(benchmark::kMillisecond);
BENCHMARK(load)->Unit(benchmark::kMillisecond);

}  // namespace
