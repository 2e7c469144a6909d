// What can be matched without a search.
#pragma once

#include <algorithm>

#include "linear_sum_assignment/candidates.h"
#include "linear_sum_assignment/matching.h"

namespace saekern::assignment {

// Gives each free line its cheapest column at the matching's prices where that is still free; ties take the first free
// one.
template <typename T>
void match_cheapest(const Candidates<T>& candidates, Matching& matching) {
  for (size_t i = 0; i < matching.column_of.size(); ++i) {
    if (matching.column_of[i] >= 0) continue;
    const List<T>& list = candidates.list(static_cast<int64_t>(i));
    const auto reduced = [&](const Entry<T>& entry) { return entry.cost - matching.price[entry.column]; };
    double least = list.rest;
    for (const Entry<T>& entry : list.entries) least = std::min(least, reduced(entry));
    for (const Entry<T>& entry : list.entries) {
      if (reduced(entry) > least || matching.line_of[entry.column] >= 0) continue;
      matching.column_of[i] = entry.column;
      matching.line_of[entry.column] = static_cast<int32_t>(i);
      matching.cost_of[i] = entry.cost;
      break;
    }
  }
}

}  // namespace saekern::assignment
