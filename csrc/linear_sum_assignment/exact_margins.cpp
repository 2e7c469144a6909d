#include "linear_sum_assignment/exact_margins.h"

#include <algorithm>
#include <limits>
#include <numeric>

namespace saekern::assignment {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr int64_t kListed = 64;  // columns a line to begin with

// What a line pays for its own column at the matching's prices.
double dual(const Matching& matching, int64_t line) {
  return matching.cost_of[line] - matching.price[matching.column_of[line]];
}

// closing[i]: no edge from another line to line i's column has a smaller reduced cost. A path that has come this near
// to the shortest cycle known cannot close to a shorter one, and searches end early: a latent with a clear partner is
// as far from every other latent as they are from it.
template <typename T>
std::vector<double> closing_costs(const Similarity<T>& similarity, const Matching& matching, int threads, Isa isa,
                                  Monitor& monitor) {
  const VectorPair<T>& pair = similarity.pair();
  const VectorPair<T> turned{pair.b, pair.a, pair.columns, pair.lines, pair.width, pair.metric};
  const Similarity<T> from_columns(turned, threads);
  VectorCandidates<T> lists(from_columns, 0, threads, isa, monitor);
  std::vector<double> duals(pair.lines), closing(pair.lines);
  for (int64_t i = 0; i < pair.lines; ++i) duals[i] = dual(matching, i);
  lists.list_all(std::min<int64_t>(2, pair.lines), duals);
  double spare = kInfinity;  // reduced cost of a spare line at price 0
  for (auto i = pair.lines; i < static_cast<int64_t>(matching.column_of.size()); ++i) {
    spare = std::min(spare, -dual(matching, i));
  }
  const bool free = std::find(matching.line_of.begin(), matching.line_of.end(), -1) != matching.line_of.end();
  for (int64_t i = 0; i < pair.lines; ++i) {
    const int32_t own = matching.column_of[i];
    const List<T>& list = lists.list(own);
    double least = std::min(list.rest, spare);
    for (const Entry<T>& entry : list.entries) {
      if (entry.column != i) least = std::min(least, entry.cost - duals[entry.column]);
    }
    if (free) least = std::min(least, 0.0);  // or the column stays free in the end
    closing[i] = std::max(0.0, least - matching.price[own]);
  }
  return closing;
}

// Dijkstra in reduced costs from a line to its own column, over edges that are not its own.
template <typename T>
class CycleSearch {
 public:
  CycleSearch(const Similarity<T>& similarity, const Matching& matching, VectorCandidates<T>& candidates)
      : similarity_(similarity),
        matching_(matching),
        candidates_(candidates),
        distance_(matching.line_of.size(), kInfinity),
        base_(matching.column_of.size()),
        by_price_(matching.line_of.size()) {
    std::iota(by_price_.begin(), by_price_.end(), 0);
    std::sort(by_price_.begin(), by_price_.end(), [&](int32_t a, int32_t b) {
      return matching.price[a] != matching.price[b] ? matching.price[a] > matching.price[b] : a < b;
    });
  }

  double shortest(int32_t root, double closing) {
    own_ = matching_.column_of[root];
    best_ = kInfinity;
    closing_ = closing;
    left_over_ = false;
    heap_.clear();
    base_[root] = -dual(matching_, root);
    scan(root);
    // Every column becomes final once, and every list longer log2(columns) times at most.
    while (!heap_.empty() && heap_.front().distance + closing_ < best_) {
      std::pop_heap(heap_.begin(), heap_.end(), farther);
      const Event event = heap_.back();
      heap_.pop_back();
      if (event.what < 0) {
        candidates_.extend({~event.what}, matching_.price);
        scan(~event.what);
      } else if (event.distance == distance_[event.what]) {
        settle(event);
      }
    }
    for (const int32_t column : touched_) distance_[column] = kInfinity;
    touched_.clear();
    return best_;
  }

 private:
  struct Event {
    double distance;
    int32_t what;  // a column, or ~line for the unlisted columns of a line
  };
  static bool farther(const Event& a, const Event& b) { return a.distance > b.distance; }

  void settle(const Event& event) {
    distance_[event.what] = -kInfinity;
    const int32_t line = matching_.line_of[event.what];
    const double price = matching_.price[own_];
    if (line < 0) {  // the own column is left over instead, or any other one is
      best_ = std::min(best_, event.distance - price);
      if (!left_over_) scan_left_over(event.distance);
      left_over_ = true;
      return;
    }
    const bool spare = line >= similarity_.pair().lines;
    const double cost = spare ? 0.0 : -static_cast<double>(similarity_(line, own_));
    const double from = event.distance - dual(matching_, line);
    best_ = std::min(best_, from + (cost - price));
    base_[line] = from;
    scan(line);
  }

  void scan(int32_t line) {
    const List<T>& list = candidates_.list(line);
    const double base = base_[line];
    for (const Entry<T>& entry : list.entries) {
      if (!(base + entry.bound + closing_ < best_)) return;
      reach(entry.column, base + (entry.cost - matching_.price[entry.column]));
    }
    if (list.rest < kInfinity) push({base + list.rest, ~line});
  }

  void scan_left_over(double base) {
    for (const int32_t column : by_price_) {
      const double distance = base - matching_.price[column];
      if (!(distance + closing_ < best_)) return;
      reach(column, distance);
    }
  }

  void reach(int32_t column, double distance) {
    if (column == own_ || !(distance < distance_[column])) return;
    if (distance_[column] == kInfinity) touched_.push_back(column);
    distance_[column] = distance;
    push({distance, column});
  }

  void push(const Event& event) {
    heap_.push_back(event);
    std::push_heap(heap_.begin(), heap_.end(), farther);
  }

  const Similarity<T>& similarity_;
  const Matching& matching_;
  VectorCandidates<T>& candidates_;
  std::vector<double> distance_;   // [columns] +inf: untouched, -inf: final
  std::vector<double> base_;       // [lines] path length up to the line, minus its dual
  std::vector<int32_t> by_price_;  // [columns] the dearest first
  std::vector<Event> heap_;
  std::vector<int32_t> touched_;
  bool left_over_ = false;  // a column without a line was reached
  int32_t own_ = -1;
  double best_ = 0, closing_ = 0;
};

}  // namespace

template <typename T>
void exact_margins(const Similarity<T>& similarity, const Matching& matching, VectorCandidates<T>& candidates,
                   int threads, Isa isa, Monitor& monitor, double* margins) {
  const int64_t lines = similarity.pair().lines;
  const std::vector<double> closing = closing_costs(similarity, matching, threads, isa, monitor);
  // A line with a clear partner has listed little else, and all of them will be asked for their second choice.
  candidates.list_all(kListed, matching.price);
  CycleSearch<T> search(similarity, matching, candidates);
  for (int64_t i = 0; i < lines; ++i) {
    monitor.report("margins", i, lines);
    margins[i] = std::max(0.0, search.shortest(static_cast<int32_t>(i), closing[i]));
  }
}

template void exact_margins(const Similarity<float>&, const Matching&, VectorCandidates<float>&, int, Isa, Monitor&,
                            double*);
template void exact_margins(const Similarity<double>&, const Matching&, VectorCandidates<double>&, int, Isa, Monitor&,
                            double*);

}  // namespace saekern::assignment
