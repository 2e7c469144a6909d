// Candidates read from a dense matrix.
#pragma once

#include <cstdint>
#include <vector>

#include "linear_sum_assignment/candidates.h"
#include "linear_sum_assignment/lines.h"
#include "linear_sum_assignment/select.h"
#include "monitor.h"

namespace saekern::assignment {

template <typename T>
class DenseCandidates final : public Candidates<T> {
 public:
  // Lists every line's cheapest columns at prices 0. Throws InvalidEntry on NaN or -inf.
  DenseCandidates(const Lines<T>& lines, int threads, Monitor& monitor);

  void extend(const std::vector<int32_t>& lines, const std::vector<double>& prices) override;
  bool worthwhile(int64_t scans, int64_t entries, int64_t extensions) const override;

 private:
  void extend(int32_t line, const std::vector<double>& prices);

  const Lines<T>& lines_;
  int64_t listed_ = 0;           // entries in all lists
  int64_t room_ = 0;             // what they may grow to: memory stays O(lines), whatever the matrix
  std::vector<T> line_;          // [length] scratch
  std::vector<double> reduced_;  // [length] scratch
  Selector<double> selector_;
  std::vector<Choice<double>> chosen_;
};

}  // namespace saekern::assignment
