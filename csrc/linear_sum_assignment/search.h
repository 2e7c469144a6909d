// Shortest augmenting paths: over candidate lists, and over whole lines.
#pragma once

#include <cstdint>
#include <vector>

#include "linear_sum_assignment/candidates.h"
#include "linear_sum_assignment/lines.h"
#include "linear_sum_assignment/matching.h"

namespace saekern::assignment {

enum class Outcome {
  matched,
  waiting,  // for a longer list of the line waits_for()
  gave_up,  // Candidates says that lists do not pay
};

// Dijkstra with a heap over what Candidates lists. Where a list ends, the bound on the rest of the line enters the heap
// as an event of its own: only when the search gets there is the list extended.
template <typename T>
class ListSearch {
 public:
  ListSearch(Candidates<T>& candidates, Matching& matching);
  // Matches `root`; throws Infeasible. Otherwise leaves the matching as it was.
  Outcome augment(int32_t root, bool wait = false);
  int32_t waits_for() const { return waits_for_; }

 private:
  struct Event {
    double distance;
    int32_t what;  // a column, or ~line for the unlisted columns of a line
  };

  void scan(int32_t line);
  void push(double distance, int32_t what);
  Event pop();
  void extend(int32_t line, size_t together);

  Candidates<T>& candidates_;
  Matching& matching_;
  std::vector<double> distance_;   // [columns] +inf: untouched, -inf: final
  std::vector<int32_t> from_;      // [columns] the line before it on the path
  std::vector<double> from_cost_;  // [columns] cost of that edge
  std::vector<double> base_;       // [lines] path length up to the line, minus its dual
  std::vector<Event> heap_;
  std::vector<int32_t> touched_, wishes_;
  std::vector<Event> ends_;
  std::vector<Reached> reached_;  // in ascending distance
  double best_ = 0;
  int32_t sink_ = -1, waits_for_ = -1;
  int64_t scans_ = 0, entries_seen_ = 0, extensions_ = 0;
};

// Dijkstra over whole lines, O(columns) a step: for inputs on which lists do not pay.
template <typename T>
class LineSearch {
 public:
  LineSearch(const Lines<T>& lines, Matching& matching);
  void augment(int32_t root);  // matches `root`; throws Infeasible

 private:
  int32_t nearest(const double* lane_nearest, double distance) const;

  const Lines<T>& lines_;
  Matching& matching_;
  std::vector<double> distance_;  // [columns]
  std::vector<int32_t> from_;     // [columns]
  std::vector<T> line_;           // [columns] scratch
  std::vector<Reached> reached_;
};

}  // namespace saekern::assignment
