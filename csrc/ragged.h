// Codes while their number is not yet known: a list for each row, gathered into CSR at the end.
#pragma once

#include <cstdint>
#include <vector>

namespace saekern {

struct Code {
  int32_t index;
  float value;
};

using RowCodes = std::vector<Code>;  // ascending by latent

// offsets [rows + 1]: where each row's codes begin; the last is their number.
void row_offsets(const std::vector<RowCodes>& rows, int64_t* offsets);

// The rows back to back, values, indices [offsets[rows]].
void gather_rows(const std::vector<RowCodes>& rows, const int64_t* offsets, int threads, float* values,
                 int64_t* indices);

}  // namespace saekern
