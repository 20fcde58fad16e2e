// Directions on the unit sphere from Philox4x32-10, on the CPU. philox.py says which numbers they are.

#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/error.h>
#include <tvm/ffi/function.h>

#include <cmath>

#include "simd.h"
#include "trigonometry.h"

namespace {

using namespace jepa_fast;
using tvm::ffi::TensorView;

typedef uint64_t vu64 __attribute__((vector_size(8 * JEPA_FAST_LANES)));

constexpr uint32_t kMultiplier0 = 0xD2511F53u, kMultiplier1 = 0xCD9E8D57u;
constexpr uint32_t kKeyStep0 = 0x9E3779B9u, kKeyStep1 = 0xBB67AE85u;
constexpr int kRounds = 10;
constexpr int64_t kWords = 4;  // that one counter gives

JEPA_FAST_INLINE vu32 high_half(vu32 value, uint32_t multiplier) {
  return __builtin_convertvector((__builtin_convertvector(value, vu64) * multiplier) >> 32, vu32);
}

JEPA_FAST_INLINE void philox(vu32 (&c)[kWords], uint32_t key0, uint32_t key1) {
  for (int round = 0; round < kRounds; ++round) {
    const vu32 high0 = high_half(c[0], kMultiplier0), low0 = c[0] * kMultiplier0;
    const vu32 high1 = high_half(c[2], kMultiplier1), low1 = c[2] * kMultiplier1;
    c[0] = high1 ^ c[1] ^ key0;
    c[1] = low1;
    c[2] = high0 ^ c[3] ^ key1;
    c[3] = low0;
    key0 += kKeyStep0;
    key1 += kKeyStep1;
  }
}

// ln(n / 2^24) for odd integers n below 2^24, by ln m = 2 artanh((m - 1) / (m + 1)) with m in [sqrt(1/2), sqrt(2)).
JEPA_FAST_INLINE vf32 log_of_24_bits(vu32 n) {
  const vf32 value = __builtin_convertvector(reinterpret_cast<vi32>(n), vf32);
  const uint32_t root_half = 0x3f3504f3u;
  const vi32 exponent = reinterpret_cast<vi32>(as_bits(value) - root_half) >> 23;
  const vf32 m = as_float(as_bits(value) - (reinterpret_cast<vu32>(exponent) << 23));
  const vf32 t = (m - 1.0f) / (m + 1.0f), square = t * t;
  const vf32 tail = (((square * (1.0f / 9.0f) + 1.0f / 7.0f) * square + 0.2f) * square + 1.0f / 3.0f) * square;
  const vf32 scale = __builtin_convertvector(exponent - 24, vf32);
  return scale * 0.693147180559945f + 2.0f * (t + t * tail);
}

JEPA_FAST_INLINE vf32 square_root(vf32 value) {
  vf32 root;
  for (int64_t i = 0; i < kLanes; ++i) root[i] = std::sqrt(value[i]);
  return root;
}

// Box and Muller: two standard normal numbers from two words.
JEPA_FAST_INLINE Rotation normal_pair(vu32 first, vu32 second) {
  const vf32 radius = square_root(-2.0f * log_of_24_bits((first >> 9) * 2u + 1u));
  const vf32 quarters = __builtin_convertvector(reinterpret_cast<vi32>(second >> 8), vf32) * 0x1p-22f;
  const Rounded whole = nearest(quarters);
  const Rotation angle = rotation(quarters - whole.value, whole.integer);
  return {radius * angle.cosine, radius * angle.sine};
}

// `lanes` adjacent columns of out [features, slices].
JEPA_FAST_KERNEL void draw_columns(float* out, int64_t features, int64_t slices, int64_t column, int64_t lanes,
                                   uint32_t key0, uint32_t key1) {
  vf32 squares = {};
  for (int64_t feature = 0; feature < features; feature += kWords) {
    const uint64_t first = static_cast<uint64_t>(feature / kWords * slices + column);
    const vu64 counter = __builtin_convertvector(kLaneNumbers, vu64) + first;
    vu32 words[kWords] = {__builtin_convertvector(counter, vu32), {}, {}, {}};
    philox(words, key0, key1);
    const Rotation a = normal_pair(words[0], words[1]), b = normal_pair(words[2], words[3]);
    const vf32 drawn[kWords] = {a.cosine, a.sine, b.cosine, b.sine};
    for (int64_t i = 0; i < std::min(kWords, features - feature); ++i) {
      squares += drawn[i] * drawn[i];
      store(out + (feature + i) * slices + column, drawn[i], lanes);
    }
  }
  const vf32 scale = 1.0f / square_root(squares);
  for (int64_t feature = 0; feature < features; ++feature) {
    float* place = out + feature * slices + column;
    store(place, load(place, lanes) * scale, lanes);
  }
}

// out: float32 [features, slices], contiguous; features * slices / 4 < 2^32, as a counter's first word says which.
void sigreg_directions(TensorView out, int64_t seed, int64_t threads) {
  const int64_t features = out.size(0), slices = out.size(1);
  float* data = static_cast<float*>(out.data_ptr());
  const uint64_t key = static_cast<uint64_t>(seed);
#pragma omp parallel for schedule(static) num_threads(static_cast<int>(threads)) if (features * slices > kParallelFrom)
  for (int64_t column = 0; column < slices; column += kLanes)
    draw_columns(data, features, slices, column, std::min(kLanes, slices - column), static_cast<uint32_t>(key),
                 static_cast<uint32_t>(key >> 32));
}

}  // namespace

TVM_FFI_DLL_EXPORT_TYPED_FUNC(sigreg_directions, sigreg_directions);
