#include "linear_sum_assignment/select.h"

#include <algorithm>
#include <limits>

#include "isa.h"

namespace saekern::assignment {
namespace {

constexpr int64_t kLanes = 16;

// minima[b * 16 + lane] = the smallest of x[b * 16 * depth + lane + 16 * k], k < depth. Returns whether all x > -inf,
// which is false for NaN too. Sixteen separate minima, because compilers do not reorder a float reduction.
template <typename T>
inline __attribute__((always_inline)) bool group_minima(const T* SAEKERN_RESTRICT x, int64_t n, int64_t depth,
                                                        T* SAEKERN_RESTRICT minima) {
  constexpr T infinity = std::numeric_limits<T>::infinity();
  const int64_t block = kLanes * depth;
  int32_t bad[kLanes] = {};
  int64_t j = 0;
  for (; j + block <= n; j += block, minima += kLanes) {
    T low[kLanes];
    for (int64_t lane = 0; lane < kLanes; ++lane) low[lane] = infinity;
    for (int64_t k = 0; k < depth; ++k) {
      const T* row = x + j + k * kLanes;
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        low[lane] = row[lane] < low[lane] ? row[lane] : low[lane];
        bad[lane] |= row[lane] > -infinity ? 0 : 1;
      }
    }
    for (int64_t lane = 0; lane < kLanes; ++lane) minima[lane] = low[lane];
  }
  if (j < n) {
    for (int64_t lane = 0; lane < kLanes; ++lane) minima[lane] = infinity;
    for (int64_t lane = 0; j < n; ++j, lane = (lane + 1) % kLanes) {
      minima[lane] = x[j] < minima[lane] ? x[j] : minima[lane];
      bad[lane] |= x[j] > -infinity ? 0 : 1;
    }
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

}  // namespace

template <typename T>
bool Selector<T>::smallest(const T* x, int64_t n, int64_t count, int64_t start, std::vector<Choice<T>>& out, T& rest) {
  constexpr T infinity = std::numeric_limits<T>::infinity();
  out.clear();
  rest = infinity;
  // Picking the threshold costs ~4 ns a group, reading the groups below it ~1 ns an element: balanced near this depth.
  int64_t depth = 4;
  while (depth < 64 && depth * depth * (count + 1) < 4 * n) depth *= 2;
  const int64_t block = kLanes * depth;
  const int64_t groups = (n + block - 1) / block * kLanes;
  minima_.resize(groups);
  if (!minima_of(x, n, depth, minima_.data())) return false;

  // At least count + 1 elements are <= threshold, and at most count groups hold a smaller one.
  T threshold = infinity;
  if (groups > count) {
    order_ = minima_;
    std::nth_element(order_.begin(), order_.begin() + count, order_.end());
    threshold = order_[count];
  }
  const auto take = [&](int64_t j) {
    if (x[j] <= threshold && x[j] < infinity) out.push_back({x[j], static_cast<int32_t>(j)});
  };
  const auto room = static_cast<size_t>((count + 1) * depth);
  for (int64_t g = 0; g < groups && out.size() <= room; ++g) {
    if (!(minima_[g] <= threshold)) continue;
    const int64_t first = g / kLanes * block + g % kLanes;
    const int64_t last = std::min(n, first + block - g % kLanes);
    for (int64_t j = first; j < last; j += kLanes) take(j);
  }
  if (out.size() > room && groups > count) {
    // More than `room` can only be elements equal to the threshold: keep the first few of them in the rotated order.
    out.clear();
    int64_t equal = 0;
    for (int64_t k = 0, j = start; k < n; ++k, j = j + 1 == n ? 0 : j + 1) {
      if (x[j] < threshold || (x[j] == threshold && equal++ <= count)) out.push_back({x[j], static_cast<int32_t>(j)});
    }
  }

  const auto before = [&](const Choice<T>& a, const Choice<T>& b) {
    if (a.value != b.value) return a.value < b.value;
    const int64_t left = a.index - start, right = b.index - start;
    return (left < 0 ? left + n : left) < (right < 0 ? right + n : right);
  };
  if (static_cast<int64_t>(out.size()) > count) {
    std::nth_element(out.begin(), out.begin() + count, out.end(), before);
    rest = out[count].value;
    out.resize(count);
  }
  std::sort(out.begin(), out.end(), before);
  return true;
}

template class Selector<float>;
template class Selector<double>;

}  // namespace saekern::assignment
