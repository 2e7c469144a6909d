#include <algorithm>
#include <limits>

#include "linear_sum_assignment/candidates.h"
#include "linear_sum_assignment/search.h"

namespace saekern::assignment {
namespace {
constexpr double kInfinity = std::numeric_limits<double>::infinity();
}  // namespace

template <typename T>
ListSearch<T>::ListSearch(Candidates<T>& candidates, Matching& matching)
    : candidates_(candidates),
      matching_(matching),
      distance_(matching.line_of.size(), kInfinity),
      from_(matching.line_of.size()),
      from_cost_(matching.line_of.size()),
      base_(matching.column_of.size()) {}

template <typename T>
void ListSearch<T>::push(double distance, int32_t what) {
  heap_.push_back({distance, what});
  std::push_heap(heap_.begin(), heap_.end(), [](const Event& a, const Event& b) { return a.distance > b.distance; });
}

template <typename T>
typename ListSearch<T>::Event ListSearch<T>::pop() {
  std::pop_heap(heap_.begin(), heap_.end(), [](const Event& a, const Event& b) { return a.distance > b.distance; });
  const Event event = heap_.back();
  heap_.pop_back();
  return event;
}

template <typename T>
void ListSearch<T>::scan(int32_t line) {
  const List<T>& list = candidates_.list(line);
  const double base = base_[line];
  for (const Entry<T>& entry : list.entries) {
    if (!(base + entry.bound < best_)) return;  // neither can a later entry, nor the rest of the line
    ++entries_seen_;
    const int32_t column = entry.column;
    const double distance = base + (entry.cost - matching_.price[column]);
    if (!(distance < distance_[column] && distance < best_)) continue;
    if (distance_[column] == kInfinity) touched_.push_back(column);
    distance_[column] = distance;
    from_[column] = line;
    from_cost_[column] = entry.cost;
    if (matching_.line_of[column] < 0) {
      best_ = distance;
      sink_ = column;
    } else {
      push(distance, column);
    }
  }
  if (base + list.rest < best_) push(base + list.rest, ~line);
}

// Gets longer lists for a line and for those at whose ends the search arrives next.
template <typename T>
void ListSearch<T>::extend(int32_t line, size_t together) {
  wishes_.assign(1, line);
  if (together > 1) {
    ends_.clear();
    for (const Event& event : heap_) {
      if (event.what < 0 && event.distance < best_) ends_.push_back(event);
    }
    const auto last = ends_.begin() + static_cast<int64_t>(std::min(together - 1, ends_.size()));
    std::nth_element(ends_.begin(), last, ends_.end(),
                     [](const Event& a, const Event& b) { return a.distance < b.distance; });
    for (auto end = ends_.begin(); end != last; ++end) {
      // Not what has become longer meanwhile.
      if (base_[~end->what] + candidates_.list(~end->what).rest <= end->distance) wishes_.push_back(~end->what);
    }
  }
  candidates_.extend(wishes_, matching_.price);
  ++extensions_;
  scan(line);
}

template <typename T>
Outcome ListSearch<T>::augment(int32_t root, bool wait) {
  heap_.clear();
  reached_.clear();
  best_ = kInfinity;
  sink_ = -1;
  base_[root] = 0;
  scan(root);
  Outcome outcome = Outcome::matched;
  size_t ends_met = 0;
  // A column becomes final once. A list asked for is twice as long as before or whole, and whole ones have no rest to
  // wait for: at most columns + lines · log2(columns) events are acted upon, and each pushes no more than a list.
  while (!heap_.empty()) {
    const Event event = pop();
    if (!(event.distance < best_)) break;
    if (event.what < 0) {
      waits_for_ = ~event.what;
      if (base_[waits_for_] + candidates_.list(waits_for_).rest > event.distance) {  // longer than when last scanned
        scan(waits_for_);
        continue;
      }
      if (!candidates_.worthwhile(scans_, entries_seen_, extensions_)) outcome = Outcome::gave_up;
      if (wait) outcome = Outcome::waiting;
      if (outcome != Outcome::matched) break;
      // A search that has met many ends will meet more.
      extend(waits_for_, std::min(candidates_.batch(), 1 + ends_met++ / 2));
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
  if (outcome != Outcome::matched) return outcome;
  if (sink_ < 0) throw matching_.stuck(root, reached_);
  matching_.augment(root, sink_, best_, reached_, from_, [&](int32_t, int32_t column) { return from_cost_[column]; });
  return outcome;
}

template class ListSearch<float>;
template class ListSearch<double>;

}  // namespace saekern::assignment
