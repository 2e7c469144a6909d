#include "linear_sum_assignment/sparse_candidates.h"

#include <algorithm>
#include <limits>
#include <stdexcept>

namespace saekern::assignment {

template <typename T>
SparseCandidates<T>::SparseCandidates(const SparseLines<T>& lines) : Candidates<T>(lines.count) {
  constexpr T infinity = std::numeric_limits<T>::infinity();
  for (int64_t i = 0; i < lines.count; ++i) {
    List<T>& list = this->lists_[i];
    list.rest = static_cast<double>(infinity);
    list.entries.reserve(lines.offsets[i + 1] - lines.offsets[i]);
    for (int64_t k = lines.offsets[i]; k < lines.offsets[i + 1]; ++k) {
      if (lines.columns[k] < 0 || lines.columns[k] >= lines.length) {
        throw std::invalid_argument("cost matrix: a column index is outside the matrix");
      }
      const T cost = lines.sign * lines.costs[k];
      if (!(cost > -infinity)) throw InvalidEntry{i, lines.columns[k]};
      if (cost < infinity) list.entries.push_back({cost, cost, lines.columns[k]});
    }
    std::sort(list.entries.begin(), list.entries.end(), [](const Entry<T>& a, const Entry<T>& b) {
      return a.cost != b.cost ? a.cost < b.cost : a.column < b.column;
    });
  }
}

template class SparseCandidates<float>;
template class SparseCandidates<double>;

}  // namespace saekern::assignment
