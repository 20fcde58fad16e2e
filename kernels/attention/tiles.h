// One tile of queries against the panels of keys that it visits: the loops of the forward and of the backward.
#pragma once

#include <cmath>
#include <limits>
#include <vector>

#include "amx.h"
#include "product.h"
#include "visits.h"

namespace {

using namespace jepa_fast;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int64_t kChunk = 8 * kPanel;         // keys whose scores the forward holds at once
constexpr int64_t kScoreStride = kChunk + 16;  // off a power of two, whose rows would share a few cache sets
constexpr int64_t kFewQueries = 8;             // up to which PyTorch's sums go over many lanes at once;
constexpr int64_t kFewTerms = 16;              // so ours are short there, too

// 2^x for x <= 0 or a little above: 2^n p(f) with f in [-1/2, 1/2] and p of degree 6, of least relative error (2e-9).
// Below -126 it is 0; what is not a number stays so.
JEPA_FAST_INLINE vf32 exp2_of(vf32 x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer in the last places
  const vf32 shifted = x + kRound;
  const vf32 f = x - (shifted - kRound);
  vf32 p = f * 1.535333722e-4f + 1.339887454e-3f;
  p = p * f + 9.618437458e-3f;
  p = p * f + 5.550332471e-2f;
  p = p * f + 2.402264791e-1f;
  p = p * f + 6.931472029e-1f;
  p = p * f + 1.0f;
  const vf32 result = as_float(as_bits(p) + (as_bits(shifted) << 23));
  return select(x < -126.0f, vf32{}, select(x != x, x, result));
}

// Bits of the lanes of vector v.
JEPA_FAST_INLINE vi32 lanes_of(uint64_t bits, int64_t v) {
  const vi32 one = vi32{} + 1;
  const uint64_t own = bits >> (kLanes * v) & ((uint64_t{1} << kLanes) - 1);
  return ((vi32{} + static_cast<int32_t>(own)) & (one << kLaneNumbers)) != 0;
}

// Scores of keys that the tile's queries do not see become -inf; so do those past the last key.
JEPA_FAST_INLINE void hide(const Visit& visit, int64_t queries, float* score, int64_t stride, int64_t columns) {
  const uint64_t inside = visit.keys >= 64 ? ~uint64_t{0} : (uint64_t{1} << visit.keys) - 1;
  if (!visit.bits && visit.keys == columns) return;
  for (int64_t q = 0; q < queries; ++q) {
    const uint64_t bits = visit.bits ? visit.bits[q] & inside : inside;
    for (int64_t v = 0; v < columns / kLanes; ++v) {
      float* place = score + q * stride + v * kLanes;
      store(place, select(lanes_of(bits, v), load(place), broadcast(-kInfinity)));
    }
  }
}

JEPA_FAST_INLINE float lane_max(vf32 value) {
#pragma GCC unroll 4
  for (int distance = kLanes / 2; distance > 0; distance /= 2) {
    const vf32 other = __builtin_shuffle(value, kLaneNumbers ^ distance);
    value = select(other > value, other, value);
  }
  return value[0];
}

struct ForwardScratch {
  std::vector<float> rows, key_panels, value_rows, query, score, out;
  std::vector<float> largest, sum;
  Visits visits;
};

// The chunk's scores, times `scale`, become probabilities but for their sum; returns the factor for what was summed
// before.
JEPA_FAST_INLINE float soften_row(float* score, int64_t columns, float scale, float& largest, float& sum) {
  vf32 top = load(score);
  for (int64_t i = kLanes; i < columns; i += kLanes) {
    const vf32 x = load(score + i);
    top = select(x > top, x, top);
  }
  const float before = largest, now = std::max(before, lane_max(top) * scale);
  largest = now;
  const float reference = now == -kInfinity ? 0.0f : now;
  vf32 total = {};
  for (int64_t i = 0; i < columns; i += kLanes) {
    const vf32 p = exp2_of(load(score + i) * scale - reference);
    store(score + i, p);
    total += p;
  }
  const float rescale = before == -kInfinity ? 0.0f : before == now ? 1.0f : std::exp2(before - reference);
  sum = sum * rescale + lane_sum(total);
  return rescale;
}

// How a tile's operands are multiplied.
enum class Products { kFloat32, kPairs, kAmx };

struct AmxWords : BFloat16Words {};

template <typename Words>
constexpr bool kByAmx = std::is_same_v<Words, AmxWords>;

// `multiply` for tiles of queries: with few of them, sums of sums of few terms.
template <typename Words>
JEPA_FAST_INLINE void multiply_queries(int64_t rows, int64_t columns, int64_t depth, Left a, const float* b,
                                       int64_t b_stride, float* c, int64_t c_stride, bool add) {
  if constexpr (kByAmx<Words>) return amx_multiply(rows, columns, depth, a.data, a.row, b, b_stride, c, c_stride, add);
  const int64_t step = Words::kValues == 1 && rows <= kFewQueries ? kFewTerms : depth;
  for (int64_t k = 0; k < depth; k += step)
    multiply<Words>(rows, columns, std::min(step, depth - k), {a.data + k * a.depth, a.row, a.depth}, b + k * b_stride,
                    b_stride, c, c_stride, add || k > 0);
}

// What a tile's operands are multiplied as. Queries come as words of neighbouring features, keys as panels of the same,
// values as words of neighbouring keys. scale: what makes scores powers of two.
template <typename Words>
JEPA_FAST_INLINE void forward_tile_of(const Visits& visits, int64_t queries, int64_t panel, int64_t width, float scale,
                                      const float* query, const float* key_panels, const float* value_rows,
                                      float* score, float* out, float* largest, float* sum) {
  constexpr int64_t kValues = Words::kValues;
  constexpr int64_t kRowStep = kByAmx<Words> ? kAmxRows : 2, kKeyStep = kByAmx<Words> ? kAmxTerms : kLanes;
  const int64_t rows = (queries + kRowStep - 1) / kRowStep * kRowStep, depth = width / kValues;
  std::fill(largest, largest + rows, -kInfinity);
  std::fill(sum, sum + rows, 0.0f);
  std::fill(out, out + rows * width, 0.0f);
  const int64_t per_chunk = kChunk / panel;
  const int64_t count = static_cast<int64_t>(visits.list.size());
  for (int64_t chunk = 0; chunk < count; chunk += per_chunk) {
    const int64_t end = std::min(chunk + per_chunk, count);
    int64_t columns = 0;
    for (int64_t i = chunk; i < end; ++i) {
      const Visit& visit = visits.list[i];
      const int64_t padded = (visit.keys + kKeyStep - 1) / kKeyStep * kKeyStep;
      multiply_queries<Words>(rows, padded, depth, {query, depth, 1}, key_panels + visit.first * depth, panel,
                              score + columns, kScoreStride, false);
      hide(visit, queries, score + columns, kScoreStride, padded);
      columns += padded;
    }
    for (int64_t q = 0; q < queries; ++q) {
      const float rescale = soften_row(score + q * kScoreStride, columns, scale, largest[q], sum[q]);
      if (chunk > 0 && rescale != 1.0f)
        for (int64_t i = 0; i < width; i += kLanes) store(out + q * width + i, load(out + q * width + i) * rescale);
    }
    if constexpr (kValues == 2) {
      if (columns % (2 * kLanes))  // an odd vector is paired with zeros
        for (int64_t q = 0; q < rows; ++q) store(score + q * kScoreStride + columns, vf32{});
      pair_columns(score, kScoreStride, rows, columns, score, kScoreStride);
    }
    columns = 0;
    for (int64_t i = chunk; i < end; ++i) {
      const Visit& visit = visits.list[i];
      const int64_t padded = (visit.keys + kKeyStep - 1) / kKeyStep * kKeyStep;
      multiply_queries<Words>(rows, width, padded / kValues, {score + columns / kValues, kScoreStride, 1},
                              value_rows + visit.first / kValues * width, width, out, width, true);
      columns += padded;
    }
  }
}

JEPA_FAST_KERNEL void forward_tile(Products products, const Visits& visits, int64_t queries, int64_t panel,
                                   int64_t width, float scale, const float* query, const float* key_panels,
                                   const float* value_rows, float* score, float* out, float* largest, float* sum) {
  if (products == Products::kAmx)
    return forward_tile_of<AmxWords>(visits, queries, panel, width, scale, query, key_panels, value_rows, score, out,
                                     largest, sum);
  if (products == Products::kPairs)
    return forward_tile_of<BFloat16Words>(visits, queries, panel, width, scale, query, key_panels, value_rows, score,
                                          out, largest, sum);
  forward_tile_of<Float32Words>(visits, queries, panel, width, scale, query, key_panels, value_rows, score, out,
                                largest, sum);
}

struct BackwardScratch {
  std::vector<float> key_rows, key_panels, value_panels, grad_key, grad_value;
  std::vector<float> query, grad_out, out, grad_query, probability, slope;
  std::vector<float> lse, lse_rest, delta;  // lse: base 2, in two parts, as its last place is that of every probability
  // Where words are pairs: those of neighbours in a column of query, grad_out and keys, whose own are of neighbours in
  // a row; and those of neighbours in a row of slope, whose own become those of a column.
  std::vector<float> query_pairs, grad_out_pairs, key_pairs, slope_columns;
  // For AMX: these pairs [width][queries / 2]; and the gradients of keys and values, whose sums are [width][keys], in
  // rows.
  std::vector<float> query_turned, grad_out_turned, turned;
  Visits visits;
};

// Adds to grad_key and grad_value, writes grad_query; all but for their last factors.
template <typename Words>
JEPA_FAST_INLINE void backward_tile_of(const Visits& visits, int64_t queries, int64_t panel, int64_t width, float scale,
                                       BackwardScratch& s) {
  constexpr int64_t kValues = Words::kValues;
  constexpr int64_t kStep = kByAmx<Words> ? kAmxTerms : 2, kKeyStep = kByAmx<Words> ? kAmxTerms : kLanes;
  const int64_t rows = (queries + kStep - 1) / kStep * kStep, depth = width / kValues;
  float* probability = s.probability.data();
  float* slope = s.slope.data();
  std::fill_n(s.grad_query.data(), rows * width, 0.0f);
  for (int64_t q = 0; q < queries; ++q) {
    vf32 total = {};
    for (int64_t i = 0; i < depth; i += kLanes)
      total = Words::add_products(total, load(s.out.data() + q * depth + i), load(s.grad_out.data() + q * depth + i));
    s.delta[q] = lane_sum(total);
  }
  const float *query = s.query.data(), *grad_out = s.grad_out.data();
  // Along queries and keys for the gradients, where the logits are along features.
  const float *query_rows = query, *grad_out_rows = grad_out, *key_rows = s.key_rows.data(), *slope_columns = slope;
  if constexpr (kValues == 2) {
    pair_rows_of_words(query, rows, width, s.query_pairs.data());
    pair_rows_of_words(grad_out, rows, width, s.grad_out_pairs.data());
    query_rows = s.query_pairs.data();
    grad_out_rows = s.grad_out_pairs.data();
    key_rows = s.key_pairs.data();
    slope_columns = s.slope_columns.data();
  }
  if constexpr (kByAmx<Words>) {
    transpose(query_rows, width, rows / 2, width, s.query_turned.data(), rows / 2);
    transpose(grad_out_rows, width, rows / 2, width, s.grad_out_turned.data(), rows / 2);
  }
  constexpr int64_t kStride = kPanel / kValues;  // of slope_columns
  for (const Visit& visit : visits.list) {
    const int64_t padded = (visit.keys + kKeyStep - 1) / kKeyStep * kKeyStep, place = visit.first * width;
    multiply_queries<Words>(rows, padded, depth, {query, depth, 1}, s.key_panels.data() + visit.first * depth, panel,
                            probability, kPanel, false);
    hide(visit, queries, probability, kPanel, padded);
    multiply_queries<Words>(rows, padded, depth, {grad_out, depth, 1}, s.value_panels.data() + visit.first * depth,
                            panel, slope, kPanel, false);
    for (int64_t q = 0; q < queries; ++q)
      for (int64_t i = q * kPanel; i < q * kPanel + padded; i += kLanes) {
        const vf32 p = exp2_of((load(probability + i) * scale - s.lse[q]) - s.lse_rest[q]);
        store(probability + i, p);
        store(slope + i, p * (load(slope + i) - s.delta[q]));
      }
    for (int64_t q = queries; q < rows; ++q) {
      std::fill_n(probability + q * kPanel, padded, 0.0f);
      std::fill_n(slope + q * kPanel, padded, 0.0f);
    }
    if constexpr (kValues == 2) {
      if (padded % (2 * kLanes))  // an odd vector is paired with zeros
        for (int64_t q = 0; q < rows; ++q) store(slope + q * kPanel + padded, vf32{});
      pair_columns(slope, kPanel, rows, padded, s.slope_columns.data(), kStride);
      pair_rows(slope, kPanel, rows, padded, slope);
      pair_rows(probability, kPanel, rows, padded, probability);
    }
    if constexpr (kByAmx<Words>) {
      amx_multiply(width, padded, rows / 2, s.grad_out_turned.data(), rows / 2, probability, kPanel,
                   s.grad_value.data() + place, panel, true);
      amx_multiply(width, padded, rows / 2, s.query_turned.data(), rows / 2, slope, kPanel, s.grad_key.data() + place,
                   panel, true);
    } else {
      multiply<Words>(padded, width, rows / kValues, {probability, 1, kPanel}, grad_out_rows, width,
                      s.grad_value.data() + place, width, true);
      multiply<Words>(padded, width, rows / kValues, {slope, 1, kPanel}, query_rows, width, s.grad_key.data() + place,
                      width, true);
    }
    multiply_queries<Words>(rows, width, padded / kValues, {slope_columns, kStride, 1},
                            key_rows + visit.first / kValues * width, width, s.grad_query.data(), width, true);
  }
}

JEPA_FAST_KERNEL void backward_tile(Products products, const Visits& visits, int64_t queries, int64_t panel,
                                    int64_t width, float scale, BackwardScratch& s) {
  if (products == Products::kAmx) return backward_tile_of<AmxWords>(visits, queries, panel, width, scale, s);
  if (products == Products::kPairs) return backward_tile_of<BFloat16Words>(visits, queries, panel, width, scale, s);
  backward_tile_of<Float32Words>(visits, queries, panel, width, scale, s);
}

// words[rows / 2][columns]: neighbours in a column, from those in a row.
JEPA_FAST_KERNEL void to_row_pairs(const float* source, int64_t rows, int64_t columns, float* words) {
  pair_rows_of_words(source, rows, columns, words);
}

}  // namespace
