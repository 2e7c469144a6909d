// Prices by bidding: a cheap way to nearly the right ones.
#pragma once

#include <cstdint>
#include <vector>

#include "linear_sum_assignment/candidates.h"
#include "linear_sum_assignment/matching.h"
#include "monitor.h"

namespace saekern::assignment {

// For as many lines as columns. Every free line bids for its cheapest column and outbids its owner by what its second
// choice is worse and a small step. Lines whose list ends too early wait
// until no other line can bid, and then get longer lists together; when they are few, they are left to a search, which
// spends less on the last of them. Afterwards a matched line may have a column a little dearer than its cheapest; it
// is set free or given its cheapest, so that `matching` is optimal for the lines that it holds. Prices only fall, and
// columns that are free in the end may have one below 0: harmless only because all columns will be matched.
template <typename T>
void auction(Candidates<T>& candidates, Matching& matching, Monitor& monitor);

}  // namespace saekern::assignment
