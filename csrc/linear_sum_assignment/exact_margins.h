// How much every pair of an optimal assignment could lose before another one is better.
#pragma once

#include "linear_sum_assignment/matching.h"
#include "linear_sum_assignment/vector_candidates.h"
#include "monitor.h"

namespace saekern::assignment {

// margins [pair.lines]: the cost of line i's pair may rise by margins[i] and no more, everything else as it is, with
// `matching` still optimal; +inf where there is no other assignment. That is the length, in reduced costs, of the
// shortest cycle of alternate edges through the pair. One search a line, after two more passes over all pairs.
template <typename T>
void exact_margins(const Similarity<T>& similarity, const Matching& matching, VectorCandidates<T>& candidates,
                   int threads, Isa isa, Monitor& monitor, double* margins);

}  // namespace saekern::assignment
