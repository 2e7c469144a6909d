// The few smallest elements of a long vector.
#pragma once

#include <cstdint>
#include <vector>

namespace saekern::assignment {

template <typename T>
struct Choice {
  T value;
  int32_t index;
};

// Workspace of one thread; T is float or double.
template <typename T>
class Selector {
 public:
  // The `count` smallest elements of x [n] below +inf, ascending, ties in the order start, start + 1, ... (mod n);
  // fewer when fewer are finite. Rotated ties let the rows of a matrix full of equal costs list different columns.
  // `rest` becomes the smallest element left out, +inf if there is none. False if x holds NaN or -inf.
  bool smallest(const T* x, int64_t n, int64_t count, int64_t start, std::vector<Choice<T>>& out, T& rest);

 private:
  std::vector<T> minima_, order_;
  std::vector<int32_t> picked_;
  std::vector<Choice<T>> found_;
  T threshold_ = 0;
};

}  // namespace saekern::assignment
