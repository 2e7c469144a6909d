// Candidates of a sparse matrix: every entry of a line is on its list.
#pragma once

#include <cstdint>

#include "linear_sum_assignment/candidates.h"

namespace saekern::assignment {

// Compressed rows: line i has costs[k] in columns[k] for offsets[i] <= k < offsets[i + 1].
template <typename T>
struct SparseLines {
  const int64_t* offsets;  // [count + 1]
  const int32_t* columns;
  const T* costs;
  int64_t count, length;
  T sign;  // -1 to maximise
};

template <typename T>
class SparseCandidates final : public Candidates<T> {
 public:
  // Throws InvalidEntry on NaN or -inf.
  explicit SparseCandidates(const SparseLines<T>& lines);

  // Never needed: no list leaves anything out.
  void extend(const std::vector<int32_t>&, const std::vector<double>&) override {}
};

}  // namespace saekern::assignment
