#include "topk_encode.h"

#include <algorithm>
#include <vector>

namespace saekern {
namespace {

class Selection {
 public:
  Selection(const TopK& out, const Screen& screen, int64_t latents, bool relu)
      : out_(out),
        screen_(screen),
        latents_(latents),
        relu_(relu),
        mask_(lane_mask(out.allowed, latents, screen.padded_latents())),
        lists_(screen.row_group()) {
    for (int64_t f = 0; out.allowed && f < latents && static_cast<int64_t>(padding_.size()) < out.k; ++f) {
      if (!out.allowed[f]) padding_.push_back(f);
    }
  }

  void add(const ScoreBlock& block) {
    const auto mask = mask_.begin() + block.latent / kLanes;
    if (std::all_of(mask, mask + block.latents / kLanes, [](uint16_t lanes) { return lanes == 0; })) return;
    const bool whole = !out_.allowed && block.latent + block.latents <= latents_;
    const float* bias = screen_.padded_bias();
    for (int64_t r = 0; r < block.rows; ++r) {
      CandidateList& list = list_of(block.row + r);
      list.add(block.scores + r * block.stride, bias ? bias + block.latent : nullptr, whole ? nullptr : &*mask,
               block.latent, block.latents, out_.k, block.slack[r], screen_.isa());
      // Where many scores tie (a row of zeros ties all of them) bounds cannot choose: rank what there is.
      if (list.size() > std::max<int64_t>(2048, 8 * out_.k)) list.settle(ranked(block.row + r, list), out_.k);
    }
  }

  void finish(int64_t row) {
    CandidateList& list = list_of(row);
    list.compact(out_.k);
    const std::vector<uint64_t> keys = ranked(row, list);
    list = CandidateList();
    const auto chosen = static_cast<int64_t>(keys.size());
    for (int64_t i = 0; i < out_.k; ++i) {
      const float score = i < chosen ? key_score(keys[i]) : 0.0f;
      out_.values[row * out_.k + i] = relu_ && score < 0 ? 0.0f : score;
      out_.indices[row * out_.k + i] = i < chosen ? key_index(keys[i]) : padding_[i - chosen];
    }
  }

 private:
  CandidateList& list_of(int64_t row) { return lists_[row % Screen::kRowGroup]; }

  // The best k of a row's candidates by exact score, or all if there are fewer.
  std::vector<uint64_t> ranked(int64_t row, const CandidateList& list) const {
    const std::vector<Candidate>& items = list.items();
    std::vector<uint64_t> keys(items.size());
    for (size_t i = 0; i < items.size(); ++i) {
      if (i + 2 < items.size()) screen_.prefetch(items[i + 2].index);
      keys[i] = order_key(screen_.exact(row, items[i].index), items[i].index);
    }
    const auto chosen = keys.begin() + std::min<int64_t>(out_.k, static_cast<int64_t>(keys.size()));
    std::nth_element(keys.begin(), chosen, keys.end());
    std::sort(keys.begin(), chosen);
    keys.erase(chosen, keys.end());
    return keys;
  }

  const TopK out_;
  const Screen& screen_;
  const int64_t latents_;
  const bool relu_;
  const std::vector<uint16_t> mask_;
  std::vector<CandidateList> lists_;
  std::vector<int64_t> padding_;  // the smallest latents not allowed
};

}  // namespace

void topk_encode(const ScoreInput& input, const TopK& main, const TopK& aux, bool relu, int threads, Isa isa) {
  if (input.rows == 0) return;
  Screen screen(input, threads, isa);
  std::vector<Selection> selections;
  for (const TopK& out : {main, aux}) {
    if (out.k > 0) selections.emplace_back(out, screen, input.latents, relu);
  }
  screen.run(
      [&](const ScoreBlock& block) {
        for (Selection& selection : selections) selection.add(block);
      },
      [&](int64_t row, int64_t rows) {
        for (int64_t r = row; r < row + rows; ++r) {
          for (Selection& selection : selections) selection.finish(r);
        }
      });
}

}  // namespace saekern
