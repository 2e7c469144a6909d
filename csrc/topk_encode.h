// The k largest scores of each row, scores = (x − pre_bias) Wᵀ + bias, without the [B, F] matrix.
#pragma once

#include <cstdint>

#include "isa.h"

namespace saekern {

// All row-major. x [rows, width], weight [latents, width]; bias [latents], pre_bias [width], x_scale [rows],
// weight_scale [latents] may be null: the scales multiply whole rows (1 / norm for cosines).
struct EncodeInput {
  const float* x = nullptr;
  const float* weight = nullptr;
  const float* bias = nullptr;
  const float* pre_bias = nullptr;
  const float* x_scale = nullptr;
  const float* weight_scale = nullptr;
  int64_t rows = 0, latents = 0, width = 0;
};

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
void topk_encode(const EncodeInput& input, const TopK& main, const TopK& aux, bool relu, int threads, Isa isa);

}  // namespace saekern
