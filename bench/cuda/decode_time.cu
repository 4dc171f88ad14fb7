// Times the decode kernels alone, for work on them: one line per case with microseconds, bytes and share of the measured read
// bandwidth. Each layer has its own cache, so that a replay touches several times the L2 cache; one CUDA graph holds one launch a
// layer. Comparisons with other libraries: scripts/gpu/bench_attention.
//
//   decode_time [--heads 32] [--kv-heads 8] [--dim 128] [--kv-len 131072] [--batch 1,4,8,16] [--sparsity 50,100,500]
//               [--scope kv|q] [--layers 4] [--page 16] [--cert] [--no-weights] [--fallback] [--skew]
//
// Sparsity 0 = dense. --fallback: the first list of each sequence is dense (count -1), among sparse ones. --skew: lists of one to ten times the
// shortest, in another order in each sequence, the same total.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "rarefy/attention/decode.h"
#include "timing.cuh"

namespace {

std::vector<int> numbers(const char* text) {
  std::vector<int> result;
  for (const char* at = text; *at != 0;) {
    char* next = nullptr;
    result.push_back(static_cast<int>(std::strtol(at, &next, 10)));
    at = *next == ',' ? next + 1 : next;
  }
  return result;
}

template <typename T>
T* upload(const std::vector<T>& host) {
  T* device = nullptr;
  OK(cudaMalloc(&device, host.size() * sizeof(T)));
  OK(cudaMemcpy(device, host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice));
  return device;
}

}  // namespace

int main(int argc, char** argv) {
  int heads = 32, kv_heads = 8, dim = 128, kv_len = 131072, layers = 4, page = 16;
  bool query_scope = false, cert = false, weights = true, fallback = false, skew = false;
  std::vector<int> batches = {1, 4, 8, 16}, sparsities = {50, 100, 500};
  for (int i = 1; i < argc; ++i) {
    const std::string flag = argv[i];
    const auto next = [&] { return i + 1 < argc ? argv[++i] : argv[i]; };
    if (flag == "--heads")
      heads = std::atoi(next());
    else if (flag == "--kv-heads")
      kv_heads = std::atoi(next());
    else if (flag == "--dim")
      dim = std::atoi(next());
    else if (flag == "--kv-len")
      kv_len = std::atoi(next());
    else if (flag == "--layers")
      layers = std::atoi(next());
    else if (flag == "--page")
      page = std::atoi(next());
    else if (flag == "--batch")
      batches = numbers(next());
    else if (flag == "--sparsity")
      sparsities = numbers(next());
    else if (flag == "--scope")
      query_scope = std::strcmp(next(), "q") == 0;
    else if (flag == "--cert")
      cert = true;
    else if (flag == "--no-weights")
      weights = false;
    else if (flag == "--fallback")
      fallback = true;
    else if (flag == "--skew")
      skew = true;
    else
      return std::fprintf(stderr, "decode_time: unknown flag '%s'; see the top of decode_time.cu\n", argv[i]), 2;
  }
  cudaStream_t stream;
  OK(cudaStreamCreate(&stream));
  Timer timer;
  const double bandwidth = print_device(stream, timer);
  const int max_batch = *std::max_element(batches.begin(), batches.end());
  const int64_t pages = (int64_t{kv_len} + page - 1) / page;
  const size_t elements = static_cast<size_t>(max_batch * pages * page) * kv_heads * dim;
  std::vector<uint16_t*> keys(layers), values(layers);
  for (int layer = 0; layer < layers; ++layer) {
    OK(cudaMalloc(&keys[layer], elements * 2));
    OK(cudaMalloc(&values[layer], elements * 2));
    fill_random<<<4096, 256, 0, stream>>>(keys[layer], elements, 2 * layer + 1);
    fill_random<<<4096, 256, 0, stream>>>(values[layer], elements, 2 * layer + 2);
  }
  std::mt19937 random(1);
  std::vector<int32_t> table(static_cast<size_t>(max_batch * pages));
  for (size_t i = 0; i < table.size(); ++i) table[i] = static_cast<int32_t>(i);
  std::shuffle(table.begin(), table.end(), random);
  int32_t* page_table = upload(table);
  int32_t* kv_lens = upload(std::vector<int32_t>(max_batch, kv_len));
  uint16_t *q = nullptr, *out = nullptr;
  float* lse = nullptr;
  OK(cudaMalloc(&q, size_t(max_batch) * heads * dim * 2));
  OK(cudaMalloc(&out, size_t(max_batch) * heads * dim * 2));
  OK(cudaMalloc(&lse, size_t(max_batch) * heads * 12));
  fill_random<<<64, 256, 0, stream>>>(q, size_t(max_batch) * heads * dim, 99);
  for (int sparsity : sparsities) {
    const bool dense = sparsity == 0;
    const int lists = query_scope ? heads : kv_heads, mean = dense ? 0 : kv_len / sparsity;
    // Uniform random ids, ascending: every list and layer its own.
    std::vector<int32_t*> ids(layers);
    std::vector<float*> log_weights(layers);
    std::vector<int32_t> lengths(size_t(max_batch) * lists, mean);
    for (size_t first = 0; skew && lists > 1 && first < lengths.size(); first += lists) {
      for (int i = 0; i < lists; ++i) lengths[first + i] = static_cast<int32_t>(mean * (1 + 9.0 * i / (lists - 1)) / 5.5);
      std::shuffle(lengths.begin() + first, lengths.begin() + first + lists, random);
    }
    const int selected = *std::max_element(lengths.begin(), lengths.end());
    std::vector<int32_t> list_counts = lengths;
    for (size_t list = 0; fallback && list < list_counts.size(); list += lists) list_counts[list] = -1;
    int32_t* counts = upload(list_counts);
    for (int layer = 0; layer < layers && !dense; ++layer) {
      std::vector<int32_t> all(lengths.size() * selected);
      std::vector<float> w(all.size());
      for (size_t list = 0; list < lengths.size(); ++list) {
        int32_t* next = all.data() + list * selected;
        int left = lengths[list];
        for (int token = 0; token < kv_len && left > 0; ++token) {
          if (random() % static_cast<uint32_t>(kv_len - token) >= static_cast<uint32_t>(left)) continue;
          *next++ = token;
          --left;
        }
      }
      for (float& x : w) x = random() % 2 ? 0.5f : 0.0f;
      ids[layer] = upload(all), log_weights[layer] = upload(w);
    }
    for (int batch : batches) {
      rarefy::DecodeProblem problem;
      problem.num_q_heads = heads, problem.num_kv_heads = kv_heads, problem.head_dim = dim;
      problem.q_dtype = problem.kv_dtype = problem.out_dtype = rarefy::DType::bf16;
      problem.page_size = page, problem.max_batch = batch, problem.max_selected = selected, problem.max_kv_len = kv_len;
      problem.scope = query_scope ? rarefy::ListScope::query_head : rarefy::ListScope::kv_head;
      const auto plan = rarefy::DecodePlan::make(dense ? rarefy::DecodeOp::dense : rarefy::DecodeOp::sparse,
                                                 {rarefy::DeviceKind::cuda, 0}, problem);
      check(plan.status());
      void* workspace = nullptr;
      OK(cudaMalloc(&workspace, plan->workspace_bytes()));
      check(plan->prepare_workspace(workspace, plan->workspace_bytes()));
      OK(cudaDeviceSynchronize());
      const std::vector<float> times = graph_times(stream, timer, [&] {
        for (int layer = 0; layer < layers; ++layer) {
          rarefy::DecodeArgs args;
          args.batch = batch, args.scale = 0.0883f, args.q = q, args.out = out, args.lse = lse;
          args.kv = {keys[layer],
                     values[layer],
                     rarefy::DType::bf16,
                     int64_t{page} * kv_heads * dim,
                     int64_t{kv_heads} * dim,
                     dim,
                     static_cast<int32_t>(max_batch * pages),
                     page,
                     kv_heads,
                     dim,
                     page_table,
                     static_cast<int32_t>(pages),
                     kv_lens};
          if (!dense) {
            args.index = {ids[layer], counts, weights ? log_weights[layer] : nullptr, lists, selected};
            if (cert) args.rel_std = lse + size_t(batch) * heads, args.out_rel_std = lse + size_t(2 * batch) * heads;
          }
          args.workspace = workspace, args.workspace_bytes = plan->workspace_bytes();
          check(plan->run(args, {stream}));
        }
      });
      const double us = times[times.size() / 2] / layers;
      const double tokens = fallback ? kv_len + double(lists - 1) * mean : double(lists) * (dense ? kv_len : mean);
      const double rows = batch * tokens * dim * 4;
      const double entries = dense ? 0.0 : double(batch) * lists * mean * 8;
      const double ceiling = (rows + entries) / bandwidth * 1e-6 + 5.0;
      std::printf(
          "%s scope=%s sparsity=%d batch=%d heads=%d/%d dim=%d kv_len=%d cert=%d: %.2f us (p10 %.2f p90 %.2f), ceiling "
          "%.2f, "
          "share %.3f, %.2f TB/s\n",
          dense ? "dense" : "sparse", query_scope ? "q" : "kv", sparsity, batch, heads, kv_heads, dim, kv_len, cert, us,
          times[times.size() / 10] / layers, times[times.size() * 9 / 10] / layers, ceiling, ceiling / us,
          rows / us * 1e-6);
      std::fflush(stdout);
      OK(cudaFree(workspace));
    }
    OK(cudaFree(counts));
    for (int layer = 0; layer < layers && !dense; ++layer) {
      OK(cudaFree(ids[layer]));
      OK(cudaFree(log_weights[layer]));
    }
  }
  return 0;
}
