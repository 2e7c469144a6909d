// One Adam step on a matrix of rows, in one pass over memory.
#pragma once

#include <cstdint>

namespace saekern {

struct AdamStep {
  int64_t rows, width;
  double lr, beta1, beta2, eps;
  int64_t step;                         // 1, 2, …
  bool project;                         // first remove the gradient's component along the row
  bool normalize;                       // last scale the row to unit length; zero rows stay
  const float* grad;                    // [rows, width], or the rows of `listed` alone: all others are zero
  float *param, *exp_avg, *exp_avg_sq;  // all [rows, width]; updated
  const int64_t* listed = nullptr;      // [count], ascending
  int64_t count = 0;
};

// Throws std::invalid_argument for listed rows that do not ascend within [0, rows).
// Rows are independent, so no bit depends on `threads`.
void adam_step(const AdamStep& job, int threads);

}  // namespace saekern
