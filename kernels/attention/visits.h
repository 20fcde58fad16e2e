// Which panels of keys a tile of queries visits: all that the loops know of a mask.
#pragma once

#include <cstdint>
#include <vector>

#include "simd.h"

namespace jepa_fast {

constexpr int64_t kPanel = 64;        // keys of a panel, at most: as many as bits of a word
constexpr int64_t kTileQueries = 72;  // of a tile, at most: 12 blocks of product.h
// AMX has sums of 32 terms: queries and keys are padded to as many. One tile of up to 96 queries, or several of 64.
constexpr int64_t kAmxTerms = 32, kAmxQueries = 64, kMostQueries = 96;

enum class MaskKind : int64_t { kNone, kVarlen, kBlockCausal, kBlockSparse };

struct Mask {
  MaskKind kind;
  const int32_t *cu_seqlens_q, *cu_seqlens_k;  // kVarlen
  int64_t sequences;
  int64_t step, query_offset;  // kBlockCausal, and kVarlen where it is causal; step 0: a sequence is seen whole
  // kBlockSparse: the lists of masks/block_sparse.py.
  const int32_t *full_offsets, *full_keys, *partial_offsets, *partial_keys;
  const uint32_t* partial_bits;
  int64_t block_q, block_k, planes_batch, planes_heads, blocks_q;
  bool amx;

  int64_t key_step() const { return amx ? kAmxTerms : kLanes; }

  // Keys of a panel. The only panel of a short sequence is no longer than it has to be.
  int64_t panel(int64_t keys) const {
    const int64_t whole = kind == MaskKind::kBlockSparse && block_k % kPanel ? 32 : kPanel;
    return std::min(whole, std::max(keys + key_step() - 1, key_step()) / key_step() * key_step());
  }

  // Position among the keys of a sequence's first query.
  int64_t offset(int64_t queries, int64_t keys) const {
    return kind == MaskKind::kVarlen ? keys - queries : query_offset;
  }

  // Queries of a tile, even: tiles of equal size inside what a tile may not straddle, a block or a sequence.
  int64_t tile(int64_t queries) const {
    if (kind == MaskKind::kBlockSparse) {
      int64_t parts = (block_q + kTileQueries - 1) / kTileQueries;
      while (block_q % (2 * parts)) ++parts;  // block_q is a multiple of 16
      return block_q / parts;
    }
    const int64_t whole = std::max<int64_t>(queries, 1);
    const int64_t most = !amx ? kTileQueries : whole <= kMostQueries ? kMostQueries : kAmxQueries;
    const int64_t parts = (whole + most - 1) / most;
    const int64_t tile = (whole + parts - 1) / parts;
    return tile + tile % 2;
  }
};

struct Visit {
  int64_t first;         // key, a multiple of the panel
  int64_t keys;          // that the panel really has
  const uint64_t* bits;  // of each query of the tile, the keys it sees; null if all see all
};

struct Visits {
  std::vector<Visit> list;
  std::vector<uint64_t> bits;

  // For queries [first, last) of a sequence of `keys` keys, the first query at `offset` among them; b and h number
  // sample and query head.
  void collect(const Mask& mask, int64_t b, int64_t h, int64_t first, int64_t last, int64_t keys, int64_t offset) {
    list.clear();
    bits.clear();
    // Grown beforehand: visits point into it.
    const int64_t panel = mask.panel(keys);
    bits.resize((keys + panel - 1) / panel * (last - first));
    next_bits_ = bits.data();
    if (mask.kind == MaskKind::kBlockSparse) {
      collect_sparse(mask, b, h, first, last, keys);
    } else if (mask.step > 0) {
      const auto visible = [&](int64_t query) {
        return std::min(((query + offset) / mask.step + 1) * mask.step, keys);
      };
      for (int64_t key = 0; key < visible(last - 1); key += kPanel) {
        const int64_t end = std::min(key + kPanel, keys);
        if (visible(first) >= end) {
          list.push_back({key, end - key, nullptr});
        } else {
          list.push_back({key, end - key, next_bits_});
          for (int64_t q = first; q < last; ++q) *next_bits_++ = lowest(visible(q) - key);
        }
      }
    } else {
      for (int64_t key = 0; key < keys; key += kPanel) list.push_back({key, std::min(kPanel, keys - key), nullptr});
    }
  }

 private:
  uint64_t* next_bits_ = nullptr;

  static uint64_t lowest(int64_t count) {
    return count <= 0 ? 0 : count >= 64 ? ~uint64_t{0} : (uint64_t{1} << count) - 1;
  }

  void collect_sparse(const Mask& mask, int64_t b, int64_t h, int64_t first, int64_t last, int64_t keys) {
    const int64_t panel = mask.panel(keys), words = mask.block_k / 32;
    const int64_t plane = (mask.planes_batch == 1 ? 0 : b) * mask.planes_heads + (mask.planes_heads == 1 ? 0 : h);
    const int64_t row = plane * mask.blocks_q + first / mask.block_q;
    for (int32_t i = mask.full_offsets[row]; i < mask.full_offsets[row + 1]; ++i) {
      const int64_t start = mask.full_keys[i] * mask.block_k, end = std::min(start + mask.block_k, keys);
      for (int64_t key = start; key < end; key += panel) list.push_back({key, std::min(panel, end - key), nullptr});
    }
    for (int32_t i = mask.partial_offsets[row]; i < mask.partial_offsets[row + 1]; ++i) {
      const int64_t start = mask.partial_keys[i] * mask.block_k, end = std::min(start + mask.block_k, keys);
      const uint32_t* block = mask.partial_bits + (i * mask.block_q + first % mask.block_q) * words;
      for (int64_t key = start; key < end; key += panel) {
        const uint32_t* word = block + (key - start) / 32;
        list.push_back({key, std::min(panel, end - key), next_bits_});
        uint64_t any = 0;
        for (int64_t q = 0; q < last - first; ++q, word += words) {
          *next_bits_ = panel <= 32 ? word[0] : word[0] | uint64_t{word[1]} << 32;
          any |= *next_bits_++;
        }
        if (any == 0) list.pop_back();
      }
    }
  }
};

}  // namespace jepa_fast
