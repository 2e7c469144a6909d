// Scores of all rows against all latents, approximately, a cache-sized block at a time, each handed to the caller while
// it is hot; and single scores exactly. What topk_encode and nearest are made of.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "panel.h"
#include "select.h"

namespace saekern {

// The dictionary's side of the products, kept from one Screen to the next: half the dictionary's memory in bfloat16,
// all of it in float32.
struct PackedPanels {
  std::vector<uint32_t> words;
  std::vector<float> norm, residual;              // [padded latents]
  std::vector<float> group_norm, group_residual;  // [padded latents / 64], see Slack
};

// score(r, f) = ⟨x_r − pre_bias, w_f⟩ · x_scale[r] · weight_scale[f] + bias[f]. All row-major: x [rows, width], weight
// [latents, width]; bias [latents], pre_bias [width], x_scale [rows], weight_scale [latents] may be null.
struct ScoreInput {
  const float* x = nullptr;
  const float* weight = nullptr;
  const float* bias = nullptr;
  const float* pre_bias = nullptr;
  const float* x_scale = nullptr;
  const float* weight_scale = nullptr;
  int64_t rows = 0, latents = 0, width = 0;
  PackedPanels* packed = nullptr;  // filled by the first Screen that it is given to, for this weight and weight_scale
  float tolerance = 0;             // the bounds leave this much room for scores that the caller computes in his own way
};

struct ScoreBlock {
  const float* scores;  // row r, latent j at scores[r * stride + j], bias not included
  int64_t stride;
  int64_t row, rows;        // which rows of x
  int64_t latent, latents;  // which latents; padded to a multiple of 64 behind the last
  const Slack* slack;       // [rows], arrays in it indexed by latent
  int worker;
};

class Screen {
 public:
  static constexpr int64_t kRowGroup = 8192;  // rows in flight: bounds the memory beyond the caller's
  static constexpr int64_t kLatentBlock = CandidateList::kBlock;

  Screen(const ScoreInput& input, int threads, Isa isa);

  // Calls block(b) for every block, in parallel; for one row in ascending order of latents. Rows go in groups of
  // `row_group()`: finish(row, rows) is called in parallel over each group's rows once all their latents were seen.
  void run(const std::function<void(const ScoreBlock&)>& block, const std::function<void(int64_t, int64_t)>& finish);

  // The score in float32, by one dot product in a fixed order. `row` belongs to the group in flight.
  float exact(int64_t row, int64_t latent) const;
  void prefetch(int64_t latent) const;

  int64_t row_group() const { return group_; }
  int64_t padded_latents() const { return padded_; }
  const float* padded_bias() const { return bias_.empty() ? nullptr : bias_.data(); }
  Isa isa() const { return kernel_.isa; }

 private:
  const float* centred_row(int64_t row) const;
  void pack_row(int64_t row);
  bool few_rows(int64_t rows) const;
  void run_few(int64_t rows, const std::function<void(const ScoreBlock&)>& block);
  void pack_panel(int64_t panel, uint32_t* words);
  void multiply(int64_t row, int64_t rows, int64_t latent, int64_t latents, const uint32_t* words, int worker,
                const std::function<void(const ScoreBlock&)>& block);

  const ScoreInput in_;
  const int threads_;
  const PanelKernel kernel_;
  const int64_t padded_, group_;
  int64_t panels_;  // packed at a time
  float largest_bias_ = 0;
  int64_t group_first_ = 0;
  PackedPanels own_;
  PackedPanels& packed_;
  std::vector<float> bias_;     // [padded latents]
  std::vector<Slack> slack_;    // [group]
  std::vector<float> centred_;  // [group, width] if there is a pre_bias
  std::vector<uint32_t> packed_rows_;
  std::vector<float> few_scores_;           // [rows, padded latents]
  std::vector<std::vector<float>> scores_;  // a block for each worker
};

}  // namespace saekern
