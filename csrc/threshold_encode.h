// All scores that exceed a threshold, scores = (x − pre_bias) Wᵀ + bias, without the [B, F] matrix.
#pragma once

#include <cstdint>
#include <vector>

#include "ragged.h"
#include "screen.h"

namespace saekern {

// The codes of every row: those whose float32 score (one dot product in a fixed order, PanelKernel::dot) exceeds
// thresholds [latents] or is NaN; ascending by latent. Scores below a threshold by more than their bound (panel.h) are
// never computed exactly. No bit depends on `threads`.
std::vector<RowCodes> threshold_encode(const ScoreInput& input, const float* thresholds, int threads, Isa isa);

}  // namespace saekern
