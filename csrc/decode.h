// The sparse decoder: gather-sums of weight rows, row-major and contiguous throughout.
#pragma once

#include <cstdint>

#include "latent_order.h"

namespace saekern {

// out[b] = bias + Σ values · weight[index] over the codes of row b, in storage order. weight [latents, width], bias
// [width] or null, out [batch, width]. The caller has checked the indices.
void decode(const Codes& codes, const float* weight, int64_t width, const float* bias, int threads, float* out);

}  // namespace saekern
