// Squared error of rows against the variance of the target.
#pragma once

#include <cstdint>

namespace saekern {

struct Unexplained {
  double error;     // Σ‖t_b − e_b‖²
  double variance;  // Σ‖t_b − mean t‖², 1 where that is 0
};

// target, estimate [rows, width] row-major. Sums in double, over fixed chunks of rows added in order: the same bits for
// any number of threads.
Unexplained unexplained_variance(const float* target, const float* estimate, int64_t rows, int64_t width, int threads);

// out = scale (a − b), elementwise over n; the product in double, rounded once.
void scaled_difference(const float* a, const float* b, int64_t n, double scale, int threads, float* out);

}  // namespace saekern
