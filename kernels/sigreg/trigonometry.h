// Sine and cosine of sixteen phases, by polynomials after a reduction in turns.
//
// Measured over 4e8 phases (tests/sigreg/test_trigonometry.py repeats a part of it): absolute error below 1.2e-7, two
// units in the last place of 1, for |phase| up to 1e6 with fused multiply-add; beyond that the phase itself is off by
// 2^-47 of its size, as the turns per unit are held in 48 bits.
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
  f32x16 cosine, sine;
};

// The product of rotations: the sum of their phases.
JEPA_FAST_INLINE Rotation operator*(const Rotation& a, const Rotation& b) {
  return {a.cosine * b.cosine - a.sine * b.sine, a.sine * b.cosine + a.cosine * b.sine};
}

JEPA_FAST_INLINE f32x16 nearest_integer(f32x16 value) {
  const f32x16 half = as_float((as_bits(value) & 0x80000000u) | 0x3f000000u);  // 0.5 with the value's sign
  const f32x16 rounded = __builtin_convertvector(__builtin_convertvector(value + half, i32x16), f32x16);
  return select(absolute(value) < 0x1p30f, rounded, value);  // from 2^23 on a float has no fraction anyway
}

// value * factor less a whole number of turns, in [-1/2, 1/2]. What is not finite becomes NaN.
JEPA_FAST_INLINE f32x16 fraction_of_turns(f32x16 value, const Factor& factor) {
  const f32x16 whole = nearest_integer(value * factor.rounded);
  f32x16 fraction = value * factor.high - whole;  // fused: the product is never rounded
  fraction = value * factor.low + fraction;
  return fraction - nearest_integer(fraction);  // a second time for values so large that `low` counts turns
}

// exp(2 pi i turns) for |turns| up to 1/2. The coefficients are minimax on quarter turns of at most 1/2: they add
// 1e-11 to the sine, relatively, and 6e-11 to the cosine. The sine's first one is pi / 2 in two parts: off by one
// rounding it would turn all small phases by 4e-8 of themselves, which the sums over the rows do not average out.
JEPA_FAST_INLINE Rotation rotation(f32x16 turns) {
  const float shift = 0x1.8p23f;  // adding it leaves the nearest integer in the low bits
  const f32x16 shifted = turns * 4.0f + shift;
  const f32x16 r = turns * 4.0f - (shifted - shift);  // exact
  const u32x16 quadrant = as_bits(shifted);
  const f32x16 square = r * r;
  const f32x16 tail =
      (((1.58292125072e-4f * square - 4.68131327138e-3f) * square + 7.96925911117e-2f) * square - 0.645964096669f) *
          square - 4.37113900e-8f;
  const f32x16 sine = r * 1.57079637f + r * tail;
  const f32x16 cosine =
      (((9.04228543933e-4f * square - 2.08603984157e-2f) * square + 0.253669262315f) * square - 1.23370054428f) *
          square + 1.0f;
  const i32x16 odd = (quadrant & 1u) != 0u;
  const u32x16 cosine_sign = ((quadrant + 1u) & 2u) << 30, sine_sign = (quadrant & 2u) << 30;
  return {as_float(as_bits(select(odd, sine, cosine)) ^ cosine_sign),
          as_float(as_bits(select(odd, cosine, sine)) ^ sine_sign)};
}

}  // namespace jepa_fast
