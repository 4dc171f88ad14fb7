// Reads a text once with dense attention, then continues it twice from the same cache: dense, and with a sparse policy.
//
//   01_sparse_decode MODEL_FOLDER TEXT_FILE [POLICY]
#include <cstdio>
#include <fstream>
#include <iterator>
#include <string>

#include "rarefy/engine/generate.h"
#include "rarefy/engine/session.h"

namespace {

int fail(const rarefy::Status& status) {
  std::fprintf(stderr, "error: %s\n", status.to_string().c_str());
  return 1;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) {
    std::fprintf(stderr, "usage: %s MODEL_FOLDER TEXT_FILE [POLICY]\n", argv[0]);
    return 2;
  }
  std::ifstream file(argv[2], std::ios::binary);
  if (!file) return fail(rarefy::Status::io_error(std::string("cannot open ") + argv[2]));
  const std::string text{std::istreambuf_iterator<char>(file), {}};

  auto loaded = rarefy::Model::load(argv[1]);
  if (!loaded) return fail(loaded.status());
  const auto model = std::make_shared<const rarefy::Model>(*std::move(loaded));
  auto tokens = model->tokenizer().encode(text);  // [num_tokens] i32
  if (!tokens) return fail(tokens.status());
  if (tokens->size() < 2) return fail(rarefy::Status::invalid_argument("expected a text of at least two tokens"));

  auto engine = rarefy::Engine::make(model);
  if (!engine) return fail(engine.status());
  rarefy::Session context = (*engine)->new_session();
  const std::span<const int32_t> all = *tokens;  // [num_tokens] i32
  if (auto status = context.prefill(all.first(all.size() - 1)); !status.ok()) return fail(status);

  for (const char* text_policy : {"dense", argc > 3 ? argv[3] : "50x"}) {
    auto policy = rarefy::Policy::parse(text_policy);
    if (!policy) return fail(policy.status());
    rarefy::Session session = context.fork();  // shares the pages of the context
    if (auto status = session.set_policy(*policy); !status.ok()) return fail(status);
    session.set_audit({.fraction = 0.25});

    auto result = rarefy::generate(session, all.last(1), {.max_new_tokens = 32});
    if (!result) return fail(result.status());
    auto answer = model->tokenizer().decode(result->tokens, /*skip_special_tokens=*/true);
    if (!answer) return fail(answer.status());
    const rarefy::RunStats& stats = session.stats();
    std::printf("[%s]\n%s\n  %.1f tokens/s, bytes_ratio %.3f, error p50: estimated %.3f, audited %.3f\n", text_policy,
                answer->c_str(), stats.decode_tokens_per_second(), stats.traffic.bytes_ratio(),
                stats.estimated_error.quantile(0.5), stats.audit.error.quantile(0.5));
  }
  return 0;
}
