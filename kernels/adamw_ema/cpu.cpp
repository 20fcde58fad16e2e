// AdamW and the moving average on the CPU: one parallel region for the whole list. The maths is in README.md.

// Every product and sum is rounded by itself, as PyTorch rounds it; where PyTorch fuses them, fma() does.
#if defined(__clang__)
#pragma clang fp contract(off)
#else
#pragma GCC optimize("fp-contract=off")
#endif

#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/error.h>
#include <tvm/ffi/function.h>

#include <cmath>
#include <vector>

#include "simd.h"

namespace {

using namespace jepa_fast;

// The tables of plan.py and work.py, row by row.
struct Chunk {
  int64_t tensor, start, count;  // values, or bytes where the teacher's type is kBytes
};
struct Row {
  int64_t parameter, exp_avg, exp_avg_sq, step, teacher, copy, teacher_copy;  // addresses, 0 for none
  int64_t teacher_type, copy_type, teacher_copy_type, group;
};
struct Gradient {
  int64_t address, type;
};
struct Hyperparameters {
  double lr, beta1, beta2, eps, weight_decay, momentum;
};
enum Type : int64_t { kBytes = -1, kAbsent = 0, kFloat = 1, kBfloat16 = 2, kFloat16 = 3 };
struct absent {};

// What one tensor's update needs of the step count and the hyper-parameters.
struct Coefficients {
  float decay, weight1, beta2, weight2, correction2, eps, step_size, weight, scale;
};

JEPA_FAST_INLINE f32x16 fma(f32x16 a, f32x16 b, f32x16 c) {
  f32x16 result;
  for (int i = 0; i < kLanes; ++i) result[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return result;
}

JEPA_FAST_INLINE f32x16 square_root(f32x16 value) {
  for (int i = 0; i < kLanes; ++i) value[i] = __builtin_sqrtf(value[i]);
  return value;
}

// target + weight * (source - target), formed from the nearer end as torch.lerp does.
JEPA_FAST_INLINE f32x16 lerp(f32x16 target, f32x16 source, float weight) {
  return weight < 0.5f ? fma(broadcast(weight), source - target, target)
                       : fma(broadcast(weight - 1.0f), source - target, source);
}

JEPA_FAST_INLINE void store_as(int64_t type, int64_t address, int64_t i, f32x16 value, int64_t count) {
  if (type == kBfloat16) return store(reinterpret_cast<bfloat16*>(address) + i, value, count);
  if (type == kFloat16) return store(reinterpret_cast<float16*>(address) + i, value, count);
  if (type == kFloat) return store(reinterpret_cast<float*>(address) + i, value, count);
}

// Values i to i + count, at most sixteen.
template <typename Grad, typename Teacher>
JEPA_FAST_INLINE void update(const Row& row, int64_t gradient, const Coefficients& c, int64_t i, int64_t count) {
  float* parameter = reinterpret_cast<float*>(row.parameter) + i;
  f32x16 p = load(parameter, count);
  if constexpr (!std::is_same_v<Grad, absent>) {
    float* exp_avg = reinterpret_cast<float*>(row.exp_avg) + i;
    float* exp_avg_sq = reinterpret_cast<float*>(row.exp_avg_sq) + i;
    const f32x16 g = load(reinterpret_cast<const Grad*>(gradient) + i, count) * c.scale;
    const f32x16 m = lerp(load(exp_avg, count), g, c.weight1);
    const f32x16 v = fma(c.weight2 * g, g, load(exp_avg_sq, count) * c.beta2);
    p = p * c.decay + (c.step_size * m) / (square_root(v) / c.correction2 + c.eps);
    store(exp_avg, m, count);
    store(exp_avg_sq, v, count);
    store(parameter, p, count);
  }
  store_as(row.copy_type, row.copy, i, p, count);
  if constexpr (!std::is_same_v<Teacher, absent>) {
    Teacher* teacher = reinterpret_cast<Teacher*>(row.teacher) + i;
    const f32x16 t = lerp(load(teacher, count), p, c.weight);
    store(teacher, t, count);
    store_as(row.teacher_copy_type, row.teacher_copy, i, t, count);
  }
}

template <typename Grad, typename Teacher>
JEPA_FAST_INLINE void update_chunk(const Row& row, int64_t gradient, const Coefficients& c, const Chunk& chunk) {
  int64_t i = chunk.start;
  const int64_t end = chunk.start + chunk.count;
  for (; i + kLanes <= end; i += kLanes) update<Grad, Teacher>(row, gradient, c, i, kLanes);
  if (i < end) update<Grad, Teacher>(row, gradient, c, i, end - i);
}

template <typename Grad>
JEPA_FAST_INLINE void update_with(const Row& row, int64_t gradient, const Coefficients& c, const Chunk& chunk) {
  switch (row.teacher_type) {
    case kAbsent: return update_chunk<Grad, absent>(row, gradient, c, chunk);
    case kFloat: return update_chunk<Grad, float>(row, gradient, c, chunk);
    case kBfloat16: return update_chunk<Grad, bfloat16>(row, gradient, c, chunk);
    case kFloat16: return update_chunk<Grad, float16>(row, gradient, c, chunk);
    case kBytes:
      std::memcpy(reinterpret_cast<char*>(row.teacher) + chunk.start,
                  reinterpret_cast<const char*>(row.parameter) + chunk.start, chunk.count);
  }
}

JEPA_FAST_CLONES_256 void run_chunk(const Row& row, const Gradient& gradient, const Coefficients& c,
                                    const Chunk& chunk) {
  switch (gradient.type) {
    case kAbsent: return update_with<absent>(row, 0, c, chunk);
    case kFloat: return update_with<float>(row, gradient.address, c, chunk);
    case kBfloat16: return update_with<bfloat16>(row, gradient.address, c, chunk);
    case kFloat16: return update_with<float16>(row, gradient.address, c, chunk);
  }
}

// Counts the step and forms in double what torch.optim.AdamW forms in Python.
Coefficients coefficients(const Row& row, const Gradient& gradient, const Hyperparameters& h, double scale) {
  Coefficients c{};
  c.weight = static_cast<float>(1.0 - h.momentum);
  if (gradient.type == kAbsent) return c;
  const double step = *reinterpret_cast<float*>(row.step) += 1.0f;
  c.decay = static_cast<float>(1.0 - h.lr * h.weight_decay);
  c.weight1 = static_cast<float>(1.0 - h.beta1);
  c.beta2 = static_cast<float>(h.beta2);
  c.weight2 = static_cast<float>(1.0 - h.beta2);
  c.correction2 = static_cast<float>(std::sqrt(1.0 - std::pow(h.beta2, step)));
  c.eps = static_cast<float>(h.eps);
  c.step_size = static_cast<float>(-(h.lr / (1.0 - std::pow(h.beta1, step))));
  c.scale = static_cast<float>(scale);
  return c;
}

// chunks: int64 [rows, 3]. tensors: int64 [tensors, 11]. gradients: int64 [tensors, 2]. hyperparameters: double
// [groups, 6]. scale: what every gradient is multiplied by.
void adamw_ema_step(tvm::ffi::TensorView chunks, tvm::ffi::TensorView tensors, tvm::ffi::TensorView gradients,
                    tvm::ffi::TensorView hyperparameters, double scale, int64_t threads) {
  const Chunk* chunk = static_cast<const Chunk*>(chunks.data_ptr());
  const Row* row = static_cast<const Row*>(tensors.data_ptr());
  const Gradient* gradient = static_cast<const Gradient*>(gradients.data_ptr());
  const Hyperparameters* group = static_cast<const Hyperparameters*>(hyperparameters.data_ptr());
  std::vector<Coefficients> c(tensors.size(0));
  for (size_t i = 0; i < c.size(); ++i) c[i] = coefficients(row[i], gradient[i], group[row[i].group], scale);
  const int64_t rows = chunks.size(0);
  int64_t work = 0;
  for (int64_t i = 0; i < rows && work <= kParallelFrom; ++i) work += chunk[i].count;
#pragma omp parallel for schedule(dynamic) num_threads(static_cast<int>(threads)) if (work > kParallelFrom)
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t t = chunk[i].tensor;
    run_chunk(row[t], gradient[t], c[t], chunk[i]);
  }
}

template <typename Grad>
JEPA_FAST_INLINE double square_sum(const Grad* gradient, int64_t count) {
  constexpr int64_t kBlock = 1 << 12;  // values summed in float, so that their rounding stays far below the norm's
  double total = 0.0;
  for (int64_t start = 0; start < count; start += kBlock) {
    const int64_t end = std::min(start + kBlock, count);
    f32x16 sum = {}, other = {};  // two chains of additions
    int64_t i = start;
    for (; i + 2 * kLanes <= end; i += 2 * kLanes) {
      const f32x16 a = load(gradient + i), b = load(gradient + i + kLanes);
      sum += a * a;
      other += b * b;
    }
    for (; i < end; i += kLanes) {
      const f32x16 a = load(gradient + i, std::min(kLanes, end - i));
      sum += a * a;
    }
    total += lane_sum(sum + other);
  }
  return total;
}

JEPA_FAST_CLONES_256 double chunk_square_sum(const Gradient& gradient, const Chunk& chunk) {
  switch (gradient.type) {
    case kFloat: return square_sum(reinterpret_cast<const float*>(gradient.address) + chunk.start, chunk.count);
    case kBfloat16: return square_sum(reinterpret_cast<const bfloat16*>(gradient.address) + chunk.start, chunk.count);
    case kFloat16: return square_sum(reinterpret_cast<const float16*>(gradient.address) + chunk.start, chunk.count);
  }
  return 0.0;
}

// The sum of the gradients' squares, chunk by chunk in the table's order whatever the threads.
double adamw_ema_square_sum(tvm::ffi::TensorView chunks, tvm::ffi::TensorView gradients, int64_t threads) {
  const Chunk* chunk = static_cast<const Chunk*>(chunks.data_ptr());
  const Gradient* gradient = static_cast<const Gradient*>(gradients.data_ptr());
  const int64_t rows = chunks.size(0);
  std::vector<double> sums(rows);
#pragma omp parallel for schedule(dynamic) num_threads(static_cast<int>(threads)) if (rows > 1)
  for (int64_t i = 0; i < rows; ++i) sums[i] = chunk_square_sum(gradient[chunk[i].tensor], chunk[i]);
  double total = 0.0;
  for (double sum : sums) total += sum;
  return total;
}

}  // namespace

TVM_FFI_DLL_EXPORT_TYPED_FUNC(adamw_ema_step, adamw_ema_step);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(adamw_ema_square_sum, adamw_ema_square_sum);
