// Sixteen float lanes and the conversions between storage types, in GCC/Clang vector extensions.
//
// The lane count is fixed, so a reduction adds in the same order on every instruction set; the compiler lowers
// one f32x16 to one AVX-512, two AVX2 or four SSE registers. JEPA_FAST_CLONES compiles a function once per
// instruction set and the loader picks the best that the CPU has.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__x86_64__) && defined(__gnu_linux__)
#define JEPA_FAST_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
// For kernels that only stream memory: 256-bit accesses were measured 8 % faster than 512-bit ones on AMD.
#define JEPA_FAST_CLONES_256 __attribute__((target_clones("arch=x86-64-v3", "default")))
// For kernels that use the instructions for bfloat16 (below) where cpu_has_bfloat16().
#define JEPA_FAST_AVX512_BF16
#define JEPA_FAST_BFLOAT16 __attribute__((target("arch=x86-64-v4")))
#else
#define JEPA_FAST_CLONES
#define JEPA_FAST_CLONES_256
#define JEPA_FAST_BFLOAT16
#endif
// Helpers are always inlined: only then are they compiled for the instruction set of the clone that uses them.
#define JEPA_FAST_INLINE static inline __attribute__((always_inline))

namespace jepa_fast {

constexpr int64_t kLanes = 16;
constexpr int64_t kCacheLine = 64;  // bytes
// Fewer values than this are done by one thread: waking the others costs a few microseconds.
constexpr int64_t kParallelFrom = 1 << 15;

typedef float f32x16 __attribute__((vector_size(64)));
typedef uint32_t u32x16 __attribute__((vector_size(64)));
typedef int32_t i32x16 __attribute__((vector_size(64)));
typedef uint16_t u16x16 __attribute__((vector_size(32)));

static const i32x16 kLaneNumbers = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

JEPA_FAST_INLINE f32x16 as_float(u32x16 bits) { return reinterpret_cast<f32x16>(bits); }
JEPA_FAST_INLINE u32x16 as_bits(f32x16 value) { return reinterpret_cast<u32x16>(value); }
JEPA_FAST_INLINE f32x16 select(i32x16 mask, f32x16 yes, f32x16 no) { return mask ? yes : no; }
JEPA_FAST_INLINE u32x16 select(i32x16 mask, u32x16 yes, u32x16 no) { return mask ? yes : no; }
JEPA_FAST_INLINE f32x16 broadcast(float value) { return f32x16{} + value; }
JEPA_FAST_INLINE f32x16 absolute(f32x16 value) { return as_float(as_bits(value) & 0x7fffffffu); }

JEPA_FAST_INLINE float lane_sum(f32x16 value) {
  value += __builtin_shuffle(value, i32x16{8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7});
  value += __builtin_shuffle(value, i32x16{4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11});
  return (value[0] + value[1]) + (value[2] + value[3]);
}

// ---- bit patterns of sixteen stored values <-> sixteen floats -------------------------------------------------

JEPA_FAST_INLINE f32x16 widen(u16x16 bits, bfloat16) {
  return as_float(__builtin_convertvector(bits, u32x16) << 16);
}

// The high half of each lane is the bfloat16; the low half is not cleared.
JEPA_FAST_INLINE u32x16 rounded_to_bfloat16(f32x16 value) {
  const u32x16 bits = as_bits(value);
  const u32x16 rounded = bits + 0x7fffu + ((bits >> 16) & 1u);  // to nearest, ties to even
  return select(value != value, bits | 0x400000u, rounded);
}

JEPA_FAST_INLINE u16x16 narrow(f32x16 value, bfloat16) {
  return __builtin_convertvector(rounded_to_bfloat16(value) >> 16, u16x16);
}

inline bool cpu_has_avx512() {
#if defined(__x86_64__) && defined(__gnu_linux__)
  return __builtin_cpu_supports("x86-64-v4");
#else
  return false;
#endif
}

// ---- AVX-512 BF16 ---------------------------------------------------------------------------------------------
// In assembly, as its intrinsics need a target that functions inlined into clones do not have: call these from functions
// marked JEPA_FAST_BFLOAT16 alone. Unlike narrow() they round what is below 2^-126 to zero.

inline bool cpu_has_bfloat16() {
#ifdef JEPA_FAST_AVX512_BF16
  return cpu_has_avx512() && __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

// Thirty-two bfloat16 values: those of low, then those of high.
JEPA_FAST_INLINE u32x16 rounded_in_turn(f32x16 low, f32x16 high) {
  u32x16 values;
#ifdef JEPA_FAST_AVX512_BF16
  asm("vcvtne2ps2bf16 %2, %1, %0" : "=v"(values) : "v"(high), "v"(low));
#else
  const u16x16 halves[2] = {narrow(low, bfloat16{}), narrow(high, bfloat16{})};
  std::memcpy(&values, halves, sizeof(values));
#endif
  return values;
}

// low in the low half of each lane, high in the high half.
JEPA_FAST_INLINE u32x16 rounded_in_pairs(f32x16 low, f32x16 high) {
  typedef uint16_t u16x32 __attribute__((vector_size(64)));
  const u16x32 places = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                         8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  return reinterpret_cast<u32x16>(__builtin_shuffle(reinterpret_cast<u16x32>(rounded_in_turn(low, high)), places));
}

// A float16's bits in the low half of each lane; the high half is zero.
JEPA_FAST_INLINE f32x16 widen_lanes(u32x16 wide, float16) {
  const u32x16 sign = (wide & 0x8000u) << 16;
  const u32x16 magnitude = (wide & 0x7fffu) << 13;  // exponent and fraction in float's places
  const f32x16 rebias = as_float(u32x16{} + 0x77800000u);  // 2^112 = 2^(127 - 15): also normalises subnormals
  const u32x16 finite = as_bits(as_float(magnitude) * rebias);
  const u32x16 special = magnitude | 0x7f800000u;  // infinities and NaNs
  return as_float(sign | select(magnitude >= (u32x16{} + (0x7c00u << 13)), special, finite));
}

JEPA_FAST_INLINE f32x16 widen(u16x16 bits, float16) {
  return widen_lanes(__builtin_convertvector(bits, u32x16), float16{});
}

JEPA_FAST_INLINE u32x16 narrow_lanes(f32x16 value, float16) {
  const u32x16 bits = as_bits(value);
  const u32x16 sign = (bits >> 16) & 0x8000u;
  const u32x16 magnitude = bits & 0x7fffffffu;
  const uint32_t rebias = (127u - 15u) << 23;
  const u32x16 normal = (magnitude - rebias + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;  // ties to even
  // Below 2^-14 the result is subnormal: adding 0.5, whose last place is half's 2^-24, rounds in hardware.
  const u32x16 subnormal = as_bits(as_float(magnitude) + 0.5f) - 0x3f000000u;
  const u32x16 nan = (u32x16{} + 0x7e00u) | ((magnitude >> 13) & 0x1ffu);
  u32x16 half = select(magnitude < (u32x16{} + 0x38800000u), subnormal, normal);
  half = select(magnitude >= (u32x16{} + 0x477ff000u), u32x16{} + 0x7c00u, half);  // 65520 and up: infinity
  half = select(magnitude > (u32x16{} + 0x7f800000u), nan, half);
  return sign | half;
}

JEPA_FAST_INLINE u16x16 narrow(f32x16 value, float16) {
  return __builtin_convertvector(narrow_lanes(value, float16{}), u16x16);
}

// ---- loads and stores of `count` <= 16 values; lanes past `count` read as zero and are not written ------------

template <typename T>
JEPA_FAST_INLINE f32x16 load(const T* source, int64_t count = kLanes) {
  if constexpr (std::is_same_v<T, float>) {
    f32x16 value = {};
    if (count == kLanes) {
      std::memcpy(&value, source, sizeof(value));
    } else {
      std::memcpy(&value, source, count * sizeof(T));
    }
    return value;
  } else {
    u16x16 bits = {};
    if (count == kLanes) {
      std::memcpy(&bits, source, sizeof(bits));
    } else {
      std::memcpy(&bits, source, count * sizeof(T));
    }
    return widen(bits, T{});
  }
}

template <typename T>
JEPA_FAST_INLINE void store(T* target, f32x16 value, int64_t count = kLanes) {
  if constexpr (std::is_same_v<T, float>) {
    if (count == kLanes) {
      std::memcpy(target, &value, sizeof(value));
    } else {
      std::memcpy(target, &value, count * sizeof(T));
    }
  } else {
    const u16x16 bits = narrow(value, T{});
    if (count == kLanes) {
      std::memcpy(target, &bits, sizeof(bits));
    } else {
      std::memcpy(target, &bits, count * sizeof(T));
    }
  }
}

}  // namespace jepa_fast
