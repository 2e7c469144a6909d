// A dense cost matrix seen from its shorter side.
#pragma once

#include <algorithm>
#include <cstdint>

#include "linear_sum_assignment.h"

namespace saekern::assignment {

// `count` lines of `length` >= count costs to minimise: the rows, or the columns of a matrix that is taller than wide.
// A square matrix is read along memory, so a Fortran-ordered one costs no more than a C-ordered one.
template <typename T>
class Lines {
 public:
  explicit Lines(const CostMatrix<T>& cost) : data_(cost.data), sign_(cost.maximize ? T(-1) : T(1)) {
    const bool tall = cost.rows > cost.columns;
    const bool by_columns = cost.rows == cost.columns && cost.row_stride == 1 && cost.column_stride != 1;
    transposed_ = tall || by_columns;
    count_ = transposed_ ? cost.columns : cost.rows;
    length_ = transposed_ ? cost.rows : cost.columns;
    line_stride_ = transposed_ ? cost.column_stride : cost.row_stride;
    stride_ = transposed_ ? cost.row_stride : cost.column_stride;
  }

  int64_t count() const { return count_; }
  int64_t length() const { return length_; }
  bool transposed() const { return transposed_; }
  bool in_place() const { return stride_ == 1 && sign_ > 0; }

  T cost(int64_t line, int64_t column) const { return sign_ * data_[line * line_stride_ + column * stride_]; }

  // Lines first .. first + n, as out [n, length]. Column by column: neighbouring lines share cache lines when the
  // matrix is read across its memory order.
  void copy(int64_t first, int64_t n, T* out) const {
    const T* from = data_ + first * line_stride_;
    if (stride_ == 1) {
      for (int64_t i = 0; i < n; ++i) {
        for (int64_t j = 0; j < length_; ++j) out[i * length_ + j] = sign_ * from[i * line_stride_ + j];
      }
    } else {
      for (int64_t j = 0; j < length_; ++j) {
        for (int64_t i = 0; i < n; ++i) out[i * length_ + j] = sign_ * from[i * line_stride_ + j * stride_];
      }
    }
  }

  // One line as [length] contiguous costs: in the matrix itself where possible, otherwise in scratch.
  const T* line(int64_t i, T* scratch) const {
    if (in_place()) return data_ + i * line_stride_;
    copy(i, 1, scratch);
    return scratch;
  }

 private:
  const T* data_;
  T sign_;
  bool transposed_;
  int64_t count_, length_, line_stride_, stride_;
};

}  // namespace saekern::assignment
