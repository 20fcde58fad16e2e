// Token routing on the CPU: rows are read once and written once, whatever their number of features. The layouts are in
// README.md.

#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/error.h>
#include <tvm/ffi/function.h>
#include <tvm/ffi/optional.h>

#include <vector>

#include "types.h"

namespace {

using namespace jepa_fast;
using tvm::ffi::Optional;
using tvm::ffi::TensorView;

constexpr int64_t kTypeBytes[] = {4, 2, 2};

char* at(void* data, int64_t type, int64_t offset) { return static_cast<char*>(data) + offset * kTypeBytes[type]; }

// Calls function(In{}, Out{}) with the storage types of a number 3 * in + out.
template <typename Function>
JEPA_FAST_INLINE void with_types(int64_t types, Function function) {
  switch (types) {
    case 0: return function(float{}, float{});
    case 1: return function(float{}, bfloat16{});
    case 2: return function(float{}, float16{});
    case 3: return function(bfloat16{}, float{});
    case 4: return function(bfloat16{}, bfloat16{});
    case 5: return function(bfloat16{}, float16{});
    case 6: return function(float16{}, float{});
    case 7: return function(float16{}, bfloat16{});
    default: return function(float16{}, float16{});
  }
}

// out = x + position; position may be null, x too where position is not.
template <typename In, typename Out>
JEPA_FAST_INLINE void add_row(const In* x, const float* position, Out* out, int64_t features) {
  int64_t i = 0;
  if (position) {
    for (; i + kLanes <= features; i += kLanes) store(out + i, load(x + i) + load(position + i));
    const int64_t rest = features - i;
    if (rest) store(out + i, load(x + i, rest) + load(position + i, rest), rest);
  } else if constexpr (std::is_same_v<In, Out>) {
    std::memcpy(out, x, features * sizeof(In));
  } else {
    for (; i + kLanes <= features; i += kLanes) store(out + i, load(x + i));
    if (i < features) store(out + i, load(x + i, features - i), features - i);
  }
}

JEPA_FAST_KERNEL void add_row_of(int64_t types, const void* x, const float* position, void* out, int64_t features) {
  with_types(types, [&](auto in, auto to) __attribute__((always_inline)) {
    add_row(static_cast<const decltype(in)*>(x), position, static_cast<decltype(to)*>(out), features);
  });
}

// out = sum of the rows that `next` links from `first` on, in that order, plus what out holds if accumulate.
template <typename In, typename Out>
JEPA_FAST_INLINE void sum_rows(const In* rows, const int64_t* next, int64_t first, Out* out, int64_t features,
                               bool accumulate) {
  for (int64_t i = 0; i < features; i += kLanes) {
    const int64_t count = std::min(kLanes, features - i);
    vf32 sum = accumulate ? load(out + i, count) : vf32{};
    for (int64_t k = first; k >= 0; k = next[k]) sum += load(rows + k * features + i, count);
    store(out + i, sum, count);
  }
}

JEPA_FAST_KERNEL void sum_rows_of(int64_t types, const void* rows, const int64_t* next, int64_t first, void* out,
                                  int64_t features, bool accumulate) {
  with_types(types, [&](auto in, auto to) __attribute__((always_inline)) {
    sum_rows(static_cast<const decltype(in)*>(rows), next, first, static_cast<decltype(to)*>(out), features,
             accumulate);
  });
}

// out = sum over m of the rows x + m * step.
template <typename In, typename Out>
JEPA_FAST_INLINE void sum_strided(const In* x, int64_t step, int64_t masks, Out* out, int64_t features) {
  for (int64_t i = 0; i < features; i += kLanes) {
    const int64_t count = std::min(kLanes, features - i);
    vf32 sum = {};
    for (int64_t m = 0; m < masks; ++m) sum += load(x + m * step + i, count);
    store(out + i, sum, count);
  }
}

JEPA_FAST_KERNEL void sum_strided_of(int64_t types, const void* x, int64_t step, int64_t masks, void* out,
                                     int64_t features) {
  with_types(types, [&](auto in, auto to) __attribute__((always_inline)) {
    sum_strided(static_cast<const decltype(in)*>(x), step, masks, static_cast<decltype(to)*>(out), features);
  });
}

// sum += the sum of `count` contiguous rows.
template <typename In>
JEPA_FAST_INLINE void add_rows(const In* x, int64_t count, float* sum, int64_t features) {
  int64_t k = 0;
  for (; k + 4 <= count; k += 4, x += 4 * features)
    for (int64_t i = 0; i < features; i += kLanes) {
      const int64_t n = std::min(kLanes, features - i);
      const vf32 pairs = (load(x + i, n) + load(x + features + i, n)) +
                           (load(x + 2 * features + i, n) + load(x + 3 * features + i, n));
      store(sum + i, load(sum + i, n) + pairs, n);
    }
  for (; k < count; ++k, x += features)
    for (int64_t i = 0; i < features; i += kLanes) {
      const int64_t n = std::min(kLanes, features - i);
      store(sum + i, load(sum + i, n) + load(x + i, n), n);
    }
}

JEPA_FAST_KERNEL void add_rows_of(int64_t type, const void* x, int64_t count, float* sum, int64_t features) {
  switch (type) {
    case 0: return add_rows(static_cast<const float*>(x), count, sum, features);
    case 1: return add_rows(static_cast<const bfloat16*>(x), count, sum, features);
    default: return add_rows(static_cast<const float16*>(x), count, sum, features);
  }
}

// The flat place of the first value outside [0, length), or -1.
int64_t first_outside(TensorView index, int64_t length) {
  const int64_t* values = static_cast<const int64_t*>(index.data_ptr());
  for (int64_t i = 0; i < index.numel(); ++i)
    if (values[i] < 0 || values[i] >= length) return i;
  return -1;
}

const float* data_or_null(const Optional<TensorView>& tensor) {
  return tensor.has_value() ? static_cast<const float*>(tensor.value().data_ptr()) : nullptr;
}

// x: [B, N, D] with a contiguous last dimension. index: [R, K], contiguous. position: float32 [N, D], contiguous, or
// null. out: [R, K, D], contiguous. Returns -1, or the place of a value outside, and then has written nothing.
int64_t token_gather(TensorView x, TensorView index, Optional<TensorView> position, TensorView out, int64_t threads) {
  const int64_t samples = x.size(0), length = x.size(1), features = x.size(2), tokens = index.size(1);
  const int64_t rows = index.numel();
  const int64_t bad = first_outside(index, length);
  if (bad >= 0) return bad;
  const int64_t in = type_number(x), to = type_number(out), types = 3 * in + to;
  const int64_t* values = static_cast<const int64_t*>(index.data_ptr());
  const float* table = data_or_null(position);
  const auto source = [&](int64_t row) {
    return at(x.data_ptr(), in, row / tokens % samples * x.stride(0) + values[row] * x.stride(1));
  };
#pragma omp parallel for schedule(static) num_threads(static_cast<int>(threads)) if (rows * features > kParallelFrom)
  for (int64_t row = 0; row < rows; ++row) {
    // The index jumps about, so the next row is out of the hardware prefetcher's reach.
    if (row + 1 < rows)
      for (int64_t i = 0; i < features * kTypeBytes[in]; i += kCacheLine) __builtin_prefetch(source(row + 1) + i);
    add_row_of(types, source(row), table ? table + values[row] * features : nullptr,
               at(out.data_ptr(), to, row * features), features);
  }
  return -1;
}

// out [B, N, D] = the sum of the rows of grad [R, K, D] whose index is the token, in the order of the rows, plus what
// it holds if accumulate. All contiguous; the values of index were checked by the forward.
void token_scatter(TensorView grad, TensorView index, TensorView out, bool accumulate, int64_t threads) {
  const int64_t samples = out.size(0), length = out.size(1), features = out.size(2);
  const int64_t rows = index.size(0), tokens = index.size(1), masks = samples ? rows / samples : 0;
  const int64_t* values = static_cast<const int64_t*>(index.data_ptr());
  const int64_t in = type_number(grad), to = type_number(out), types = 3 * in + to;
  // For each token the first row of its sum, and for each row the next one.
  std::vector<int64_t> first(samples * length, -1), next(rows * tokens);
  for (int64_t e = masks - 1; e >= 0; --e)
    for (int64_t b = 0; b < samples; ++b)
      for (int64_t k = tokens - 1; k >= 0; --k) {
        const int64_t row = (e * samples + b) * tokens + k;
        int64_t& head = first[b * length + values[row]];
        next[row] = head;
        head = row;
      }
#pragma omp parallel for schedule(static) num_threads(static_cast<int>(threads)) \
    if (samples * length * features > kParallelFrom)
  for (int64_t i = 0; i < samples * length; ++i) {
    char* target = at(out.data_ptr(), to, i * features);
    if (first[i] >= 0) {
      sum_rows_of(types, grad.data_ptr(), next.data(), first[i], target, features, accumulate);
    } else if (!accumulate) {
      std::memset(target, 0, features * kTypeBytes[to]);
    }
  }
}

// context: [E * B, Nc, D] with a contiguous last dimension; indices, position float32 [N, D], mask_token float32 [D]
// and out [M * E * B, Nc + Np, D]: contiguous. Returns -1, or the place of an index value outside, counted through
// context_index and then target_index, and then has written nothing.
int64_t token_assemble(TensorView context, TensorView context_index, TensorView target_index, TensorView position,
                       TensorView mask_token, int64_t samples, TensorView out, int64_t threads) {
  const int64_t length = position.size(0), features = position.size(1);
  int64_t bad = first_outside(context_index, length);
  if (bad >= 0) return bad;
  bad = first_outside(target_index, length);
  if (bad >= 0) return context_index.numel() + bad;
  const int64_t in = type_number(context), to = type_number(out), types = 3 * in + to;
  const int64_t contexts = context.size(0), seen = context.size(1), total = out.size(1), hidden = total - seen;
  const int64_t* seen_at = static_cast<const int64_t*>(context_index.data_ptr());
  const int64_t* hidden_at = static_cast<const int64_t*>(target_index.data_ptr());
  const float* table = static_cast<const float*>(position.data_ptr());
  const float* mask = static_cast<const float*>(mask_token.data_ptr());
  const int64_t rows = out.size(0) * total;
#pragma omp parallel for schedule(static) num_threads(static_cast<int>(threads)) if (rows * features > kParallelFrom)
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t sequence = row / total, token = row % total, source = sequence % contexts;
    char* target = at(out.data_ptr(), to, row * features);
    if (token < seen) {
      const char* x = at(context.data_ptr(), in, source * context.stride(0) + token * context.stride(1));
      add_row_of(types, x, table + seen_at[source * seen + token] * features, target, features);
    } else {
      const int64_t pair = sequence / contexts * samples + source % samples;
      add_row_of(to, mask, table + hidden_at[pair * hidden + token - seen] * features, target, features);
    }
  }
  return -1;
}

// grad: [M * E * B, Nc + Np, D], contiguous. grad_context: [E * B, Nc, D], receives the sums over M. grad_mask:
// float32 [D], receives the sum over all targets.
void token_assemble_backward(TensorView grad, TensorView grad_context, TensorView grad_mask, int64_t threads) {
  const int64_t contexts = grad_context.size(0), seen = grad_context.size(1), features = grad.size(2);
  const int64_t sequences = grad.size(0), total = grad.size(1), masks = contexts ? sequences / contexts : 0;
  const int64_t in = type_number(grad), to = type_number(grad_context), types = 3 * in + to;
  const int64_t count = sequences * total * features;
  // One part for each sequence, and they are added in order: the same sum whatever the number of threads.
  std::vector<float> parts(sequences * features, 0.0f);
#pragma omp parallel num_threads(static_cast<int>(threads)) if (count > kParallelFrom)
  {
#pragma omp for schedule(static) nowait
    for (int64_t row = 0; row < contexts * seen; ++row)
      sum_strided_of(types, at(grad.data_ptr(), in, (row / seen * total + row % seen) * features),
                     contexts * total * features, masks, at(grad_context.data_ptr(), to, row * features), features);
#pragma omp for schedule(static)
    for (int64_t s = 0; s < sequences; ++s)
      add_rows_of(in, at(grad.data_ptr(), in, (s * total + seen) * features), total - seen,
                  parts.data() + s * features, features);
  }
  float* sum = static_cast<float*>(grad_mask.data_ptr());
  std::fill(sum, sum + features, 0.0f);
  add_rows_of(0, parts.data(), sequences, sum, features);
}

}  // namespace

TVM_FFI_DLL_EXPORT_TYPED_FUNC(token_gather, token_gather);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(token_scatter, token_scatter);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(token_assemble, token_assemble);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(token_assemble_backward, token_assemble_backward);
