// How alike two vectors are, in double precision by one fixed order of summation.
#pragma once

#include <cstdint>
#include <vector>

namespace saekern::assignment {

enum class Metric {
  cosine,       // <a, b> / (|a| |b|); 0 where a norm is 0
  dot,          // <a, b>
  sqeuclidean,  // -|a - b|^2
};

// Two sets of vectors of one width, row-major: what would be a cost matrix [lines, columns], entry by entry.
template <typename T>
struct VectorPair {
  const T* a;  // [lines, width]
  const T* b;  // [columns, width]
  int64_t lines, columns, width;
  Metric metric;
};

template <typename T>
class Similarity {
 public:
  Similarity(const VectorPair<T>& pair, int threads);

  // The similarity computed in double and rounded once to T: 32 interleaved sums, then a tree, the same bits for any
  // number of threads and any order of asking.
  T operator()(int64_t line, int64_t column) const;

  // The same of one line and many columns: the line is widened once, which halves the conversions.
  class Line {
   public:
    Line(const Similarity& similarity, int64_t line);
    T operator()(int64_t column) const;

   private:
    const Similarity& similarity_;
    const int64_t line_;
    const std::vector<double> wide_;
  };

  void prefetch(int64_t column) const;

  const VectorPair<T>& pair() const { return pair_; }
  const std::vector<double>& a_norms() const { return a_norms_; }
  const std::vector<double>& b_norms() const { return b_norms_; }

 private:
  template <typename Row>
  T of(const Row* x, int64_t line, int64_t column) const;

  const VectorPair<T> pair_;
  std::vector<double> a_norms_, b_norms_;
};

}  // namespace saekern::assignment
