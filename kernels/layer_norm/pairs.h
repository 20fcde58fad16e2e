// Rows that are all of one 16-bit type, two neighbours to a 32-bit lane.
//
// Widening a vector of values to floats in their order costs shuffles, and narrowing them more. The even and the
// odd values of two vectors need none: they are the low and the high halves of the lanes. So these loops work on vectors of even
// and of odd values, and what meets them (weight, bias, sums) is held in that order, kPair values at a time.
#pragma once

#include <cmath>
#include <initializer_list>

#include "rows.h"

namespace {

constexpr int64_t kPair = 2 * kLanes;

struct Pair {
  vf32 even, odd;
};

JEPA_FAST_INLINE Pair operator+(Pair a, Pair b) { return {a.even + b.even, a.odd + b.odd}; }
JEPA_FAST_INLINE Pair operator*(Pair a, Pair b) { return {a.even * b.even, a.odd * b.odd}; }
JEPA_FAST_INLINE Pair operator-(Pair a, float b) { return {a.even - b, a.odd - b}; }
JEPA_FAST_INLINE Pair operator*(Pair a, float b) { return {a.even * b, a.odd * b}; }

JEPA_FAST_INLINE Pair split(vu32 bits, bfloat16) { return {as_float(bits << 16), as_float(bits & 0xffff0000u)}; }
JEPA_FAST_INLINE Pair split(vu32 bits, float16) {
  return {widen_lanes(bits & 0xffffu, float16{}), widen_lanes(bits >> 16, float16{})};
}

JEPA_FAST_INLINE vu32 join(Pair x, bfloat16) {
  return (rounded_to_bfloat16(x.even) >> 16) | (rounded_to_bfloat16(x.odd) & 0xffff0000u);
}
// bfloat16 where cpu_has_bfloat16(): 2.3 in the place of 2.6 ms of [8192, 384] (Zen 4, one thread).
struct RoundedByCPU : bfloat16 {};
JEPA_FAST_INLINE vu32 join(Pair x, RoundedByCPU) { return rounded_in_pairs(x.even, x.odd); }
JEPA_FAST_INLINE vu32 join(Pair x, float16) {
  return narrow_lanes(x.even, float16{}) | (narrow_lanes(x.odd, float16{}) << 16);
}

template <typename T>
JEPA_FAST_INLINE Pair load_pair(const T* source) {
  vu32 bits;
  std::memcpy(&bits, source, sizeof(bits));
  return split(bits, T{});
}

JEPA_FAST_INLINE Pair load_pair(const float* source) { return {load(source), load(source + kLanes)}; }

JEPA_FAST_INLINE void store_pair(float* target, Pair x) {
  store(target, x.even);
  store(target + kLanes, x.odd);
}

// Returns the values as they are read back.
template <typename T>
JEPA_FAST_INLINE Pair store_pair(T* target, Pair x) {
  const vu32 bits = join(x, T{});
  std::memcpy(target, &bits, sizeof(bits));
  return split(bits, T{});
}

JEPA_FAST_INLINE float total(Pair a, Pair b) { return lane_sum((a.even + a.odd) + (b.even + b.odd)); }

// Adds body(d, accumulator) over a row with two accumulators, as one would wait for itself.
template <typename Body>
JEPA_FAST_INLINE float sum_of_pairs(int64_t features, const Body& body) {
  Pair sums[2] = {};
  int64_t d = 0;
  for (; d + 2 * kPair <= features; d += 2 * kPair) {
    body(d, sums[0]);
    body(d + kPair, sums[1]);
  }
  if (d < features) body(d, sums[0]);
  return total(sums[0], sums[1]);
}

template <typename T>
JEPA_FAST_INLINE void forward_pairs_of(const Forward& f, int64_t first, int64_t last, const float* weight,
                                       const float* bias) {
  const int64_t features = f.features;
  for (int64_t i = first; i < last; ++i) {
    const T* values = row_of<const T>(f.residual, i);
    float sum;
    if (f.update.data) {
      const T *residual = values, *update = row_of<const T>(f.update, i);
      T* out = row_of<T>(f.new_residual, i);
      sum = sum_of_pairs(features, [&](int64_t d, Pair& part) __attribute__((always_inline)) {
        part = part + store_pair(out + d, load_pair(residual + d) + load_pair(update + d));
      });
      values = out;
    } else {
      sum = sum_of_pairs(features, [&](int64_t d, Pair& part) __attribute__((always_inline)) {
        part = part + load_pair(values + d);
      });
    }
    const float mean = sum / static_cast<float>(features);
    const float squares = sum_of_pairs(features, [&](int64_t d, Pair& part) __attribute__((always_inline)) {
      const Pair centred = load_pair(values + d) - mean;
      part = part + centred * centred;
    });
    const float rstd = 1.0f / std::sqrt(squares / static_cast<float>(features) + f.eps);
    f.mean[i] = mean;
    f.rstd[i] = rstd;
    T* out = row_of<T>(f.normalized, i);
    for (int64_t d = 0; d < features; d += kPair)
      store_pair(out + d, (load_pair(values + d) - mean) * rstd * load_pair(weight + d) + load_pair(bias + d));
  }
}

// z and the weighted gradient are computed twice: storing them for the second loop takes longer.
template <typename T>
JEPA_FAST_INLINE void backward_pairs_of(const Backward& b, int64_t first, int64_t last, const float* weight,
                                        float* sums) {
  const int64_t features = b.features;
  for (int64_t i = first; i < last; ++i) {
    const T *x = row_of<const T>(b.residual, i), *gradient = row_of<const T>(b.grad_normalized, i);
    const T* stream = b.grad_new_residual.data ? row_of<const T>(b.grad_new_residual, i) : nullptr;
    T* out = row_of<T>(b.grad_residual, i);
    const float mean = b.mean[i], rstd = b.rstd[i];
    float *weight_sums = sums, *bias_sums = sums + features;
    Pair products = {}, weighted_sum = {};
    for (int64_t d = 0; d < features; d += kPair) {
      const Pair z = (load_pair(x + d) - mean) * rstd, g = load_pair(gradient + d);
      const Pair weighted = g * load_pair(weight + d);
      store_pair(weight_sums + d, load_pair(weight_sums + d) + g * z);
      store_pair(bias_sums + d, load_pair(bias_sums + d) + g);
      products = products + weighted * z;
      weighted_sum = weighted_sum + weighted;
    }
    const float count = static_cast<float>(features);
    const float product = lane_sum(products.even + products.odd) / count;
    const float own = lane_sum(weighted_sum.even + weighted_sum.odd) / count;
    for (int64_t d = 0; d < features; d += kPair) {
      const Pair z = (load_pair(x + d) - mean) * rstd;
      const Pair weighted = load_pair(gradient + d) * load_pair(weight + d);
      Pair g = (weighted - own + z * -product) * rstd;
      if (stream) g = g + load_pair(stream + d);
      store_pair(out + d, g);
    }
  }
}

// Whether these rows, those of them that are there, are what the loops below take.
inline bool in_pairs(int64_t features, std::initializer_list<Rows> tensors) {
  int64_t types = 0;
  for (const Rows& x : tensors)
    if (x.data) types |= int64_t{1} << x.type;
  return features % kPair == 0 && (types == 2 || types == 4);
}

inline void to_pairs(const float* source, float* target, int64_t features) {
  for (int64_t d = 0; d < features; ++d) target[d / kPair * kPair + d % 2 * kLanes + d % kPair / 2] = source[d];
}

inline void from_pairs(const float* source, float* target, int64_t features) {
  for (int64_t d = 0; d < features; ++d) target[d] = source[d / kPair * kPair + d % 2 * kLanes + d % kPair / 2];
}

// Rows [first, last). weight, bias: in pair order, as are the sums [2][D] below, those for weight and for bias.
JEPA_FAST_KERNEL void forward_pairs(const Forward& f, int64_t first, int64_t last, const float* weight,
                                    const float* bias) {
  if (f.residual.type == 1 && cpu_has_bfloat16())
    return forward_pairs_of<RoundedByCPU>(f, first, last, weight, bias);
  if (f.residual.type == 1) return forward_pairs_of<bfloat16>(f, first, last, weight, bias);
  forward_pairs_of<float16>(f, first, last, weight, bias);
}

JEPA_FAST_KERNEL void backward_pairs(const Backward& b, int64_t first, int64_t last, const float* weight, float* sums) {
  if (b.residual.type == 1 && cpu_has_bfloat16())
    return backward_pairs_of<RoundedByCPU>(b, first, last, weight, sums);
  if (b.residual.type == 1) return backward_pairs_of<bfloat16>(b, first, last, weight, sums);
  backward_pairs_of<float16>(b, first, last, weight, sums);
}

}  // namespace
