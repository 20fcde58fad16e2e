// Rows of tensors of any storage type, and loops over their vectors.
#pragma once

#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/optional.h>

#include <vector>

#include "types.h"

namespace {

using namespace jepa_fast;
using tvm::ffi::Optional;
using tvm::ffi::TensorView;

// [B, N, D] with a contiguous last dimension; data is null for a tensor that is not there.
struct Rows {
  void* data = nullptr;
  int64_t type = 0, tokens = 1, strides[2] = {0, 0};

  Rows() = default;
  explicit Rows(TensorView x)
      : data(x.data_ptr()), type(type_number(x)), tokens(x.size(1)), strides{x.stride(0), x.stride(1)} {}
  explicit Rows(const Optional<TensorView>& x) {
    if (x.has_value()) *this = Rows(x.value());
  }
};

// Of the branch: bias and scale [D], drop [B]; all three or none.
struct Factors {
  const float *bias = nullptr, *scale = nullptr, *drop = nullptr;
};

struct Forward {
  Rows residual, update, normalized, new_residual;
  Factors factors;
  const float *weight, *bias;
  float *mean, *rstd;
  int64_t rows, features;
  float eps;
};

struct Backward {
  Rows grad_normalized, grad_new_residual, residual, update, grad_residual, grad_update;
  Factors factors;
  const float *mean, *rstd, *weight;
  bool sums_bias;
  int64_t rows, features;
};

template <typename T>
JEPA_FAST_INLINE T* row_of(const Rows& x, int64_t i) {
  return static_cast<T*>(x.data) + i / x.tokens * x.strides[0] + i % x.tokens * x.strides[1];
}

// Calls body(d, count) for every vector of a row: its first element, and how many it has.
template <typename Body>
JEPA_FAST_INLINE void each_vector(int64_t features, const Body& body) {
  int64_t d = 0;
  for (; d + kLanes <= features; d += kLanes) body(d, kLanes);
  if (d < features) body(d, features - d);
}

// The same for what adds up: body(d, count, k) with one of four accumulators, as one would wait for itself.
template <typename Body>
JEPA_FAST_INLINE void each_vector_of_sum(int64_t features, const Body& body) {
  int64_t d = 0;
  for (; d + 4 * kLanes <= features; d += 4 * kLanes)
    for (int64_t k = 0; k < 4; ++k) body(d + k * kLanes, kLanes, k);
  for (; d + kLanes <= features; d += kLanes) body(d, kLanes, int64_t{0});
  if (d < features) body(d, features - d, int64_t{0});
}

JEPA_FAST_INLINE float total(const vf32 (&sums)[4]) { return lane_sum((sums[0] + sums[1]) + (sums[2] + sums[3])); }

JEPA_FAST_INLINE vf32 first_lanes(vf32 value, int64_t count) {
  return select(kLaneNumbers < static_cast<int32_t>(count), value, vf32{});
}

// Stores and returns the value as it is read back.
template <typename T>
JEPA_FAST_INLINE vf32 store_rounded(T* target, vf32 value, int64_t count) {
  if constexpr (std::is_same_v<T, float>) {
    store(target, value, count);
    return value;
  } else {
    const vu16 bits = narrow(value, T{});
    std::memcpy(target, &bits, count * sizeof(T));
    return widen(bits, T{});
  }
}

// Zeros on a cache line's boundary: a vector that spans two lines takes twice the time.
struct Floats {
  std::vector<float> memory;
  float* data;
  explicit Floats(int64_t count) : memory(count + kCacheLine / sizeof(float)) {
    const auto address = reinterpret_cast<uintptr_t>(memory.data());
    data = memory.data() + (kCacheLine - address % kCacheLine) % kCacheLine / sizeof(float);
  }
};

}  // namespace
