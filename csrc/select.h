// Streaming selection: the candidates for the top k of a row whose scores arrive in blocks and are known up to a bound.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#include "isa.h"
#include "lanes.h"

namespace saekern {

// The approximate score of latent f is within  constant + row_norm · norm[f] + row_rounded · residual[f]  of the score.
struct Slack {
  float constant = 0, row_norm = 0, row_rounded = 0;
  const float* norm = nullptr;      // [padded F]
  const float* residual = nullptr;  // [padded F]
  // [padded F / kGroup] the largest norm and residual of each group: with them one subtraction serves all its latents
  const float* group_norm = nullptr;
  const float* group_residual = nullptr;

  static constexpr int64_t kGroup = 64;
};

struct Candidate {
  int32_t index;
  float upper, lower;  // bounds on its score
};

// The candidates among latents first + [0, length), length a multiple of 64 and at most 1024: those whose upper bound
// is not below the limit, `limits` [length] for each or, where that is null, `limit` for all; NaN is one. Ascending;
// returns how many. scores and bias (or null) as in CandidateList::add.
int64_t candidates_reaching(float limit, const float* limits, const float* scores, const float* bias, int64_t first,
                            int64_t length, const Slack& slack, Isa isa, Candidate* out);

// Every latent whose true score may be among the k largest seen so far. The k-th largest lower bound is the threshold;
// a latent whose upper bound is below it is out. It only rises, so what is dropped stays out. NaN is never dropped.
class CandidateList {
 public:
  // window: what surely lies that far below the best is out too, though fewer than k may be left.
  explicit CandidateList(float window = std::numeric_limits<float>::infinity()) : window_(window) {}

  // Looks at scores[0, length) of latents first + [0, length), length a multiple of 16 and at most kBlock. Bit j of
  // allowed[i] says whether latent 16 i + j counts (null: all do). bias [length] or null.
  void add(const float* scores, const float* bias, const uint16_t* allowed, int64_t first, int64_t length, int64_t k,
           const Slack& slack, Isa isa);

  // Drops what the threshold, made as high as the bounds allow, excludes.
  void compact(int64_t k);

  // Replaces the items by those in `keys`, the best k ranked by exact score.
  void settle(const std::vector<uint64_t>& keys, int64_t k);

  const std::vector<Candidate>& items() const { return items_; }
  int64_t size() const { return static_cast<int64_t>(items_.size()); }

  // No score that was dropped exceeds it; −infinity while nothing was.
  float threshold() const { return threshold_; }

  static constexpr int64_t kBlock = 1024;

 private:
  std::vector<Candidate> items_;
  float threshold_ = -std::numeric_limits<float>::infinity();
  float window_;
  int64_t limit_ = 0;
};

// Bit j of mask[i]: latent 16 i + j exists and counts (allowed [latents], or null: all that exist do).
std::vector<uint16_t> lane_mask(const bool* allowed, int64_t latents, int64_t padded);

// A value that at least k of the n given reach, and little below the k-th largest; −infinity if there are fewer than k.
// NaN counts as −infinity. Cheaper than finding the k-th largest itself: at most 15 vector loops that count.
float kth_largest_bound(const float* values, int64_t n, int64_t k);

// Sorts by score descending, NaN first, ties by index ascending, when ascending as an integer.
inline uint64_t order_key(float score, int32_t index) {
  score += 0.0f;  // −0 ties with +0
  uint32_t bits;
  __builtin_memcpy(&bits, &score, sizeof bits);
  uint32_t ordered = bits & 0x80000000u ? ~bits : bits | 0x80000000u;  // ascending with the score
  if (score != score) ordered = 0xffffffffu;
  return static_cast<uint64_t>(~ordered) << 32 | static_cast<uint32_t>(index);
}

inline int64_t key_index(uint64_t key) { return static_cast<int64_t>(key & 0xffffffffu); }

inline float key_score(uint64_t key) {
  const uint32_t ordered = ~static_cast<uint32_t>(key >> 32);
  uint32_t bits = ordered & 0x80000000u ? ordered & 0x7fffffffu : ~ordered;
  if (ordered == 0xffffffffu) bits = 0x7fc00000u;  // NaN
  float score;
  __builtin_memcpy(&score, &bits, sizeof score);
  return score;
}

}  // namespace saekern
