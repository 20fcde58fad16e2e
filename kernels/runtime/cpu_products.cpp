// Products of matrices of any storage type, with float32 sums, in the blocks of product.h.
//
// The right factor is packed once into panels as wide as a block, which stay in the first-level cache while rows of the
// left one pass over them. A task is a tile of the result, held in float32 in the second-level cache until its sums are
// whole; then it meets the bias and its storage type.

#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/function.h>
#include <tvm/ffi/optional.h>

#include <memory>

#include "product.h"
#include "types.h"

namespace {

using namespace jepa_fast;
using tvm::ffi::Optional;
using tvm::ffi::TensorView;

constexpr int64_t kPanel = kBlockVectors * kLanes;       // columns
constexpr int64_t kDepth = 4096 / kPanel;                // terms of a sum at a time: a panel of them takes 16 KB
constexpr int64_t kRows = 16 * kBlockRows;               // of a task, at most
constexpr int64_t kColumns = 256;                        // of a task, at most
constexpr int64_t kTasks = 4;                            // for each thread, at least, where there are rows for them

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

// Rows of the left factor, `depth` values of each from k on, with kDepth between them.
JEPA_FAST_KERNEL void widen_left(const Matrix& a, int64_t row, int64_t rows, int64_t k, int64_t depth, float* target) {
  with_type(a.type, [&](auto type) __attribute__((always_inline)) {
    const auto* source = static_cast<const decltype(type)*>(a.data) + row * a.row + k * a.column;
    if (a.column == 1) return widen_rows(source, a.row, rows, depth, target, kDepth, ceil_div(depth, kLanes) * kLanes);
    widen_transposed(source, a.column, depth, rows, target, kDepth);
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

struct Room {
  // Zeros at first: tiles are read up to whole vectors of rows.
  std::unique_ptr<float[]> left{new float[kRows * kDepth]}, tile{new float[(kRows + kLanes) * kColumns]()};
};

JEPA_FAST_KERNEL void multiply_panels(int64_t rows, int64_t columns, int64_t depth, Left a, const float* panels,
                                      int64_t panel_stride, float* tile, bool add) {
  for (int64_t i = 0; i < columns; i += kPanel)
    multiply_columns<Float32Words, kBlockVectors>(rows, a, panels + i / kPanel * panel_stride, kPanel, tile + i,
                                                  kColumns, depth, add);
}

void multiply_task(const Matrix& a, const float* panels, const void* bias, const Matrix& out, int64_t row,
                   int64_t rows, int64_t column, Room& room) {
  const int64_t columns = std::min(kColumns, out.columns - column), terms = a.columns;
  if (terms == 0) std::fill_n(room.tile.get(), rows * kColumns, 0.0f);
  for (int64_t k = 0; k < terms; k += kDepth) {
    const int64_t depth = std::min(kDepth, terms - k);
    Left left = {static_cast<const float*>(a.data) + row * a.row + k, a.row, 1};
    if (a.type != 0 || a.column != 1) {
      widen_left(a, row, rows, k, depth, room.left.get());
      left = {room.left.get(), kDepth, 1};
    }
    multiply_panels(rows, columns, depth, left, panels + column * terms + k * kPanel, terms * kPanel,
                    room.tile.get(), k > 0);
  }
  narrow_tile(room.tile.get(), bias, out, row, rows, column, columns);
}

// out = a b, plus bias [N] in every row if there is one. a [M, K] and b [K, N] are of one type and have a stride of 1
// each, out [M, N] has contiguous rows, bias is contiguous and of its type. A sum's terms are taken in the same order
// whatever the number of threads.
void product(TensorView a, TensorView b, Optional<TensorView> bias, TensorView out, int64_t threads) {
  Matrix left(a), right(b), target(out);
  if (target.rows == 0 || target.columns == 0) return;
  const void* added = bias.has_value() ? bias.value().data_ptr() : nullptr;
  if (!added && left.rows < right.columns) {  // what is packed passes through memory: the smaller one
    std::swap(left, right);
    for (Matrix* matrix : {&left, &right, &target}) matrix->transpose();
  }
  const int64_t panels = ceil_div(right.columns, kPanel), across = ceil_div(right.columns, kColumns);
  const int64_t shares = ceil_div(kTasks * threads, across);
  const int64_t rows = std::min(kRows, ceil_div(ceil_div(left.rows, shares), kBlockRows) * kBlockRows);
  const int64_t tasks = ceil_div(left.rows, rows) * across;
  const std::unique_ptr<float[]> packed(new float[panels * right.rows * kPanel]);
#pragma omp parallel num_threads(static_cast<int>(threads)) if (left.rows * right.columns > kParallelFrom)
  {
    Room room;
#pragma omp for schedule(static)
    for (int64_t i = 0; i < panels; ++i) pack_panel(right, i * kPanel, packed.get() + i * right.rows * kPanel);
#pragma omp for schedule(dynamic)
    for (int64_t i = 0; i < tasks; ++i) {
      const int64_t row = i / across * rows;
      multiply_task(left, packed.get(), added, target, row, std::min(rows, left.rows - row),
                    i % across * kColumns, room);
    }
  }
}

}  // namespace

TVM_FFI_DLL_EXPORT_TYPED_FUNC(product, product);
