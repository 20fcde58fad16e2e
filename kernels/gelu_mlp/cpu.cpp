// GELU on the CPU, and its backward with the sum over rows, which is the gradient of the bias before it.
// The maths is in README.md.

#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/error.h>
#include <tvm/ffi/function.h>
#include <tvm/ffi/optional.h>

#include <vector>

#include "gaussian.h"
#include "types.h"

namespace {

using namespace jepa_fast;
using tvm::ffi::Optional;
using tvm::ffi::TensorView;

// Parts of the rows whose sums are formed apart: they depend on the shape alone, not on the number of threads.
constexpr int64_t kMostParts = 64, kFewestRows = 16;
constexpr int64_t kBlock = 1 << 12;  // values that a thread takes at a time

// Calls body(i, count) for every vector of `size` values.
template <typename Body>
JEPA_FAST_INLINE void each_vector(int64_t size, const Body& body) {
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) body(i, kLanes);
  if (i < size) body(i, size - i);
}

JEPA_FAST_KERNEL void forward_block(int64_t type, const void* before, void* after, int64_t first, int64_t size) {
  with_type(type, [&](auto value) __attribute__((always_inline)) {
    using T = decltype(value);
    const T* x = static_cast<const T*>(before) + first;
    T* out = static_cast<T*>(after) + first;
    each_vector(size, [&](int64_t i, int64_t count) __attribute__((always_inline)) {
      const vf32 b = load(x + i, count);
      store(out + i, b * gaussian(b).below, count);
    });
  });
}

// grad *= gelu'(before), added up in sums; with kAfter also before = gelu(before). sums: up to whole vectors.
template <bool kAfter, typename T>
JEPA_FAST_INLINE void backward_row(T* grad, T* before, float* sums, int64_t features) {
  each_vector(features, [&](int64_t i, int64_t count) __attribute__((always_inline)) {
    const vf32 x = load(before + i, count);
    const Gaussian g = gaussian(x);
    const vf32 slope = load(grad + i, count) * (g.below + x * g.density);
    store(sums + i, load(sums + i) + slope);
    store(grad + i, slope, count);
    if constexpr (kAfter) store(before + i, x * g.below, count);
  });
}

JEPA_FAST_KERNEL void backward_rows(int64_t type, void* grad, void* before, bool after, int64_t first, int64_t last,
                                    int64_t features, float* sums) {
  with_type(type, [&](auto value) __attribute__((always_inline)) {
    using T = decltype(value);
    for (int64_t row = first; row < last; ++row) {
      T *g = static_cast<T*>(grad) + row * features, *x = static_cast<T*>(before) + row * features;
      if (after) {
        backward_row<true>(g, x, sums, features);
      } else {
        backward_row<false>(g, x, sums, features);
      }
    }
  });
}

// before, after: contiguous, of one type and size; they may be the same.
void gelu_forward(TensorView before, TensorView after, int64_t threads) {
  const int64_t size = before.numel(), type = type_number(before);
#pragma omp parallel for schedule(static) num_threads(static_cast<int>(threads)) if (size > kParallelFrom)
  for (int64_t first = 0; first < size; first += kBlock)
    forward_block(type, before.data_ptr(), after.data_ptr(), first, std::min(kBlock, size - first));
}

// grad, before: [rows, D], contiguous, of one type. grad becomes the gradient of before; if `after`, before becomes
// gelu(before). sums: float32 [D], receives the sum of grad over rows.
void gelu_backward(TensorView grad, TensorView before, TensorView sums, bool after, int64_t threads) {
  const int64_t rows = before.size(0), features = before.size(1), type = type_number(before);
  const int64_t rows_of_part = std::max(kFewestRows, (rows + kMostParts - 1) / kMostParts);
  const int64_t parts = (rows + rows_of_part - 1) / rows_of_part;
  const int64_t stride = (features + kLanes - 1) / kLanes * kLanes;
  std::vector<float> partial(parts * stride);
#pragma omp parallel for schedule(static) num_threads(static_cast<int>(threads)) if (rows * features > kParallelFrom)
  for (int64_t part = 0; part < parts; ++part)
    backward_rows(type, grad.data_ptr(), before.data_ptr(), after, part * rows_of_part,
                  std::min((part + 1) * rows_of_part, rows), features, partial.data() + part * stride);
  float* out = static_cast<float*>(sums.data_ptr());
  std::fill_n(out, features, 0.0f);
  for (int64_t part = 0; part < parts; ++part)
    for (int64_t i = 0; i < features; ++i) out[i] += partial[part * stride + i];
}

}  // namespace

TVM_FFI_DLL_EXPORT_TYPED_FUNC(gelu_forward, gelu_forward);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(gelu_backward, gelu_backward);
