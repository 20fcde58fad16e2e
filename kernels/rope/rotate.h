// One token's head, rotated. The maths is in README.md.
#pragma once

#include "simd.h"

namespace jepa_fast {

JEPA_FAST_INLINE vf32 swap_neighbours(vf32 value) {
  return __builtin_shuffle(value, kLaneNumbers ^ 1);
}

// -sin[2i] on the even, sin[2i + 1] on the odd channels.
JEPA_FAST_INLINE vf32 with_signs(vf32 sine) {
  return as_float(as_bits(sine) ^ reinterpret_cast<vu32>((kLaneNumbers ^ 1) << 31));
}

// A vector of channels by the rule of tables.py, or by its transpose.
JEPA_FAST_INLINE vf32 rotated(vf32 x, vf32 cosine, vf32 sine, bool transposed) {
  const vf32 s = with_signs(sine);
  return x * cosine + (transposed ? swap_neighbours(x * s) : swap_neighbours(x) * s);
}

}  // namespace jepa_fast
