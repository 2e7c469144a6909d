// Gradients of sparse codes, latent by latent: each latent's codes are summed by one walk over its segment.
#pragma once

#include <cstdint>

#include "latent_order.h"

namespace saekern {

struct SegmentGradients {
  const LatentOrder& order;
  const float* coefficients;  // [nnz], in storage order; read only for row_sums
  const float* rows;          // [batch, width]
  const float* shift;         // [width], subtracted from every row, or null; not with dots
  const float* weight;        // [latents, width]; read only for dots
  const int64_t* listed;      // [count] latents, ascending, or null for all: then count = latents
  int64_t count, width;
  float* row_sums;  // [count, width] out, or null: Σ coefficient · (row − shift), zero for a latent without codes
  float* dots;      // [nnz] out, or null: ⟨row, weight[latent]⟩, in storage order
};

// One sweep for both outputs. Sums run over a segment in order, in chunks of 256 codes whose partial sums are added in
// order, so that a latent active in every row does not hold up the others and no bit depends on `threads`.
void segment_gradients(const SegmentGradients& job, int threads);

// out[f] = Σ coefficients over the codes of latent f, in order; [latents].
void segment_sums(const LatentOrder& order, const float* coefficients, int threads, float* out);

// out[d] = Σ_i coefficients[i] · rows[i][d] (null: all 1), rows [count, width]; rows whose coefficient is 0 are not
// read. In chunks of 64 rows, added in order.
void weighted_row_sum(const float* coefficients, const float* rows, int64_t count, int64_t width, int threads,
                      float* out);

}  // namespace saekern
