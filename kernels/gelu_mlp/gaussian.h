// The normal distribution of a vector of values: its density, and its share below them.
//
// exp(-x^2 / 2) = 2^k 2^r with |r| <= 1/2 and a polynomial for 2^r (relative error 2e-9). The share above |x| is that
// times t P(t) with t = 1 / (1 + 0.28 |x|), the form of Abramowitz and Stegun 7.1.26 with a longer polynomial: off by
// 6e-10 in exact arithmetic, by less than 2e-7 in float32. Both were fitted by reweighted least squares.
#pragma once

#include "simd.h"

namespace jepa_fast {

struct Gaussian {
  vf32 below, density;
};

JEPA_FAST_INLINE vf32 bell(vf32 x) {
  constexpr float kLowest = -126.0f;  // the smallest normal number's exponent
  vf32 y = x * x * -0.721347520444482f;  // log2(e) / 2
  y = select(y < kLowest, broadcast(kLowest), y);
  const vi32 k = __builtin_convertvector(y - 0.5f, vi32);  // towards zero: to the nearest, as y is not positive
  const vf32 r = y - __builtin_convertvector(k, vf32);
  vf32 power = 1.53458110e-4f * r + 1.33999309e-3f;
  power = power * r + 9.61848907e-3f;
  power = power * r + 5.55032864e-2f;
  power = power * r + 2.40226462e-1f;
  power = power * r + 6.93147182e-1f;
  power = power * r + 1.0f;
  return power * as_float(reinterpret_cast<vu32>(k + 127) << 23);
}

JEPA_FAST_INLINE Gaussian gaussian(vf32 x) {
  const vf32 t = 1.0f / (absolute(x) * 0.28f + 1.0f), e = bell(x);
  vf32 p = 3.87502573e-2f * t - 2.10899532e-1f;
  p = p * t + 3.81496996e-1f;
  p = p * t - 2.29287073e-1f;
  p = p * t + 2.29766130e-1f;
  p = p * t + 6.03775010e-2f;
  p = p * t + 1.18549101e-1f;
  p = p * t + 1.11246623e-1f;
  const vf32 above = p * t * e;
  return {select(x < 0.0f, above, 1.0f - above), e * 0.398942280401433f};
}

}  // namespace jepa_fast
