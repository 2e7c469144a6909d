// Per line, its cheapest columns and a bound on all the others.
#pragma once

#include <cstdint>
#include <vector>

#include "linear_sum_assignment/lines.h"
#include "linear_sum_assignment/select.h"

namespace saekern::assignment {

template <typename T>
struct Candidate {
  T cost;
  T bound;  // <= the reduced cost when the list was made, so <= every later one: prices only fall
  int32_t column;
};

// What the path search asks of a source of costs: lists, and longer lists on demand. This one reads a dense matrix; a
// sparse or a computed matrix can stand in its place.
template <typename T>
class DenseCandidates {
 public:
  using Cost = T;
  struct List {
    int64_t first;  // into entries
    int64_t count;
    double rest;  // <= the reduced cost of every column that is not listed; +inf when none is left
  };

  // Lists every line's cheapest columns at prices 0. Throws InvalidEntry on NaN or -inf.
  DenseCandidates(const Lines<T>& lines, int threads);

  // Lists twice as many columns of a line at the present prices [length].
  void extend(int64_t line, const std::vector<double>& prices);

  // True once the lists hold 16 times what they began with: memory stays O(lines), whatever the matrix.
  bool full() const { return entries_.size() > room_; }

  const List& list(int64_t line) const { return lists_[line]; }
  const Candidate<T>* entries(const List& list) const { return entries_.data() + list.first; }

 private:
  const Lines<T>& lines_;
  std::vector<List> lists_;  // [lines]
  std::vector<Candidate<T>> entries_;
  size_t room_ = 0;
  std::vector<T> line_;          // [length] scratch
  std::vector<double> reduced_;  // [length] scratch
  Selector<double> selector_;
  std::vector<Choice<double>> chosen_;
};

struct InvalidEntry {
  int64_t line, column;
};

}  // namespace saekern::assignment
