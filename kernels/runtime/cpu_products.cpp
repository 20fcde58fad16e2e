// Products of matrices of any storage type, with float32 sums, in the blocks of product.h.
//
// The right factor is packed once into panels as wide as a block, which stay in the first-level cache while rows of the
// left one pass over them. A task is a tile of the result, held in float32 in the second-level cache until its sums are
// whole; then it meets the bias and its storage type, in whole rows: blocks stored where they belong took a third longer.

#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/function.h>
#include <tvm/ffi/optional.h>

#include <vector>

#include "product.h"
#include "types.h"

namespace {

using namespace jepa_fast;
using tvm::ffi::Optional;
using tvm::ffi::TensorView;

constexpr int64_t kPanel = kBlockVectors * kLanes;  // columns
constexpr int64_t kDepth = 4096 / kPanel;           // terms of a sum at a time: a panel of them takes 16 KB
constexpr int64_t kRows = 32 * kBlockRows;          // of a task, at most
constexpr int64_t kColumns = 256;                   // of a task, at most
constexpr int64_t kTasks = 4;                       // for each thread, at least, where there are rows for them
constexpr int64_t kAhead = 6;  // rows, which may be a page apart, where the CPU fetches none by itself
// A block of rows of the left factor, and what its last store overruns.
constexpr int64_t kBlock = kBlockRows * kDepth + kLanes;
// Parts of the rows whose sums are formed apart: they depend on the shape alone, not on the number of threads.
constexpr int64_t kMostParts = 64, kFewestSummed = 32;

// rows x columns, one of whose strides is 1.
struct Matrix {
  void* data;
  int64_t type, rows, columns, row, column;

  explicit Matrix(TensorView x)
      : data(x.data_ptr()), type(type_number(x)), rows(x.size(0)), columns(x.size(1)), row(x.stride(0)),
        column(x.stride(1)) {}

  void transpose() {
    std::swap(rows, columns);
    std::swap(row, column);
  }
};

int64_t ceil_div(int64_t size, int64_t part) { return (size + part - 1) / part; }

// target[r][i] = source[r * stride + i] in float32, zeros for i from `columns` to `padded`, a multiple of kLanes.
template <typename T>
JEPA_FAST_INLINE void widen_rows(const T* source, int64_t stride, int64_t rows, int64_t columns, float* target,
                                 int64_t target_stride, int64_t padded) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t i = 0; i < padded; i += kLanes)
      store(target + r * target_stride + i,
            load(source + r * stride + i, std::clamp<int64_t>(columns - i, 0, kLanes)));
}

// target[i][r] = source[r * stride + i] in float32. Past `rows` there are zeros, up to a multiple of kLanes.
template <typename T>
JEPA_FAST_INLINE void widen_transposed(const T* source, int64_t stride, int64_t rows, int64_t columns, float* target,
                                       int64_t target_stride) {
  alignas(kCacheLine) float block[kLanes * kLanes];
  for (int64_t r = 0; r < rows; r += kLanes)
    for (int64_t i = 0; i < columns; i += kLanes) {
      const int64_t height = std::min(kLanes, rows - r), width = std::min(kLanes, columns - i);
      widen_rows(source + r * stride + i, stride, height, width, block, kLanes, kLanes);
      if (height < kLanes) std::fill(block + height * kLanes, block + kLanes * kLanes, 0.0f);
      if (width == kLanes) {
        transpose_block(block, kLanes, target + i * target_stride + r, target_stride);
      } else {
        for (int64_t k = 0; k < width; ++k)
          for (int64_t j = 0; j < kLanes; ++j) target[(i + k) * target_stride + r + j] = block[j * kLanes + k];
      }
    }
}

// One panel of the right factor: [rows][kPanel], zeros past its last column.
JEPA_FAST_KERNEL void pack_panel(const Matrix& b, int64_t first, float* panel) {
  const int64_t columns = std::min(kPanel, b.columns - first);
  with_type(b.type, [&](auto type) __attribute__((always_inline)) {
    const auto* source = static_cast<const decltype(type)*>(b.data) + first * b.column;
    if (b.column == 1) return widen_rows(source, b.row, b.rows, columns, panel, kPanel, kPanel);
    if (columns <= kPanel - kLanes) std::fill(panel, panel + b.rows * kPanel, 0.0f);
    widen_transposed(source, b.column, columns, b.rows, panel, kPanel);
  });
}

// Rows of the left factor in float32, `depth` values of each from k on: one row after the other if its rows are
// contiguous, kDepth apart, else blocks of kBlockRows rows whose values stand side by side, [depth][kBlockRows], kBlock
// apart.
JEPA_FAST_KERNEL void widen_left(const Matrix& a, int64_t row, int64_t rows, int64_t k, int64_t depth, float* target) {
  with_type(a.type, [&](auto type) __attribute__((always_inline)) {
    const auto* source = static_cast<const decltype(type)*>(a.data) + row * a.row + k * a.column;
    if (a.column == 1) return widen_rows(source, a.row, rows, depth, target, kDepth, ceil_div(depth, kLanes) * kLanes);
    // A vector at a time where one can be read: what it writes past its block's row, the next row overwrites.
    static_assert(kLanes >= kBlockRows || kLanes == 4);
    for (int64_t i = 0; i < depth; ++i, source += a.column) {
      for (int64_t r = 0; r < rows; r += kCacheLine / int64_t{sizeof(*source)})
        __builtin_prefetch(source + kAhead * a.column + r);
      for (int64_t r = 0; r < rows; r += kBlockRows) {
        float* to = target + r / kBlockRows * kBlock + i * kBlockRows;
        const int64_t count = std::min(kBlockRows, rows - r);
        if (kLanes >= kBlockRows && r + kLanes <= rows) {
          store(to, load(source + r));
        } else {
          for (int64_t j = 0; j < count; j += kLanes)
            store(to + j, load(source + r + j, std::min(kLanes, count - j)), std::min(kLanes, count - j));
        }
      }
    }
  });
}

// The part of out from (row, column) on, [rows][columns], = tile + bias, rounded to its type. There is no bias where rows
// of out are not contiguous, but columns.
JEPA_FAST_KERNEL void narrow_tile(const float* tile, const void* bias, const Matrix& out, int64_t row, int64_t rows,
                                  int64_t column, int64_t columns) {
  with_type(out.type, [&](auto type) __attribute__((always_inline)) {
    using T = decltype(type);
    T* target = static_cast<T*>(out.data) + row * out.row + column * out.column;
    if (out.column != 1) {
      alignas(kCacheLine) float block[kLanes * kLanes];
      for (int64_t i = 0; i < columns; i += kLanes)
        for (int64_t r = 0; r < rows; r += kLanes) {
          transpose_block(tile + r * kColumns + i, kColumns, block, kLanes);
          for (int64_t k = 0; k < std::min(kLanes, columns - i); ++k)
            store(target + (i + k) * out.column + r, load(block + k * kLanes), std::min(kLanes, rows - r));
        }
      return;
    }
    const T* added = bias ? static_cast<const T*>(bias) + column : nullptr;
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t i = 0; i < columns; i += kLanes) {
        const int64_t count = std::min(kLanes, columns - i);
        vf32 value = load(tile + r * kColumns + i);
        if (added) value += load(added + i, count);
        store(target + r * out.row + i, value, count);
      }
  });
}

// What a thread works with. It stays with the thread: memory that is given back has to be cleared anew by the system.
struct Room {
  // Rows are written and read up to whole vectors; zeros at first.
  std::vector<float> left = std::vector<float>(kRows / kBlockRows * kBlock);
  std::vector<float> tile = std::vector<float>((kRows + kLanes) * kColumns);
};

Room& room_of_thread() {
  static thread_local Room room;
  return room;
}

// block: from one kBlockRows rows of a to the next.
JEPA_FAST_KERNEL void multiply_panels(int64_t rows, int64_t columns, int64_t depth, Left a, int64_t block,
                                      const float* panels, int64_t panel_stride, float* tile, bool add) {
  for (int64_t i = 0; i < columns; i += kPanel)
    for (int64_t r = 0; r < rows; r += kBlockRows)
      multiply_columns<Float32Words, kBlockVectors>(
          std::min(kBlockRows, rows - r), {a.data + r / kBlockRows * block, a.row, a.depth},
          panels + i / kPanel * panel_stride, kPanel, tile + r * kColumns + i, kColumns, depth, add);
}

void multiply_task(const Matrix& a, const float* panels, const void* bias, const Matrix& out, int64_t row,
                   int64_t rows, int64_t column, Room& room) {
  const int64_t columns = std::min(kColumns, out.columns - column), terms = a.columns;
  if (terms == 0) std::fill_n(room.tile.data(), rows * kColumns, 0.0f);
  for (int64_t k = 0; k < terms; k += kDepth) {
    const int64_t depth = std::min(kDepth, terms - k);
    Left left = {static_cast<const float*>(a.data) + row * a.row + k, a.row, 1};
    int64_t block = kBlockRows * a.row;
    if (a.type != 0 || a.column != 1) {
      widen_left(a, row, rows, k, depth, room.left.data());
      left = a.column == 1 ? Left{room.left.data(), kDepth, 1} : Left{room.left.data(), 1, kBlockRows};
      block = a.column == 1 ? kBlockRows * kDepth : kBlock;
    }
    multiply_panels(rows, columns, depth, left, block, panels + column * terms + k * kPanel, terms * kPanel,
                    room.tile.data(), k > 0);
  }
  narrow_tile(room.tile.data(), bias, out, row, rows, column, columns);
}

// sums += rows [first, last) of x; sums: up to whole vectors.
JEPA_FAST_KERNEL void add_rows(const Matrix& x, int64_t first, int64_t last, float* sums) {
  with_type(x.type, [&](auto type) __attribute__((always_inline)) {
    for (int64_t r = first; r < last; ++r) {
      const auto* row = static_cast<const decltype(type)*>(x.data) + r * x.row;
      for (int64_t i = 0; i < x.columns; i += kLanes)
        store(sums + i, load(sums + i) + load(row + i, std::min(kLanes, x.columns - i)));
    }
  });
}

// out [columns] = the sum of the rows of x.
void sum_rows(const Matrix& x, float* out, int64_t threads) {
  const int64_t height = std::max(kFewestSummed, ceil_div(x.rows, kMostParts)), parts = ceil_div(x.rows, height);
  const int64_t stride = ceil_div(x.columns, kLanes) * kLanes;
  std::vector<float> partial(parts * stride);
#pragma omp parallel for schedule(static) num_threads(static_cast<int>(threads)) if (x.rows * x.columns > kParallelFrom)
  for (int64_t i = 0; i < parts; ++i)
    add_rows(x, i * height, std::min((i + 1) * height, x.rows), partial.data() + i * stride);
  std::fill_n(out, x.columns, 0.0f);
  for (int64_t i = 0; i < parts; ++i)
    for (int64_t d = 0; d < x.columns; ++d) out[d] += partial[i * stride + d];
}

// A sum's terms are taken in the same order whatever the number of threads.
void multiply(Matrix left, Matrix right, const void* added, Matrix target, int64_t threads) {
  if (target.rows == 0 || target.columns == 0) return;
  if (!added && left.rows < right.columns) {  // what is packed passes through memory: the smaller one
    std::swap(left, right);
    for (Matrix* matrix : {&left, &right, &target}) matrix->transpose();
  }
  const int64_t panels = ceil_div(right.columns, kPanel), across = ceil_div(right.columns, kColumns);
  // As many tasks for every thread; all rows for one run of columns, whose panels may still be in the cache, then the next.
  const int64_t parts = std::max(ceil_div(left.rows, kRows), ceil_div(kTasks * threads, across));
  const int64_t rows = ceil_div(ceil_div(left.rows, ceil_div(parts, threads) * threads), kBlockRows) * kBlockRows;
  const int64_t down = ceil_div(left.rows, rows), tasks = down * across;
  static thread_local std::vector<float> packed;
  packed.resize(std::max<size_t>(packed.size(), panels * right.rows * kPanel));
  float* panel_data = packed.data();
#pragma omp parallel num_threads(static_cast<int>(threads)) if (left.rows * right.columns > kParallelFrom)
  {
    Room& room = room_of_thread();
#pragma omp for schedule(static)
    for (int64_t i = 0; i < panels; ++i) pack_panel(right, i * kPanel, panel_data + i * right.rows * kPanel);
#pragma omp for schedule(dynamic)
    for (int64_t i = 0; i < tasks; ++i) {
      const int64_t row = i % down * rows;
      multiply_task(left, panel_data, added, target, row, std::min(rows, left.rows - row), i / down * kColumns, room);
    }
  }
}

// out = a b, plus bias [N] in every row if there is one. a [M, K] and b [K, N] are of one type and have a stride of 1
// each, out [M, N] has contiguous rows, bias is contiguous and of its type.
void product(TensorView a, TensorView b, Optional<TensorView> bias, TensorView out, int64_t threads) {
  multiply(Matrix(a), Matrix(b), bias.has_value() ? bias.value().data_ptr() : nullptr, Matrix(out), threads);
}

// Of a linear layer: grad_weight [N, K] = grad' x, grad_bias float32 [N] = the sum of grad's rows, grad_x [T, K] =
// grad weight, in this order: grad_x may be x. grad [T, N], x [T, K] and weight [N, K] are of one type, with contiguous
// rows.
void linear_backward(TensorView grad, TensorView x, TensorView weight, TensorView grad_weight,
                     Optional<TensorView> grad_bias, Optional<TensorView> grad_x, int64_t threads) {
  Matrix turned(grad);
  turned.transpose();
  multiply(turned, Matrix(x), nullptr, Matrix(grad_weight), threads);
  if (grad_bias.has_value()) sum_rows(Matrix(grad), static_cast<float*>(grad_bias.value().data_ptr()), threads);
  if (grad_x.has_value()) multiply(Matrix(grad), Matrix(weight), nullptr, Matrix(grad_x.value()), threads);
}

}  // namespace

TVM_FFI_DLL_EXPORT_TYPED_FUNC(product, product);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(linear_backward, linear_backward);
