#include <algorithm>
#include <limits>

#include "isa.h"
#include "linear_sum_assignment/search.h"

namespace saekern::assignment {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr int64_t kLanes = 32;  // long enough that GCC vectorises the inner loop instead of unrolling it

// One Dijkstra step: distance[j] = min(distance[j], base + cost[j] - price[j]), and nearest[lane] = the smallest of the
// distances lane, lane + 32, ... that is not final (final is -inf). No product, hence no contraction: all machines
// agree.
template <typename T>
inline __attribute__((always_inline)) void relax(const T* SAEKERN_RESTRICT cost, const double* SAEKERN_RESTRICT price,
                                                 int64_t n, double base, int32_t line,
                                                 double* SAEKERN_RESTRICT distance, int32_t* SAEKERN_RESTRICT from,
                                                 double* SAEKERN_RESTRICT nearest) {
  double low[kLanes];
  for (int64_t lane = 0; lane < kLanes; ++lane) low[lane] = kInfinity;
  const auto step = [&](int64_t j, int64_t lane) __attribute__((always_inline)) {
    const double old = distance[j + lane];
    const double through = base + (static_cast<double>(cost[j + lane]) - price[j + lane]);
    const double now = through < old ? through : old;
    distance[j + lane] = now;
    from[j + lane] = through < old ? line : from[j + lane];
    const double open = now > -kInfinity ? now : kInfinity;
    low[lane] = open < low[lane] ? open : low[lane];
  };
  int64_t j = 0;
  for (; j + kLanes <= n; j += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) step(j, lane);
  }
  for (int64_t lane = 0; lane < n - j; ++lane) step(j, lane);
  for (int64_t lane = 0; lane < kLanes; ++lane) nearest[lane] = low[lane];
}

SAEKERN_CLONES void relax_line(const float* cost, const double* price, int64_t n, double base, int32_t line,
                               double* distance, int32_t* from, double* nearest) {
  relax(cost, price, n, base, line, distance, from, nearest);
}
SAEKERN_CLONES void relax_line(const double* cost, const double* price, int64_t n, double base, int32_t line,
                               double* distance, int32_t* from, double* nearest) {
  relax(cost, price, n, base, line, distance, from, nearest);
}

}  // namespace

template <typename T>
LineSearch<T>::LineSearch(const Lines<T>& lines, Matching& matching)
    : lines_(lines), matching_(matching), distance_(lines.length()), from_(lines.length()), line_(lines.length()) {}

template <typename T>
int32_t LineSearch<T>::nearest(const double* lane_nearest, double distance) const {
  // Among columns equally near a free one ends the search: with many ties this saves most of it (Crouse, section V).
  int32_t column = -1;
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    if (lane_nearest[lane] != distance) continue;
    for (int64_t j = lane; j < lines_.length(); j += kLanes) {
      if (distance_[j] != distance) continue;
      if (matching_.line_of[j] < 0) return static_cast<int32_t>(j);
      if (column < 0) column = static_cast<int32_t>(j);
    }
  }
  return column;
}

template <typename T>
void LineSearch<T>::augment(int32_t root) {
  std::fill(distance_.begin(), distance_.end(), kInfinity);
  reached_.clear();
  double base = 0;
  for (int32_t line = root;;) {  // makes a column final each time, or ends
    const T* cost = lines_.line(line, line_.data());
    double lane_nearest[kLanes];
    relax_line(cost, matching_.price.data(), lines_.length(), base, line, distance_.data(), from_.data(), lane_nearest);
    const double distance = *std::min_element(lane_nearest, lane_nearest + kLanes);
    if (distance == kInfinity) throw matching_.stuck(root, reached_);
    const int32_t column = nearest(lane_nearest, distance);
    line = matching_.line_of[column];
    if (line < 0) {
      const auto cost_at = [&](int32_t i, int32_t j) { return lines_.cost(i, j); };
      return matching_.augment(root, column, distance, reached_, from_, cost_at);
    }
    reached_.push_back({column, distance});
    distance_[column] = -kInfinity;
    base = distance - (matching_.cost_of[line] - matching_.price[column]);
  }
}

template class LineSearch<float>;
template class LineSearch<double>;

}  // namespace saekern::assignment
