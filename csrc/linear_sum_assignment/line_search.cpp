#include <algorithm>
#include <limits>

#include "isa.h"
#include "linear_sum_assignment/search.h"

namespace saekern::assignment {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr int64_t kLanes = 8;

// One Dijkstra step: distance[j] = min(distance[j], base + cost[j] - price[j]); returns the smallest that is not final
// (final is -inf). cost - price is one rounding in every clone, so all machines agree.
template <typename T>
inline __attribute__((always_inline)) double relax(const T* SAEKERN_RESTRICT cost, const double* SAEKERN_RESTRICT price,
                                                   int64_t n, double base, int32_t line,
                                                   double* SAEKERN_RESTRICT distance, int32_t* SAEKERN_RESTRICT from) {
  double low[kLanes];
  for (int64_t lane = 0; lane < kLanes; ++lane) low[lane] = kInfinity;
  int64_t j = 0;
  for (; j + kLanes <= n; j += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      const double old = distance[j + lane];
      const double through = base + (static_cast<double>(cost[j + lane]) - price[j + lane]);
      const double now = through < old ? through : old;
      distance[j + lane] = now;
      from[j + lane] = through < old ? line : from[j + lane];
      const double open = now > -kInfinity ? now : kInfinity;
      low[lane] = open < low[lane] ? open : low[lane];
    }
  }
  for (; j < n; ++j) {
    const double through = base + (static_cast<double>(cost[j]) - price[j]);
    if (through < distance[j]) {
      distance[j] = through;
      from[j] = line;
    }
    if (distance[j] > -kInfinity && distance[j] < low[0]) low[0] = distance[j];
  }
  return *std::min_element(low, low + kLanes);
}

SAEKERN_CLONES double relax_line(const float* cost, const double* price, int64_t n, double base, int32_t line,
                                 double* distance, int32_t* from) {
  return relax(cost, price, n, base, line, distance, from);
}
SAEKERN_CLONES double relax_line(const double* cost, const double* price, int64_t n, double base, int32_t line,
                                 double* distance, int32_t* from) {
  return relax(cost, price, n, base, line, distance, from);
}

}  // namespace

template <typename T>
LineSearch<T>::LineSearch(const Lines<T>& lines, Matching& matching)
    : lines_(lines), matching_(matching), distance_(lines.length()), from_(lines.length()), line_(lines.length()) {}

template <typename T>
void LineSearch<T>::augment(int32_t root) {
  const int64_t n = lines_.length();
  std::fill(distance_.begin(), distance_.end(), kInfinity);
  struct Reached {
    int32_t column;
    double distance;
  };
  std::vector<Reached> final;
  double base = 0;
  for (int32_t line = root;;) {
    const T* cost = lines_.line(line, line_.data());
    const double nearest = relax_line(cost, matching_.price.data(), n, base, line, distance_.data(), from_.data());
    if (nearest == kInfinity) {
      Infeasible stuck{{root}, {}};
      for (const Reached& reached : final) {
        stuck.lines.push_back(matching_.line_of[reached.column]);
        stuck.columns.push_back(reached.column);
      }
      throw stuck;
    }
    // Among columns equally near a free one ends the search: with many ties this saves most of it (Crouse, section V).
    int32_t column = -1;
    for (int64_t j = 0; j < n; ++j) {
      if (distance_[j] != nearest) continue;
      if (column < 0 || matching_.line_of[j] < 0) column = static_cast<int32_t>(j);
      if (matching_.line_of[j] < 0) break;
    }
    line = matching_.line_of[column];
    if (line < 0) {
      for (const Reached& reached : final) matching_.price[reached.column] -= nearest - reached.distance;
      for (;;) {
        const int32_t next = from_[column], previous = matching_.column_of[next];
        matching_.column_of[next] = column;
        matching_.line_of[column] = next;
        matching_.cost_of[next] = lines_.cost(next, column);
        if (next == root) return;
        column = previous;
      }
    }
    final.push_back({column, nearest});
    distance_[column] = -kInfinity;
    base = nearest - (matching_.cost_of[line] - matching_.price[column]);
  }
}

template class LineSearch<float>;
template class LineSearch<double>;

}  // namespace saekern::assignment
