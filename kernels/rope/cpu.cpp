// rope_3d on the CPU: one pass over queries and keys, token by token, so that a row of the tables is read once for all
// heads. The maths is in README.md.

#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/error.h>
#include <tvm/ffi/function.h>
#include <tvm/ffi/optional.h>

#include "rotate.h"
#include "types.h"

namespace {

using namespace jepa_fast;
using tvm::ffi::Optional;
using tvm::ffi::TensorView;

// The heads of one token.
template <typename T>
JEPA_FAST_INLINE void rotate_token(const T* x, int64_t head_stride, T* out, int64_t heads, int64_t dim,
                                   const float* cosine, const float* sine, bool transposed) {
  int64_t i = 0;
  for (; i + kLanes <= dim; i += kLanes) {
    const vf32 c = load(cosine + i), s = load(sine + i);
    for (int64_t h = 0; h < heads; ++h)
      store(out + h * dim + i, rotated(load(x + h * head_stride + i), c, s, transposed));
  }
  if (i < dim) {
    const int64_t rest = dim - i;
    const vf32 c = load(cosine + i, rest), s = load(sine + i, rest);
    for (int64_t h = 0; h < heads; ++h)
      store(out + h * dim + i, rotated(load(x + h * head_stride + i, rest), c, s, transposed), rest);
  }
}

template <typename T>
JEPA_FAST_INLINE void rotate_typed(const void* x, int64_t offset, int64_t head_stride, void* out, int64_t out_offset,
                                   int64_t heads, int64_t dim, const float* cosine, const float* sine,
                                   bool transposed) {
  // A constant picks one of two loops: a test inside would cost as much as the arithmetic.
  if (transposed) {
    rotate_token(static_cast<const T*>(x) + offset, head_stride, static_cast<T*>(out) + out_offset, heads, dim, cosine,
                 sine, true);
  } else {
    rotate_token(static_cast<const T*>(x) + offset, head_stride, static_cast<T*>(out) + out_offset, heads, dim, cosine,
                 sine, false);
  }
}

JEPA_FAST_KERNEL void rotate_any(int64_t type, const void* x, int64_t offset, int64_t head_stride, void* out,
                                 int64_t out_offset, int64_t heads, int64_t dim, const float* cosine,
                                 const float* sine, bool transposed) {
  switch (type) {
    case 0:
      return rotate_typed<float>(x, offset, head_stride, out, out_offset, heads, dim, cosine, sine, transposed);
    case 1:
      return rotate_typed<bfloat16>(x, offset, head_stride, out, out_offset, heads, dim, cosine, sine, transposed);
    default:
      return rotate_typed<float16>(x, offset, head_stride, out, out_offset, heads, dim, cosine, sine, transposed);
  }
}

// cos, sin: float32 [rows, dim], contiguous; token n of sample b has row b * rows_per_sample + n. query, key:
// [B, N, heads, dim] with a contiguous last dimension; their outs are contiguous. api.py has checked shapes and dtypes.
void rope_3d(TensorView cos, TensorView sin, int64_t rows_per_sample, TensorView query, TensorView query_out,
             Optional<TensorView> key, Optional<TensorView> key_out, bool transposed, int64_t threads) {
  const int64_t samples = query.size(0), tokens = query.size(1), dim = query.size(3), type = type_number(query);
  const int64_t heads_q = query.size(2), heads_k = key.has_value() ? key.value().size(2) : 0;
  const float* cosine = static_cast<const float*>(cos.data_ptr());
  const float* sine = static_cast<const float*>(sin.data_ptr());
  const void* key_data = heads_k ? key.value().data_ptr() : nullptr;
  void* key_out_data = heads_k ? key_out.value().data_ptr() : nullptr;
  const int64_t key_strides[3] = {heads_k ? key.value().stride(0) : 0, heads_k ? key.value().stride(1) : 0,
                                  heads_k ? key.value().stride(2) : 0};
  const int64_t count = samples * tokens * (heads_q + heads_k) * dim;
#pragma omp parallel for schedule(static) num_threads(static_cast<int>(threads)) if (count > kParallelFrom)
  for (int64_t i = 0; i < samples * tokens; ++i) {
    const int64_t b = i / tokens, n = i % tokens, row = (b * rows_per_sample + n) * dim;
    rotate_any(type, query.data_ptr(), b * query.stride(0) + n * query.stride(1), query.stride(2), query_out.data_ptr(),
               i * heads_q * dim, heads_q, dim, cosine + row, sine + row, transposed);
    if (heads_k)
      rotate_any(type, key_data, b * key_strides[0] + n * key_strides[1], key_strides[2], key_out_data,
                 i * heads_k * dim, heads_k, dim, cosine + row, sine + row, transposed);
  }
}

}  // namespace

TVM_FFI_DLL_EXPORT_TYPED_FUNC(rope_3d, rope_3d);
