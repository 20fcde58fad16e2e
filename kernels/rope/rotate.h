// One token's head, rotated. The maths is in README.md.
#pragma once

#include "simd.h"

namespace jepa_fast {

JEPA_FAST_INLINE f32x16 swap_neighbours(f32x16 value) {
  return __builtin_shuffle(value, i32x16{1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14});
}

// -sin[2i] on the even, sin[2i + 1] on the odd channels.
JEPA_FAST_INLINE f32x16 with_signs(f32x16 sine) {
  const u32x16 sign = {1u << 31, 0, 1u << 31, 0, 1u << 31, 0, 1u << 31, 0,
                       1u << 31, 0, 1u << 31, 0, 1u << 31, 0, 1u << 31, 0};
  return as_float(as_bits(sine) ^ sign);
}

// Sixteen channels by the rule of tables.py, or by its transpose.
JEPA_FAST_INLINE f32x16 rotated(f32x16 x, f32x16 cosine, f32x16 sine, bool transposed) {
  const f32x16 s = with_signs(sine);
  return x * cosine + (transposed ? swap_neighbours(x * s) : swap_neighbours(x) * s);
}

}  // namespace jepa_fast
