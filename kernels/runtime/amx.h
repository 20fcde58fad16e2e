// Products of bfloat16 matrices by AMX, the matrix units of Intel's server CPUs from Sapphire Rapids on: eight tiles of
// 16 rows of 64 bytes, and one instruction that adds the product of two of them to a third, 16 times the
// multiply-adds of AVX-512 in a cycle. In assembly, as the library with AVX-512 serves CPUs without them, too.
#pragma once

#include "simd.h"

#if defined(__AVX512F__) && defined(__linux__)
#define JEPA_FAST_AMX
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#endif

namespace jepa_fast {

constexpr int64_t kAmxRows = 16;  // of a tile, whose columns are as many 32-bit words

#ifdef JEPA_FAST_AMX

// Whether the CPU has it and the system lets this process use it: Linux has to be asked for the state of its registers.
inline bool amx_is_granted() {
  uint32_t a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  constexpr uint32_t kBFloat16 = 1u << 22, kTiles = 1u << 24;
  if (!(d & kBFloat16) || !(d & kTiles) || !cpu_has_bfloat16()) return false;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

// ONEDNN_MAX_CPU_ISA, which keeps PyTorch's own products from AMX, keeps these from it, too: asked every time, for
// tests.
inline bool cpu_has_amx() {
  static const bool granted = amx_is_granted();
  if (!granted) return false;
  const char* most = std::getenv("ONEDNN_MAX_CPU_ISA");
  const bool names_a_set = most && (strncasecmp(most, "sse", 3) == 0 || strncasecmp(most, "avx", 3) == 0);
  return !names_a_set || strcasestr(most, "amx") != nullptr;
}

// Tiles of this thread, whole ones, as long as this lives. Other code's do not outlive it.
class AmxTiles {
 public:
  explicit AmxTiles(bool wanted) : wanted_(wanted) {
    if (!wanted_) return;
    alignas(64) struct {
      uint8_t palette = 1, first_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } const configuration;
    asm volatile("ldtilecfg %0" ::"m"(configuration));
  }
  ~AmxTiles() {
    if (wanted_) asm volatile("tilerelease");
  }
  AmxTiles(const AmxTiles&) = delete;
  AmxTiles& operator=(const AmxTiles&) = delete;

 private:
  bool wanted_;
};

template <int TILE>
JEPA_FAST_INLINE void load_tile(const float* source, int64_t stride) {
  asm volatile("tileloadd (%0,%1,4), %%tmm%c2" ::"r"(source), "r"(stride), "i"(TILE) : "memory");
}
template <int TILE>
JEPA_FAST_INLINE void store_tile(float* target, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,4)" ::"r"(target), "r"(stride), "i"(TILE) : "memory");
}
template <int TILE>
JEPA_FAST_INLINE void clear_tile() {
  asm volatile("tilezero %%tmm%c0" ::"i"(TILE));
}
template <int SUM, int A, int B>
JEPA_FAST_INLINE void add_tile_product() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(SUM), "i"(A), "i"(B));
}

// C[16 ROWS][16 COLUMNS] = A B or C + A B. Sums are in tiles 0 to 3, A's rows in 4 and 5, B's columns in 6 and 7.
template <int ROWS, int COLUMNS>
JEPA_FAST_INLINE void amx_multiply_block(int64_t depth, const float* a, int64_t a_stride, const float* b,
                                         int64_t b_stride, float* c, int64_t c_stride, bool add) {
  static_assert((ROWS == 1 || ROWS == 2) && (COLUMNS == 1 || COLUMNS == 2));
  float* const c_below = c + kAmxRows * c_stride;
  if (add) {
    load_tile<0>(c, c_stride);
    if constexpr (COLUMNS == 2) load_tile<1>(c + kAmxRows, c_stride);
    if constexpr (ROWS == 2) load_tile<2>(c_below, c_stride);
    if constexpr (ROWS == 2 && COLUMNS == 2) load_tile<3>(c_below + kAmxRows, c_stride);
  } else {
    clear_tile<0>();
    if constexpr (COLUMNS == 2) clear_tile<1>();
    if constexpr (ROWS == 2) clear_tile<2>();
    if constexpr (ROWS == 2 && COLUMNS == 2) clear_tile<3>();
  }
  for (int64_t k = 0; k < depth; k += kAmxRows) {
    load_tile<6>(b + k * b_stride, b_stride);
    load_tile<4>(a + k, a_stride);
    add_tile_product<0, 4, 6>();
    if constexpr (COLUMNS == 2) {
      load_tile<7>(b + k * b_stride + kAmxRows, b_stride);
      add_tile_product<1, 4, 7>();
    }
    if constexpr (ROWS == 2) {
      load_tile<5>(a + kAmxRows * a_stride + k, a_stride);
      add_tile_product<2, 5, 6>();
      if constexpr (COLUMNS == 2) add_tile_product<3, 5, 7>();
    }
  }
  store_tile<0>(c, c_stride);
  if constexpr (COLUMNS == 2) store_tile<1>(c + kAmxRows, c_stride);
  if constexpr (ROWS == 2) store_tile<2>(c_below, c_stride);
  if constexpr (ROWS == 2 && COLUMNS == 2) store_tile<3>(c_below + kAmxRows, c_stride);
}

template <int COLUMNS>
JEPA_FAST_INLINE void amx_multiply_columns(int64_t rows, int64_t depth, const float* a, int64_t a_stride,
                                           const float* b, int64_t b_stride, float* c, int64_t c_stride, bool add) {
  int64_t r = 0;
  for (; r + 2 * kAmxRows <= rows; r += 2 * kAmxRows)
    amx_multiply_block<2, COLUMNS>(depth, a + r * a_stride, a_stride, b, b_stride, c + r * c_stride, c_stride, add);
  if (r < rows)
    amx_multiply_block<1, COLUMNS>(depth, a + r * a_stride, a_stride, b, b_stride, c + r * c_stride, c_stride, add);
}

// C[rows][columns] = A B or C + A B: as product.h's `multiply` with BFloat16Words, where A's words along the sum lie
// side by side. All sizes are multiples of 16, depth in words. An AmxTiles lives.
JEPA_FAST_INLINE void amx_multiply(int64_t rows, int64_t columns, int64_t depth, const float* a, int64_t a_stride,
                                   const float* b, int64_t b_stride, float* c, int64_t c_stride, bool add) {
  int64_t i = 0;
  for (; i + 2 * kAmxRows <= columns; i += 2 * kAmxRows)
    amx_multiply_columns<2>(rows, depth, a, a_stride, b + i, b_stride, c + i, c_stride, add);
  if (i < columns) amx_multiply_columns<1>(rows, depth, a, a_stride, b + i, b_stride, c + i, c_stride, add);
}

#else

inline bool cpu_has_amx() { return false; }

struct AmxTiles {
  explicit AmxTiles(bool) {}
};

// Never reached.
inline void amx_multiply(int64_t, int64_t, int64_t, const float*, int64_t, const float*, int64_t, float*, int64_t,
                         bool) {}

#endif

}  // namespace jepa_fast
