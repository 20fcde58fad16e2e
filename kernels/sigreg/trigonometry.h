// Sine and cosine of a vector of phases, by polynomials after a reduction in quarter turns.
//
// Absolute error below 1.2e-7, two units in the last place of 1, for |phase| up to 1e5 with fused multiply-add
// (tests/sigreg/test_trigonometry.py). The turns per unit are held in 48 bits, so that a larger phase is off by 2^-47
// of itself: there is no other path for huge values. Without fused multiply-add it is 2^-24, as in PyTorch.
#pragma once

#include "simd.h"

namespace jepa_fast {

// A factor in 48 bits. `rounded` equals `high`, but the compiler does not know: it must not contract both of
// their uses into one operation.
struct Factor {
  float rounded, high, low;
  explicit Factor(double value)
      : rounded(static_cast<float>(value)), high(rounded), low(static_cast<float>(value - rounded)) {}
};

struct Rotation {
  vf32 cosine, sine;
};

// The product of rotations: the sum of their phases.
JEPA_FAST_INLINE Rotation operator*(const Rotation& a, const Rotation& b) {
  return {a.cosine * b.cosine - a.sine * b.sine, a.sine * b.cosine + a.cosine * b.sine};
}

struct Rounded {
  vf32 value;
  vi32 integer;
};

// To the nearest integer. From 2^30 on `integer` is 0, as floats are whole turns of four quarters there.
JEPA_FAST_INLINE Rounded nearest(vf32 value) {
  const vf32 half = as_float((as_bits(value) & 0x80000000u) | 0x3f000000u);  // 0.5 with the value's sign
  const vi32 small = absolute(value) < 0x1p30f;
  const vi32 integer = __builtin_convertvector(value + half, vi32) & small;
  return {select(small, __builtin_convertvector(integer, vf32), value), integer};
}

// exp(i pi / 2 (quarters + remainder)) for |remainder| up to 1/2. The coefficients are minimax there: they add 1e-11 to
// the sine, relatively, and 6e-11 to the cosine. The sine's first one is pi / 2 in two parts: off by one rounding it
// would turn all small phases by 4e-8 of themselves, which sums over many phases do not average out.
JEPA_FAST_INLINE Rotation rotation(vf32 remainder, vi32 quarters) {
  const vu32 quadrant = reinterpret_cast<vu32>(quarters);
  const vf32 square = remainder * remainder;
  const vf32 tail =
      (((1.58292125072e-4f * square - 4.68131327138e-3f) * square + 7.96925911117e-2f) * square - 0.645964096669f) *
          square - 4.37113900e-8f;
  const vf32 sine = remainder * 1.57079637f + remainder * tail;
  const vf32 cosine =
      (((9.04228543933e-4f * square - 2.08603984157e-2f) * square + 0.253669262315f) * square - 1.23370054428f) *
          square + 1.0f;
  const vi32 odd = (quadrant & 1u) != 0u;
  const vu32 cosine_sign = ((quadrant + 1u) << 30) & 0x80000000u;
  const vu32 sine_sign = (quadrant << 30) & 0x80000000u;
  return {as_float(as_bits(select(odd, sine, cosine)) ^ cosine_sign),
          as_float(as_bits(select(odd, cosine, sine)) ^ sine_sign)};
}

// exp(i pi / 2 value * quarters) where that is at most kFewQuarters quarters in size; NaN where value is NaN.
// In the sum with 1.5 2^23 the last place is 1: adding rounds to an integer, which is then in the last bits.
constexpr float kFewQuarters = 0x1p21f;

JEPA_FAST_INLINE Rotation short_rotation(vf32 value, const Factor& quarters) {
  const vf32 shifted = value * quarters.rounded + 0x1.8p23f;
  const vf32 whole = shifted - 0x1.8p23f;
  vf32 remainder = value * quarters.high - whole;  // fused: the product is never rounded
  remainder = value * quarters.low + remainder;
  return rotation(remainder, reinterpret_cast<vi32>(shifted));
}

// The same for values of any size; NaN where value is not finite.
JEPA_FAST_INLINE Rotation rotation(vf32 value, const Factor& quarters) {
  const Rounded whole = nearest(value * quarters.rounded);
  vf32 remainder = value * quarters.high - whole.value;
  remainder = value * quarters.low + remainder;
  const Rounded more = nearest(remainder);  // 0 but for values so large that `low` counts quarters
  return rotation(remainder - more.value, whole.integer + more.integer);
}

}  // namespace jepa_fast
