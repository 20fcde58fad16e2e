// Residual add and LayerNorm on the CPU: each row is read once, held in L1 cache in float32, and written once.
// The maths is in README.md.

#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/error.h>
#include <tvm/ffi/function.h>
#include <tvm/ffi/optional.h>

#include <cmath>

#include "pairs.h"

namespace {

using namespace jepa_fast;
using tvm::ffi::Optional;
using tvm::ffi::TensorView;

constexpr int64_t kRowsOfCall = 32;  // of forward_pairs: enough that the choice in it costs nothing
// Parts of the rows whose sums are formed apart: they depend on the shape alone, not on the number of threads.
constexpr int64_t kMostParts = 256, kFewestRows = 32;

// What a thread works with: two rows, and in the backward the sums [2..4][stride] of its part of the rows. stride: the
// features, up to whole vectors.
struct Work {
  float *values, *z, *sums;
  int64_t stride;
};

// A step of a row's work is a function of its own: all steps in one, for all types of tensors, made eight megabytes of
// code. What passes between them stays in L1 cache. Rows are taken one by one: in
// groups of four their sums overlap better, but the memory's streams pause, and the whole took 1.7 times as long.
// Pointers are copied to locals first: for all the compiler knows a store could change the ones in a structure.

// ---- forward --------------------------------------------------------------------------------------------------

// The branch with its factors to `values`.
JEPA_FAST_KERNEL void scale_update(const Forward& f, int64_t i, float* values) {
  const float *bias = f.factors.bias, *scale = f.factors.scale, drop = f.factors.drop[i / f.update.tokens];
  with_type(f.update.type, [&](auto type) __attribute__((always_inline)) {
    const auto* update = row_of<const decltype(type)>(f.update, i);
    each_vector(f.features, [&](int64_t d, int64_t count) __attribute__((always_inline)) {
      store(values + d, (load(update + d, count) + load(bias + d, count)) * (load(scale + d, count) * drop));
    });
  });
}

// The new residual, as it is stored, to `values`, from what `added(d, count)` gives. Returns its sum; lanes past the end
// are zero.
template <typename Residual, typename Added>
JEPA_FAST_INLINE float add_row(const Forward& f, int64_t i, float* values, const Added& added) {
  const Residual* residual = row_of<const Residual>(f.residual, i);
  Residual* out = row_of<Residual>(f.new_residual, i);
  vf32 sums[4] = {};
  each_vector_of_sum(f.features, [&](int64_t d, int64_t count, int64_t k) __attribute__((always_inline)) {
    const vf32 value = store_rounded(out + d, load(residual + d, count) + added(d, count), count);
    store(values + d, value);
    sums[k] += value;
  });
  return total(sums);
}

JEPA_FAST_KERNEL float add_update(const Forward& f, int64_t i, float* values) {
  float sum = 0.0f;
  with_type(f.residual.type, [&](auto residual) __attribute__((always_inline)) {
    with_type(f.update.type, [&](auto type) __attribute__((always_inline)) {
      const auto* update = row_of<const decltype(type)>(f.update, i);
      sum = add_row<decltype(residual)>(f, i, values, [&](int64_t d, int64_t count) __attribute__((always_inline)) {
        return load(update + d, count);
      });
    });
  });
  return sum;
}

JEPA_FAST_KERNEL float add_values(const Forward& f, int64_t i, float* values) {
  float sum = 0.0f;
  with_type(f.residual.type, [&](auto residual) __attribute__((always_inline)) {
    sum = add_row<decltype(residual)>(f, i, values, [&](int64_t d, int64_t) __attribute__((always_inline)) {
      return load(values + d);
    });
  });
  return sum;
}

// The row as it is to `values`; returns its sum.
JEPA_FAST_KERNEL float read_row(const Forward& f, int64_t i, float* values) {
  vf32 sums[4] = {};
  with_type(f.residual.type, [&](auto type) __attribute__((always_inline)) {
    const auto* residual = row_of<const decltype(type)>(f.residual, i);
    each_vector_of_sum(f.features, [&](int64_t d, int64_t count, int64_t k) __attribute__((always_inline)) {
      const vf32 value = load(residual + d, count);
      store(values + d, value);
      sums[k] += value;
    });
  });
  return total(sums);
}

JEPA_FAST_KERNEL void normalize(const Forward& f, int64_t i, const float* values, float sum) {
  const float mean = sum / static_cast<float>(f.features);
  vf32 squares[4] = {};
  each_vector_of_sum(f.features, [&](int64_t d, int64_t count, int64_t k) __attribute__((always_inline)) {
    const vf32 centred = first_lanes(load(values + d) - mean, count);
    squares[k] += centred * centred;
  });
  const float rstd = 1.0f / std::sqrt(total(squares) / static_cast<float>(f.features) + f.eps);
  f.mean[i] = mean;
  f.rstd[i] = rstd;
  const float *weight = f.weight, *bias = f.bias;
  with_type(f.normalized.type, [&](auto type) __attribute__((always_inline)) {
    auto* out = row_of<decltype(type)>(f.normalized, i);
    each_vector(f.features, [&](int64_t d, int64_t count) __attribute__((always_inline)) {
      store(out + d, (load(values + d) - mean) * rstd * load(weight + d, count) + load(bias + d, count), count);
    });
  });
}

void forward_row(const Forward& f, int64_t i, float* values) {
  float sum;
  if (f.factors.scale) {
    scale_update(f, i, values);
    sum = add_values(f, i, values);
  } else {
    sum = f.update.data ? add_update(f, i, values) : read_row(f, i, values);
  }
  normalize(f, i, values, sum);
}

// ---- backward -------------------------------------------------------------------------------------------------

// Of a row of weight * gradient: the mean of its product with z, and its own.
struct Means {
  float product, gradient;
};

// z and weight * gradient to `work`; the gradients of weight and bias to its sums.
JEPA_FAST_KERNEL Means weigh(const Backward& b, int64_t i, const Work& work) {
  const float mean = b.mean[i], rstd = b.rstd[i], *weight = b.weight;
  float *values = work.values, *zs = work.z, *weight_sums = work.sums, *bias_sums = work.sums + work.stride;
  vf32 products[4] = {}, gradients[4] = {};
  with_type(b.residual.type, [&](auto residual) __attribute__((always_inline)) {
    with_type(b.grad_normalized.type, [&](auto type) __attribute__((always_inline)) {
      const auto* x = row_of<const decltype(residual)>(b.residual, i);
      const auto* gradient = row_of<const decltype(type)>(b.grad_normalized, i);
      each_vector_of_sum(b.features, [&](int64_t d, int64_t count, int64_t k) __attribute__((always_inline)) {
        const vf32 z = (load(x + d, count) - mean) * rstd, g = load(gradient + d, count);
        const vf32 weighted = g * load(weight + d, count);
        store(weight_sums + d, load(weight_sums + d) + g * z);
        store(bias_sums + d, load(bias_sums + d) + g);
        products[k] += weighted * z;
        gradients[k] += weighted;
        store(zs + d, z);
        store(values + d, weighted);
      });
    });
  });
  const float features = static_cast<float>(b.features);
  return {total(products) / features, total(gradients) / features};
}

// The gradient of the residual to its place and, if kKeep, in float32 to work.values.
template <bool kKeep, typename Residual, typename Stream>
JEPA_FAST_INLINE void residual_row(const Backward& b, int64_t i, const Work& work, Means means, const Stream& stream) {
  Residual* out = row_of<Residual>(b.grad_residual, i);
  float *values = work.values, *z = work.z;
  const float rstd = b.rstd[i];
  each_vector(b.features, [&](int64_t d, int64_t count) __attribute__((always_inline)) {
    const vf32 own = (load(values + d) - means.gradient - load(z + d) * means.product) * rstd;
    const vf32 g = stream(own, d, count);
    store(out + d, g, count);
    if constexpr (kKeep) store(values + d, g);
  });
}

template <bool kKeep>
JEPA_FAST_INLINE void residual_gradient_any(const Backward& b, int64_t i, const Work& work, Means means) {
  with_type(b.residual.type, [&](auto type) __attribute__((always_inline)) {
    using Residual = decltype(type);
    if (b.grad_new_residual.data) {
      const Residual* stream = row_of<const Residual>(b.grad_new_residual, i);
      residual_row<kKeep, Residual>(
          b, i, work, means, [&](vf32 own, int64_t d, int64_t count) __attribute__((always_inline)) {
            return own + load(stream + d, count);
          });
    } else {
      residual_row<kKeep, Residual>(b, i, work, means, [](vf32 own, int64_t, int64_t) __attribute__((
                                                           always_inline)) { return own; });
    }
  });
}

JEPA_FAST_KERNEL void residual_gradient(const Backward& b, int64_t i, const Work& work, Means means) {
  residual_gradient_any<false>(b, i, work, means);
}

JEPA_FAST_KERNEL void residual_gradient_kept(const Backward& b, int64_t i, const Work& work, Means means) {
  residual_gradient_any<true>(b, i, work, means);
}

// The gradient of the update from that of the residual.
JEPA_FAST_KERNEL void update_gradient(const Backward& b, int64_t i, const float* values) {
  with_type(b.grad_update.type, [&](auto type) __attribute__((always_inline)) {
    auto* out = row_of<decltype(type)>(b.grad_update, i);
    if (b.factors.scale) {
      const float drop = b.factors.drop[i / b.residual.tokens], *scale = b.factors.scale;
      each_vector(b.features, [&](int64_t d, int64_t count) __attribute__((always_inline)) {
        store(out + d, load(values + d) * (load(scale + d, count) * drop), count);
      });
    } else {
      each_vector(b.features, [&](int64_t d, int64_t count) __attribute__((always_inline)) {
        store(out + d, load(values + d), count);
      });
    }
  });
}

// The sums for the gradients of the branch's bias and of layer_scale.
JEPA_FAST_KERNEL void branch_sums(const Backward& b, int64_t i, const Work& work) {
  float *sums = work.sums + 2 * work.stride, *values = work.values;
  const float *scale = b.factors.scale, *bias = b.factors.bias, drop = b.factors.drop[i / b.residual.tokens];
  if (b.sums_bias) {
    each_vector(b.features, [&](int64_t d, int64_t count) __attribute__((always_inline)) {
      store(sums + d, load(sums + d) + load(values + d) * (load(scale + d, count) * drop));
    });
    sums += work.stride;
  }
  if (!b.update.data) return;
  with_type(b.update.type, [&](auto type) __attribute__((always_inline)) {
    const auto* update = row_of<const decltype(type)>(b.update, i);
    each_vector(b.features, [&](int64_t d, int64_t count) __attribute__((always_inline)) {
      const vf32 biased = load(update + d, count) + load(bias + d, count);
      store(sums + d, load(sums + d) + load(values + d) * (biased * drop));
    });
  });
}

void backward_row(const Backward& b, int64_t i, const Work& work) {
  const Means means = weigh(b, i, work);
  if (!b.grad_update.data && !b.factors.scale) return residual_gradient(b, i, work, means);
  residual_gradient_kept(b, i, work, means);
  if (b.grad_update.data) update_gradient(b, i, work.values);
  if (b.factors.scale) branch_sums(b, i, work);
}

// out[d] = the sum over parts, in their order.
JEPA_FAST_KERNEL void add_parts(const float* parts, int64_t count, int64_t stride, float* out, int64_t features) {
  each_vector(features, [&](int64_t d, int64_t lanes) __attribute__((always_inline)) {
    vf32 sum = {};
    for (int64_t part = 0; part < count; ++part) sum += load(parts + part * stride + d);
    store(out + d, sum, lanes);
  });
}

// ---- rows of one 16-bit type (pairs.h) ------------------------------------------------------------------------

void forward_in_pairs(const Forward& f, int64_t threads) {
  const Floats vectors(2 * f.features);
  float *weight = vectors.data, *bias = vectors.data + f.features;
  to_pairs(f.weight, weight, f.features);
  to_pairs(f.bias, bias, f.features);
#pragma omp parallel for num_threads(static_cast<int>(threads)) schedule(static) if (f.rows * f.features > kParallelFrom)
  for (int64_t first = 0; first < f.rows; first += kRowsOfCall)
    forward_pairs(f, first, std::min(first + kRowsOfCall, f.rows), weight, bias);
}

// partial: [parts][2][D], the sums for weight and bias; out: [2][D].
void backward_in_pairs(const Backward& b, int64_t rows_of_part, int64_t parts, float* partial, float* out,
                       int64_t threads) {
  const Floats vectors(2 * b.features);
  float *weight = vectors.data, *sum = vectors.data + b.features;
  to_pairs(b.weight, weight, b.features);
#pragma omp parallel for num_threads(static_cast<int>(threads)) schedule(static) if (b.rows * b.features > kParallelFrom)
  for (int64_t part = 0; part < parts; ++part)
    backward_pairs(b, part * rows_of_part, std::min((part + 1) * rows_of_part, b.rows), weight,
                   partial + part * 2 * b.features);
  for (int64_t kind = 0; kind < 2; ++kind) {
    add_parts(partial + kind * b.features, parts, 2 * b.features, sum, b.features);
    from_pairs(sum, out + kind * b.features, b.features);
  }
}

// ---- entry points ---------------------------------------------------------------------------------------------

const float* floats(TensorView x) { return static_cast<const float*>(x.data_ptr()); }

int64_t whole_vectors(int64_t features) { return (features + kLanes - 1) / kLanes * kLanes; }

Factors factors_of(const Optional<TensorView>& bias, const Optional<TensorView>& scale,
                   const Optional<TensorView>& drop) {
  if (!scale.has_value()) return {};
  return {floats(bias.value()), floats(scale.value()), floats(drop.value())};
}

// residual, update: [B, N, D] with a contiguous last dimension, update may be absent. Vectors and statistics are
// float32 and contiguous, outputs contiguous. api.py has checked shapes and dtypes.
void layer_norm_forward(TensorView residual, Optional<TensorView> update, Optional<TensorView> update_bias,
                        Optional<TensorView> layer_scale, Optional<TensorView> drop_path, TensorView weight,
                        TensorView bias, TensorView normalized, TensorView new_residual, TensorView mean,
                        TensorView rstd, double eps, int64_t threads) {
  Forward f;
  f.residual = Rows(residual);
  f.update = Rows(update);
  f.factors = factors_of(update_bias, layer_scale, drop_path);
  f.weight = floats(weight);
  f.bias = floats(bias);
  f.normalized = Rows(normalized);
  f.new_residual = Rows(new_residual);
  f.mean = static_cast<float*>(mean.data_ptr());
  f.rstd = static_cast<float*>(rstd.data_ptr());
  f.rows = residual.size(0) * residual.size(1);
  f.features = residual.size(2);
  f.eps = static_cast<float>(eps);
  if (in_pairs(f.features, {f.residual, f.update, f.normalized}) && !f.factors.scale)
    return forward_in_pairs(f, threads);
#pragma omp parallel num_threads(static_cast<int>(threads)) if (f.rows * f.features > kParallelFrom)
  {
    const Floats values(whole_vectors(f.features));
#pragma omp for schedule(static)
    for (int64_t i = 0; i < f.rows; ++i) forward_row(f, i, values.data);
  }
}

// sums: float32 [2..4, D], receives the gradients of weight, bias, update_bias if sums_bias, and layer_scale if update
// is given. grad_update may be absent: what needs it is its sums alone, or nothing.
void layer_norm_backward(TensorView grad_normalized, Optional<TensorView> grad_new_residual, TensorView new_residual,
                         TensorView mean, TensorView rstd, TensorView weight, Optional<TensorView> update,
                         Optional<TensorView> update_bias, Optional<TensorView> layer_scale,
                         Optional<TensorView> drop_path, TensorView grad_residual, Optional<TensorView> grad_update,
                         TensorView sums, bool sums_bias, int64_t threads) {
  Backward b;
  b.grad_normalized = Rows(grad_normalized);
  b.grad_new_residual = Rows(grad_new_residual);
  b.residual = Rows(new_residual);
  b.update = Rows(update);
  b.factors = factors_of(update_bias, layer_scale, drop_path);
  b.mean = floats(mean);
  b.rstd = floats(rstd);
  b.weight = floats(weight);
  b.grad_residual = Rows(grad_residual);
  b.grad_update = Rows(grad_update);
  b.sums_bias = sums_bias;
  b.rows = new_residual.size(0) * new_residual.size(1);
  b.features = new_residual.size(2);
  const int64_t rows_of_part = std::max(kFewestRows, (b.rows + kMostParts - 1) / kMostParts);
  const int64_t parts = (b.rows + rows_of_part - 1) / rows_of_part;
  const int64_t stride = whole_vectors(b.features), kinds = sums.size(0);
  const Floats partial(parts * kinds * stride);
  if (in_pairs(b.features, {b.residual, b.grad_normalized, b.grad_new_residual}) && !b.factors.scale &&
      !b.grad_update.data)
    return backward_in_pairs(b, rows_of_part, parts, partial.data, static_cast<float*>(sums.data_ptr()), threads);
#pragma omp parallel num_threads(static_cast<int>(threads)) if (b.rows * b.features > kParallelFrom)
  {
    const Floats rows(2 * stride);
#pragma omp for schedule(static)
    for (int64_t part = 0; part < parts; ++part) {
      const Work work = {rows.data, rows.data + stride, partial.data + part * kinds * stride, stride};
      const int64_t last = std::min((part + 1) * rows_of_part, b.rows);
      for (int64_t i = part * rows_of_part; i < last; ++i) backward_row(b, i, work);
    }
  }
  for (int64_t kind = 0; kind < kinds; ++kind)
    add_parts(partial.data + kind * stride, parts, kinds * stride,
              static_cast<float*>(sums.data_ptr()) + kind * b.features, b.features);
}

}  // namespace

TVM_FFI_DLL_EXPORT_TYPED_FUNC(layer_norm_forward, layer_norm_forward);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(layer_norm_backward, layer_norm_backward);
