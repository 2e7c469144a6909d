// The best cosine partner of every row of two dictionaries, both directions from one pass.
#pragma once

#include <cstdint>

#include "isa.h"

namespace saekern {

// a [a_rows, width], b [b_rows, width], row-major, each with at least one row. a_cosine, a_index [a_rows] point into b,
// b_cosine, b_index [b_rows] into a. cos = ⟨a_i, b_j⟩ · (1/‖a_i‖) · (1/‖b_j‖) in float32 in this order, 0 where a norm
// is 0; ties go to the smaller index; NaN is largest. Same bits for any number of threads.
void nearest(const float* a, int64_t a_rows, const float* b, int64_t b_rows, int64_t width, float* a_cosine,
             int64_t* a_index, float* b_cosine, int64_t* b_index, int threads, Isa isa);

// 1/‖row‖; 0 for a zero row, NaN for one that is not finite; the sum of squares is in double.
void inverse_norms(const float* rows, int64_t count, int64_t width, float* inverse, int threads);

}  // namespace saekern
