// Small matrix products in registers, and what turns rows into the layouts they want. Sums are float32; what is
// multiplied comes in 32-bit words, a float32 or two neighbouring bfloat16 values along the sum.
#pragma once

#include "simd.h"

namespace jepa_fast {

struct Float32Words {
  static constexpr int64_t kValues = 1;  // of a word
  JEPA_FAST_INLINE vf32 add_products(vf32 sum, vf32 a, vf32 b) { return sum + a * b; }
};

// Two products and two sums in one instruction: twice the products of float32 on AMD's Zen 4.
struct BFloat16Words {
  static constexpr int64_t kValues = 2;
  // By value: were the assembly to name an element of an array, GCC would keep that array in memory.
  JEPA_FAST_INLINE vf32 add_products(vf32 sum, vf32 a, vf32 b) {
#ifdef __AVX512F__
    asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
#else
    sum += as_float(as_bits(a) << 16) * as_float(as_bits(b) << 16);
    sum += as_float(as_bits(a) & 0xffff0000u) * as_float(as_bits(b) & 0xffff0000u);
#endif
    return sum;
  }
};

// Not broadcast(), which adds zero to it: words of pairs are no floats.
JEPA_FAST_INLINE vf32 repeated(float word) {
  uint32_t bits;
  std::memcpy(&bits, &word, sizeof(bits));
  return as_float(vu32{} + bits);
}

// words[rows][columns / 2]: pairs of neighbours in a row. May overwrite its source.
JEPA_FAST_INLINE void pair_columns(const float* source, int64_t stride, int64_t rows, int64_t columns, float* words,
                                   int64_t words_stride) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t i = 0; i < columns; i += 2 * kLanes) {
      const float* from = source + r * stride + i;
      store(words + r * words_stride + i / 2, as_float(rounded_in_turn(load(from), load(from + kLanes))));
    }
}

// words[rows / 2][columns]: pairs of neighbours in a column. May overwrite its source.
JEPA_FAST_INLINE void pair_rows(const float* source, int64_t stride, int64_t rows, int64_t columns, float* words) {
  for (int64_t r = 0; r < rows; r += 2)
    for (int64_t i = 0; i < columns; i += kLanes) {
      const float* from = source + r * stride + i;
      store(words + r / 2 * stride + i, as_float(rounded_in_pairs(load(from), load(from + stride))));
    }
}

// words[rows / 2][columns]: pairs of neighbours in a column, from source[rows][columns / 2], those in a row.
JEPA_FAST_INLINE void pair_rows_of_words(const float* source, int64_t rows, int64_t columns, float* words) {
  for (int64_t r = 0; r < rows; r += 2)
    for (int64_t i = 0; i < columns; i += 2 * kLanes) {
      const float* from = source + (r * columns + i) / 2;
      const vu32 above = as_bits(load(from)), below = as_bits(load(from + columns / 2));
      float* to = words + r / 2 * columns + i;
      store(to, as_float(in_turns(above, below, 0, 2 * kLanes)));
      store(to + kLanes, as_float(in_turns(above, below, kLanes, 3 * kLanes)));
    }
}

// Rows of A and vectors of B whose sums are held in registers: 24 of AVX-512's 32 registers, 12 of 16 elsewhere. As many
// products in flight hide the latency of a multiply-add.
constexpr int64_t kBlockRows = 6;
constexpr int64_t kBlockVectors = kLanes == 16 ? 4 : 2;

struct Left {  // A[i][k] = data[i * row + k * depth]: transposed or not
  const float* data;
  int64_t row, depth;
};

// C[ROWS][VECTORS] = A B, or C + A B, where the product is summed by itself first: sums over many tiles stay short.
// A and B are words, `depth` of them to a sum. B has rows of `b_stride`, C of `c_stride`.
template <typename Words, int ROWS, int VECTORS>
JEPA_FAST_INLINE void multiply_block(Left a, const float* b, int64_t b_stride, float* c, int64_t c_stride,
                                     int64_t depth, bool add) {
  vf32 sum[ROWS][VECTORS] = {};
  for (int64_t k = 0; k < depth; ++k) {
    vf32 row[VECTORS];
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) row[v] = load(b + k * b_stride + v * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
      const vf32 factor = repeated(a.data[r * a.row + k * a.depth]);
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; ++v) sum[r][v] = Words::add_products(sum[r][v], row[v], factor);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) {
      float* place = c + r * c_stride + v * kLanes;
      store(place, add ? load(place) + sum[r][v] : sum[r][v]);
    }
}

template <typename Words, int VECTORS>
JEPA_FAST_INLINE void multiply_columns(int64_t rows, Left a, const float* b, int64_t b_stride, float* c,
                                       int64_t c_stride, int64_t depth, bool add) {
  int64_t r = 0;
  for (; r + kBlockRows <= rows; r += kBlockRows)
    multiply_block<Words, kBlockRows, VECTORS>({a.data + r * a.row, a.row, a.depth}, b, b_stride, c + r * c_stride,
                                               c_stride, depth, add);
  for (; r + 2 <= rows; r += 2)
    multiply_block<Words, 2, VECTORS>({a.data + r * a.row, a.row, a.depth}, b, b_stride, c + r * c_stride, c_stride,
                                      depth, add);
  if (r < rows)
    multiply_block<Words, 1, VECTORS>({a.data + r * a.row, a.row, a.depth}, b, b_stride, c + r * c_stride, c_stride,
                                      depth, add);
}

// C[rows][columns] = A B or C + A B; columns a multiple of kLanes.
template <typename Words>
JEPA_FAST_INLINE void multiply(int64_t rows, int64_t columns, int64_t depth, Left a, const float* b, int64_t b_stride,
                               float* c, int64_t c_stride, bool add) {
  for (int64_t left = columns / kLanes; left > 0;) {
    // Of blocks of 4, 5 vectors go as 3 + 2, 6 as 3 + 3, 7 as 3 + 4: narrower blocks than that wait for their own sums.
    const int64_t take = kBlockVectors == 4 && left > 4 && left < 8 ? 3 : std::min(left, kBlockVectors);
    switch (take) {
      case 4: multiply_columns<Words, 4>(rows, a, b, b_stride, c, c_stride, depth, add); break;
      case 3: multiply_columns<Words, 3>(rows, a, b, b_stride, c, c_stride, depth, add); break;
      case 2: multiply_columns<Words, 2>(rows, a, b, b_stride, c, c_stride, depth, add); break;
      default: multiply_columns<Words, 1>(rows, a, b, b_stride, c, c_stride, depth, add);
    }
    b += take * kLanes;
    c += take * kLanes;
    left -= take;
  }
}

// kLanes x kLanes: target[j][i] = source[i][j].
JEPA_FAST_INLINE void transpose_block(const float* source, int64_t source_stride, float* target,
                                      int64_t target_stride) {
  vf32 rows[kLanes];
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) rows[i] = load(source + i * source_stride);
  // The round of distance d swaps the off-diagonal d x d blocks of every 2d x 2d block.
#pragma GCC unroll 4
  for (int d = kLanes / 2; d > 0; d /= 2) {
    const vi32 upper = (kLaneNumbers & d) != 0 ? kLaneNumbers - d + int{kLanes} : kLaneNumbers;
    const vi32 lower = (kLaneNumbers & d) != 0 ? kLaneNumbers + int{kLanes} : kLaneNumbers + d;
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i)
      if ((i & d) == 0) {
        const vf32 a = rows[i], b = rows[i + d];
        rows[i] = __builtin_shuffle(a, b, upper);
        rows[i + d] = __builtin_shuffle(a, b, lower);
      }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) store(target + i * target_stride, rows[i]);
}

// target[rows of `columns`][rows] = source transposed; both sizes multiples of kLanes.
JEPA_FAST_INLINE void transpose(const float* source, int64_t source_stride, int64_t rows, int64_t columns,
                                float* target, int64_t target_stride) {
  for (int64_t i = 0; i < rows; i += kLanes)
    for (int64_t j = 0; j < columns; j += kLanes)
      transpose_block(source + i * source_stride + j, source_stride, target + j * target_stride + i, target_stride);
}

}  // namespace jepa_fast
