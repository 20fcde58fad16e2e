// Float32 matrix products of the covariance losses, for CPUs with AVX-512: the symmetric one, half of which torch would
// compute twice, and the plain one. The blocks are those of product.h; a panel of the right factor is packed, so that
// all the rows of the left one meet it in the cache.

#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/function.h>

#include <vector>

#include "product.h"

namespace {

using namespace jepa_fast;
using tvm::ffi::TensorView;

constexpr int64_t kPanel = kBlockVectors * kLanes;  // columns of a product at a time
constexpr int64_t kDepth = 128;                     // terms of a sum at a time: a longer chain loses places (README.md)
constexpr int64_t kFewestRows = 96;                 // of a task, as each packs its panel anew

struct View {  // rows contiguous, stride in elements
  float* data;
  int64_t rows, columns, stride;

  explicit View(const TensorView& tensor)
      : data(static_cast<float*>(tensor.data_ptr())),
        rows(tensor.size(0)),
        columns(tensor.size(1)),
        stride(tensor.stride(0)) {}
};

// panel[k][i] = source[k][i] for i < columns, 0 beyond.
JEPA_FAST_INLINE void pack(const float* source, int64_t stride, int64_t depth, int64_t columns, float* panel) {
  for (int64_t k = 0; k < depth; ++k)
    for (int64_t i = 0; i < kPanel; i += kLanes) {
      const int64_t count = std::max<int64_t>(0, std::min(kLanes, columns - i));
      store(panel + k * kPanel + i, load(source + k * stride + i, count));
    }
}

// panel[k][i] = source[i][k] for i < columns, 0 beyond.
JEPA_FAST_INLINE void pack_transposed(const float* source, int64_t stride, int64_t depth, int64_t columns,
                                      float* panel) {
  const int64_t whole = columns == kPanel ? depth / kLanes * kLanes : 0;
  transpose(source, stride, whole ? kPanel : 0, whole, panel, kPanel);
  for (int64_t k = whole; k < depth; ++k)
    for (int64_t i = 0; i < kPanel; ++i) panel[k * kPanel + i] = i < columns ? source[i * stride + k] : 0.0f;
}

// out[rows][columns] (+)= A times one packed panel; edge: room for rows x kPanel where columns is not kPanel.
JEPA_FAST_INLINE void multiply_panel(int64_t rows, int64_t columns, int64_t depth, Left a, const float* panel,
                                     float* out, int64_t stride, bool add, float* edge) {
  if (columns == kPanel) return multiply<Float32Words>(rows, kPanel, depth, a, panel, kPanel, out, stride, add);
  multiply<Float32Words>(rows, (columns + kLanes - 1) / kLanes * kLanes, depth, a, panel, kPanel, edge, kPanel, false);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t i = 0; i < columns; ++i) {
      float& place = out[r * stride + i];
      place = add ? place + edge[r * kPanel + i] : edge[r * kPanel + i];
    }
}

// target[j][i] = source[i][j].
JEPA_FAST_INLINE void mirror(const float* source, int64_t rows, int64_t columns, float* target, int64_t stride) {
  const int64_t whole = columns == kPanel ? rows / kLanes * kLanes : 0;
  transpose(source, stride, whole, kPanel, target, stride);
  for (int64_t i = whole; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j) target[j * stride + i] = source[i * stride + j];
}

struct Room {
  std::vector<float> panel, edge;
  explicit Room(int64_t rows) : panel(kDepth * kPanel), edge(rows * kPanel) {}
};

JEPA_FAST_KERNEL void multiply_task(const View& a, const View& b, const View& out, int64_t column, int64_t row,
                                    int64_t rows, Room& room) {
  const int64_t columns = std::min(kPanel, b.columns - column);
  for (int64_t k = 0; k < b.rows; k += kDepth) {
    const int64_t depth = std::min(kDepth, b.rows - k);
    pack(b.data + k * b.stride + column, b.stride, depth, columns, room.panel.data());
    multiply_panel(rows, columns, depth, {a.data + row * a.stride + k, a.stride, 1}, room.panel.data(),
                   out.data + row * out.stride + column, out.stride, k > 0, room.edge.data());
  }
}

// Rows of the columns' panel of XX', none above the panel's diagonal, added to `out` there and across the diagonal.
JEPA_FAST_KERNEL void add_square_task(const View& x, const View& out, int64_t column, int64_t row, int64_t rows,
                                      Room& room) {
  const int64_t columns = std::min(kPanel, x.rows - column);
  float* place = out.data + row * out.stride + column;
  for (int64_t k = 0; k < x.columns; k += kDepth) {
    const int64_t depth = std::min(kDepth, x.columns - k);
    pack_transposed(x.data + column * x.stride + k, x.stride, depth, columns, room.panel.data());
    multiply_panel(rows, columns, depth, {x.data + row * x.stride + k, x.stride, 1}, room.panel.data(), place,
                   out.stride, true, room.edge.data());
  }
  const int64_t below = std::max(row, column + kPanel);
  if (below < row + rows)
    mirror(out.data + below * out.stride + column, row + rows - below, columns,
           out.data + column * out.stride + below, out.stride);
}

int64_t ceil_div(int64_t size, int64_t part) { return (size + part - 1) / part; }

// Rows of a task: all, or fewer where that would leave threads without work.
int64_t rows_of_task(int64_t rows, int64_t panels, int64_t threads) {
  const int64_t parts = std::clamp<int64_t>(ceil_div(4 * threads, panels), 1, ceil_div(rows, kFewestRows));
  return ceil_div(ceil_div(rows, parts), kBlockRows) * kBlockRows;
}

// task(column, row, rows, room) for every panel of columns and run of rows.
template <typename Task>
void each_task(int64_t rows, int64_t columns, int64_t threads, const Task& task) {
  const int64_t panels = ceil_div(columns, kPanel), height = rows_of_task(rows, panels, threads);
  const int64_t tasks = panels * ceil_div(rows, height);
#pragma omp parallel num_threads(static_cast<int>(threads))
  {
    Room room(height);
#pragma omp for schedule(dynamic)
    for (int64_t i = 0; i < tasks; ++i) {
      const int64_t row = i / panels * height;
      task(i % panels * kPanel, row, std::min(height, rows - row), room);
    }
  }
}

// out = a b. a: float32 [M, K], b: float32 [K, N], out: float32 [M, N], rows contiguous, K > 0. A sum's terms are taken
// in the same order whatever the number of threads.
void covariance_product(TensorView a, TensorView b, TensorView out, int64_t threads) {
  const View left(a), right(b), target(out);
  if (left.rows == 0) return;
  each_task(left.rows, right.columns, threads, [&](int64_t column, int64_t row, int64_t rows, Room& room) {
    multiply_task(left, right, target, column, row, rows, room);
  });
}

// out += x x'. x: float32 [N, K], out: float32 [N, N], symmetric.
void covariance_add_square(TensorView x, TensorView out, int64_t threads) {
  const View values(x), target(out);
  each_task(values.rows, values.rows, threads, [&](int64_t column, int64_t row, int64_t rows, Room& room) {
    const int64_t first = std::max(row, column);
    if (first < row + rows) add_square_task(values, target, column, first, row + rows - first, room);
  });
}

bool covariance_has_square() { return kLanes == 16; }

// On Intel's CPUs MKL has faster code for the plain product than these blocks: 5.0 for 7.4 ms of 4096 x 512 x 512 (AMX
// generation, two threads), 14.4 for 11.5 ms on AMD's.
bool covariance_has_product() {
#ifdef __AVX512F__
  return !__builtin_cpu_is("intel");
#else
  return false;
#endif
}

}  // namespace

TVM_FFI_DLL_EXPORT_TYPED_FUNC(covariance_product, covariance_product);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(covariance_add_square, covariance_add_square);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(covariance_has_square, covariance_has_square);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(covariance_has_product, covariance_has_product);
