#include "linear_sum_assignment.h"

#include <algorithm>
#include <memory>
#include <stdexcept>
#include <string>

#include "linear_sum_assignment/candidates.h"
#include "linear_sum_assignment/lines.h"
#include "linear_sum_assignment/search.h"

namespace saekern {
namespace {

using namespace assignment;

// Gives each line its cheapest column where that is still free; ties take the first free one.
template <typename T>
void match_cheapest(const DenseCandidates<T>& candidates, Matching& matching) {
  for (size_t i = 0; i < matching.column_of.size(); ++i) {
    const auto& list = candidates.list(i);
    const Candidate<T>* entry = candidates.entries(list);
    for (int64_t k = 0; k < list.count && entry[k].cost == entry[0].cost; ++k) {
      if (matching.line_of[entry[k].column] >= 0) continue;
      matching.column_of[i] = entry[k].column;
      matching.line_of[entry[k].column] = static_cast<int32_t>(i);
      matching.cost_of[i] = entry[k].cost;
      break;
    }
  }
}

template <typename T>
Matching solve(const Lines<T>& lines, int threads) {
  DenseCandidates<T> candidates(lines, threads);
  Matching matching(lines.count(), lines.length());
  match_cheapest(candidates, matching);
  ListSearch<DenseCandidates<T>> by_list(candidates, matching);
  std::unique_ptr<LineSearch<T>> by_line;
  for (int64_t i = 0; i < lines.count(); ++i) {
    if (matching.column_of[i] >= 0) continue;
    if (!by_line && by_list.augment(static_cast<int32_t>(i))) continue;
    if (!by_line) by_line = std::make_unique<LineSearch<T>>(lines, matching);
    by_line->augment(static_cast<int32_t>(i));
  }
  return matching;
}

std::string listed(std::vector<int32_t> indices) {
  constexpr size_t kShown = 8;
  std::sort(indices.begin(), indices.end());
  std::string text;
  for (size_t i = 0; i < std::min(indices.size(), kShown); ++i) text += (i ? ", " : "") + std::to_string(indices[i]);
  return indices.size() > kShown ? text + ", ..." : text;
}

// "rows 1, 4, 7 (3 of them) have finite costs in 2 columns only: 0, 2"
std::string explain(const Infeasible& stuck, bool transposed) {
  const std::string line = transposed ? "column" : "row", other = transposed ? "row" : "column";
  const size_t lines = stuck.lines.size(), others = stuck.columns.size();
  if (lines == 1) return line + " " + listed(stuck.lines) + " has no finite cost";
  return line + "s " + listed(stuck.lines) + " (" + std::to_string(lines) + " of them) have finite costs in " +
         std::to_string(others) + " " + other + (others == 1 ? "" : "s") + " only: " + listed(stuck.columns);
}

}  // namespace

template <typename T>
void linear_sum_assignment(const CostMatrix<T>& cost, int threads, int64_t* assignment) {
  const Lines<T> lines(cost);
  std::fill(assignment, assignment + cost.rows, -1);
  if (lines.count() == 0) return;
  try {
    const Matching matching = solve(lines, threads);
    for (int64_t i = 0; i < lines.count(); ++i) {
      const int64_t j = matching.column_of[i];
      assignment[lines.transposed() ? j : i] = lines.transposed() ? i : j;
    }
  } catch (const InvalidEntry& at) {
    const int64_t row = lines.transposed() ? at.column : at.line, column = lines.transposed() ? at.line : at.column;
    throw std::invalid_argument("matrix contains invalid numeric entries: " + std::string(cost.maximize ? "+" : "-") +
                                "inf or NaN at [" + std::to_string(row) + ", " + std::to_string(column) + "]");
  } catch (const Infeasible& stuck) {
    throw std::invalid_argument("cost matrix is infeasible: " + explain(stuck, lines.transposed()));
  }
}

template void linear_sum_assignment(const CostMatrix<float>&, int, int64_t*);
template void linear_sum_assignment(const CostMatrix<double>&, int, int64_t*);

}  // namespace saekern
