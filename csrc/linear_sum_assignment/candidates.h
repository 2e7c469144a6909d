// Per line, its cheapest columns and a bound on all the others.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

namespace saekern::assignment {

template <typename T>
struct Entry {
  T cost;
  T bound;  // <= the reduced cost when the list was made, so <= every later one: prices only fall
  int32_t column;
};

template <typename T>
struct List {
  std::vector<Entry<T>> entries;  // by ascending bound
  double rest;                    // <= the reduced cost of every column not listed; +inf when none is left
};

// What the path search asks of a source of costs: lists, and longer lists on demand.
template <typename T>
class Candidates {
 public:
  explicit Candidates(int64_t lines) : lists_(lines) {}
  virtual ~Candidates() = default;

  const List<T>& list(int64_t line) const { return lists_[line]; }

  // Lists more columns of `lines`, chosen at `prices` [columns]: together, since one reading of a computed matrix
  // serves many, and of the first ones only, at least one, where there is no room for more. What was complete stays
  // complete.
  virtual void extend(const std::vector<int32_t>& lines, const std::vector<double>& prices) = 0;

  // How many lines are best asked for together.
  virtual size_t batch() const { return 1; }

  // What the search has spent so far, in lines scanned, entries seen and lists extended: false ends it.
  virtual bool worthwhile(int64_t /*scans*/, int64_t /*entries*/, int64_t /*extensions*/) const { return true; }

 protected:
  std::vector<List<T>> lists_;
};

// NaN or -inf in the costs.
struct InvalidEntry {
  int64_t line, column;
};

inline float round_down(double x, float) {
  const auto y = static_cast<float>(x);
  return static_cast<double>(y) > x ? std::nextafter(y, -std::numeric_limits<float>::infinity()) : y;
}
inline double round_down(double x, double) { return x; }

}  // namespace saekern::assignment
