#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <iterator>
#include <memory>
#include <numeric>
#include <optional>
#include <random>

#include "bandwidth.h"
#include "bench_attention.h"
#include "failure.h"
#include "policy_text.h"
#include "rarefy/attention/decode.h"
#include "rarefy/core/device.h"
#include "rarefy/engine/sparse_step.h"
#include "statistics.h"

namespace rarefy::cli {
namespace {

constexpr int64_t kCacheBytes = int64_t{256} << 20;  // of all layers, at least
constexpr int32_t kMinLayers = 3;                    // calls rotate over this many copies of the cache
constexpr int32_t kFillTokens = 512;                 // written at a time

double now_us() {
  return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// The cache of one case: `layers` copies of the same shape with different contents, and the sequences of the batch.
class BenchCache {
 public:
  BenchCache(const AttentionBenchCase& description, int32_t num_layers) : case_(description) {
    KvCacheConfig config;
    config.num_layers = num_layers;
    config.num_kv_heads = case_.num_kv_heads;
    config.head_dim = case_.head_dim;
    config.dtype = case_.kv_dtype;
    config.page_size = case_.page_size;
    const int64_t pages = (case_.kv_len + case_.page_size - 1) / case_.page_size + 1;
    config.max_tokens = case_.batch * pages * case_.page_size;
    cache = unwrap(KvCache::create(config));
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    // A pool of normal numbers, read from random offsets: fast, and no two rows are alike.
    std::vector<float> pool(1 << 20);
    for (float& value : pool) value = normal(random);
    const size_t row = static_cast<size_t>(case_.num_kv_heads) * static_cast<size_t>(case_.head_dim);
    std::vector<float> keys(kFillTokens * row), values(keys.size());
    const auto fill = [&](std::vector<float>& rows) {
      for (size_t i = 0; i < rows.size(); i += static_cast<size_t>(case_.head_dim)) {
        const size_t offset = random() % (pool.size() - static_cast<size_t>(case_.head_dim));
        std::copy_n(pool.data() + offset, case_.head_dim, rows.data() + i);
      }
    };
    for (int32_t sequence = 0; sequence < case_.batch; ++sequence) {
      sequences.push_back(cache->new_sequence());
      for (int32_t done = 0; done < case_.kv_len; done += kFillTokens) {
        check(sequences.back().begin_append(std::min(kFillTokens, case_.kv_len - done)));
        for (int32_t layer = 0; layer < num_layers; ++layer) {
          fill(keys);
          fill(values);
          check(sequences.back().write(layer, keys.data(), values.data()));
        }
        sequences.back().commit();
      }
    }
  }

  // All sequences of one layer in one view.
  PagedKvView batch_view(int32_t layer) {
    PagedKvView view = sequences[0].view(layer);
    const int32_t pages = (case_.kv_len + case_.page_size - 1) / case_.page_size;
    page_table_.clear();
    kv_lens_.assign(static_cast<size_t>(case_.batch), case_.kv_len);
    for (KvSequence& sequence : sequences) {
      const int32_t* table = sequence.view(layer).page_table;  // [max_pages_per_sequence] i32
      page_table_.insert(page_table_.end(), table, table + pages);
    }
    view.page_table = page_table_.data();
    view.max_pages_per_sequence = pages;
    view.kv_lens = kv_lens_.data();
    return view;
  }

  std::shared_ptr<KvCache> cache;
  std::vector<KvSequence> sequences;

 private:
  const AttentionBenchCase& case_;
  std::vector<int32_t> page_table_, kv_lens_;  // [batch, max_pages] and [batch] i32
};

class Workspace {
 public:
  explicit Workspace(size_t bytes)
      : bytes_(bytes), data_(::operator new (std::max<size_t>(bytes, 64), std::align_val_t{64})) {}
  ~Workspace() { ::operator delete (data_, std::align_val_t{64}); }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  void give(DecodeArgs& args) const {
    args.workspace = data_;
    args.workspace_bytes = bytes_;
  }

 private:
  size_t bytes_;
  void* data_;  // [bytes] bytes
};

// Tokens drawn evenly without replacement, ascending, as the contract of index_set.h asks; different for every layer.
std::vector<IndexSet> draw_indices(const AttentionBenchCase& description, int32_t num_layers) {
  std::vector<IndexSet> sets(static_cast<size_t>(num_layers));
  std::mt19937 random(2);
  std::vector<int32_t> tokens(static_cast<size_t>(description.kv_len));
  std::iota(tokens.begin(), tokens.end(), 0);
  const int32_t count = description.num_selected();
  for (IndexSet& set : sets) {
    set.resize(description.batch, description.num_kv_heads, count);
    for (int32_t list = 0; list < description.batch * description.num_kv_heads; ++list) {
      for (int32_t i = 0; i < count; ++i) {
        std::swap(tokens[static_cast<size_t>(i)],
                  tokens[static_cast<size_t>(i) + random() % (tokens.size() - static_cast<size_t>(i))]);
      }
      int32_t* ids = set.token_ids(list / description.num_kv_heads, list % description.num_kv_heads);
      std::copy_n(tokens.begin(), count, ids);
      std::sort(ids, ids + count);
      set.count(list / description.num_kv_heads, list % description.num_kv_heads) = count;
    }
  }
  return sets;
}

DecodeProblem problem_of(const AttentionBenchCase& description, DType q_dtype, int32_t max_batch) {
  DecodeProblem problem;
  problem.num_q_heads = description.num_q_heads;
  problem.num_kv_heads = description.num_kv_heads;
  problem.head_dim = description.head_dim;
  problem.q_dtype = q_dtype;
  problem.kv_dtype = description.kv_dtype;
  problem.page_size = description.page_size;
  problem.max_batch = max_batch;
  problem.max_selected = description.kv_len;
  return problem;
}

// What one step of a session does in a layer: append the new token, update the index, select, attend with certificates.
struct PolicyArm {
  PolicyArm(const AttentionBenchCase& description, const std::string& text, BenchCache& cache, int32_t num_layers)
      : policy(read_policy(text)),
        shape{num_layers, description.num_kv_heads, description.num_q_heads / description.num_kv_heads,
              description.head_dim, description.kv_dtype} {
    if (policy.layer_is_dense(0, description.kv_len)) {
      fail(ExitCode::usage, fmt::format("policy {}: expected one that is sparse at kv_len={}; see rarefy policy explain",
                                        text, description.kv_len));
    }
    plan = unwrap(SparseStepPlan::make(policy, shape, problem_of(description, DType::f32, 1), description.kv_len + 1),
                  ExitCode::usage);
    step.emplace(unwrap(SparseStep::make(plan, *cache.cache), ExitCode::usage));
    for (KvSequence& sequence : cache.sequences) {
      for (int32_t layer = 0; layer < num_layers; ++layer) check(step->update_index(sequence, layer));
    }
  }

  Policy policy;
  SelectorShape shape;
  std::shared_ptr<const SparseStepPlan> plan;
  std::optional<SparseStep> step;
  SparseStepResult result;
  Traffic traffic;  // over all calls
  int64_t num_calls = 0;
};

void check_shape(const AttentionBenchCase& description) {
  if (description.num_q_heads % description.num_kv_heads != 0) {
    fail(ExitCode::usage, fmt::format("num_q_heads: expected a multiple of num_kv_heads={}, got {}",
                                      description.num_kv_heads, description.num_q_heads));
  }
}

}  // namespace

std::vector<MeasuredArm> measure_attention_case(const AttentionBenchCase& description, int32_t num_repeats) {
  check_shape(description);
  const double row_bytes = 2.0 * description.head_dim * static_cast<double>(size_of(description.kv_dtype));
  const double dense_bytes = row_bytes * description.num_kv_heads * description.kv_len * description.batch;
  const auto num_layers = static_cast<int32_t>(
      std::clamp(std::ceil(static_cast<double>(kCacheBytes) / dense_bytes), static_cast<double>(kMinLayers), 16.0));

  const DecodePlan dense =
      unwrap(DecodePlan::make(DecodeOp::dense, Device{}, problem_of(description, description.q_dtype, description.batch)),
             ExitCode::usage);
  const DecodePlan sparse =
      unwrap(DecodePlan::make(DecodeOp::sparse, Device{}, problem_of(description, description.q_dtype, description.batch)),
             ExitCode::usage);
  const Workspace workspace(std::max(dense.workspace_bytes(), sparse.workspace_bytes()));
  StreamBuffer stream(eviction_bytes());  // read before every timed call
  BenchCache cache(description, num_layers);
  const std::vector<IndexSet> indices = draw_indices(description, num_layers);
  std::vector<std::unique_ptr<PolicyArm>> policy_arms;
  for (const std::string& policy : description.policies) {
    policy_arms.push_back(std::make_unique<PolicyArm>(description, policy, cache, num_layers));
  }

  const size_t row_elements = static_cast<size_t>(description.num_q_heads) * static_cast<size_t>(description.head_dim);
  const size_t elements = row_elements * static_cast<size_t>(description.batch);
  std::vector<float> q(elements), out(elements), new_row(row_elements), lse(elements);
  std::vector<uint32_t> q_typed(elements);  // room for any q_dtype
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  for (float& value : new_row) value = normal(random);
  for (size_t i = 0; i < elements; ++i) {
    store_from_float(q_typed.data(), description.q_dtype, static_cast<int64_t>(i), normal(random));
    q[i] = load_as_float(q_typed.data(), description.q_dtype, static_cast<int64_t>(i));
  }

  std::vector<MeasuredArm> arms(3);
  arms[0] = {"read_bandwidth", "", "", "", DType::f32, static_cast<double>(stream.bytes()), 0, {}};
  arms[1] = {"dense_decode",
             std::string(dense.implementation()),
             "",
             "",
             description.q_dtype,
             dense_bytes,
             description.kv_len,
             {}};
  arms[2] = {"sparse_decode",
             std::string(sparse.implementation()),
             "",
             "",
             description.q_dtype,
             row_bytes * description.num_kv_heads * description.num_selected() * description.batch,
             description.num_selected(),
             {}};
  for (const auto& arm : policy_arms) {
    arms.push_back({"append_select_attend",
                    std::string(arm->plan->sparse.implementation()),
                    arm->policy.to_string(),
                    arm->policy.to_string(),
                    DType::f32,
                    0.0,
                    0,
                    {}});
  }

  std::vector<double> read_us[std::size(kFetchAhead)];  // [num_repeats] f64 each
  int32_t layer = 0;
  const auto attend = [&](const DecodePlan& plan, const IndexSet* set) {
    DecodeArgs args;
    args.batch = description.batch;
    args.scale = 1.0f / std::sqrt(static_cast<float>(description.head_dim));
    args.q = q_typed.data();
    args.kv = cache.batch_view(layer);
    if (set != nullptr) {
      args.index = set->view();
      args.index.log_weight = nullptr;  // given indices: every token counts once
    }
    args.out = out.data();
    args.lse = lse.data();
    workspace.give(args);
    const double start = now_us();
    check(plan.run(args));
    return now_us() - start;
  };
  const auto step = [&](PolicyArm& arm, int64_t seed) {
    double time = 0.0;
    for (int32_t sequence = 0; sequence < description.batch; ++sequence) {
      KvSequence& kv = cache.sequences[static_cast<size_t>(sequence)];
      const double start = now_us();
      check(kv.begin_append(1));
      check(kv.write(layer, new_row.data(), new_row.data()));
      SelectionStep selection_step;
      selection_step.layer = layer;
      selection_step.scale = 1.0f / std::sqrt(static_cast<float>(description.head_dim));
      selection_step.seed = static_cast<uint64_t>(seed);
      selection_step.position = description.kv_len;
      selection_step.q = q.data() + static_cast<size_t>(sequence) * row_elements;
      check(arm.step->run(kv, selection_step, out.data() + static_cast<size_t>(sequence) * row_elements, arm.result));
      time += now_us() - start;
      kv.abort_append();
      ++arm.num_calls;
      arm.traffic.tokens_read += arm.result.traffic.tokens_read;
      arm.traffic.row_bytes += arm.result.traffic.row_bytes;
      arm.traffic.index_bytes += arm.result.traffic.index_bytes;
    }
    return time;
  };
  const auto next_layer = [&] { layer = (layer + 1) % num_layers; };
  // The first round warms up code, threads and page tables and is not recorded.
  for (int32_t repeat = -1; repeat < num_repeats; ++repeat) {
    const auto record = [&](MeasuredArm& arm, double time) {
      if (repeat >= 0) arm.time_us.push_back(time);
      next_layer();
    };
    for (size_t way = 0; way < std::size(kFetchAhead); ++way) {
      const double time = stream.read_us(kFetchAhead[way]);
      if (repeat >= 0) read_us[way].push_back(time);
    }
    next_layer();
    record(arms[1], attend(dense, nullptr));
    stream.read_us();
    record(arms[2], attend(sparse, &indices[static_cast<size_t>(layer)]));
    for (size_t i = 0; i < policy_arms.size(); ++i) {
      stream.read_us();
      record(arms[3 + i], step(*policy_arms[i], repeat + 1));
    }
  }
  const auto fastest = std::min_element(std::begin(read_us), std::end(read_us),
                                        [](const auto& one, const auto& other) { return median(one) < median(other); });
  arms[0].time_us = *fastest;
  if (stream.checksum() == 0) fail(ExitCode::run_failed, "bench attention: the read test lost its data");

  for (size_t i = 0; i < policy_arms.size(); ++i) {
    const PolicyArm& arm = *policy_arms[i];
    const auto calls = static_cast<double>(arm.num_calls);
    arms[3 + i].num_selected = std::lround(static_cast<double>(arm.traffic.tokens_read) / calls / description.num_kv_heads);
    arms[3 + i].bytes = static_cast<double>(arm.traffic.row_bytes + arm.traffic.index_bytes) / calls * description.batch;
  }
  return arms;
}

}  // namespace rarefy::cli
