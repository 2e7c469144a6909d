// Gradients of the sparse encoder: only the chosen scores carry gradient.
#pragma once

#include <cstdint>

#include "latent_order.h"

namespace saekern {

// Outputs may be null: not wanted. g = grad where the code's value is positive or NaN, else 0 (grad everywhere unless
// relu); codes.values are the encoder's outputs, order theirs.
struct EncodeBackward {
  const Codes& codes;
  const LatentOrder& order;
  const float* grad;      // [nnz]
  const float* x;         // [batch, width]
  const float* weight;    // [latents, width]
  const float* pre_bias;  // [width] or null
  int64_t width;
  bool relu;
  float* dx;         // [batch, width]: Σ_k g weight[index]
  float* dweight;    // [latents, width]: Σ g (x − pre_bias)
  float* dbias;      // [latents]: Σ g
  float* dpre_bias;  // [width]: −Σ_f dbias[f] weight[f]
};

void encode_backward(const EncodeBackward& job, int threads);

}  // namespace saekern
