// One tile of queries against the panels of keys that it visits: the loops of the forward and of the backward.
#pragma once

#include <cmath>
#include <limits>
#include <vector>

#include "product.h"
#include "visits.h"

namespace {

using namespace jepa_fast;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int64_t kChunk = 8 * kPanel;         // keys whose scores the forward holds at once
constexpr int64_t kScoreStride = kChunk + 16;  // off a power of two, whose rows would share a few cache sets

// Bits 16 v .. 16 v + 15 as lanes.
JEPA_FAST_INLINE i32x16 lanes_of(uint64_t bits, int64_t v) {
  const i32x16 one = i32x16{} + 1;
  return ((i32x16{} + static_cast<int32_t>(bits >> (16 * v) & 0xffff)) & (one << kLaneNumbers)) != 0;
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

JEPA_FAST_INLINE float lane_max(f32x16 value) {
  float largest = value[0];
  for (int i = 1; i < kLanes; ++i) largest = value[i] > largest ? value[i] : largest;
  return largest;
}

struct ForwardScratch {
  std::vector<float> rows, key_panels, value_rows, query, score, out;
  std::vector<float> largest, sum;
  Visits visits;
};

// The chunk's scores become probabilities but for their sum; returns the factor for what was summed before.
JEPA_FAST_INLINE float soften_row(float* score, int64_t columns, float& largest, float& sum) {
  f32x16 top = load(score);
  for (int64_t i = kLanes; i < columns; i += kLanes) {
    const f32x16 x = load(score + i);
    top = select(x > top, x, top);
  }
  const float before = largest, now = std::max(before, lane_max(top));
  largest = now;
  const float reference = now == -kInfinity ? 0.0f : now;
  f32x16 total = {};
  for (int64_t i = 0; i < columns; i += kLanes) {
    const f32x16 p = exp2_of(load(score + i) - reference);
    store(score + i, p);
    total += p;
  }
  const float rescale = before == -kInfinity ? 0.0f : std::exp2(before - reference);
  sum = sum * rescale + lane_sum(total);
  return rescale;
}

// Queries are scaled by scale log2(e), so that scores are powers of two.
JEPA_FAST_CLONES void forward_tile(const Visits& visits, int64_t queries, int64_t panel, int64_t width,
                                   const float* query, const float* key_panels, const float* value_rows, float* score,
                                   float* out, float* largest, float* sum) {
  const int64_t rows = queries + queries % 2;
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
      const int64_t padded = (visit.keys + kLanes - 1) / kLanes * kLanes;
      multiply(rows, padded, width, {query, width, 1}, key_panels + visit.first * width, panel, score + columns,
               kScoreStride, false);
      hide(visit, queries, score + columns, kScoreStride, padded);
      columns += padded;
    }
    for (int64_t q = 0; q < queries; ++q) {
      const float rescale = soften_row(score + q * kScoreStride, columns, largest[q], sum[q]);
      if (chunk > 0 && rescale != 1.0f)
        for (int64_t i = 0; i < width; i += kLanes) store(out + q * width + i, load(out + q * width + i) * rescale);
    }
    columns = 0;
    for (int64_t i = chunk; i < end; ++i) {
      const Visit& visit = visits.list[i];
      const int64_t padded = (visit.keys + kLanes - 1) / kLanes * kLanes;
      multiply(rows, width, padded, {score + columns, kScoreStride, 1}, value_rows + visit.first * width, width, out,
               width, true);
      columns += padded;
    }
  }
}

struct BackwardScratch {
  std::vector<float> key_rows, key_panels, value_panels, grad_key, grad_value;
  std::vector<float> query, grad_out, out, grad_query, probability, slope;
  std::vector<float> lse, lse_rest, delta;  // lse: base 2, in two parts, as its last place is that of every probability
  Visits visits;
};

// Adds to grad_key and grad_value, writes grad_query; all but for their last factors.
JEPA_FAST_CLONES void backward_tile(const Visits& visits, int64_t queries, int64_t panel, int64_t width,
                                    BackwardScratch& s) {
  const int64_t rows = queries + queries % 2;
  float* probability = s.probability.data();
  float* slope = s.slope.data();
  std::fill_n(s.grad_query.data(), rows * width, 0.0f);
  for (int64_t q = 0; q < queries; ++q) {
    f32x16 total = {};
    for (int64_t i = 0; i < width; i += kLanes)
      total += load(s.out.data() + q * width + i) * load(s.grad_out.data() + q * width + i);
    s.delta[q] = lane_sum(total);
  }
  for (const Visit& visit : visits.list) {
    const int64_t padded = (visit.keys + kLanes - 1) / kLanes * kLanes, place = visit.first * width;
    multiply(rows, padded, width, {s.query.data(), width, 1}, s.key_panels.data() + place, panel, probability, kPanel,
             false);
    hide(visit, queries, probability, kPanel, padded);
    multiply(rows, padded, width, {s.grad_out.data(), width, 1}, s.value_panels.data() + place, panel, slope, kPanel,
             false);
    for (int64_t q = 0; q < queries; ++q)
      for (int64_t i = q * kPanel; i < q * kPanel + padded; i += kLanes) {
        const f32x16 p = exp2_of((load(probability + i) - s.lse[q]) - s.lse_rest[q]);
        store(probability + i, p);
        store(slope + i, p * (load(slope + i) - s.delta[q]));
      }
    for (int64_t q = queries; q < rows; ++q) {
      std::fill_n(probability + q * kPanel, padded, 0.0f);
      std::fill_n(slope + q * kPanel, padded, 0.0f);
    }
    multiply(padded, width, rows, {probability, 1, kPanel}, s.grad_out.data(), width, s.grad_value.data() + place,
             width, true);
    multiply(padded, width, rows, {slope, 1, kPanel}, s.query.data(), width, s.grad_key.data() + place, width, true);
    multiply(rows, width, padded, {slope, kPanel, 1}, s.key_rows.data() + place, width, s.grad_query.data(), width,
             true);
  }
}

}  // namespace
