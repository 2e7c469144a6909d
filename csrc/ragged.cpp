#include "ragged.h"

#include "parallel.h"

namespace saekern {

void row_offsets(const std::vector<RowCodes>& rows, int64_t* offsets) {
  offsets[0] = 0;
  for (size_t r = 0; r < rows.size(); ++r) offsets[r + 1] = offsets[r] + static_cast<int64_t>(rows[r].size());
}

void gather_rows(const std::vector<RowCodes>& rows, const int64_t* offsets, int threads, float* values,
                 int64_t* indices) {
  constexpr int64_t kRows = 64;
  const auto count = static_cast<int64_t>(rows.size());
  parallel_for((count + kRows - 1) / kRows, threads, [&](int64_t task, int) {
    for (int64_t r = task * kRows; r < count && r < (task + 1) * kRows; ++r) {
      int64_t at = offsets[r];
      for (const Code& code : rows[r]) {
        values[at] = code.value;
        indices[at++] = code.index;
      }
    }
  });
}

}  // namespace saekern
