// The k largest scores of each row, scores = (x − pre_bias) Wᵀ + bias, without the [B, F] matrix.
#pragma once

#include <cstdint>

#include "screen.h"

namespace saekern {

// values, indices [rows, k]: the k best of the latents f with allowed[f] (null: all), descending, ties to the smaller
// index, NaN largest. Where fewer than k are allowed the other slots hold 0 at the smallest latents not allowed.
struct TopK {
  int64_t k = 0;
  float* values = nullptr;
  int64_t* indices = nullptr;
  const bool* allowed = nullptr;
};

// Exact: the order is that of float32 scores, each one dot product in a fixed order (PanelKernel::dot). They are
// computed only for candidates, the rest is excluded by a bound (panel.h), so values and indices depend neither on the
// number of threads nor on block sizes. `aux` (k = 0: none) is a second selection on the same scores.
void topk_encode(const ScoreInput& input, const TopK& main, const TopK& aux, bool relu, int threads, Isa isa);

}  // namespace saekern
