#include "linear_sum_assignment/select.h"

#include <algorithm>
#include <limits>

#include "isa.h"

namespace saekern::assignment {
namespace {

constexpr int64_t kLanes = 64;  // inner loop of four AVX-512 registers; shorter ones GCC unrolls and leaves scalar

// Up to so many candidates are ordered by counting, quadratic but without a branch: for the ~50 of a typical row it
// takes a third of the time of std::sort, which mispredicts.
constexpr int64_t kRanked = 128;

// minima[b * 64 + lane] = the smallest of x[b * 64 * depth + lane + 64 * k], k < depth. Returns whether all x > -inf,
// which is false for NaN too. Separate minima, because compilers do not reorder a float reduction.
template <typename T>
inline __attribute__((always_inline)) bool group_minima(const T* SAEKERN_RESTRICT x, int64_t n, int64_t depth,
                                                        T* SAEKERN_RESTRICT minima) {
  constexpr T infinity = std::numeric_limits<T>::infinity();
  int32_t bad[kLanes] = {};
  for (int64_t j = 0; j < n; j += kLanes * depth, minima += kLanes) {
    T low[kLanes];
    for (int64_t lane = 0; lane < kLanes; ++lane) low[lane] = infinity;
    const int64_t whole = std::min(depth, (n - j) / kLanes);
    const T* row = x + j;
    for (int64_t k = 0; k < whole; ++k, row += kLanes) {
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        low[lane] = row[lane] < low[lane] ? row[lane] : low[lane];
        bad[lane] |= row[lane] > -infinity ? 0 : 1;
      }
    }
    const int64_t left = whole < depth ? (n - j) % kLanes : 0;
    for (int64_t lane = 0; lane < left; ++lane) {
      low[lane] = row[lane] < low[lane] ? row[lane] : low[lane];
      bad[lane] |= row[lane] > -infinity ? 0 : 1;
    }
    for (int64_t lane = 0; lane < kLanes; ++lane) minima[lane] = low[lane];
  }
  int32_t any = 0;
  for (int64_t lane = 0; lane < kLanes; ++lane) any |= bad[lane];
  return any == 0;
}

// Only comparisons: the clones cannot differ by a rounding.
SAEKERN_CLONES bool minima_of(const float* x, int64_t n, int64_t depth, float* out) {
  return group_minima(x, n, depth, out);
}
SAEKERN_CLONES bool minima_of(const double* x, int64_t n, int64_t depth, double* out) {
  return group_minima(x, n, depth, out);
}

template <typename T>
inline __attribute__((always_inline)) int64_t count_at_most(const T* x, int64_t n, T limit) {
  int32_t count = 0;
  for (int64_t i = 0; i < n; ++i) count += x[i] <= limit ? 1 : 0;
  return count;
}

SAEKERN_CLONES int64_t count_below(const float* x, int64_t n, float limit) { return count_at_most(x, n, limit); }
SAEKERN_CLONES int64_t count_below(const double* x, int64_t n, double limit) { return count_at_most(x, n, limit); }

// rank[i] = how many of the n elements come before element i in the order (value, turn).
template <typename T>
inline __attribute__((always_inline)) void count_before(const T* SAEKERN_RESTRICT value,
                                                        const int32_t* SAEKERN_RESTRICT turn, int64_t n,
                                                        int32_t* SAEKERN_RESTRICT rank) {
  for (int64_t i = 0; i < n; ++i) {
    int32_t before = 0;
    for (int64_t j = 0; j < n; ++j) {
      before += (value[j] < value[i]) | ((value[j] == value[i]) & (turn[j] < turn[i]));
    }
    rank[i] = before;
  }
}

SAEKERN_CLONES void ranks(const float* value, const int32_t* turn, int64_t n, int32_t* rank) {
  count_before(value, turn, n, rank);
}
SAEKERN_CLONES void ranks(const double* value, const int32_t* turn, int64_t n, int32_t* rank) {
  count_before(value, turn, n, rank);
}

}  // namespace

template <typename T>
bool Selector<T>::smallest(const T* x, int64_t n, int64_t count, int64_t start, std::vector<Choice<T>>& out, T& rest) {
  constexpr T infinity = std::numeric_limits<T>::infinity();
  out.clear();
  rest = infinity;
  // Picking the threshold costs ~4 ns a group, reading the groups below it ~1 ns an element: balanced near this depth.
  int64_t depth = 4;
  while (depth < 64 && depth * depth * (count + 1) < n / 2) depth *= 2;
  const int64_t block = kLanes * depth;
  const int64_t groups = (n + block - 1) / block * kLanes;
  minima_.resize(groups);
  if (!minima_of(x, n, depth, minima_.data())) return false;

  // At least count + 1 elements must be <= threshold. The last vector's threshold mostly does for the next one, and
  // saves picking a new one; a few groups more than needed make it last. What is selected does not depend on it.
  if (groups <= count) {
    threshold_ = infinity;
  } else if (const int64_t below = count_below(minima_.data(), groups, threshold_);
             below <= count || below > 3 * count + 1) {
    const int64_t rank = std::min(groups - 1, count + count / 2);
    order_ = minima_;
    std::nth_element(order_.begin(), order_.begin() + rank, order_.end());
    threshold_ = order_[rank];
  }
  const T threshold = std::min(threshold_, std::numeric_limits<T>::max());

  // Both loops write first and keep by adding 0 or 1: branches taken once in ten times cost more than they skip.
  picked_.resize(groups + 1);
  int64_t picked = 0;
  for (int64_t g = 0; g < groups; ++g) {
    picked_[picked] = static_cast<int32_t>(g);
    picked += minima_[g] <= threshold;
  }
  const int64_t room = (3 * count + 2) * depth;
  found_.resize(room + depth);
  int64_t found = 0;
  for (int64_t k = 0; k < picked && found <= room; ++k) {
    const int64_t first = picked_[k] / kLanes * block + picked_[k] % kLanes;
    const int64_t last = std::min(n, first + block - picked_[k] % kLanes);
    for (int64_t j = first; j < last; j += kLanes) {
      found_[found] = {x[j], static_cast<int32_t>(j)};
      found += x[j] <= threshold;
    }
  }
  out.assign(found_.begin(), found_.begin() + found);
  if (found > room) {
    // So many can only be elements equal to the threshold: keep the first few of them in the rotated order.
    out.clear();
    int64_t equal = 0;
    for (int64_t k = 0, j = start; k < n; ++k, j = j + 1 == n ? 0 : j + 1) {
      if (x[j] < threshold || (x[j] == threshold && equal++ <= count)) out.push_back({x[j], static_cast<int32_t>(j)});
    }
  }

  const auto size = static_cast<int64_t>(out.size());
  const auto turn = [&](int64_t j) { return static_cast<int32_t>(j < start ? j - start + n : j - start); };
  if (size <= kRanked) {
    T value[kRanked];
    int32_t turns[kRanked], rank[kRanked];
    for (int64_t k = 0; k < size; ++k) {
      value[k] = out[k].value;
      turns[k] = turn(out[k].index);
    }
    ranks(value, turns, size, rank);
    found_.assign(out.begin(), out.end());
    for (int64_t k = 0; k < size; ++k) out[rank[k]] = found_[k];
  } else {
    const auto before = [&](const Choice<T>& a, const Choice<T>& b) {
      return a.value != b.value ? a.value < b.value : turn(a.index) < turn(b.index);
    };
    const auto kept = out.begin() + std::min(size, count + 1);
    if (kept != out.end()) std::nth_element(out.begin(), kept, out.end(), before);
    std::sort(out.begin(), kept, before);
  }
  if (size > count) {
    rest = out[count].value;
    out.resize(count);
  }
  return true;
}

template class Selector<float>;
template class Selector<double>;

}  // namespace saekern::assignment
