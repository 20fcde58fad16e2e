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

typedef uint64_t u64x16 __attribute__((vector_size(128)));

constexpr uint32_t kMultiplier0 = 0xD2511F53u, kMultiplier1 = 0xCD9E8D57u;
constexpr uint32_t kKeyStep0 = 0x9E3779B9u, kKeyStep1 = 0xBB67AE85u;
constexpr int kRounds = 10;
constexpr int64_t kWords = 4;  // that one counter gives

JEPA_FAST_INLINE u32x16 high_half(u32x16 value, uint32_t multiplier) {
  return __builtin_convertvector((__builtin_convertvector(value, u64x16) * multiplier) >> 32, u32x16);
}

JEPA_FAST_INLINE void philox(u32x16 (&c)[kWords], uint32_t key0, uint32_t key1) {
  for (int round = 0; round < kRounds; ++round) {
    const u32x16 high0 = high_half(c[0], kMultiplier0), low0 = c[0] * kMultiplier0;
    const u32x16 high1 = high_half(c[2], kMultiplier1), low1 = c[2] * kMultiplier1;
    c[0] = high1 ^ c[1] ^ key0;
    c[1] = low1;
    c[2] = high0 ^ c[3] ^ key1;
    c[3] = low0;
    key0 += kKeyStep0;
    key1 += kKeyStep1;
  }
}

// ln(n / 2^24) for odd integers n below 2^24, by ln m = 2 artanh((m - 1) / (m + 1)) with m in [sqrt(1/2), sqrt(2)).
JEPA_FAST_INLINE f32x16 log_of_24_bits(u32x16 n) {
  const f32x16 value = __builtin_convertvector(reinterpret_cast<i32x16>(n), f32x16);
  const uint32_t root_half = 0x3f3504f3u;
  const i32x16 exponent = reinterpret_cast<i32x16>(as_bits(value) - root_half) >> 23;
  const f32x16 m = as_float(as_bits(value) - (reinterpret_cast<u32x16>(exponent) << 23));
  const f32x16 t = (m - 1.0f) / (m + 1.0f), square = t * t;
  const f32x16 tail = (((square * (1.0f / 9.0f) + 1.0f / 7.0f) * square + 0.2f) * square + 1.0f / 3.0f) * square;
  const f32x16 scale = __builtin_convertvector(exponent - 24, f32x16);
  return scale * 0.693147180559945f + 2.0f * (t + t * tail);
}

JEPA_FAST_INLINE f32x16 square_root(f32x16 value) {
  f32x16 root;
  for (int64_t i = 0; i < kLanes; ++i) root[i] = std::sqrt(value[i]);
  return root;
}

// Box and Muller: two standard normal numbers from two words.
JEPA_FAST_INLINE Rotation normal_pair(u32x16 first, u32x16 second) {
  const f32x16 radius = square_root(-2.0f * log_of_24_bits((first >> 9) * 2u + 1u));
  const f32x16 quarters = __builtin_convertvector(reinterpret_cast<i32x16>(second >> 8), f32x16) * 0x1p-22f;
  const Rounded whole = nearest(quarters);
  const Rotation angle = rotation(quarters - whole.value, whole.integer);
  return {radius * angle.cosine, radius * angle.sine};
}

// `lanes` adjacent columns of out [features, slices].
JEPA_FAST_CLONES void draw_columns(float* out, int64_t features, int64_t slices, int64_t column, int64_t lanes,
                                   uint32_t key0, uint32_t key1) {
  f32x16 squares = {};
  for (int64_t feature = 0; feature < features; feature += kWords) {
    const uint64_t first = static_cast<uint64_t>(feature / kWords * slices + column);
    const u64x16 counter = __builtin_convertvector(kLaneNumbers, u64x16) + first;
    u32x16 words[kWords] = {__builtin_convertvector(counter, u32x16), {}, {}, {}};
    philox(words, key0, key1);
    const Rotation a = normal_pair(words[0], words[1]), b = normal_pair(words[2], words[3]);
    const f32x16 drawn[kWords] = {a.cosine, a.sine, b.cosine, b.sine};
    for (int64_t i = 0; i < std::min(kWords, features - feature); ++i) {
      squares += drawn[i] * drawn[i];
      store(out + (feature + i) * slices + column, drawn[i], lanes);
    }
  }
  const f32x16 scale = 1.0f / square_root(squares);
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
