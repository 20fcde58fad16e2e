// AdamW and the moving average on the CPU: one parallel region for the whole list. The maths is in README.md.
//
// A chunk is done in blocks that stay in the first-level cache, and a block in plain loops, which the compiler turns into
// vectors of the instruction set at hand: the first loop reads memory, the later ones (teacher, copies) the cache.

// Every product and sum is rounded by itself, as PyTorch rounds it; where PyTorch fuses them, fmaf does.
#if defined(__clang__)
#pragma clang fp contract(off)
#else
#pragma GCC optimize("fp-contract=off")
#endif

// These loops wait for memory: 256-bit accesses were measured 8 % faster than 512-bit ones on AMD.
#if defined(__AVX512F__) && !defined(JEPA_FAST_LANES)
#pragma GCC target("prefer-vector-width=256")
#define JEPA_FAST_LANES 8
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
// Values per block: five float arrays of it fill two thirds of a 32 KB cache.
constexpr int64_t kBlock = 1024;

// What one tensor's update needs of the step count and the hyper-parameters.
struct Coefficients {
  float decay, weight1, beta2, weight2, correction2, eps, step_size, weight, scale;
};

template <typename T>
JEPA_FAST_INLINE void widen_block(const T* source, float* target, int64_t count) {
  for (int64_t i = 0; i < count; i += kLanes) {
    const int64_t rest = std::min(kLanes, count - i);
    store(target + i, load(source + i, rest), rest);
  }
}

JEPA_FAST_INLINE void narrow_block(const float* __restrict source, bfloat16* __restrict target, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    uint32_t bits;
    std::memcpy(&bits, source + i, sizeof(bits));
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;  // to nearest, ties to even
    const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
    target[i].bits = static_cast<uint16_t>(is_nan ? (bits >> 16) | 0x40u : rounded);
  }
}

JEPA_FAST_INLINE void narrow_block(const float* source, float16* target, int64_t count) {
  for (int64_t i = 0; i < count; i += kLanes) {
    const int64_t rest = std::min(kLanes, count - i);
    store(target + i, load(source + i, rest), rest);
  }
}

JEPA_FAST_INLINE void write_copy(int64_t type, int64_t address, int64_t start, const float* source, int64_t count) {
  if (type == kBfloat16) narrow_block(source, reinterpret_cast<bfloat16*>(address) + start, count);
  if (type == kFloat16) narrow_block(source, reinterpret_cast<float16*>(address) + start, count);
  if (type == kFloat) std::memcpy(reinterpret_cast<float*>(address) + start, source, count * sizeof(float));
}

JEPA_FAST_INLINE void adamw_block(float* __restrict parameter, float* __restrict exp_avg, float* __restrict exp_avg_sq,
                                  const float* __restrict gradient, const Coefficients& c, int64_t count) {
  // torch.lerp forms its result from the nearer end.
  const bool near_average = c.weight1 < 0.5f;
  const float coefficient = near_average ? c.weight1 : c.weight1 - 1.0f;
  for (int64_t i = 0; i < count; ++i) {
    const float g = gradient[i] * c.scale;
    const float m = __builtin_fmaf(coefficient, g - exp_avg[i], near_average ? exp_avg[i] : g);
    const float v = __builtin_fmaf(c.weight2 * g, g, exp_avg_sq[i] * c.beta2);
    exp_avg[i] = m;
    exp_avg_sq[i] = v;
    parameter[i] = parameter[i] * c.decay + (c.step_size * m) / (__builtin_sqrtf(v) / c.correction2 + c.eps);
  }
}

JEPA_FAST_INLINE void lerp_block(float* __restrict teacher, const float* __restrict parameter, float weight,
                                 int64_t count) {
  const bool near_teacher = weight < 0.5f;
  const float coefficient = near_teacher ? weight : weight - 1.0f;
  for (int64_t i = 0; i < count; ++i) {
    const float t = teacher[i], p = parameter[i];
    teacher[i] = __builtin_fmaf(coefficient, p - t, near_teacher ? t : p);
  }
}

template <typename T>
JEPA_FAST_INLINE float* lerp_narrow_block(T* teacher, const float* parameter, float weight, float* buffer,
                                          int64_t count) {
  widen_block(teacher, buffer, count);
  lerp_block(buffer, parameter, weight, count);
  narrow_block(buffer, teacher, count);
  return buffer;
}

JEPA_FAST_KERNEL void run_chunk(const Row& row, const Gradient& gradient, const Coefficients& c,
                                    const Chunk& chunk) {
  if (row.teacher_type == kBytes) {
    std::memcpy(reinterpret_cast<char*>(row.teacher) + chunk.start,
                reinterpret_cast<const char*>(row.parameter) + chunk.start, chunk.count);
    return;
  }
  alignas(kCacheLine) float buffer[kBlock];
  const int64_t end = chunk.start + chunk.count;
  for (int64_t i = chunk.start; i < end; i += kBlock) {
    const int64_t count = std::min(kBlock, end - i);
    float* parameter = reinterpret_cast<float*>(row.parameter) + i;
    if (gradient.type != kAbsent) {
      const float* g = buffer;
      if (gradient.type == kBfloat16) {
        widen_block(reinterpret_cast<const bfloat16*>(gradient.address) + i, buffer, count);
      } else if (gradient.type == kFloat16) {
        widen_block(reinterpret_cast<const float16*>(gradient.address) + i, buffer, count);
      } else {
        g = reinterpret_cast<const float*>(gradient.address) + i;
      }
      adamw_block(parameter, reinterpret_cast<float*>(row.exp_avg) + i, reinterpret_cast<float*>(row.exp_avg_sq) + i,
                  g, c, count);
    }
    write_copy(row.copy_type, row.copy, i, parameter, count);
    if (row.teacher_type == kAbsent) continue;
    float* teacher = reinterpret_cast<float*>(row.teacher) + i;
    if (row.teacher_type == kBfloat16) {
      teacher = lerp_narrow_block(reinterpret_cast<bfloat16*>(row.teacher) + i, parameter, c.weight, buffer, count);
    } else if (row.teacher_type == kFloat16) {
      teacher = lerp_narrow_block(reinterpret_cast<float16*>(row.teacher) + i, parameter, c.weight, buffer, count);
    } else {
      lerp_block(teacher, parameter, c.weight, count);
    }
    write_copy(row.teacher_copy_type, row.teacher_copy, i, teacher, count);
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
  constexpr int64_t kSummed = 1 << 12;  // values summed in float: their rounding stays far below the norm's
  double total = 0.0;
  for (int64_t start = 0; start < count; start += kSummed) {
    const int64_t end = std::min(start + kSummed, count);
    vf32 sum = {}, other = {};  // two chains of additions
    int64_t i = start;
    for (; i + 2 * kLanes <= end; i += 2 * kLanes) {
      const vf32 a = load(gradient + i), b = load(gradient + i + kLanes);
      sum += a * a;
      other += b * b;
    }
    for (; i < end; i += kLanes) {
      const vf32 a = load(gradient + i, std::min(kLanes, end - i));
      sum += a * a;
    }
    total += lane_sum(sum + other);
  }
  return total;
}

JEPA_FAST_KERNEL double chunk_square_sum(const Gradient& gradient, const Chunk& chunk) {
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
