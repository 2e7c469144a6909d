#include "linear_sum_assignment.h"

#include <algorithm>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>

#include "linear_sum_assignment/auction.h"
#include "linear_sum_assignment/dense_candidates.h"
#include "linear_sum_assignment/greedy.h"
#include "linear_sum_assignment/lines.h"
#include "linear_sum_assignment/search.h"
#include "linear_sum_assignment/sparse_candidates.h"

namespace saekern {
namespace {

using namespace assignment;

// Up to so many columns a problem is over before lists would pay. Measured: at 64 half the time of lists, at 256 more.
constexpr int64_t kSmall = 128;

template <typename T>
Matching solve_small(const Lines<T>& lines) {
  constexpr T infinity = std::numeric_limits<T>::infinity();
  Matching matching(lines.count(), lines.length());
  std::vector<T> scratch(lines.length());
  for (int64_t i = 0; i < lines.count(); ++i) {
    const T* cost = lines.line(i, scratch.data());
    T least = infinity;
    for (int64_t j = 0; j < lines.length(); ++j) {
      if (!(cost[j] > -infinity)) throw InvalidEntry{i, j};
      least = std::min(least, cost[j]);
    }
    for (int64_t j = 0; j < lines.length() && least < infinity; ++j) {
      if (cost[j] > least || matching.line_of[j] >= 0) continue;
      matching.column_of[i] = static_cast<int32_t>(j);
      matching.line_of[j] = static_cast<int32_t>(i);
      matching.cost_of[i] = static_cast<double>(least);
      break;
    }
  }
  LineSearch<T> search(lines, matching);
  for (int64_t i = 0; i < lines.count(); ++i) {
    if (matching.column_of[i] < 0) search.augment(static_cast<int32_t>(i));
  }
  return matching;
}

template <typename T>
Matching solve(const Lines<T>& lines, int threads, Monitor& monitor) {
  if (lines.length() <= kSmall) return solve_small(lines);
  DenseCandidates<T> candidates(lines, threads, monitor);
  Matching matching(lines.count(), lines.length());
  match_cheapest(candidates, matching);
  if (lines.count() == lines.length()) auction(candidates, matching, monitor);
  ListSearch<T> by_list(candidates, matching);
  std::unique_ptr<LineSearch<T>> by_line;
  for (int64_t i = 0; i < lines.count(); ++i) {
    if (matching.column_of[i] >= 0) continue;
    monitor.report("search", i, lines.count());
    if (!by_line && by_list.augment(static_cast<int32_t>(i)) == Outcome::matched) continue;
    if (!by_line) by_line = std::make_unique<LineSearch<T>>(lines, matching);
    by_line->augment(static_cast<int32_t>(i));
  }
  return matching;
}

template <typename T>
Matching solve(const SparseLines<T>& lines, Monitor& monitor) {
  SparseCandidates<T> candidates(lines);
  Matching matching(lines.count, lines.length);
  match_cheapest(candidates, matching);
  ListSearch<T> search(candidates, matching);
  for (int64_t i = 0; i < lines.count; ++i) {
    if (matching.column_of[i] >= 0) continue;
    monitor.report("search", i, lines.count);
    search.augment(static_cast<int32_t>(i));
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

// Solves, and writes or explains it in terms of rows and columns.
template <class Solve>
void answer(int64_t lines, bool transposed, bool maximize, const Solve& solve, int64_t* assignment) {
  try {
    const Matching matching = solve();
    for (int64_t i = 0; i < lines; ++i) {
      const int64_t j = matching.column_of[i];
      assignment[transposed ? j : i] = transposed ? i : j;
    }
  } catch (const InvalidEntry& at) {
    const int64_t row = transposed ? at.column : at.line, column = transposed ? at.line : at.column;
    throw std::invalid_argument("matrix contains invalid numeric entries: " + std::string(maximize ? "+" : "-") +
                                "inf or NaN at [" + std::to_string(row) + ", " + std::to_string(column) + "]");
  } catch (const Infeasible& stuck) {
    throw std::invalid_argument("cost matrix is infeasible: " + explain(stuck, transposed));
  }
}

}  // namespace

template <typename T>
void linear_sum_assignment(const CostMatrix<T>& cost, int threads, Monitor& monitor, int64_t* assignment) {
  const Lines<T> lines(cost);
  std::fill(assignment, assignment + cost.rows, -1);
  if (lines.count() == 0) return;
  answer(lines.count(), lines.transposed(), cost.maximize, [&] { return solve(lines, threads, monitor); }, assignment);
}

template <typename T>
void linear_sum_assignment(const SparseCostMatrix<T>& cost, Monitor& monitor, int64_t* assignment) {
  const SparseLines<T> lines{cost.offsets, cost.columns, cost.costs,
                             cost.lines,   cost.length,  cost.maximize ? T(-1) : T(1)};
  std::fill(assignment, assignment + (cost.transposed ? cost.length : cost.lines), -1);
  answer(cost.lines, cost.transposed, cost.maximize, [&] { return solve(lines, monitor); }, assignment);
}

template void linear_sum_assignment(const CostMatrix<float>&, int, Monitor&, int64_t*);
template void linear_sum_assignment(const CostMatrix<double>&, int, Monitor&, int64_t*);
template void linear_sum_assignment(const SparseCostMatrix<float>&, Monitor&, int64_t*);
template void linear_sum_assignment(const SparseCostMatrix<double>&, Monitor&, int64_t*);

}  // namespace saekern
