// The elementwise passes of the covariance losses on the CPU; matrix products go through torch (algorithm.py).
// The maths is in README.md. api.py has checked dtypes and shapes; features are contiguous, rows may be strided.

#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/error.h>
#include <tvm/ffi/function.h>
#include <tvm/ffi/optional.h>

#include <vector>

#include "simd.h"

namespace {

using namespace jepa_fast;
using tvm::ffi::Optional;
using tvm::ffi::TensorView;

constexpr int64_t kRows = 32;      // rows whose float sums are kept before they are merged in double
constexpr int64_t kColumns = 512;  // columns of one task: long runs for the prefetcher, sums in the first-level cache
constexpr int64_t kTogether = 4;   // rows that are added to the sums between their load and their store

// Rows and columns of one operand; a null operand is absent.
struct Matrix {
  void* data;
  int64_t stride;  // elements from row to row
  int64_t type;    // float 0, bfloat16 1, float16 2

  template <typename T>
  __attribute__((always_inline)) T* at(int64_t row, int64_t column) const {
    return static_cast<T*>(data) + row * stride + column;
  }
};

Matrix matrix_of(const TensorView& tensor) {
  const DLDataType type = tensor.dtype();
  const int64_t number = type.code == kDLBfloat ? 1 : type.bits == 16 ? 2 : 0;
  return {tensor.data_ptr(), tensor.stride(0), number};
}

Matrix matrix_of(const Optional<TensorView>& tensor) {
  return tensor.has_value() ? matrix_of(tensor.value()) : Matrix{nullptr, 0, 0};
}

const double* doubles(const TensorView& tensor) { return static_cast<const double*>(tensor.data_ptr()); }

const double* doubles(const Optional<TensorView>& tensor) {
  return tensor.has_value() ? doubles(tensor.value()) : nullptr;
}

const float* floats(const Optional<TensorView>& tensor) {
  return tensor.has_value() ? static_cast<const float*>(tensor.value().data_ptr()) : nullptr;
}

int64_t blocks(int64_t size, int64_t block) { return (size + block - 1) / block; }

// ---- means, squared deviations and what joins two views, in one pass ------------------------------------------

// Rows of the output of moments.
enum Moment { kMeanA, kSquareA, kMeanB, kSquareB, kProduct, kDistance, kMoments };

// Adds `rows` rows about the running mean: float sums of 32 values about a point near the mean, merged in double.
template <bool kPair, typename T>
JEPA_FAST_INLINE void add_rows(const Matrix& a, const Matrix& b, int64_t row, int64_t rows, int64_t column,
                               int64_t columns, int64_t features, double* out) {
  alignas(64) float shift[2][kColumns] = {}, sum[2][kColumns] = {}, square[2][kColumns] = {};
  alignas(64) float product[kColumns] = {}, distance[kColumns] = {};
  for (int64_t i = 0; i < columns; ++i) {
    shift[0][i] = static_cast<float>(out[kMeanA * features + i]);
    if constexpr (kPair) shift[1][i] = static_cast<float>(out[kMeanB * features + i]);
  }
  if (row == 0) {  // no mean yet: that of these rows
    for (int view = 0; view < (kPair ? 2 : 1); ++view) {
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t i = 0; i < columns; i += kLanes) {
          const T* source = (view ? b : a).template at<T>(r, column);
          store(shift[view] + i, load(shift[view] + i) + load(source + i, std::min(kLanes, columns - i)));
        }
      for (int64_t i = 0; i < columns; ++i) shift[view][i] /= static_cast<float>(rows);
    }
  }
  for (int64_t first = row; first < row + rows; first += kTogether) {
    const int64_t end = std::min(first + kTogether, row + rows);
    for (int64_t i = 0; i < columns; i += kLanes) {
      const int64_t count = std::min(kLanes, columns - i);
      const vf32 about_a = load(shift[0] + i), about_b = load(shift[1] + i);
      vf32 sum_a = load(sum[0] + i), square_a = load(square[0] + i), products = load(product + i);
      vf32 sum_b = load(sum[1] + i), square_b = load(square[1] + i), distances = load(distance + i);
      for (int64_t r = first; r < end; ++r) {
        const vf32 x = load(a.at<T>(r, column) + i, count), u = x - about_a;
        sum_a += u;
        square_a += u * u;
        if constexpr (kPair) {
          const vf32 y = load(b.at<T>(r, column) + i, count), v = y - about_b, d = x - y;
          sum_b += v;
          square_b += v * v;
          products += u * v;
          distances += d * d;
        }
      }
      store(sum[0] + i, sum_a);
      store(square[0] + i, square_a);
      if constexpr (kPair) {
        store(sum[1] + i, sum_b);
        store(square[1] + i, square_b);
        store(product + i, products);
        store(distance + i, distances);
      }
    }
  }
  const double n = static_cast<double>(rows), before = static_cast<double>(row);
  const double weight = before * n / (before + n), share = n / (before + n);
  for (int64_t i = 0; i < columns; ++i) {
    double delta[2] = {}, about[2] = {};
    for (int view = 0; view < (kPair ? 2 : 1); ++view) {
      double& mean = out[(view ? kMeanB : kMeanA) * features + i];
      double& squares = out[(view ? kSquareB : kSquareA) * features + i];
      about[view] = static_cast<double>(sum[view][i]) / n;
      delta[view] = static_cast<double>(shift[view][i]) + about[view] - mean;
      mean += delta[view] * share;
      squares += static_cast<double>(square[view][i]) - about[view] * static_cast<double>(sum[view][i]);
      squares += delta[view] * delta[view] * weight;
    }
    if constexpr (kPair) {
      out[kProduct * features + i] += static_cast<double>(product[i]) - n * about[0] * about[1];
      out[kProduct * features + i] += delta[0] * delta[1] * weight;
      out[kDistance * features + i] += static_cast<double>(distance[i]);
    }
  }
}

template <bool kPair>
JEPA_FAST_KERNEL void add_rows_of(const Matrix& a, const Matrix& b, int64_t row, int64_t rows, int64_t column,
                                  int64_t columns, int64_t features, double* out) {
  switch (a.type) {
    case 0: return add_rows<kPair, float>(a, b, row, rows, column, columns, features, out);
    case 1: return add_rows<kPair, bfloat16>(a, b, row, rows, column, columns, features, out);
    default: return add_rows<kPair, float16>(a, b, row, rows, column, columns, features, out);
  }
}

// out: double [2, D] = mean, sum of squared deviations; with b [6, D]: of both views, then the sums over rows of
// (a - mean a)(b - mean b) and of (a - b)^2. Each column is summed in row order, whatever the number of threads.
void covariance_moments(TensorView a, Optional<TensorView> b, TensorView out, int64_t threads) {
  const Matrix first = matrix_of(a), second = matrix_of(b);
  const int64_t rows = a.size(0), features = a.size(1);
  double* results = static_cast<double*>(out.data_ptr());
  std::fill(results, results + out.size(0) * features, 0.0);
#pragma omp parallel for schedule(static) num_threads(static_cast<int>(threads)) if (rows * features > kParallelFrom)
  for (int64_t task = 0; task < blocks(features, kColumns); ++task) {
    const int64_t column = task * kColumns, columns = std::min(kColumns, features - column);
    for (int64_t row = 0; row < rows; row += kRows) {
      const int64_t count = std::min(kRows, rows - row);
      if (second.data)
        add_rows_of<true>(first, second, row, count, column, columns, features, results + column);
      else
        add_rows_of<false>(first, second, row, count, column, columns, features, results + column);
    }
  }
}

// ---- (z - mean) * scale ---------------------------------------------------------------------------------------

// A float pair: z - high - low is z - mean without the rounding of the mean.
struct Means {
  alignas(64) float high[kColumns], low[kColumns];
};

JEPA_FAST_INLINE void split(const double* mean, int64_t columns, Means& means) {
  for (int64_t i = 0; i < columns; ++i) {
    means.high[i] = static_cast<float>(mean[i]);
    means.low[i] = static_cast<float>(mean[i] - static_cast<double>(means.high[i]));
  }
}

template <typename T>
JEPA_FAST_INLINE vf32 centred(const T* source, const Means& means, int64_t i, int64_t count) {
  return load(source + i, count) - load(means.high + i) - load(means.low + i);
}

template <typename T>
JEPA_FAST_INLINE void centre(const Matrix& z, const double* mean, const double* scale, const Matrix& out, int64_t row,
                             int64_t rows, int64_t column, int64_t columns) {
  Means means;
  alignas(64) float factor[kColumns];
  split(mean + column, columns, means);
  for (int64_t i = 0; i < columns; ++i) factor[i] = scale ? static_cast<float>(scale[column + i]) : 1.0f;
  for (int64_t r = row; r < row + rows; ++r)
    for (int64_t i = 0; i < columns; i += kLanes) {
      const int64_t count = std::min(kLanes, columns - i);
      const vf32 value = centred(z.at<T>(r, column), means, i, count);
      store(out.at<float>(r, column) + i, value * load(factor + i), count);
    }
}

JEPA_FAST_KERNEL void centre_of(const Matrix& z, const double* mean, const double* scale, const Matrix& out,
                                int64_t row, int64_t rows, int64_t column, int64_t columns) {
  switch (z.type) {
    case 0: return centre<float>(z, mean, scale, out, row, rows, column, columns);
    case 1: return centre<bfloat16>(z, mean, scale, out, row, rows, column, columns);
    default: return centre<float16>(z, mean, scale, out, row, rows, column, columns);
  }
}

// mean, scale: double [D]. out: float32 [N, D].
void covariance_centre(TensorView z, TensorView mean, Optional<TensorView> scale, TensorView out, int64_t threads) {
  const Matrix source = matrix_of(z), target = matrix_of(out);
  const double* factor = doubles(scale);
  const int64_t rows = z.size(0), features = z.size(1), across = blocks(features, kColumns);
#pragma omp parallel for schedule(static) num_threads(static_cast<int>(threads)) if (rows * features > kParallelFrom)
  for (int64_t task = 0; task < blocks(rows, kRows) * across; ++task) {
    const int64_t row = task / across * kRows, column = task % across * kColumns;
    centre_of(source, doubles(mean), factor, target, row, std::min(kRows, rows - row), column,
              std::min(kColumns, features - column));
  }
}

// ---- the gradient: product and diagonal terms, one pass -------------------------------------------------------

// Rows of the coefficients of finish.
enum Coefficient { kOfProduct, kOfA, kOfB, kOfDiagonal, kFactors, kMeanOfA = kFactors, kMeanOfB };

struct Gradient {
  Matrix product, a, b, out;
  const float* diagonal;  // null: of zeros
  const double* coefficients;
  int64_t stride;  // of the coefficients
  float distance;
};

template <bool kProductThere, bool kPair, typename T, typename Out>
JEPA_FAST_INLINE void finish(const Gradient& g, int64_t row, int64_t rows, int64_t column, int64_t columns) {
  Means means_a, means_b;
  alignas(64) float factor[kFactors][kColumns];
  const double* c = g.coefficients + column;
  split(c + kMeanOfA * g.stride, columns, means_a);
  if constexpr (kPair) split(c + kMeanOfB * g.stride, columns, means_b);
  for (int64_t j = 0; j < kFactors; ++j)
    for (int64_t i = 0; i < columns; ++i) factor[j][i] = static_cast<float>(c[j * g.stride + i]);
  for (int64_t r = row; r < row + rows; ++r) {
    const T* p_a = g.a.at<T>(r, column);
    const T* p_b = kPair ? g.b.at<T>(r, column) : nullptr;
    const float* p_product = kProductThere ? g.product.at<float>(r, column) : nullptr;
    const float diagonal = g.diagonal ? g.diagonal[r] : 0.0f;
    for (int64_t i = 0; i < columns; i += kLanes) {
      const int64_t count = std::min(kLanes, columns - i);
      vf32 of_a = load(factor[kOfA] + i);
      if constexpr (kProductThere) of_a += load(factor[kOfDiagonal] + i) * diagonal;
      vf32 value = of_a * centred(p_a, means_a, i, count);
      if constexpr (kProductThere) value += load(factor[kOfProduct] + i) * load(p_product + i, count);
      if constexpr (kPair) {
        value += load(factor[kOfB] + i) * centred(p_b, means_b, i, count);
        value += g.distance * (load(p_a + i, count) - load(p_b + i, count));
      }
      store(g.out.at<Out>(r, column) + i, value, count);
    }
  }
}

template <typename T, typename Out>
JEPA_FAST_INLINE void finish(const Gradient& g, int64_t row, int64_t rows, int64_t column, int64_t columns) {
  if (g.product.data)
    return g.b.data ? finish<true, true, T, Out>(g, row, rows, column, columns)
                    : finish<true, false, T, Out>(g, row, rows, column, columns);
  return g.b.data ? finish<false, true, T, Out>(g, row, rows, column, columns)
                  : finish<false, false, T, Out>(g, row, rows, column, columns);
}

JEPA_FAST_KERNEL void finish_of(const Gradient& g, int64_t row, int64_t rows, int64_t column, int64_t columns) {
  switch (g.a.type) {
    case 0: return finish<float, float>(g, row, rows, column, columns);
    case 1: return finish<bfloat16, bfloat16>(g, row, rows, column, columns);
    default: return finish<float16, float>(g, row, rows, column, columns);  // half a gradient would underflow
  }
}

// out = p * product + (q + t * diagonal) * (a - mean a) + s * (b - mean b) + distance * (a - b), with the columns' p,
// q, s, t and the means in coefficients: double [6, D], whose rows may be strided. product: float32 [N, D], may be out
// itself. diagonal: float32 [N], where there is a product. out: float32, or bfloat16 as a.
void covariance_finish(Optional<TensorView> product, Optional<TensorView> diagonal, TensorView a,
                       Optional<TensorView> b, TensorView coefficients, double distance, TensorView out,
                       int64_t threads) {
  const int64_t rows = a.size(0), features = a.size(1), across = blocks(features, kColumns);
  const Gradient g = {matrix_of(product),
                      matrix_of(a),
                      matrix_of(b),
                      matrix_of(out),
                      floats(diagonal),
                      doubles(coefficients),
                      coefficients.stride(0),
                      static_cast<float>(distance)};
#pragma omp parallel for schedule(static) num_threads(static_cast<int>(threads)) if (rows * features > kParallelFrom)
  for (int64_t task = 0; task < blocks(rows, kRows) * across; ++task) {
    const int64_t row = task / across * kRows, column = task % across * kColumns;
    finish_of(g, row, std::min(kRows, rows - row), column, std::min(kColumns, features - column));
  }
}

// ---- sums -----------------------------------------------------------------------------------------------------

// What the dots are of: product + diagonal * scale * (z - mean), and z - mean.
struct Dots {
  Matrix product, z;
  const float* diagonal;  // null: of zeros
  const double* scale;    // null: of ones
  const double* mean;
  int64_t rows;
};

template <typename T>
JEPA_FAST_INLINE void column_dots(const Dots& d, int64_t column, int64_t columns, double* out) {
  Means means;
  alignas(64) float scale[kColumns];
  split(d.mean + column, columns, means);
  for (int64_t i = 0; i < columns; ++i) scale[i] = d.scale ? static_cast<float>(d.scale[column + i]) : 1.0f;
  for (int64_t i = 0; i < columns; ++i) out[column + i] = 0.0;
  for (int64_t row = 0; row < d.rows; row += kRows) {
    alignas(64) float sum[kColumns] = {};
    for (int64_t first = row; first < std::min(row + kRows, d.rows); first += kTogether) {
      const int64_t end = std::min({first + kTogether, row + kRows, d.rows});
      for (int64_t i = 0; i < columns; i += kLanes) {
        const int64_t count = std::min(kLanes, columns - i);
        vf32 total = load(sum + i);
        for (int64_t r = first; r < end; ++r) {
          const vf32 value = centred(d.z.at<T>(r, column), means, i, count);
          const vf32 on_diagonal = load(scale + i) * (d.diagonal ? d.diagonal[r] : 0.0f) * value;
          total += (load(d.product.at<float>(r, column) + i, count) + on_diagonal) * value;
        }
        store(sum + i, total);
      }
    }
    for (int64_t i = 0; i < columns; ++i) out[column + i] += static_cast<double>(sum[i]);
  }
}

JEPA_FAST_KERNEL void column_dots_of(const Dots& d, int64_t column, int64_t columns, double* out) {
  switch (d.z.type) {
    case 0: return column_dots<float>(d, column, columns, out);
    case 1: return column_dots<bfloat16>(d, column, columns, out);
    default: return column_dots<float16>(d, column, columns, out);
  }
}

// out: double [D], the sums over rows of (product + diagonal * scale * (z - mean)) * (z - mean). product: float32
// [N, D]. diagonal: float32 [N]. scale, mean: double [D].
void covariance_column_dots(TensorView product, Optional<TensorView> diagonal, Optional<TensorView> scale, TensorView z,
                            TensorView mean, TensorView out, int64_t threads) {
  const int64_t rows = z.size(0), features = z.size(1);
  const Dots d = {matrix_of(product), matrix_of(z), floats(diagonal), doubles(scale), doubles(mean), rows};
  double* results = static_cast<double*>(out.data_ptr());
#pragma omp parallel for schedule(static) num_threads(static_cast<int>(threads)) if (rows * features > kParallelFrom)
  for (int64_t task = 0; task < blocks(features, kColumns); ++task) {
    const int64_t column = task * kColumns;
    column_dots_of(d, column, std::min(kColumns, features - column), results);
  }
}

JEPA_FAST_KERNEL double dot_of(const float* a, const float* b, int64_t size) {
  double total = 0.0;
  for (int64_t start = 0; start < size; start += kColumns) {
    vf32 sum[2] = {};
    const int64_t end = std::min(start + kColumns, size);
    for (int64_t i = start; i < end; i += kLanes) {
      const int64_t count = std::min(kLanes, end - i);
      sum[i / kLanes % 2] += load(a + i, count) * load(b + i, count);
    }
    total += static_cast<double>(lane_sum(sum[0] + sum[1]));
  }
  return total;
}

// The sum of a * b over two float32 matrices, 512 values in float and the rest in double, in a fixed order.
double covariance_dot(TensorView a, TensorView b, int64_t threads) {
  const Matrix first = matrix_of(a), second = matrix_of(b);
  const int64_t rows = a.size(0), columns = a.size(1);
  std::vector<double> sums(rows);
#pragma omp parallel for schedule(static) num_threads(static_cast<int>(threads)) if (rows * columns > kParallelFrom)
  for (int64_t row = 0; row < rows; ++row)
    sums[row] = dot_of(first.at<float>(row, 0), second.at<float>(row, 0), columns);
  double total = 0.0;
  for (const double sum : sums) total += sum;
  return total;
}

// out: double [N], the sums of squares of the rows of a float32 matrix.
void covariance_row_squares(TensorView x, TensorView out, int64_t threads) {
  const Matrix values = matrix_of(x);
  const int64_t rows = x.size(0), columns = x.size(1);
  double* results = static_cast<double*>(out.data_ptr());
#pragma omp parallel for schedule(static) num_threads(static_cast<int>(threads)) if (rows * columns > kParallelFrom)
  for (int64_t row = 0; row < rows; ++row)
    results[row] = dot_of(values.at<float>(row, 0), values.at<float>(row, 0), columns);
}

}  // namespace

TVM_FFI_DLL_EXPORT_TYPED_FUNC(covariance_moments, covariance_moments);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(covariance_centre, covariance_centre);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(covariance_finish, covariance_finish);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(covariance_column_dots, covariance_column_dots);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(covariance_dot, covariance_dot);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(covariance_row_squares, covariance_row_squares);
