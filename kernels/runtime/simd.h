// A register of float lanes and the conversions between storage types, in GCC/Clang vector extensions.
//
// The library is compiled once for each instruction set (CMakeLists.txt), and a vector is as wide as a register of it:
// GCC keeps wider ones in memory, which cost AVX2 nine tenths of the speed of products.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(JEPA_FAST_LANES)  // set by a file, or for a check: another number than that of the instruction set
#elif defined(__AVX512F__)
#define JEPA_FAST_LANES 16
#elif defined(__AVX2__)
#define JEPA_FAST_LANES 8
#else
#define JEPA_FAST_LANES 4  // SSE2, NEON
#endif
#define JEPA_FAST_INLINE static inline __attribute__((always_inline))
// A loop with the registers to itself: inlined into what calls it, it would share them.
#define JEPA_FAST_KERNEL __attribute__((noinline))

namespace jepa_fast {

constexpr int64_t kLanes = JEPA_FAST_LANES;
constexpr int64_t kCacheLine = 64;  // bytes
// Fewer values than this are done by one thread: waking the others costs a few microseconds.
constexpr int64_t kParallelFrom = 1 << 15;

typedef float vf32 __attribute__((vector_size(4 * JEPA_FAST_LANES)));
typedef uint32_t vu32 __attribute__((vector_size(4 * JEPA_FAST_LANES)));
typedef int32_t vi32 __attribute__((vector_size(4 * JEPA_FAST_LANES)));
typedef uint16_t vu16 __attribute__((vector_size(2 * JEPA_FAST_LANES)));

#if JEPA_FAST_LANES == 16
static const vi32 kLaneNumbers = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
#elif JEPA_FAST_LANES == 8
static const vi32 kLaneNumbers = {0, 1, 2, 3, 4, 5, 6, 7};
#else
static const vi32 kLaneNumbers = {0, 1, 2, 3};
#endif

struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

JEPA_FAST_INLINE vf32 as_float(vu32 bits) { return reinterpret_cast<vf32>(bits); }
JEPA_FAST_INLINE vu32 as_bits(vf32 value) { return reinterpret_cast<vu32>(value); }
JEPA_FAST_INLINE vf32 select(vi32 mask, vf32 yes, vf32 no) { return mask ? yes : no; }
JEPA_FAST_INLINE vu32 select(vi32 mask, vu32 yes, vu32 no) { return mask ? yes : no; }
JEPA_FAST_INLINE vf32 broadcast(float value) { return vf32{} + value; }
JEPA_FAST_INLINE vf32 absolute(vf32 value) { return as_float(as_bits(value) & 0x7fffffffu); }

JEPA_FAST_INLINE float lane_sum(vf32 value) {
#pragma GCC unroll 2
  for (int distance = kLanes / 2; distance >= 4; distance /= 2)
    value += __builtin_shuffle(value, kLaneNumbers ^ distance);
  return (value[0] + value[1]) + (value[2] + value[3]);
}

// ---- bit patterns of stored values <-> floats ----------------------------------------------------------------

JEPA_FAST_INLINE vf32 widen(vu16 bits, bfloat16) {
  return as_float(__builtin_convertvector(bits, vu32) << 16);
}

// The high half of each lane is the bfloat16; the low half is not cleared.
JEPA_FAST_INLINE vu32 rounded_to_bfloat16(vf32 value) {
  const vu32 bits = as_bits(value);
  const vu32 rounded = bits + 0x7fffu + ((bits >> 16) & 1u);  // to nearest, ties to even
  return select(value != value, bits | 0x400000u, rounded);
}

JEPA_FAST_INLINE vu16 narrow(vf32 value, bfloat16) {
  return __builtin_convertvector(rounded_to_bfloat16(value) >> 16, vu16);
}

// ---- AVX-512 BF16 ---------------------------------------------------------------------------------------------
// In assembly, as not every CPU with AVX-512 has it. Unlike narrow() it rounds what is below 2^-126 to zero.

JEPA_FAST_INLINE bool cpu_has_bfloat16() {
#ifdef __AVX512F__
  return __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

// The bfloat16 values of low, then those of high.
JEPA_FAST_INLINE vu32 rounded_in_turn(vf32 low, vf32 high) {
  vu32 values;
#ifdef __AVX512F__
  asm("vcvtne2ps2bf16 %2, %1, %0" : "=v"(values) : "v"(high), "v"(low));
#else
  const vu16 halves[2] = {narrow(low, bfloat16{}), narrow(high, bfloat16{})};
  std::memcpy(&values, halves, sizeof(values));
#endif
  return values;
}

typedef uint16_t vu16_pairs __attribute__((vector_size(4 * JEPA_FAST_LANES)));

// Of two vectors of 16-bit values, numbered through: first, second, first + 1, second + 1, ...
JEPA_FAST_INLINE vu32 in_turns(vu32 a, vu32 b, int32_t first, int32_t second) {
  const vi32 places = kLaneNumbers * 0x10001 + (second << 16) + first;
  return reinterpret_cast<vu32>(__builtin_shuffle(reinterpret_cast<vu16_pairs>(a), reinterpret_cast<vu16_pairs>(b),
                                                  reinterpret_cast<vu16_pairs>(places)));
}

// low in the low half of each lane, high in the high half.
JEPA_FAST_INLINE vu32 rounded_in_pairs(vf32 low, vf32 high) {
  const vu32 values = rounded_in_turn(low, high);
  return in_turns(values, values, 0, kLanes);
}

// A float16's bits in the low half of each lane; the high half is zero.
JEPA_FAST_INLINE vf32 widen_lanes(vu32 wide, float16) {
  const vu32 sign = (wide & 0x8000u) << 16;
  const vu32 magnitude = (wide & 0x7fffu) << 13;  // exponent and fraction in float's places
  const vf32 rebias = as_float(vu32{} + 0x77800000u);  // 2^112 = 2^(127 - 15): also normalises subnormals
  const vu32 finite = as_bits(as_float(magnitude) * rebias);
  const vu32 special = magnitude | 0x7f800000u;  // infinities and NaNs
  return as_float(sign | select(magnitude >= (vu32{} + (0x7c00u << 13)), special, finite));
}

JEPA_FAST_INLINE vf32 widen(vu16 bits, float16) {
  return widen_lanes(__builtin_convertvector(bits, vu32), float16{});
}

JEPA_FAST_INLINE vu32 narrow_lanes(vf32 value, float16) {
  const vu32 bits = as_bits(value);
  const vu32 sign = (bits >> 16) & 0x8000u;
  const vu32 magnitude = bits & 0x7fffffffu;
  const uint32_t rebias = (127u - 15u) << 23;
  const vu32 normal = (magnitude - rebias + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;  // ties to even
  // Below 2^-14 the result is subnormal: adding 0.5, whose last place is half's 2^-24, rounds in hardware.
  const vu32 subnormal = as_bits(as_float(magnitude) + 0.5f) - 0x3f000000u;
  const vu32 nan = (vu32{} + 0x7e00u) | ((magnitude >> 13) & 0x1ffu);
  vu32 half = select(magnitude < (vu32{} + 0x38800000u), subnormal, normal);
  half = select(magnitude >= (vu32{} + 0x477ff000u), vu32{} + 0x7c00u, half);  // 65520 and up: infinity
  half = select(magnitude > (vu32{} + 0x7f800000u), nan, half);
  return sign | half;
}

JEPA_FAST_INLINE vu16 narrow(vf32 value, float16) {
  return __builtin_convertvector(narrow_lanes(value, float16{}), vu16);
}

// ---- loads and stores of `count` <= kLanes values; lanes past `count` read as zero and are not written ------------

template <typename T>
JEPA_FAST_INLINE vf32 load(const T* source, int64_t count = kLanes) {
  if constexpr (std::is_same_v<T, float>) {
    vf32 value = {};
    if (count == kLanes) {
      std::memcpy(&value, source, sizeof(value));
    } else {
      std::memcpy(&value, source, count * sizeof(T));
    }
    return value;
  } else {
    vu16 bits = {};
    if (count == kLanes) {
      std::memcpy(&bits, source, sizeof(bits));
    } else {
      std::memcpy(&bits, source, count * sizeof(T));
    }
    return widen(bits, T{});
  }
}

template <typename T>
JEPA_FAST_INLINE void store(T* target, vf32 value, int64_t count = kLanes) {
  if constexpr (std::is_same_v<T, float>) {
    if (count == kLanes) {
      std::memcpy(target, &value, sizeof(value));
    } else {
      std::memcpy(target, &value, count * sizeof(T));
    }
  } else {
    const vu16 bits = narrow(value, T{});
    if (count == kLanes) {
      std::memcpy(target, &bits, sizeof(bits));
    } else {
      std::memcpy(target, &bits, count * sizeof(T));
    }
  }
}

}  // namespace jepa_fast
