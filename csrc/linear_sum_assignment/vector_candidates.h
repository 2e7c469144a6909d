// Candidates of a matrix of similarities that is never formed: products of two sets of vectors, screened in blocks.
#pragma once

#include <cstdint>
#include <vector>

#include "isa.h"
#include "linear_sum_assignment/candidates.h"
#include "linear_sum_assignment/similarity.h"
#include "monitor.h"
#include "screen.h"

namespace saekern::assignment {

// Costs are -similarity. Which columns can be among a line's cheapest is decided by approximate products with a proved
// bound (screen.h); the costs of those are then computed by Similarity.
template <typename T>
class VectorCandidates final : public Candidates<T> {
 public:
  // `spare` further lines cost 0 in every column: with them a matrix that is a little wider than high is square.
  VectorCandidates(const Similarity<T>& similarity, int64_t spare, int threads, Isa isa, Monitor& monitor);

  // Lists at least `wanted` columns of every line, fewer where the others are clearly worse, chosen at `prices`
  // [columns].
  void list_all(int64_t wanted, const std::vector<double>& prices);

  // Takes lists that were made elsewhere: index [lines, listed], and rest [lines], which no similarity of a column
  // outside the list exceeds. -1 fills a list that has fewer.
  void list_given(const int64_t* index, const double* rest, int64_t listed);

  void extend(const std::vector<int32_t>& lines, const std::vector<double>& prices) override;

  size_t batch() const override { return 32; }

  // From here on lists are extended from short ones again: once prices are final, few columns are needed.
  void ask_anew();

  int64_t recomputed() const { return recomputed_; }

 private:
  void choose(const std::vector<int32_t>& lines, const std::vector<double>& prices);
  void choose_spare(const std::vector<int32_t>& lines, const std::vector<double>& prices);
  void choose_some(const int32_t* lines, int64_t count, const std::vector<double>& prices,
                   const std::vector<float>& bias);
  int64_t room() const;
  void shrink(const std::vector<double>& prices);
  double row_constant(int64_t line) const;

  const Similarity<T>& similarity_;
  const int threads_;
  const Isa isa_;
  Monitor& monitor_;
  std::vector<float> copy_;     // [columns, width] where T is double: unit rows for cosines
  std::vector<float> b_scale_;  // [columns] 1 / norm, where T is float and the metric is cosine
  float tolerance_ = 0;
  float window_;  // of the first lists; asking again must get what was left out
  bool keeps_panels_ = false;
  PackedPanels panels_;         // of b: without them each pass over a few lines would pack all of b again
  std::vector<int64_t> asked_;  // [lines] how many columns were last asked for
  int64_t recomputed_ = 0;
};

}  // namespace saekern::assignment
