#include <algorithm>
#include <limits>

#include "linear_sum_assignment/candidates.h"
#include "linear_sum_assignment/search.h"

namespace saekern::assignment {
namespace {
constexpr double kInfinity = std::numeric_limits<double>::infinity();
}

template <class Candidates>
ListSearch<Candidates>::ListSearch(Candidates& candidates, Matching& matching)
    : candidates_(candidates),
      matching_(matching),
      distance_(matching.line_of.size(), kInfinity),
      from_(matching.line_of.size()),
      from_cost_(matching.line_of.size()),
      base_(matching.column_of.size()) {}

template <class Candidates>
void ListSearch<Candidates>::push(double distance, int32_t what) {
  heap_.push_back({distance, what});
  std::push_heap(heap_.begin(), heap_.end(), [](const Event& a, const Event& b) { return a.distance > b.distance; });
}

template <class Candidates>
typename ListSearch<Candidates>::Event ListSearch<Candidates>::pop() {
  std::pop_heap(heap_.begin(), heap_.end(), [](const Event& a, const Event& b) { return a.distance > b.distance; });
  const Event event = heap_.back();
  heap_.pop_back();
  return event;
}

template <class Candidates>
void ListSearch<Candidates>::scan(int32_t line) {
  const auto& list = candidates_.list(line);
  const auto* entry = candidates_.entries(list);
  const double base = base_[line];
  for (int64_t k = 0; k < list.count; ++k, ++entry, ++entries_seen_) {
    if (!(base + entry->bound < best_)) return;  // neither can a later entry, nor the rest of the line
    const int32_t column = entry->column;
    const double distance = base + (entry->cost - matching_.price[column]);
    if (!(distance < distance_[column] && distance < best_)) continue;
    if (distance_[column] == kInfinity) touched_.push_back(column);
    distance_[column] = distance;
    from_[column] = line;
    from_cost_[column] = entry->cost;
    if (matching_.line_of[column] < 0) {
      best_ = distance;
      sink_ = column;
    } else {
      push(distance, column);
    }
  }
  if (base + list.rest < best_) push(base + list.rest, ~line);
}

template <class Candidates>
bool ListSearch<Candidates>::pays() const {
  // In units of a column of LineSearch (0.3 ns): an entry costs about 8, with its share of the heap, and so does a
  // column of a line that is read again. One such reading of every line is granted before the account is looked at.
  const auto lines = static_cast<int64_t>(matching_.column_of.size());
  const auto columns = static_cast<int64_t>(matching_.line_of.size());
  return 8 * (entries_seen_ + columns * (extensions_ - lines)) <= columns * scans_;
}

template <class Candidates>
bool ListSearch<Candidates>::augment(int32_t root) {
  heap_.clear();
  reached_.clear();
  best_ = kInfinity;
  sink_ = -1;
  base_[root] = 0;
  scan(root);
  bool gave_up = false;
  while (!heap_.empty()) {
    const Event event = pop();
    if (!(event.distance < best_)) break;
    if (event.what < 0) {
      gave_up = candidates_.full() || !pays();
      if (gave_up) break;
      candidates_.extend(~event.what, matching_.price);
      ++extensions_;
      scan(~event.what);
      continue;
    }
    if (event.distance != distance_[event.what]) continue;  // reached more cheaply since, or final already
    distance_[event.what] = -kInfinity;
    reached_.push_back({event.what, event.distance});
    const int32_t line = matching_.line_of[event.what];
    base_[line] = event.distance - (matching_.cost_of[line] - matching_.price[event.what]);
    ++scans_;
    scan(line);
  }
  for (const int32_t column : touched_) distance_[column] = kInfinity;
  touched_.clear();
  if (gave_up) return false;
  if (sink_ < 0) throw matching_.stuck(root, reached_);
  matching_.augment(root, sink_, best_, reached_, from_, [&](int32_t, int32_t column) { return from_cost_[column]; });
  return true;
}

template class ListSearch<DenseCandidates<float>>;
template class ListSearch<DenseCandidates<double>>;

}  // namespace saekern::assignment
