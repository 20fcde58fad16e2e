// SIGReg on the CPU: sums of the knots' cosines and sines over the rows, and the gradient with respect to the
// projections. A vector of slices at a time; the maths is in README.md.

#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/error.h>
#include <tvm/ffi/function.h>

#include <vector>

#include "simd.h"
#include "trigonometry.h"

namespace {

using namespace jepa_fast;
using tvm::ffi::TensorView;

// Multiples of the first knot's phase are taken five at a time, round centres 3, 8, 13, ...: with the rotations c of a
// centre and z of 1 or 2, the products c_re z_re, c_im z_im, c_im z_re and c_re z_im give both centre + and - z.
constexpr int64_t kReach = 2;
constexpr int64_t kGroup = 2 * kReach + 1;
constexpr int64_t kPerGroup = 2 * kGroup;  // vectors: sums of a group, or coefficients
constexpr int64_t kRows = 32;              // whose powers stay in the first-level cache
constexpr int64_t kAhead = 16;             // rows to fetch early: each may be on a page of its own

// use(row, rotation) for each of the rows; once more for all of them if one is too far for the short way.
template <typename Use>
JEPA_FAST_INLINE void each_rotation(const float* projection, int64_t row_stride, int64_t rows, int64_t lanes,
                                    const Factor& quarters, const Use& use) {
  vf32 largest = {};
  for (int64_t row = 0; row < rows; ++row) {
    const float* place = projection + row * row_stride;
    __builtin_prefetch(place + kAhead * row_stride);
    const vf32 value = load(place, lanes), size = absolute(value);
    use(row, short_rotation(value, quarters));
    largest = size > largest ? size : largest;
  }
  const float limit = kFewQuarters / quarters.high;
  bool far = false;
  for (int64_t lane = 0; lane < kLanes; ++lane) far |= largest[lane] > limit;
  if (!far) return;
  for (int64_t row = 0; row < rows; ++row)
    use(row, rotation(load(projection + row * row_stride, lanes), quarters));
}

// What one rotation gives for all groups.
struct Powers {
  Rotation one, two, three, five;
};

// Into `p` field by field: a structure of vectors that is returned is stored twice.
JEPA_FAST_INLINE void powers_of(const Rotation& one, Powers& p) {
  // By the addition theorems in terms of the sine, whose rounding error is smaller than the cosine's in small phases:
  // half as many operations as by products, and less to be amplified by further powers.
  const vf32 twice = one.sine + one.sine;
  const Rotation two = {1.0f - twice * one.sine, twice * one.cosine};
  const vf32 doubled = two.cosine + two.cosine;
  const Rotation three = {one.cosine * (doubled - 1.0f), one.sine * (doubled + 1.0f)};
  const Rotation five = two * three;
  p.one.cosine = one.cosine, p.one.sine = one.sine;
  p.two.cosine = two.cosine, p.two.sine = two.sine;
  p.three.cosine = three.cosine, p.three.sine = three.sine;
  p.five.cosine = five.cosine, p.five.sine = five.sine;
}

struct Shape {
  int64_t multiples;  // J

  int64_t groups() const { return multiples / kGroup + (multiples % kGroup > 1); }
  bool tail() const { return multiples % kGroup == 1; }  // one multiple is not worth a group
};

// sums of one group += products of its centre's rotation with those of 1 and 2.
JEPA_FAST_INLINE void accumulate(vf32* sums, const Rotation& centre, const Rotation& one, const Rotation& two) {
  sums[0] += centre.cosine;
  sums[1] += centre.sine;
  sums[2] += centre.cosine * one.cosine;
  sums[3] += centre.sine * one.sine;
  sums[4] += centre.sine * one.cosine;
  sums[5] += centre.cosine * one.sine;
  sums[6] += centre.cosine * two.cosine;
  sums[7] += centre.sine * two.sine;
  sums[8] += centre.sine * two.cosine;
  sums[9] += centre.cosine * two.sine;
}

// The sums over `rows` rows of `lanes` adjacent slices: cosine[j * stride], sine[j * stride] for multiple j + 1.
JEPA_FAST_KERNEL void sum_rows(const float* projection, int64_t row_stride, int64_t rows, int64_t lanes,
                               const Factor& quarters, Shape shape, float* cosine, float* sine, int64_t stride) {
  const int64_t groups = shape.groups();
  std::vector<float> sums((groups + 1) * kPerGroup * kLanes);
  Powers powers[kRows];
  Rotation centre[kRows];
  for (int64_t start = 0; start < rows; start += kRows) {
    const int64_t count = std::min(kRows, rows - start);
    each_rotation(projection + start * row_stride, row_stride, count, lanes, quarters,
                  [&](int64_t row, const Rotation& one)
                      __attribute__((always_inline)) { powers_of(one, powers[row]); });
    for (int64_t group = 0; group < groups; ++group) {
      vf32 local[kPerGroup] = {};  // summed apart: products of size 1/2 may cancel in the end
      for (int64_t row = 0; row < count; ++row) {
        const Powers& p = powers[row];
        const Rotation z = group ? centre[row] * p.five : p.three;
        centre[row].cosine = z.cosine, centre[row].sine = z.sine;
        accumulate(local, z, p.one, p.two);
      }
      for (int64_t i = 0; i < kPerGroup; ++i) {
        float* place = &sums[(group * kPerGroup + i) * kLanes];
        store(place, load(place) + local[i]);
      }
    }
    if (shape.tail()) {
      float* last = &sums[groups * kPerGroup * kLanes];
      vf32 real = load(last), imaginary = load(last + kLanes);
      for (int64_t row = 0; row < count; ++row) {
        const Rotation z = groups ? centre[row] * powers[row].three : powers[row].one;
        real += z.cosine;
        imaginary += z.sine;
      }
      store(last, real);
      store(last + kLanes, imaginary);
    }
  }
  // Inlined like every helper: called, it would take vectors as another instruction set passes them.
  const auto put = [&](int64_t multiple, vf32 real, vf32 imaginary) __attribute__((always_inline)) {
    if (multiple > shape.multiples) return;
    store(cosine + (multiple - 1) * stride, real, lanes);
    store(sine + (multiple - 1) * stride, imaginary, lanes);
  };
  for (int64_t group = 0; group < groups; ++group) {
    vf32 s[kPerGroup];
    std::memcpy(s, &sums[group * kPerGroup * kLanes], sizeof(s));
    const int64_t middle = group * kGroup + kReach + 1;
    put(middle, s[0], s[1]);
    for (int64_t p = 1; p <= kReach; ++p) {
      const vf32* pair = s + 4 * p - 2;
      put(middle + p, pair[0] - pair[1], pair[2] + pair[3]);
      put(middle - p, pair[0] + pair[1], pair[2] - pair[3]);
    }
  }
  const float* last = &sums[groups * kPerGroup * kLanes];
  if (shape.tail()) put(shape.multiples, load(last), load(last + kLanes));
}

// projection <- sum over j of imaginary_j cos(j phase) - real_j sin(j phase), with real and imaginary given at
// [j * stride]: the weighted differences of the characteristic functions.
JEPA_FAST_KERNEL void slope_rows(float* projection, int64_t row_stride, int64_t rows, int64_t lanes,
                                 const Factor& quarters, Shape shape, const float* real, const float* imaginary,
                                 int64_t stride) {
  const int64_t groups = shape.groups();
  std::vector<float> factors((groups + 1) * kPerGroup * kLanes);
  const auto take = [&](const float* values, int64_t multiple) __attribute__((always_inline)) {
    return multiple > shape.multiples ? vf32{} : load(values + (multiple - 1) * stride, lanes);
  };
  for (int64_t group = 0; group < groups; ++group) {
    vf32 f[kPerGroup];
    const int64_t middle = group * kGroup + kReach + 1;
    f[0] = take(imaginary, middle);
    f[1] = -take(real, middle);
    for (int64_t p = 1; p <= kReach; ++p) {
      const vf32 above = take(imaginary, middle + p), below = take(imaginary, middle - p);
      const vf32 real_above = take(real, middle + p), real_below = take(real, middle - p);
      f[4 * p - 2] = above + below;
      f[4 * p - 1] = below - above;
      f[4 * p] = real_above + real_below;
      f[4 * p + 1] = real_above - real_below;
    }
    std::memcpy(&factors[group * kPerGroup * kLanes], f, sizeof(f));
  }
  const vf32 tail_by_cosine = shape.tail() ? take(imaginary, shape.multiples) : vf32{};
  const vf32 tail_by_sine = shape.tail() ? -take(real, shape.multiples) : vf32{};

  // Rotations of many rows first: with the rest they are one long chain of dependent operations.
  Rotation ones[kRows];
  for (int64_t start = 0; start < rows; start += kRows) {
    const int64_t count = std::min(kRows, rows - start);
    float* first = projection + start * row_stride;
    each_rotation(first, row_stride, count, lanes, quarters, [&](int64_t row, const Rotation& one)
                  __attribute__((always_inline)) { ones[row].cosine = one.cosine, ones[row].sine = one.sine; });
    for (int64_t row = 0; row < count; ++row) {
      Powers p;
      powers_of(ones[row], p);
      Rotation centre = p.three;
      vf32 slope = {};
      for (int64_t group = 0; group < groups; ++group) {
        const float* its_factors = &factors[group * kPerGroup * kLanes];
        const auto f = [&](int64_t i) __attribute__((always_inline)) { return load(its_factors + i * kLanes); };
        if (group) centre = centre * p.five;
        vf32 by_cosine = f(0) + f(2) * p.one.cosine - f(5) * p.one.sine;
        vf32 by_sine = f(1) + f(3) * p.one.sine - f(4) * p.one.cosine;
        by_cosine = by_cosine + f(6) * p.two.cosine - f(9) * p.two.sine;
        by_sine = by_sine + f(7) * p.two.sine - f(8) * p.two.cosine;
        slope += centre.cosine * by_cosine + centre.sine * by_sine;
      }
      if (shape.tail()) {
        const Rotation z = groups ? centre * p.three : p.one;
        slope += tail_by_cosine * z.cosine + tail_by_sine * z.sine;
      }
      store(first + row * row_stride, slope, lanes);
    }
  }
}

// The projections [views, N, M] cut into pieces of a vector of slices and `chunk` rows, numbered for one parallel loop.
struct Pieces {
  int64_t views, rows, slices, chunk, chunks, columns;

  Pieces(TensorView projections, int64_t chunk_)
      : views(projections.size(0)),
        rows(projections.size(1)),
        slices(projections.size(2)),
        chunk(chunk_),
        chunks((rows + chunk - 1) / chunk),
        columns((slices + kLanes - 1) / kLanes) {}

  int64_t count() const { return views * chunks * columns; }

  struct Piece {
    int64_t view, chunk, slice, first_row, rows, lanes;
  };
  Piece piece(int64_t number) const {
    const int64_t column = number % columns, part = number / columns % chunks;
    return {number / columns / chunks, part, column * kLanes, part * chunk,
            std::min(chunk, rows - part * chunk), std::min(kLanes, slices - column * kLanes)};
  }
};

// projections: float32 [views, N, M], contiguous. sums: float32 [ceil(N / chunk), 2, views, J, M] receives, for each
// chunk of rows, the sums of the cosines [0] and sines [1] of j + 1 times the phase. turns: of one unit.
void sigreg_sums(TensorView projections, TensorView sums, double turns, int64_t chunk, int64_t threads) {
  const Pieces pieces(projections, chunk);
  const int64_t multiples = sums.size(3), stride = pieces.slices;
  const Factor factor(4.0 * turns);
  const float* y = static_cast<const float*>(projections.data_ptr());
  float* out = static_cast<float*>(sums.data_ptr());
  const int64_t view_size = multiples * stride, part_size = pieces.views * view_size, chunk_size = 2 * part_size;
  const int64_t values = pieces.views * pieces.rows * pieces.slices;
#pragma omp parallel for schedule(static) num_threads(static_cast<int>(threads)) if (values > kParallelFrom)
  for (int64_t i = 0; i < pieces.count(); ++i) {
    const Pieces::Piece p = pieces.piece(i);
    float* place = out + p.chunk * chunk_size + p.view * view_size + p.slice;
    sum_rows(y + (p.view * pieces.rows + p.first_row) * stride + p.slice, stride, p.rows, p.lanes, factor,
             {multiples}, place, place + part_size, stride);
  }
}

// projections: as above, overwritten. differences: float32 [2, views, J, M], contiguous.
void sigreg_slopes(TensorView projections, TensorView differences, double turns, int64_t chunk, int64_t threads) {
  const Pieces pieces(projections, chunk);
  const int64_t multiples = differences.size(2), stride = pieces.slices;
  const Factor factor(4.0 * turns);
  float* y = static_cast<float*>(projections.data_ptr());
  const float* in = static_cast<const float*>(differences.data_ptr());
  const int64_t view_size = multiples * stride, part_size = pieces.views * view_size;
  const int64_t values = pieces.views * pieces.rows * pieces.slices;
#pragma omp parallel for schedule(static) num_threads(static_cast<int>(threads)) if (values > kParallelFrom)
  for (int64_t i = 0; i < pieces.count(); ++i) {
    const Pieces::Piece p = pieces.piece(i);
    const float* real = in + p.view * view_size + p.slice;
    slope_rows(y + (p.view * pieces.rows + p.first_row) * stride + p.slice, stride, p.rows, p.lanes, factor,
               {multiples}, real, real + part_size, stride);
  }
}

// The sine and cosine of turns * values, for the tests of their accuracy. All float32 [n].
void sigreg_rotation(TensorView values, TensorView cosine, TensorView sine, double turns) {
  const auto* in = static_cast<const float*>(values.data_ptr());
  auto* real = static_cast<float*>(cosine.data_ptr());
  auto* imaginary = static_cast<float*>(sine.data_ptr());
  for (int64_t i = 0; i < values.size(0); i += kLanes) {
    const int64_t lanes = std::min(kLanes, values.size(0) - i);
    sum_rows(in + i, 0, 1, lanes, Factor(4.0 * turns), {1}, real + i, imaginary + i, 0);
  }
}

}  // namespace

TVM_FFI_DLL_EXPORT_TYPED_FUNC(sigreg_sums, sigreg_sums);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(sigreg_slopes, sigreg_slopes);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(sigreg_rotation, sigreg_rotation);
