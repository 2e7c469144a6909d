// The k largest elements of each row of a matrix in memory.
#pragma once

#include <cstdint>

#include "isa.h"

namespace saekern {

// scores [rows, columns] row-major -> values, indices [rows, k], descending, ties to the smaller index, NaN largest.
// 1 ≤ k ≤ columns < 2^31.
void row_topk(const float* scores, int64_t rows, int64_t columns, int64_t k, float* values, int64_t* indices,
              int threads, Isa isa);

}  // namespace saekern
