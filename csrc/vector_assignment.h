// Exact assignment of two sets of vectors without their matrix of similarities, with proof.
//
// The search of linear_sum_assignment.h over candidates that come from approximate products with a proved bound. The
// similarities that it optimises are those of the given vectors in double precision, rounded once to T.
#pragma once

#include <cstdint>

#include "isa.h"
#include "linear_sum_assignment/similarity.h"
#include "monitor.h"

namespace saekern {

// Where the search begins, all null: from nothing; and what is computed at the end.
struct AssignmentOptions {
  const double* prices = nullptr;  // [columns] duals of an earlier solution
  const int64_t* index = nullptr;  // [lines, listed] candidates chosen elsewhere, -1 for none
  const double* rest = nullptr;    // [lines] no similarity outside the list exceeds it
  int64_t listed = 0;
  bool exact_margins = false;  // see exact_margins.h; otherwise a lower bound from the duals
};

// Duals: u[i] + v[j] >= similarity(i, j) for every pair, with equality for the assigned ones, v >= 0, and v = 0 for a
// column that is left over. So sum u + sum v bounds every assignment, and this one reaches it.
template <typename T>
struct AssignmentProof {
  int64_t* assignment;  // [lines] column
  T* similarity;        // [lines] of the assigned pair
  double* u;            // [lines]
  double* v;            // [columns]
  double* margin;  // [lines] the pair stays in an optimal assignment while its similarity falls by no more than this
};

// pair.lines <= pair.columns, both at least 1. Returns how many lists of candidates were chosen again. Throws
// std::invalid_argument if the best assignment has a similarity that is not finite. Memory beside the vectors: about 50
// candidates of 12 to 16 bytes a line and what screen.h holds; vectors of doubles are copied once in float. The answer
// does not depend on the number of threads.
template <typename T>
int64_t vector_assignment(const assignment::VectorPair<T>& pair, const AssignmentOptions& options, int threads, Isa isa,
                          Monitor& monitor, const AssignmentProof<T>& proof);

}  // namespace saekern
