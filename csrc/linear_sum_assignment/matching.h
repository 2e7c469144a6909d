// The state of the solve: who has whom, and the price of every column.
#pragma once

#include <cstdint>
#include <vector>

namespace saekern::assignment {

// A column that a search has reached for good, and how far it is from the root.
struct Reached {
  int32_t column;
  double distance;
};

// No assignment exists: these lines have finite costs only in these columns, one fewer (Hall's condition).
struct Infeasible {
  std::vector<int32_t> lines, columns;
};

// A partial assignment that is optimal for the lines it holds. A matched line's dual is cost - price of its own column,
// never stored, so its edge is tight by definition and rounding cannot open a gap that a search would chase.
struct Matching {
  Matching(int64_t lines, int64_t columns)
      : column_of(lines, -1), line_of(columns, -1), cost_of(lines), price(columns, 0.0) {}

  // Ends a search: lowers the prices of the columns nearer than the sink, so that every edge of the path is tight, and
  // swaps the path's edges. Column j was reached from line from[j]; cost(line, column) is asked along the path only.
  template <class Cost>
  void augment(int32_t root, int32_t sink, double sink_distance, const std::vector<Reached>& reached,
               const std::vector<int32_t>& from, const Cost& cost) {
    for (const Reached& r : reached) price[r.column] -= sink_distance - r.distance;
    for (int32_t column = sink;;) {  // each line of the path was reached before the one behind it, the root first
      const int32_t line = from[column], previous = column_of[line];
      column_of[line] = column;
      line_of[column] = line;
      cost_of[line] = cost(line, column);
      if (line == root) return;
      column = previous;
    }
  }

  // The lines and columns of a search that ran out of edges.
  Infeasible stuck(int32_t root, const std::vector<Reached>& reached) const {
    Infeasible result{{root}, {}};
    for (const Reached& r : reached) {
      result.lines.push_back(line_of[r.column]);
      result.columns.push_back(r.column);
    }
    return result;
  }

  std::vector<int32_t> column_of;  // [lines], -1 = free
  std::vector<int32_t> line_of;    // [columns], -1 = free
  std::vector<double> cost_of;     // [lines] cost of the line's own column
  std::vector<double> price;       // [columns] dual, <= 0, exactly 0 while the column is free
};

}  // namespace saekern::assignment
