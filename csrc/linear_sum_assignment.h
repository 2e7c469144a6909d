// Exact linear sum assignment on a matrix in memory: every row of the shorter side gets its own column, total cost
// minimal.
//
// Shortest augmenting paths (Crouse, "On implementing 2D rectangular assignment algorithms", IEEE TAES 52(4), 2016)
// that look at the few cheapest columns of a row instead of at all of them. Beside its list a row keeps a lower bound
// on everything outside it; column prices only fall while the search runs, so the bound holds for ever, and a row is
// read again only when a path could really need an unlisted column. Relatives: the core-oriented Jonker-Volgenant
// solver (Volgenant 1996) and the look-back auction (Bus and Tvrdik 2009).
#pragma once

#include <cstdint>

#include "monitor.h"

namespace saekern {

template <typename T>  // float or double
struct CostMatrix {
  const T* data;  // element [i, j] is data[i * row_stride + j * column_stride]; strides count elements, may be negative
  int64_t rows, columns;  // each below 2^31
  int64_t row_stride, column_stride;
  bool maximize;  // the answer for -data, without a negated copy
};

// Compressed rows of the shorter side (`transposed`: the matrix's columns); what is not stored is forbidden.
template <typename T>
struct SparseCostMatrix {
  const int64_t* offsets;  // [lines + 1]
  const int32_t* columns;  // [nnz], none twice in a line
  const T* costs;          // [nnz]
  int64_t lines, length;   // lines <= length
  bool transposed, maximize;
};

// assignment[i] = the column given to row i, -1 for a row left over (rows > columns). +inf forbids a pair.
// Throws std::invalid_argument on NaN, on -inf, and when no assignment avoids the forbidden pairs (with maximize, read
// the signs the other way round). Of several optimal answers it returns one, the identity for a constant matrix.
// Prices and path lengths are double, costs are never rounded. Extra memory: 32 to 512 candidates a line, no copy of
// data. `threads` divides the first pass over the matrix; the answer does not depend on it.
template <typename T>
void linear_sum_assignment(const CostMatrix<T>& cost, int threads, Monitor& monitor, int64_t* assignment);

// The same; extra memory: a sorted copy of the entries.
template <typename T>
void linear_sum_assignment(const SparseCostMatrix<T>& cost, Monitor& monitor, int64_t* assignment);

}  // namespace saekern
