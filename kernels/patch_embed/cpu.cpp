// Patches on the CPU: the kept patches as rows in the dtype of the product, cast and normalised as they are copied, and
// the position rows beside the product. The layouts are in README.md.

#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/error.h>
#include <tvm/ffi/function.h>
#include <tvm/ffi/optional.h>

#include "simd.h"

namespace {

using namespace jepa_fast;
using tvm::ffi::Optional;
using tvm::ffi::TensorView;

typedef uint8_t vu8 __attribute__((vector_size(JEPA_FAST_LANES)));

// Storage types are numbered float 0, bfloat16 1, float16 2, uint8 3.
int64_t type_number(TensorView tensor) {
  const DLDataType type = tensor.dtype();
  if (type.code == kDLUInt) return 3;
  if (type.code == kDLFloat && type.bits == 32) return 0;
  return type.code == kDLBfloat ? 1 : 2;
}

constexpr int64_t kTypeBytes[] = {4, 2, 2, 1};

template <typename T>
JEPA_FAST_INLINE vf32 load_pixels(const T* source, int64_t count) {
  if constexpr (std::is_same_v<T, uint8_t>) {
    vu8 bytes = {};
    std::memcpy(&bytes, source, count);
    return __builtin_convertvector(bytes, vf32);
  } else {
    return load(source, count);
  }
}

struct Grid {
  int64_t channels, tubelet, height, width;  // of a patch
  int64_t rows, columns;                     // of patches in a frame
  int64_t strides[4];                        // elements, of channel, frame, line and pixel in the source
};

// One patch, in order of channel, frame, line and pixel. kWidth: pixels of a line, or 0 if they are not known here.
template <int64_t kWidth, typename In, typename Out>
JEPA_FAST_INLINE void copy_patch(const Grid& g, const In* x, const float* scale, const float* shift, Out* out) {
  const int64_t width = kWidth ? kWidth : g.width;
  for (int64_t c = 0; c < g.channels; ++c)
    for (int64_t t = 0; t < g.tubelet; ++t)
      for (int64_t y = 0; y < g.height; ++y, out += width) {
        const In* line = x + c * g.strides[0] + t * g.strides[1] + y * g.strides[2];
        if constexpr (std::is_same_v<In, Out>) {
          if (!scale) {
            std::memcpy(out, line, width * sizeof(In));
            continue;
          }
        }
        for (int64_t i = 0; i < width; i += kLanes) {
          const int64_t count = std::min(kLanes, width - i);
          vf32 value = load_pixels(line + i, count);
          if (scale) value = value * scale[c] + shift[c];
          store(out + i, value, count);
        }
      }
}

// Widths of lines that published models have are compiled by themselves: their copies are single instructions.
template <typename In, typename Out>
JEPA_FAST_INLINE void copy_patch(const Grid& g, const In* x, const float* scale, const float* shift, Out* out) {
  switch (g.width) {
    case 8: return copy_patch<8>(g, x, scale, shift, out);
    case 14: return copy_patch<14>(g, x, scale, shift, out);
    case 16: return copy_patch<16>(g, x, scale, shift, out);
    default: return copy_patch<0>(g, x, scale, shift, out);
  }
}

template <typename In>
JEPA_FAST_INLINE void copy_patch_from(int64_t to, const Grid& g, const In* x, const float* scale, const float* shift,
                                      void* out) {
  switch (to) {
    case 0: return copy_patch(g, x, scale, shift, static_cast<float*>(out));
    case 1: return copy_patch(g, x, scale, shift, static_cast<bfloat16*>(out));
    default: return copy_patch(g, x, scale, shift, static_cast<float16*>(out));
  }
}

JEPA_FAST_KERNEL void copy_patch_of(int64_t in, int64_t to, const Grid& g, const void* x, const float* scale,
                                    const float* shift, void* out) {
  switch (in) {
    case 0: return copy_patch_from(to, g, static_cast<const float*>(x), scale, shift, out);
    case 1: return copy_patch_from(to, g, static_cast<const bfloat16*>(x), scale, shift, out);
    case 2: return copy_patch_from(to, g, static_cast<const float16*>(x), scale, shift, out);
    default: return copy_patch_from(to, g, static_cast<const uint8_t*>(x), scale, shift, out);
  }
}

// out = base + position; base may be null.
template <typename Base, typename Out>
JEPA_FAST_INLINE void add_position(const Base* base, const float* position, Out* out, int64_t features) {
  for (int64_t i = 0; i < features; i += kLanes) {
    const int64_t count = std::min(kLanes, features - i);
    const vf32 value = load(position + i, count);
    store(out + i, base ? load(base + i, count) + value : value, count);
  }
}

template <typename Base>
JEPA_FAST_INLINE void add_position_to(int64_t to, const Base* base, const float* position, void* out,
                                      int64_t features) {
  switch (to) {
    case 0: return add_position(base, position, static_cast<float*>(out), features);
    case 1: return add_position(base, position, static_cast<bfloat16*>(out), features);
    default: return add_position(base, position, static_cast<float16*>(out), features);
  }
}

JEPA_FAST_KERNEL void add_position_of(int64_t in, int64_t to, const void* base, const float* position, void* out,
                                      int64_t features) {
  switch (in) {
    case 0: return add_position_to(to, static_cast<const float*>(base), position, out, features);
    case 1: return add_position_to(to, static_cast<const bfloat16*>(base), position, out, features);
    default: return add_position_to(to, static_cast<const float16*>(base), position, out, features);
  }
}

const int64_t* values_or_null(const Optional<TensorView>& index) {
  return index.has_value() ? static_cast<const int64_t*>(index.value().data_ptr()) : nullptr;
}

const float* floats_or_null(const Optional<TensorView>& tensor) {
  return tensor.has_value() ? static_cast<const float*>(tensor.value().data_ptr()) : nullptr;
}

// pixels: [B, C, T, H, W] with contiguous lines. index: int64 [R, K], contiguous, or null for all patches. scale, shift:
// float32 [C], or null. out: [R, K, C * t * h * w], contiguous. Returns -1, or the place of an index value outside, and
// then has written nothing.
int64_t patchify(TensorView pixels, int64_t tubelet, int64_t height, int64_t width, Optional<TensorView> index,
                 Optional<TensorView> scale, Optional<TensorView> shift, TensorView out, int64_t threads) {
  const int64_t rows = pixels.size(3) / height, columns = pixels.size(4) / width;
  const int64_t length = pixels.size(2) / tubelet * rows * columns;
  const Grid grid = {pixels.size(1), tubelet, height, width, rows, columns,
                     {pixels.stride(1), pixels.stride(2), pixels.stride(3), 1}};
  const int64_t count = out.size(0) * out.size(1), tokens = out.size(1), values = out.size(2);
  const int64_t* kept = values_or_null(index);
  for (int64_t i = 0; kept && i < count; ++i)
    if (kept[i] < 0 || kept[i] >= length) return i;
  const int64_t in = type_number(pixels), to = type_number(out);
  const char* data = static_cast<const char*>(pixels.data_ptr());
  const float* scales = floats_or_null(scale);
  const float* shifts = floats_or_null(shift);
#pragma omp parallel for schedule(static) num_threads(static_cast<int>(threads)) if (count * values > kParallelFrom)
  for (int64_t i = 0; i < count; ++i) {
    const int64_t token = kept ? kept[i] : i % tokens, place = token % (rows * columns);
    const int64_t offset = i / tokens % pixels.size(0) * pixels.stride(0) +
                           token / (rows * columns) * tubelet * pixels.stride(2) +
                           place / columns * height * pixels.stride(3) + place % columns * width;
    copy_patch_of(in, to, grid, data + offset * kTypeBytes[in], scales, shifts,
                  static_cast<char*>(out.data_ptr()) + i * values * kTypeBytes[to]);
  }
  return -1;
}

// out [rows, D] = base [rows, D], or bias [D] for every row, or nothing, plus the position of the row's token. index as
// above, checked; position: float32 [N, D], contiguous.
void patch_positions(Optional<TensorView> base, Optional<TensorView> bias, Optional<TensorView> index,
                     TensorView position, TensorView out, int64_t threads) {
  const int64_t rows = out.size(0), features = out.size(1), length = position.size(0);
  const int64_t in = base.has_value() ? type_number(base.value()) : 0, to = type_number(out);
  const int64_t* kept = values_or_null(index);
  const float* table = static_cast<const float*>(position.data_ptr());
  const float* same = floats_or_null(bias);
#pragma omp parallel for schedule(static) num_threads(static_cast<int>(threads)) if (rows * features > kParallelFrom)
  for (int64_t row = 0; row < rows; ++row) {
    const void* own =
        base.has_value() ? static_cast<const char*>(base.value().data_ptr()) + row * features * kTypeBytes[in] : nullptr;
    add_position_of(in, to, base.has_value() ? own : same, table + (kept ? kept[row] : row % length) * features,
                    static_cast<char*>(out.data_ptr()) + row * features * kTypeBytes[to], features);
  }
}

}  // namespace

TVM_FFI_DLL_EXPORT_TYPED_FUNC(patchify, patchify);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(patch_positions, patch_positions);
