#include "linear_sum_assignment/auction.h"

#include <algorithm>
#include <limits>

#include "linear_sum_assignment/greedy.h"

namespace saekern::assignment {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
// Of the range of the lines' cheapest costs. The second, finer round leaves half as many lines to the searches.
constexpr double kSteps[] = {1e-3, 1e-4};
constexpr int64_t kFew = 4;                // waiting lines
constexpr int64_t kBidsPerLine = 40;       // then searches go on: bids that gain only a step each could be many
constexpr int64_t kBetweenReports = 4096;  // bids, of about 0.1 µs

template <typename T>
struct Choices {
  const Entry<T>* best = nullptr;
  double first = kInfinity, second = kInfinity;  // reduced costs
};

template <typename T>
Choices<T> two_cheapest(const List<T>& list, const std::vector<double>& price) {
  Choices<T> found;
  for (const Entry<T>& entry : list.entries) {
    if (entry.bound >= found.second) break;
    const double reduced = entry.cost - price[entry.column];
    if (reduced < found.first) {
      found.second = found.first;
      found.first = reduced;
      found.best = &entry;
    } else {
      found.second = std::min(found.second, reduced);
    }
  }
  return found;
}

template <typename T>
double range_of_cheapest(const Candidates<T>& candidates, int64_t lines) {
  double least = kInfinity, most = -kInfinity;
  for (int64_t i = 0; i < lines; ++i) {
    const List<T>& list = candidates.list(i);
    if (list.entries.empty()) continue;
    least = std::min(least, static_cast<double>(list.entries[0].bound));
    most = std::max(most, static_cast<double>(list.entries[0].bound));
  }
  return most > least ? most - least : 0.0;
}

// One round. Ends when a few lines at most wait, or after so many bids.
template <typename T>
void bid(Candidates<T>& candidates, Matching& matching, double step, int64_t bids, Monitor& monitor) {
  const auto lines = static_cast<int64_t>(matching.column_of.size());
  std::vector<int32_t> queue, parked;
  for (int64_t i = lines - 1; i >= 0; --i) {
    if (matching.column_of[i] < 0) queue.push_back(static_cast<int32_t>(i));
  }
  // Every turn of either loop spends a bid, of which there are kBidsPerLine a line.
  while (static_cast<int64_t>(queue.size()) >= kFew && bids > 0) {
    for (; !queue.empty() && bids > 0; --bids) {
      if (bids % kBetweenReports == 0) monitor.report("auction", lines - static_cast<int64_t>(queue.size()), lines);
      const int32_t line = queue.back();
      queue.pop_back();
      const Choices<T> choice = two_cheapest(candidates.list(line), matching.price);
      const double rest = candidates.list(line).rest;
      if (!choice.best && rest == kInfinity) continue;  // no column at all: the search will say so
      if (!choice.best || choice.first >= rest) {
        parked.push_back(line);
        continue;
      }
      // Beyond the bound on its rest a line cannot know whether the column is still its cheapest. It bids up to that
      // bound once a column at most, so that this too comes to an end.
      double limit = std::min(choice.second + step, rest);
      if (limit == kInfinity) limit = choice.first + step;  // the only column that it has
      const int32_t column = choice.best->column, owner = matching.line_of[column];
      matching.price[column] -= limit - choice.first;
      matching.column_of[line] = column;
      matching.line_of[column] = line;
      matching.cost_of[line] = choice.best->cost;
      if (owner >= 0) {
        matching.column_of[owner] = -1;
        queue.push_back(owner);
      }
    }
    queue.insert(queue.end(), parked.begin(), parked.end());
    monitor.report("auction", lines - static_cast<int64_t>(queue.size()), lines);
    if (static_cast<int64_t>(parked.size()) >= kFew && bids > 0) candidates.extend(parked, matching.price);
    parked.clear();
  }
}

template <typename T>
void free_those_off_their_cheapest(const Candidates<T>& candidates, Matching& matching) {
  for (size_t i = 0; i < matching.column_of.size(); ++i) {
    const int32_t own = matching.column_of[i];
    if (own < 0) continue;
    const List<T>& list = candidates.list(static_cast<int64_t>(i));
    const double least = std::min(two_cheapest(list, matching.price).first, list.rest);
    if (matching.cost_of[i] - matching.price[own] <= least) continue;
    matching.column_of[i] = -1;
    matching.line_of[own] = -1;
  }
}

}  // namespace

template <typename T>
void auction(Candidates<T>& candidates, Matching& matching, Monitor& monitor) {
  const auto lines = static_cast<int64_t>(matching.column_of.size());
  const double range = range_of_cheapest(candidates, lines);
  if (range == 0) return;
  for (const double step : kSteps) {
    bid(candidates, matching, step * range, kBidsPerLine * lines, monitor);
    free_those_off_their_cheapest(candidates, matching);
    match_cheapest(candidates, matching);
  }
}

template void auction(Candidates<float>&, Matching&, Monitor&);
template void auction(Candidates<double>&, Matching&, Monitor&);

}  // namespace saekern::assignment
