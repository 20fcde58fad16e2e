// Masked attention on the CPU, forward and backward; rotary positions are applied where rows are widened to float32.
// bfloat16 is multiplied in pairs (product.h), or by AMX (amx.h), where the CPU can. The maths and the tiling are in
// README.md; no score outlives its tile.

#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/error.h>
#include <tvm/ffi/function.h>
#include <tvm/ffi/optional.h>

#include "rows.h"
#include "tiles.h"

namespace {

using namespace jepa_fast;
using tvm::ffi::Optional;
using tvm::ffi::TensorView;

constexpr double kLog2E = 1.44269504088896340736;

struct Problem {
  Type type;
  int64_t samples, tokens_q, tokens_k, heads_q, heads_k, dim;
  Rows query, key, value;
  Table rope_query, rope_key;
  double scale;
  Mask mask;
  bool in_pairs;  // words are two bfloat16 values

  // dim, with zeros up to whole vectors
  int64_t width() const {
    const int64_t step = in_pairs ? 2 * kLanes : kLanes;
    return (dim + step - 1) / step * step;
  }
  int64_t row_words() const { return in_pairs ? width() / 2 : width(); }
  // Scores are exponents of 2, so they carry scale log2(e). In float32 the queries have it; bfloat16 ones would lose
  // their last places, so they take its sign alone: which score is the largest is asked before they are scaled.
  float query_factor() const { return static_cast<float>(in_pairs ? std::copysign(1.0, scale) : scale * kLog2E); }
  float score_factor() const { return in_pairs ? static_cast<float>(std::abs(scale) * kLog2E) : 1.0f; }
  float key_gradient_factor() const { return static_cast<float>(in_pairs ? std::abs(scale) : 1.0 / kLog2E); }
  // Rows of a tile's buffers for so many queries: whole blocks of product.h, or whole sums of AMX.
  int64_t padded(int64_t queries) const {
    const int64_t step = mask.amx ? kAmxTerms : 2;
    return (queries + step - 1) / step * step;
  }
  Products products() const { return mask.amx ? Products::kAmx : in_pairs ? Products::kPairs : Products::kFloat32; }
  int64_t group() const { return heads_q / heads_k; }
  int64_t sequences() const { return mask.kind == MaskKind::kVarlen ? mask.sequences : samples; }
};

// Tokens that see nothing of others.
struct Sequence {
  int64_t sample, first_q, queries, first_k, keys;

  Sequence(const Problem& p, int64_t i) : sample(i), first_q(0), queries(p.tokens_q), first_k(0), keys(p.tokens_k) {
    if (p.mask.kind != MaskKind::kVarlen) return;
    sample = 0;
    first_q = p.mask.cu_seqlens_q[i];
    queries = p.mask.cu_seqlens_q[i + 1] - first_q;
    first_k = p.mask.cu_seqlens_k[i];
    keys = p.mask.cu_seqlens_k[i + 1] - first_k;
  }
};

int64_t whole_panels(int64_t keys, int64_t panel) { return (keys + panel - 1) / panel * panel; }

// Rows of one head as words (product.h), [padded][row_words()], with zeros past the last row.
void head_rows(const Problem& p, const Rows& from, const Table& rope, float factor, int64_t sample, int64_t first,
               int64_t count, int64_t head, int64_t padded, std::vector<float>& target) {
  const int64_t width = p.width(), row = p.row_words();
  target.resize(std::max<int64_t>(target.size(), padded * row));
  const int64_t offset = from.offset(sample, first, head);
  const Table table = rope.at(sample, first, p.dim);
  if (p.in_pairs) {
    to_words(from, offset, count, p.dim, table, factor, target.data(), width);
  } else {
    widen(p.type, from, offset, count, p.dim, table, factor, target.data(), width);
  }
  std::fill(target.data() + count * row, target.data() + padded * row, 0.0f);
}

// Panels [panel][word][key] of rows of keys or values.
void head_panels(const Problem& p, const std::vector<float>& rows, int64_t keys, int64_t panel,
                 std::vector<float>& panels) {
  panels.resize(std::max<int64_t>(panels.size(), keys * p.row_words()));
  to_panels(rows.data(), keys, p.row_words(), panel, panels.data());
}

// Rows whose words are of neighbours in a column: for sums over keys.
void head_row_pairs(const Problem& p, const std::vector<float>& rows, int64_t count, std::vector<float>& target) {
  target.resize(std::max<int64_t>(target.size(), count * p.row_words()));
  to_row_pairs(rows.data(), count, p.width(), target.data());
}

// Rows of the gradient of keys or values, which AMX leaves in panels [panel][width][key].
const float* head_gradient(const Problem& p, const std::vector<float>& sums, int64_t keys, int64_t panel,
                           std::vector<float>& rows) {
  if (!p.mask.amx) return sums.data();
  const int64_t width = p.width();
  rows.resize(std::max<int64_t>(rows.size(), keys * width));
  for (int64_t key = 0; key < keys; key += panel)
    transpose(sums.data() + key * width, panel, width, panel, rows.data() + key * width, width);
  return rows.data();
}

void forward_item(const Problem& p, const Sequence& sequence, int64_t head_k, int64_t first_query, int64_t last_query,
                  int64_t tile, Rows out, float* lse, ForwardScratch& s) {
  const int64_t width = p.width(), panel = p.mask.panel(sequence.keys), keys = whole_panels(sequence.keys, panel);
  const int64_t offset = p.mask.offset(sequence.queries, sequence.keys);
  head_rows(p, p.key, p.rope_key, 1.0f, sequence.sample, sequence.first_k, sequence.keys, head_k, keys, s.rows);
  head_panels(p, s.rows, keys, panel, s.key_panels);
  auto& value_words = p.in_pairs ? s.rows : s.value_rows;
  head_rows(p, p.value, {}, 1.0f, sequence.sample, sequence.first_k, sequence.keys, head_k, keys, value_words);
  if (p.in_pairs) head_row_pairs(p, value_words, keys, s.value_rows);
  s.score.resize(kMostQueries * kScoreStride);
  s.out.resize(kMostQueries * width);
  s.largest.resize(kMostQueries);
  s.sum.resize(kMostQueries);
  for (int64_t head = head_k * p.group(); head < (head_k + 1) * p.group(); ++head)
    for (int64_t first = first_query; first < last_query; first += tile) {
      const int64_t last = std::min(first + tile, last_query), count = last - first;
      s.visits.collect(p.mask, sequence.sample, head, first, last, sequence.keys, offset);
      const int64_t token = sequence.first_q + first;
      head_rows(p, p.query, p.rope_query, p.query_factor(), sequence.sample, token, count, head, p.padded(count),
                s.query);
      forward_tile(p.products(), s.visits, count, panel, width, p.score_factor(), s.query.data(), s.key_panels.data(),
                   s.value_rows.data(), s.score.data(), s.out.data(), s.largest.data(), s.sum.data());
      float* row_lse = lse + (sequence.sample * p.heads_q + head) * p.tokens_q + token;
      for (int64_t q = 0; q < count; ++q) {
        row_lse[q] = static_cast<float>((s.largest[q] + std::log2(static_cast<double>(s.sum[q]))) / kLog2E);
        s.sum[q] = s.sum[q] == 0.0f ? 0.0f : 1.0f / s.sum[q];
      }
      narrow(p.type, s.out.data(), width, count, p.dim, {}, s.sum.data(), 1.0f, out,
             out.offset(sequence.sample, token, head));
    }
}

void backward_item(const Problem& p, const Sequence& sequence, int64_t head_k, Rows out, Rows grad_out,
                   const float* lse, Rows grad_query, Rows grad_key, Rows grad_value, BackwardScratch& s) {
  const int64_t width = p.width(), panel = p.mask.panel(sequence.keys), keys = whole_panels(sequence.keys, panel);
  const int64_t offset = p.mask.offset(sequence.queries, sequence.keys);
  const int64_t tile = p.mask.tile(sequence.queries);
  for (auto* buffer : {&s.grad_key, &s.grad_value}) buffer->resize(std::max<int64_t>(buffer->size(), keys * width));
  for (auto* buffer : {&s.probability, &s.slope}) buffer->resize(kMostQueries * kPanel);
  s.grad_query.resize(kMostQueries * width);
  if (p.in_pairs) {
    for (auto* buffer : {&s.query_pairs, &s.grad_out_pairs}) buffer->resize(kMostQueries * width / 2);
    s.slope_columns.resize(kMostQueries * kPanel / 2);
  }
  if (p.mask.amx)
    for (auto* buffer : {&s.query_turned, &s.grad_out_turned}) buffer->resize(kMostQueries * width / 2);
  for (auto* buffer : {&s.lse, &s.lse_rest, &s.delta}) buffer->resize(kMostQueries);
  const int64_t sample = sequence.sample, first_k = sequence.first_k;
  head_rows(p, p.value, {}, 1.0f, sample, first_k, sequence.keys, head_k, keys, s.key_rows);
  head_panels(p, s.key_rows, keys, panel, s.value_panels);
  head_rows(p, p.key, p.rope_key, 1.0f, sample, first_k, sequence.keys, head_k, keys, s.key_rows);
  head_panels(p, s.key_rows, keys, panel, s.key_panels);
  if (p.in_pairs) head_row_pairs(p, s.key_rows, keys, s.key_pairs);
  std::fill_n(s.grad_key.data(), keys * width, 0.0f);
  std::fill_n(s.grad_value.data(), keys * width, 0.0f);
  for (int64_t head = head_k * p.group(); head < (head_k + 1) * p.group(); ++head)
    for (int64_t first = 0; first < sequence.queries; first += tile) {
      const int64_t last = std::min(first + tile, sequence.queries), count = last - first, rows = p.padded(count);
      const int64_t token = sequence.first_q + first;
      s.visits.collect(p.mask, sample, head, first, last, sequence.keys, offset);
      head_rows(p, p.query, p.rope_query, p.query_factor(), sample, token, count, head, rows, s.query);
      head_rows(p, grad_out, {}, 1.0f, sample, token, count, head, rows, s.grad_out);
      head_rows(p, out, {}, 1.0f, sample, token, count, head, rows, s.out);
      const float* row_lse = lse + (sample * p.heads_q + head) * p.tokens_q + token;
      // A query that sees nothing: everything minus infinity is no probability.
      for (int64_t q = 0; q < count; ++q) {
        const double lse_2 = row_lse[q] * kLog2E;
        s.lse[q] = row_lse[q] == -kInfinity ? kInfinity : static_cast<float>(lse_2);
        s.lse_rest[q] = std::isfinite(row_lse[q]) ? static_cast<float>(lse_2 - s.lse[q]) : 0.0f;
      }
      backward_tile(p.products(), s.visits, count, panel, width, p.score_factor(), s);
      narrow(p.type, s.grad_query.data(), width, count, p.dim, p.rope_query.at(sample, token, p.dim), nullptr,
             static_cast<float>(p.scale), grad_query, grad_query.offset(sample, token, head));
    }
  narrow(p.type, head_gradient(p, s.grad_key, keys, panel, s.turned), width, sequence.keys, p.dim,
         p.rope_key.at(sample, first_k, p.dim), nullptr, p.key_gradient_factor(), grad_key,
         grad_key.offset(sample, first_k, head_k));
  narrow(p.type, head_gradient(p, s.grad_value, keys, panel, s.turned), width, sequence.keys, p.dim, {}, nullptr, 1.0f,
         grad_value, grad_value.offset(sample, first_k, head_k));
}

Rows rows_of(TensorView tensor) { return {tensor.data_ptr(), tensor.stride(0), tensor.stride(1), tensor.stride(2)}; }

Type type_of(TensorView tensor) {
  const DLDataType type = tensor.dtype();
  if (type.code == kDLFloat && type.bits == 32) return kFloat32;
  return type.code == kDLBfloat ? kBFloat16 : kFloat16;
}

const float* floats(const Optional<TensorView>& tensor) {
  return tensor.has_value() ? static_cast<const float*>(tensor.value().data_ptr()) : nullptr;
}

const int32_t* integers(const Optional<TensorView>& tensor) {
  return tensor.has_value() ? static_cast<const int32_t*>(tensor.value().data_ptr()) : nullptr;
}

using Maybe = Optional<TensorView>;

// tables: cos and sin of the query, cos and sin of the key. list_*: the mask's tensors, number_*: its integers, as the
// classes of masks/ give them.
Problem problem_of(TensorView query, TensorView key, TensorView value, double scale, const Maybe& cos_q,
                   const Maybe& sin_q, int64_t rows_q, const Maybe& cos_k, const Maybe& sin_k, int64_t rows_k,
                   int64_t kind, const Maybe& list_0, const Maybe& list_1, const Maybe& list_2, const Maybe& list_3,
                   const Maybe& list_4, int64_t number_0, int64_t number_1, int64_t number_2, int64_t number_3) {
  Mask mask = {};
  mask.kind = static_cast<MaskKind>(kind);
  if (mask.kind == MaskKind::kVarlen) {
    mask.cu_seqlens_q = integers(list_0);
    mask.cu_seqlens_k = integers(list_1);
    mask.sequences = list_0.value().size(0) - 1;
    mask.step = number_2;
  } else if (mask.kind == MaskKind::kBlockCausal) {
    mask.step = number_0;
    mask.query_offset = number_1;
  } else if (mask.kind == MaskKind::kBlockSparse) {
    mask.full_offsets = integers(list_0);
    mask.full_keys = integers(list_1);
    mask.partial_offsets = integers(list_2);
    mask.partial_keys = integers(list_3);
    mask.partial_bits = reinterpret_cast<const uint32_t*>(integers(list_4));
    mask.block_q = number_0;
    mask.block_k = number_1;
    mask.planes_batch = number_2;
    mask.planes_heads = number_3;
    mask.blocks_q = (query.size(1) + mask.block_q - 1) / mask.block_q;
  }
  const bool in_pairs =
      type_of(query) == kBFloat16 && cpu_has_bfloat16() && std::isnormal(static_cast<float>(scale * kLog2E));
  // Up to 16 queries or keys in a sequence, on average, cost more than they gain when padded to whole tiles.
  const int64_t sequences = mask.kind == MaskKind::kVarlen ? mask.sequences : query.size(0);
  const int64_t tokens = query.size(0) * std::min(query.size(1), key.size(1));
  mask.amx = in_pairs && tokens > kAmxRows * sequences && cpu_has_amx();
  return {type_of(query),
          query.size(0),
          query.size(1),
          key.size(1),
          query.size(2),
          key.size(2),
          query.size(3),
          rows_of(query),
          rows_of(key),
          rows_of(value),
          {floats(cos_q), floats(sin_q), rows_q},
          {floats(cos_k), floats(sin_k), rows_k},
          scale,
          mask,
          in_pairs};
}

// query, key, value: [B, N, H, D] with a contiguous last dimension; packed tensors have B = 1. out like query and lse
// [B, Hq, Nq] are contiguous. native.py has checked what api.py has not.
void attention_forward(TensorView query, TensorView key, TensorView value, TensorView out, TensorView lse, double scale,
                       Maybe cos_q, Maybe sin_q, int64_t rows_q, Maybe cos_k, Maybe sin_k, int64_t rows_k, int64_t kind,
                       Maybe list_0, Maybe list_1, Maybe list_2, Maybe list_3, Maybe list_4, int64_t number_0,
                       int64_t number_1, int64_t number_2, int64_t number_3, int64_t threads) {
  const Problem p = problem_of(query, key, value, scale, cos_q, sin_q, rows_q, cos_k, sin_k, rows_k, kind, list_0,
                               list_1, list_2, list_3, list_4, number_0, number_1, number_2, number_3);
  const Rows to = rows_of(out);
  float* row_lse = static_cast<float*>(lse.data_ptr());
  // Where heads are fewer than threads, several of them share a head's queries and widen its keys each for itself.
  const int64_t heads = p.sequences() * p.heads_k, splits = (2 * threads + heads - 1) / heads;
#pragma omp parallel num_threads(static_cast<int>(threads)) if (query.numel() > kParallelFrom)
  {
    ForwardScratch scratch;
    const AmxTiles tiles(p.mask.amx);
#pragma omp for schedule(dynamic)
    for (int64_t item = 0; item < heads * splits; ++item) {
      const int64_t head = item / splits, split = item % splits;
      const Sequence sequence(p, head / p.heads_k);
      const int64_t tile = p.mask.tile(sequence.queries);
      const int64_t count = (sequence.queries + tile - 1) / tile;
      const int64_t first = count * split / splits * tile;
      const int64_t last = std::min(count * (split + 1) / splits * tile, sequence.queries);
      if (first < last) forward_item(p, sequence, head % p.heads_k, first, last, tile, to, row_lse, scratch);
    }
  }
}

// The gradients, contiguous, receive every element.
void attention_backward(TensorView query, TensorView key, TensorView value, TensorView out, TensorView lse,
                        TensorView grad_out, TensorView grad_query, TensorView grad_key, TensorView grad_value,
                        double scale, Maybe cos_q, Maybe sin_q, int64_t rows_q, Maybe cos_k, Maybe sin_k,
                        int64_t rows_k, int64_t kind, Maybe list_0, Maybe list_1, Maybe list_2, Maybe list_3,
                        Maybe list_4, int64_t number_0, int64_t number_1, int64_t number_2, int64_t number_3,
                        int64_t threads) {
  const Problem p = problem_of(query, key, value, scale, cos_q, sin_q, rows_q, cos_k, sin_k, rows_k, kind, list_0,
                               list_1, list_2, list_3, list_4, number_0, number_1, number_2, number_3);
  const Rows from_out = rows_of(out), from_grad = rows_of(grad_out);
  const Rows to_query = rows_of(grad_query), to_key = rows_of(grad_key), to_value = rows_of(grad_value);
  const float* row_lse = static_cast<const float*>(lse.data_ptr());
#pragma omp parallel num_threads(static_cast<int>(threads)) if (query.numel() > kParallelFrom)
  {
    BackwardScratch scratch;
    const AmxTiles tiles(p.mask.amx);
#pragma omp for schedule(dynamic)
    for (int64_t item = 0; item < p.sequences() * p.heads_k; ++item)
      backward_item(p, Sequence(p, item / p.heads_k), item % p.heads_k, from_out, from_grad, row_lse, to_query, to_key,
                    to_value, scratch);
  }
}

}  // namespace

TVM_FFI_DLL_EXPORT_TYPED_FUNC(attention_forward, attention_forward);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(attention_backward, attention_backward);
