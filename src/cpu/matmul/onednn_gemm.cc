#include "cpu/matmul/onednn_gemm.h"

#include <omp.h>

#include <dnnl.hpp>

#include "rarefy/core/device.h"

namespace rarefy::cpu {
namespace {

using dnnl::memory;

// oneDNN takes its thread count from OpenMP; this lends it ours for one call.
class ThreadCountScope {
 public:
  ThreadCountScope() : before_(omp_get_max_threads()) { omp_set_num_threads(num_threads()); }
  ~ThreadCountScope() { omp_set_num_threads(before_); }
  ThreadCountScope(const ThreadCountScope&) = delete;
  ThreadCountScope& operator=(const ThreadCountScope&) = delete;

 private:
  int before_;
};

const dnnl::engine& cpu_engine() {
  static const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  return engine;
}

dnnl::matmul::primitive_desc describe(const memory::desc& x, const memory::desc& weight, const memory::desc& y) {
  dnnl::primitive_attr attributes;
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
#if DNNL_VERSION_MAJOR >= 3
  return {cpu_engine(), x, weight, y, attributes, /*allow_empty=*/true};
#else
  return {dnnl::matmul::desc(x, weight, y), attributes, cpu_engine(), /*allow_empty=*/true};
#endif
}

Status run(const OnednnGemmArgs& args, AlignedBuffer& scratchpad) {
  const auto dtype = args.is_bf16 ? memory::data_type::bf16 : memory::data_type::f32;
  const memory::desc x_desc({args.num_rows, args.in_dim}, dtype, memory::dims{args.in_dim, 1});
  const memory::desc weight_desc({args.in_dim, args.out_dim}, dtype, memory::dims{1, args.in_dim});
  const memory::desc y_desc({args.num_rows, args.out_dim}, memory::data_type::f32, memory::dims{args.y_row_stride, 1});
  const auto description = describe(x_desc, weight_desc, y_desc);
  if (!description)
    return Status::unsupported("oneDNN offers no matrix product for this type on this CPU; load the model in f32");

  const auto scratch_desc = description.scratchpad_desc();
  void* scratch = scratchpad.reserve(std::max<std::size_t>(scratch_desc.get_size(), 1));
  if (scratch == nullptr)
    return Status::resource_exhausted("out of memory for a matrix product's scratch; use smaller prefill chunks");

  static thread_local dnnl::stream stream(cpu_engine());
  // oneDNN's handles are not const, although it only reads x and the weights.
  memory x(x_desc, cpu_engine(), const_cast<void*>(args.x));
  memory weight(weight_desc, cpu_engine(), const_cast<void*>(args.weight));
  memory y(y_desc, cpu_engine(), args.y);
  memory scratch_memory(scratch_desc, cpu_engine(), scratch);
  dnnl::matmul(description)
      .execute(stream,
               {{DNNL_ARG_SRC, x}, {DNNL_ARG_WEIGHTS, weight}, {DNNL_ARG_DST, y}, {DNNL_ARG_SCRATCHPAD, scratch_memory}});
  stream.wait();
  return {};
}

}  // namespace

bool onednn_has_bf16() {
  static const bool has_bf16 = [] {
    try {
      const memory::desc x({32, 64}, memory::data_type::bf16, memory::dims{64, 1});
      const memory::desc weight({64, 32}, memory::data_type::bf16, memory::dims{1, 64});
      const memory::desc y({32, 32}, memory::data_type::f32, memory::dims{32, 1});
      return static_cast<bool>(describe(x, weight, y));
    } catch (const std::exception&) {
      return false;
    }
  }();
  return has_bf16;
}

Status onednn_gemm(const OnednnGemmArgs& args, AlignedBuffer& scratchpad) {
  const ThreadCountScope threads;
  try {
    return run(args, scratchpad);
  } catch (const dnnl::error& error) {
    return Status::internal(std::string("oneDNN failed in a matrix product: ") + error.what());
  } catch (const std::exception& error) {
    return Status::resource_exhausted(std::string("a matrix product failed: ") + error.what());
  }
}

}  // namespace rarefy::cpu
