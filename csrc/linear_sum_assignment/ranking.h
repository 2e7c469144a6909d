// From the columns that a screen could not exclude to a line's list.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "linear_sum_assignment/candidates.h"
#include "linear_sum_assignment/similarity.h"
#include "select.h"

namespace saekern::assignment {

// A line's candidates among all columns, once their costs are known.
template <typename T>
class Ranking {
 public:
  // row_constant: what a score of the screen lacks of the line's similarities.
  Ranking(const Similarity<T>& similarity, const std::vector<double>& prices, int64_t line, double row_constant)
      : similarity_(similarity),
        similarity_to_(similarity, line),
        prices_(prices),
        line_(line),
        columns_(similarity.pair().columns),
        row_constant_(row_constant) {}

  // Lines begin their ties at different columns, so that lines full of ties list different ones.
  int64_t turn(int64_t column) const { return (column - line_ % columns_ + columns_) % columns_; }

  // Replaces a list in which too many tie by the best `wanted` of them.
  void settle(CandidateList& list, int64_t wanted) const {
    std::vector<uint64_t> keys(list.items().size());
    for (size_t i = 0; i < keys.size(); ++i) {
      const int32_t column = list.items()[i].index;
      const double score = similarity_to_(column) - row_constant_ + prices_[column];
      keys[i] = order_key(static_cast<float>(score), static_cast<int32_t>(turn(column)));
    }
    const auto chosen = keys.begin() + std::min<int64_t>(wanted, static_cast<int64_t>(keys.size()));
    std::nth_element(keys.begin(), chosen, keys.end());
    std::sort(keys.begin(), chosen);
    keys.erase(chosen, keys.end());
    for (uint64_t& key : keys) {
      const int64_t column = (key_index(key) + line_) % columns_;
      key = order_key(key_score(key), static_cast<int32_t>(column));
    }
    list.settle(keys, wanted);
  }

  // rest: a lower bound on the reduced cost of what `list` dropped.
  void finish(const CandidateList& list, int64_t wanted, double rest, List<T>& out) const {
    struct Known {
      double reduced;
      T cost;
      int32_t column;
      int64_t turn;
    };
    const std::vector<saekern::Candidate>& items = list.items();
    std::vector<Known> found(items.size());
    for (size_t i = 0; i < items.size(); ++i) {
      if (i + 2 < items.size()) similarity_.prefetch(items[i + 2].index);
      const int32_t column = items[i].index;
      const T cost = -similarity_to_(column);
      found[i] = {static_cast<double>(cost) - prices_[column], cost, column, turn(column)};
    }
    std::sort(found.begin(), found.end(), [](const Known& a, const Known& b) {
      return a.reduced != b.reduced ? a.reduced < b.reduced : a.turn < b.turn;
    });
    // What lies below the bound on the rest is listed too, now that it is known: its costs were paid for.
    const auto found_count = static_cast<int64_t>(found.size());
    int64_t kept = std::min(wanted, found_count);
    while (kept < std::min(found_count, 2 * wanted) && found[kept].reduced <= rest) ++kept;
    if (kept < found_count) rest = std::min(rest, found[kept].reduced);
    out.rest = rest;
    out.entries.clear();
    out.entries.reserve(kept);
    for (int64_t i = 0; i < kept; ++i) {
      // No bound may exceed the rest's: the search stops at the first one that it does not reach.
      const T bound = round_down(std::min(found[i].reduced, rest), T());
      out.entries.push_back({found[i].cost, bound, found[i].column});
    }
  }

 private:
  const Similarity<T>& similarity_;
  const typename Similarity<T>::Line similarity_to_;
  const std::vector<double>& prices_;
  const int64_t line_, columns_;
  const double row_constant_;
};

}  // namespace saekern::assignment
