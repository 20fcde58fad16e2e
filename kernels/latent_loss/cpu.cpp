// Latent prediction loss on the CPU: the selected target rows are normalised in registers and cache, never stored.
// The maths is in README.md.

#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/error.h>
#include <tvm/ffi/function.h>
#include <tvm/ffi/optional.h>

#include <cmath>
#include <vector>

#include "types.h"

namespace {

using namespace jepa_fast;
using tvm::ffi::Optional;
using tvm::ffi::TensorView;

// l(x) = quadratic x^2 where |x| < beta, else |x| - offset: smooth-L1; L1 for beta = 0; MSE for beta = infinity.
struct Penalty {
  float beta, quadratic, offset;
};

// The three-dimensional operands, with element strides; the feature dimension is contiguous.
struct Operands {
  const void* prediction;
  int64_t prediction_strides[2];
  const void* target;
  int64_t target_strides[2];
  const int64_t* index;  // [index_groups, tokens], contiguous; null: token k itself
  int64_t index_groups;
  int64_t rows, tokens, features, samples;
  bool normalize;
  float eps;
  Penalty penalty;
};

struct RowStatistics {
  float mean, rstd;
};

template <typename Target>
JEPA_FAST_INLINE RowStatistics row_statistics(const Target* row, int64_t features, float eps) {
  // Four accumulators hide the latency of the additions.
  vf32 sum[4] = {};
  int64_t i = 0;
  for (; i + 4 * kLanes <= features; i += 4 * kLanes)
    for (int j = 0; j < 4; ++j) sum[j] += load(row + i + j * kLanes);
  for (; i < features; i += kLanes) sum[0] += load(row + i, std::min(kLanes, features - i));
  const float mean = lane_sum((sum[0] + sum[1]) + (sum[2] + sum[3])) / static_cast<float>(features);

  vf32 square[4] = {};
  for (i = 0; i + 4 * kLanes <= features; i += 4 * kLanes)
    for (int j = 0; j < 4; ++j) {
      const vf32 centred = load(row + i + j * kLanes) - mean;
      square[j] += centred * centred;
    }
  for (; i < features; i += kLanes) {
    const int64_t count = std::min(kLanes, features - i);
    const vf32 centred = load(row + i, count) - mean;
    square[0] += select(kLaneNumbers < static_cast<int32_t>(count), centred * centred, vf32{});
  }
  const float variance = lane_sum((square[0] + square[1]) + (square[2] + square[3])) / static_cast<float>(features);
  return {mean, 1.0f / std::sqrt(variance + eps)};
}

JEPA_FAST_INLINE vf32 penalty_of(vf32 difference, const Penalty& p) {
  const vf32 size = absolute(difference);
  return select(size < p.beta, size * size * p.quadratic, size - p.offset);
}

// Lanes that are not a number take the quadratic branch and stay so.
JEPA_FAST_INLINE vf32 penalty_slope(vf32 difference, const Penalty& p) {
  const vf32 sign = select(difference > 0.0f, broadcast(1.0f), select(difference < 0.0f, broadcast(-1.0f), vf32{}));
  return select(absolute(difference) > p.beta, sign, difference * (2.0f * p.quadratic));
}

template <typename Target>
JEPA_FAST_INLINE const Target* target_row(const Operands& o, int64_t row) {
  const int64_t group = row / o.tokens, token = row % o.tokens;
  const int64_t source = o.index ? o.index[group % o.index_groups * o.tokens + token] : token;
  return static_cast<const Target*>(o.target) + group % o.samples * o.target_strides[0] +
         source * o.target_strides[1];
}

// The summed penalty of one row; with kGradient also its slope, times scale, in gradient[0 .. features).
template <bool kGradient, typename Prediction, typename Target>
JEPA_FAST_INLINE float row_loss(const Operands& o, int64_t row, float scale, void* gradient) {
  const Prediction* prediction = static_cast<const Prediction*>(o.prediction) +
                                 row / o.tokens * o.prediction_strides[0] + row % o.tokens * o.prediction_strides[1];
  const Target* target = target_row<Target>(o, row);
  // The index jumps about, so the next row is out of the hardware prefetcher's reach.
  if (row + 1 < o.rows) {
    const char* next = reinterpret_cast<const char*>(target_row<Target>(o, row + 1));
    for (int64_t i = 0; i < o.features * int64_t{sizeof(Target)}; i += kCacheLine) __builtin_prefetch(next + i);
  }
  const RowStatistics t = o.normalize ? row_statistics(target, o.features, o.eps) : RowStatistics{0.0f, 1.0f};
  Prediction* out = static_cast<Prediction*>(gradient) + row * o.features;

  vf32 sum[2] = {};
  int64_t i = 0;
  for (; i + 2 * kLanes <= o.features; i += 2 * kLanes)
    for (int64_t j = i; j < i + 2 * kLanes; j += kLanes) {
      const vf32 difference = load(prediction + j) - (load(target + j) - t.mean) * t.rstd;
      sum[(j - i) / kLanes] += penalty_of(difference, o.penalty);
      if constexpr (kGradient) store(out + j, penalty_slope(difference, o.penalty) * scale);
    }
  for (; i < o.features; i += kLanes) {
    const int64_t count = std::min(kLanes, o.features - i);
    const vf32 difference = load(prediction + i, count) - (load(target + i, count) - t.mean) * t.rstd;
    sum[0] += select(kLaneNumbers < static_cast<int32_t>(count), penalty_of(difference, o.penalty), vf32{});
    if constexpr (kGradient) store(out + i, penalty_slope(difference, o.penalty) * scale, count);
  }
  return lane_sum(sum[0] + sum[1]);
}

template <typename Prediction, typename Target>
JEPA_FAST_INLINE float row_loss(const Operands& o, int64_t row, float scale, void* gradient) {
  return gradient ? row_loss<true, Prediction, Target>(o, row, scale, gradient)
                  : row_loss<false, Prediction, Target>(o, row, scale, gradient);
}

// Storage types are numbered float 0, bfloat16 1, float16 2 and combined as 3 * prediction + target.
JEPA_FAST_KERNEL float row_loss_of(int64_t types, const Operands& o, int64_t row, float scale, void* gradient) {
  switch (types) {
    case 0: return row_loss<float, float>(o, row, scale, gradient);
    case 1: return row_loss<float, bfloat16>(o, row, scale, gradient);
    case 2: return row_loss<float, float16>(o, row, scale, gradient);
    case 3: return row_loss<bfloat16, float>(o, row, scale, gradient);
    case 4: return row_loss<bfloat16, bfloat16>(o, row, scale, gradient);
    case 5: return row_loss<bfloat16, float16>(o, row, scale, gradient);
    case 6: return row_loss<float16, float>(o, row, scale, gradient);
    case 7: return row_loss<float16, bfloat16>(o, row, scale, gradient);
    default: return row_loss<float16, float16>(o, row, scale, gradient);
  }
}

// loss: float32 [], receives the mean penalty. gradient: null, or contiguous and of prediction's type, receives
// upstream * d loss / d prediction. api.py has checked dtypes, shapes and layouts; index values are checked here.
// Returns -1, or the flat position of the first value of index outside target, and then has written nothing.
int64_t latent_loss(TensorView prediction, TensorView target, Optional<TensorView> index, TensorView loss,
                    Optional<TensorView> gradient, double upstream, bool normalize, double eps, double beta,
                    double quadratic, double offset, int64_t threads) {
  const Operands o = {prediction.data_ptr(),
                      {prediction.stride(0), prediction.stride(1)},
                      target.data_ptr(),
                      {target.stride(0), target.stride(1)},
                      index.has_value() ? static_cast<const int64_t*>(index.value().data_ptr()) : nullptr,
                      index.has_value() ? index.value().size(0) : 1,
                      prediction.size(0) * prediction.size(1),
                      prediction.size(1),
                      prediction.size(2),
                      target.size(0),
                      normalize,
                      static_cast<float>(eps),
                      {static_cast<float>(beta), static_cast<float>(quadratic), static_cast<float>(offset)}};
  for (int64_t i = 0; o.index && i < o.index_groups * o.tokens; ++i)
    if (o.index[i] < 0 || o.index[i] >= target.size(1)) return i;
  const int64_t types = 3 * type_number(prediction) + type_number(target);
  const double count = static_cast<double>(o.rows * o.features);
  const float scale = static_cast<float>(upstream / count);
  void* out = gradient.has_value() ? gradient.value().data_ptr() : nullptr;
  std::vector<float> sums(o.rows);
#pragma omp parallel for schedule(static) num_threads(static_cast<int>(threads)) if (count > kParallelFrom)
  for (int64_t row = 0; row < o.rows; ++row) sums[row] = row_loss_of(types, o, row, scale, out);
  // Row by row and in double: the same value whatever the number of threads.
  double total = 0.0;
  for (const float sum : sums) total += sum;
  *static_cast<float*>(loss.data_ptr()) = static_cast<float>(total / count);
  return -1;
}

}  // namespace

TVM_FFI_DLL_EXPORT_TYPED_FUNC(latent_loss, latent_loss);
