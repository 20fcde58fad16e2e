// ema_update on the CPU: one parallel region for the whole list of tensors. The maths is in README.md.

// These loops wait for memory: 256-bit accesses were measured 8 % faster than 512-bit ones on AMD.
#if defined(__AVX512F__) && !defined(JEPA_FAST_LANES)
#pragma GCC target("prefer-vector-width=256")
#define JEPA_FAST_LANES 8
#endif

#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/error.h>
#include <tvm/ffi/function.h>

#include "simd.h"

namespace {

using namespace jepa_fast;

// One row of the plan (plan.py): a run of one tensor pair.
struct Chunk {
  int64_t target;  // address
  int64_t source;  // address
  int64_t count;   // values, or bytes for kCopy
  int64_t kind;    // 3 * target type + source type, in the order float, bfloat16, float16; or kCopy
};
constexpr int64_t kCopy = 9;

// target + weight * (source - target), formed from the nearer end: exact at both ends, one rounding with FMA.
template <typename Target, typename Source>
JEPA_FAST_INLINE void lerp_chunk(const Chunk& chunk, float weight) {
  Target* target = reinterpret_cast<Target*>(chunk.target);
  const Source* source = reinterpret_cast<const Source*>(chunk.source);
  const bool near_target = weight < 0.5f;
  const vf32 coefficient = broadcast(near_target ? weight : weight - 1.0f);
  const vi32 from_target = vi32{} - static_cast<int32_t>(near_target);
  int64_t i = 0;
  for (; i + kLanes <= chunk.count; i += kLanes) {
    const vf32 t = load(target + i), s = load(source + i);
    store(target + i, coefficient * (s - t) + select(from_target, t, s));
  }
  if (i < chunk.count) {
    const int64_t rest = chunk.count - i;
    const vf32 t = load(target + i, rest), s = load(source + i, rest);
    store(target + i, coefficient * (s - t) + select(from_target, t, s), rest);
  }
}

JEPA_FAST_KERNEL void update_chunk(const Chunk& chunk, float weight) {
  switch (chunk.kind) {
    case 0: return lerp_chunk<float, float>(chunk, weight);
    case 1: return lerp_chunk<float, bfloat16>(chunk, weight);
    case 2: return lerp_chunk<float, float16>(chunk, weight);
    case 3: return lerp_chunk<bfloat16, float>(chunk, weight);
    case 4: return lerp_chunk<bfloat16, bfloat16>(chunk, weight);
    case 5: return lerp_chunk<bfloat16, float16>(chunk, weight);
    case 6: return lerp_chunk<float16, float>(chunk, weight);
    case 7: return lerp_chunk<float16, bfloat16>(chunk, weight);
    case 8: return lerp_chunk<float16, float16>(chunk, weight);
    case kCopy:
      std::memcpy(reinterpret_cast<void*>(chunk.target), reinterpret_cast<const void*>(chunk.source), chunk.count);
  }
}

// chunks: int64 [rows, 4], contiguous, on the CPU. weight: 1 - momentum.
void ema_update(tvm::ffi::TensorView chunks, double weight, int64_t threads) {
  TVM_FFI_CHECK(chunks.ndim() == 2 && chunks.size(1) == 4, ValueError) << "chunks: expected int64 [rows, 4]";
  const Chunk* table = static_cast<const Chunk*>(chunks.data_ptr());
  const int64_t rows = chunks.size(0);
  int64_t work = 0;
  for (int64_t i = 0; i < rows && work <= kParallelFrom; ++i) work += table[i].count;
#pragma omp parallel for schedule(dynamic) num_threads(static_cast<int>(threads)) if (work > kParallelFrom)
  for (int64_t i = 0; i < rows; ++i) update_chunk(table[i], static_cast<float>(weight));
}

}  // namespace

TVM_FFI_DLL_EXPORT_TYPED_FUNC(ema_update, ema_update);
