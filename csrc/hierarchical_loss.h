// The HierarchicalTopK loss: the squared errors of a row's prefixes, without a [batch, k, width] array.
#pragma once

#include <cstdint>

#include "latent_order.h"

namespace saekern {

// Prefix j of row b is its first cut codes, in storage order, and counts weights[j]. x_p = bias + the sum over the
// first p codes; r_p = x_p − target.
struct HierarchicalLoss {
  const Codes& codes;
  const float* weight;   // [latents, width]
  const float* bias;     // [width] or null
  const float* target;   // [batch, width]
  const int64_t* cuts;   // [budgets], the same for all rows and cut down to shorter ones; or [batch, budgets]
  const float* weights;  // [budgets]
  int64_t budgets, latents, width;
  bool per_row;  // which of the two shapes cuts has
};

struct HierarchicalGradients {
  float* dvalues;  // [nnz]; these and the others may be null
  float* dweight;  // [latents, width]
  float* dbias;    // [width]
  float* dtarget;  // [batch, width]
};

// Σ_b Σ_j weights[j] ‖r‖² at the cut; x_hat [batch, width]: all codes of a row. Throws std::invalid_argument for cuts
// [batch, budgets] that do not ascend from 0 to the row's number of codes at most.
double hierarchical_loss(const HierarchicalLoss& job, int threads, float* x_hat);

// The gradients of `scale` times that sum. The same bits for any number of threads.
void hierarchical_loss_backward(const HierarchicalLoss& job, double scale, int threads,
                                const HierarchicalGradients& out);

}  // namespace saekern
