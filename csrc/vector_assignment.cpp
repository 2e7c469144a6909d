#include "vector_assignment.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>

#include "linear_sum_assignment/auction.h"
#include "linear_sum_assignment/exact_margins.h"
#include "linear_sum_assignment/greedy.h"
#include "linear_sum_assignment/matching.h"
#include "linear_sum_assignment/search.h"
#include "linear_sum_assignment/vector_candidates.h"

namespace saekern {
namespace {

using namespace assignment;

// Candidates a line. Of 8192 SAE latents one in 1000 needs more later; with 24, one in 30.
constexpr int64_t kListed = 48;

// As long as so many lines are free, they wait for longer lists together.
constexpr size_t kTogether = 64;

// Spare lines are taken up to this part of the lines.
constexpr int64_t kSpare = 8;

// Rounds in a row may match nobody, since lists that were made longer are also cut (VectorCandidates::shrink). After so
// many a search extends what it needs at once. Then it ends with a match: a list doubles each time that this search
// asks for it, and one of all columns is not asked for again.
constexpr int kFruitless = 8;

// Matches every free line. A search that needs a longer list waits until all others have been tried: one pass over b
// serves many lists. With few lines left it costs more to begin their searches anew than to read b for each.
template <typename T>
void match_free(VectorCandidates<T>& candidates, Matching& matching, Monitor& monitor) {
  ListSearch<T> search(candidates, matching);
  const auto lines = static_cast<int64_t>(matching.column_of.size());
  std::vector<int32_t> free, waiting, wishes;
  for (int64_t i = 0; i < lines; ++i) {
    if (matching.column_of[i] < 0) free.push_back(static_cast<int32_t>(i));
  }
  // One round in kFruitless matches a line at least; a line that is matched stays so.
  for (int fruitless = 0; !free.empty(); free.swap(waiting)) {
    waiting.clear();
    wishes.clear();
    const bool wait = free.size() > kTogether && fruitless < kFruitless;
    for (size_t i = 0; i < free.size(); ++i) {
      monitor.report("search", lines - static_cast<int64_t>(free.size() - i + waiting.size()), lines);
      if (search.augment(free[i], wait) == Outcome::matched) continue;
      waiting.push_back(free[i]);
      wishes.push_back(search.waits_for());
    }
    std::sort(wishes.begin(), wishes.end());
    wishes.erase(std::unique(wishes.begin(), wishes.end()), wishes.end());
    fruitless = waiting.size() < free.size() ? 0 : fruitless + 1;
    if (!wishes.empty()) candidates.extend(wishes, matching.price);
  }
}

// Lines whose bound on what they do not list lies below the cost of their own column: a list was cut while a search
// went on. The prices are right all the same, but only a longer list shows it.
template <typename T>
std::vector<int32_t> unproved(const VectorCandidates<T>& candidates, const Matching& matching) {
  double largest = 0;
  for (const double price : matching.price) largest = std::max(largest, std::abs(price));
  std::vector<int32_t> lines;
  for (size_t i = 0; i < matching.column_of.size(); ++i) {
    const double reduced = matching.cost_of[i] - matching.price[matching.column_of[i]];
    const double rounding = 0x1p-48 * (largest + std::abs(reduced));
    if (candidates.list(i).rest < reduced - rounding) lines.push_back(static_cast<int32_t>(i));
  }
  return lines;
}

// The bounds that the duals give. The dual of a line is what its own column costs it; no other column is cheaper.
template <typename T>
void write_proof(Matching& matching, int64_t lines, const VectorCandidates<T>& candidates,
                 const AssignmentProof<T>& proof) {
  // Columns that spare lines have are left over: theirs is the highest price, which then is the 0 of all prices.
  double zero = 0;
  if (matching.column_of.size() > static_cast<size_t>(lines)) {
    zero = *std::max_element(matching.price.begin(), matching.price.end());
  }
  for (double& price : matching.price) price -= zero;
  for (int64_t i = 0; i < lines; ++i) {
    const int32_t own = matching.column_of[i];
    const double reduced = matching.cost_of[i] - matching.price[own];
    const List<T>& list = candidates.list(i);
    double least = reduced, next = list.rest + zero;
    for (const Entry<T>& entry : list.entries) {
      const double other = entry.cost - matching.price[entry.column];
      if (entry.column != own) next = std::min(next, other);
    }
    least = std::min(least, next);
    proof.assignment[i] = own;
    proof.similarity[i] = static_cast<T>(-matching.cost_of[i]);
    proof.u[i] = 0.0 - least;  // so that rounding on the way cannot make the bound wrong
    proof.margin[i] = std::max(0.0, next - reduced);
  }
  for (size_t j = 0; j < matching.price.size(); ++j) proof.v[j] = 0.0 - matching.price[j];  // not -0
}

[[noreturn]] void throw_overflow() {
  throw std::invalid_argument(
      "vector_assignment: the similarities exceed the largest number of their dtype; scale the dictionaries");
}

}  // namespace

template <typename T>
int64_t vector_assignment(const VectorPair<T>& pair, const AssignmentOptions& options, int threads, Isa isa,
                          Monitor& monitor, const AssignmentProof<T>& proof) {
  // An auction, and prices to begin with, need a column for every line and none left over. Spare lines provide that
  // where they are few; where columns are plenty, there is little to fight over and the search alone is fast.
  const int64_t excess = pair.columns - pair.lines;
  const bool square = excess <= pair.lines / kSpare;
  const int64_t spare = square ? excess : 0;
  const Similarity<T> similarity(pair, threads);
  VectorCandidates<T> candidates(similarity, spare, threads, isa, monitor);
  Matching matching(pair.lines + spare, pair.columns);
  if (options.prices && square) std::copy(options.prices, options.prices + pair.columns, matching.price.begin());
  if (options.index) {
    candidates.list_given(options.index, options.rest, options.listed);
  } else {
    candidates.list_all(kListed, matching.price);
  }
  match_cheapest(candidates, matching);
  if (square) auction(candidates, matching, monitor);
  try {
    match_free(candidates, matching, monitor);
    candidates.ask_anew();
    // Lists double, whole lines leave nothing out, and at the same prices no list is cut below its own column: 32
    // rounds for those that are extended together, one for each line at the very worst.
    for (int64_t round = 0; round < 32 + pair.lines; ++round) {
      const std::vector<int32_t> lines = unproved(candidates, matching);
      if (lines.empty()) break;
      candidates.extend(lines, matching.price);
    }
  } catch (const Infeasible&) {  // of finite similarities every column can be had
    throw_overflow();
  }
  const auto finite = [](double cost) { return std::isfinite(cost); };
  if (!std::all_of(matching.cost_of.begin(), matching.cost_of.end(), finite)) throw_overflow();
  std::vector<double> margins(options.exact_margins ? pair.lines : 0);
  if (options.exact_margins) {
    exact_margins(similarity, matching, candidates, threads, isa, monitor, margins.data());
  }
  write_proof(matching, pair.lines, candidates, proof);
  std::copy(margins.begin(), margins.end(), proof.margin);
  return candidates.recomputed();
}

template int64_t vector_assignment(const VectorPair<float>&, const AssignmentOptions&, int, Isa, Monitor&,
                                   const AssignmentProof<float>&);
template int64_t vector_assignment(const VectorPair<double>&, const AssignmentOptions&, int, Isa, Monitor&,
                                   const AssignmentProof<double>&);

}  // namespace saekern
