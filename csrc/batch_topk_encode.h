// The largest scores of a whole batch after ReLU, scores = (x − pre_bias) Wᵀ + bias, without the [B, F] matrix.
#pragma once

#include <cstdint>
#include <vector>

#include "ragged.h"
#include "screen.h"

namespace saekern {

// The `total` best of all rows · latents scores after ReLU as the codes of every row, ascending by latent; ties to the
// smaller row, then latent; NaN largest. Where fewer than `total` are positive the rest are codes of value 0 at the
// first places that hold a 0. total ≤ rows · latents.
//
// Exact as topk_encode is: the order is that of float32 scores computed in one fixed order, the others are excluded by
// their bounds against a threshold that rises as scores are seen. Which candidates it still lets in depends on the
// order in which threads come by, the answer does not.
std::vector<RowCodes> batch_topk_encode(const ScoreInput& input, int64_t total, int threads, Isa isa);

}  // namespace saekern
