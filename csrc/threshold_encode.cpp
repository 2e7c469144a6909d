#include "threshold_encode.h"

#include <algorithm>
#include <limits>

namespace saekern {

std::vector<RowCodes> threshold_encode(const ScoreInput& input, const float* thresholds, int threads, Isa isa) {
  std::vector<RowCodes> rows(input.rows);
  if (input.rows == 0) return rows;
  Screen screen(input, threads, isa);
  std::vector<float> limits(screen.padded_latents(), std::numeric_limits<float>::infinity());
  std::copy(thresholds, thresholds + input.latents, limits.begin());
  const float* bias = screen.padded_bias();
  screen.run(
      [&](const ScoreBlock& block) {
        Candidate found[Screen::kLatentBlock];
        for (int64_t r = 0; r < block.rows; ++r) {
          int64_t count = candidates_reaching(0, limits.data() + block.latent, block.scores + r * block.stride,
                                              bias ? bias + block.latent : nullptr, block.latent, block.latents,
                                              block.slack[r], screen.isa(), found);
          while (count > 0 && found[count - 1].index >= input.latents) --count;  // padding scores NaN in a row of NaN
          for (int64_t i = 0; i < count; ++i) {
            if (i + 2 < count) screen.prefetch(found[i + 2].index);
            const float score = screen.exact(block.row + r, found[i].index);
            if (score > thresholds[found[i].index] || score != score)
              rows[block.row + r].push_back({found[i].index, score});
          }
        }
      },
      [](int64_t, int64_t) {});
  return rows;
}

}  // namespace saekern
