// Rows of tensors, widened to float32 and rotated on the way into a tile, and narrowed on the way out.
#pragma once

#include "../rope/rotate.h"
#include "product.h"

namespace {

using namespace jepa_fast;

enum Type : int64_t { kFloat32, kBFloat16, kFloat16 };

struct Rows {  // [B, N, H, D], element strides, D contiguous
  void* data;
  int64_t sample, token, head;

  int64_t offset(int64_t b, int64_t n, int64_t h) const { return b * sample + n * token + h * head; }
};

struct Table {  // of rotary positions; null where there are none
  const float *cosine, *sine;
  int64_t rows_per_sample;

  Table at(int64_t sample, int64_t token, int64_t dim) const {
    const int64_t offset = (sample * rows_per_sample + token) * dim;
    return cosine ? Table{cosine + offset, sine + offset, 0} : Table{};
  }
};

constexpr int64_t kAhead = 16;  // rows: a head's lie too far apart for the CPU to fetch them beforehand by itself

template <typename T>
JEPA_FAST_INLINE void widen_rows(const T* source, int64_t stride, int64_t rows, int64_t dim, Table rope, float factor,
                                 float* target, int64_t width) {
  for (int64_t r = 0; r < rows; ++r, source += stride, target += width) {
    int64_t i = 0;
    for (; i < dim; i += kLanes) {
      __builtin_prefetch(source + kAhead * stride + i);
      const int64_t count = std::min(kLanes, dim - i);
      vf32 x = load(source + i, count);
      if (rope.cosine) {
        const int64_t place = r * dim + i;
        x = rotated(x, load(rope.cosine + place, count), load(rope.sine + place, count), false);
      }
      store(target + i, x * factor);
    }
    for (; i < width; i += kLanes) store(target + i, vf32{});
  }
}

// target[0 .. rows)[0 .. width) = factor * rotate(source); lanes past dim read as zeros.
JEPA_FAST_KERNEL void widen(Type type, Rows from, int64_t offset, int64_t rows, int64_t dim, Table rope, float factor,
                            float* target, int64_t width) {
  switch (type) {
    case kFloat32:
      return widen_rows(static_cast<float*>(from.data) + offset, from.token, rows, dim, rope, factor, target, width);
    case kBFloat16:
      return widen_rows(static_cast<bfloat16*>(from.data) + offset, from.token, rows, dim, rope, factor, target, width);
    default:
      return widen_rows(static_cast<float16*>(from.data) + offset, from.token, rows, dim, rope, factor, target, width);
  }
}

// As `widen`, but words of neighbouring bfloat16 values, target[0 .. rows)[0 .. width / 2); width is a multiple of 32.
JEPA_FAST_KERNEL void to_words(Rows from, int64_t offset, int64_t rows, int64_t dim, Table rope, float factor,
                               float* target, int64_t width) {
  const bfloat16* source = static_cast<bfloat16*>(from.data) + offset;
  const bool as_it_is = !rope.cosine && factor == 1.0f;
  for (int64_t r = 0; r < rows; ++r, source += from.token, target += width / 2)
    for (int64_t i = 0; i < width; i += 2 * kLanes) {
      __builtin_prefetch(source + kAhead * from.token + i);
      if (as_it_is && i + 2 * kLanes <= dim) {
        std::memcpy(target + i / 2, source + i, 2 * kLanes * sizeof(bfloat16));
        continue;
      }
      const auto value = [&](int64_t place) __attribute__((always_inline)) {
        const int64_t count = std::min(kLanes, dim - place);
        if (count <= 0) return vf32{};
        vf32 x = load(source + place, count);
        if (rope.cosine)
          x = rotated(x, load(rope.cosine + r * dim + place, count), load(rope.sine + r * dim + place, count), false);
        return x * factor;
      };
      store(target + i / 2, as_float(rounded_in_turn(value(i), value(i + kLanes))));
    }
}

template <typename T>
JEPA_FAST_INLINE void narrow_rows(const float* source, int64_t width, int64_t rows, int64_t dim, Table rope,
                                  const float* factors, float factor, T* target, int64_t stride) {
  for (int64_t r = 0; r < rows; ++r, source += width, target += stride)
    for (int64_t i = 0; i < dim; i += kLanes) {
      __builtin_prefetch(target + kAhead * stride + i, 1);
      const int64_t count = std::min(kLanes, dim - i);
      vf32 x = load(source + i) * (factors ? factors[r] : factor);
      if (rope.cosine) {
        const int64_t place = r * dim + i;
        x = rotated(x, load(rope.cosine + place, count), load(rope.sine + place, count), true);
      }
      store(target + i, x, count);
    }
}

// The way back, through the transposed rotation; factors: one for each row, in the place of factor.
JEPA_FAST_KERNEL void narrow(Type type, const float* source, int64_t width, int64_t rows, int64_t dim, Table rope,
                             const float* factors, float factor, Rows to, int64_t offset) {
  switch (type) {
    case kFloat32:
      return narrow_rows(source, width, rows, dim, rope, factors, factor, static_cast<float*>(to.data) + offset,
                         to.token);
    case kBFloat16:
      return narrow_rows(source, width, rows, dim, rope, factors, factor, static_cast<bfloat16*>(to.data) + offset,
                         to.token);
    default:
      return narrow_rows(source, width, rows, dim, rope, factors, factor, static_cast<float16*>(to.data) + offset,
                         to.token);
  }
}

// Panels of `panel` keys: panels[p][d][key of the panel]. rows holds whole panels, with zeros past the last key.
JEPA_FAST_KERNEL void to_panels(const float* rows, int64_t keys, int64_t width, int64_t panel, float* panels) {
  for (int64_t key = 0; key < keys; key += panel)
    transpose(rows + key * width, width, panel, width, panels + key * width, panel);
}

}  // namespace
