#include "select.h"

#include <algorithm>
#include <cmath>

#ifdef SAEKERN_X86
#include <immintrin.h>
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC bug 105593, as in panel.cpp
#endif
#endif

namespace saekern {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Block {
  const float* scores;
  const float* bias;        // or null
  const uint16_t* allowed;  // or null
  const float* norm;        // at the block's first latent
  const float* residual;    // likewise
  const float* group_norm;  // at the group it lies in
  const float* group_residual;
  int64_t first, length;
  const Slack& slack;
};

Block block_of(const float* scores, const float* bias, const uint16_t* allowed, int64_t first, int64_t length,
               const Slack& slack) {
  const int64_t group = first / Slack::kGroup;
  return {scores,
          bias,
          allowed,
          slack.norm + first,
          slack.residual + first,
          slack.group_norm + group,
          slack.group_residual + group,
          first,
          length,
          slack};
}

// Largest lower bound of each group of `stride` strided 16-lane vectors: lane j of group g covers the latents
// 16 (g·stride + i) + j. Returns how many maxima it wrote.
int64_t group_maxima_portable(const Block& b, int64_t stride, float* maxima) {
  int64_t count = 0;
  for (int64_t v = 0; v < b.length; v += stride * kLanes, count += kLanes) {
    std::fill(maxima + count, maxima + count + kLanes, -kInfinity);
    for (int64_t i = v; i < std::min(b.length, v + stride * kLanes); ++i) {
      if (b.allowed && !(b.allowed[i / kLanes] >> (i % kLanes) & 1)) continue;
      const float slack = b.slack.constant + b.slack.row_norm * b.norm[i] + b.slack.row_rounded * b.residual[i];
      const float lower = b.scores[i] + (b.bias ? b.bias[i] : 0.0f) - slack;
      float& best = maxima[count + i % kLanes];
      best = lower > best ? lower : best;  // NaN never raises a bound
    }
  }
  return count;
}

// The upper bound that a candidate has to reach: the same for all latents of a block, or one for each.
struct Limit {
  float all;
  const float* each;  // at the block's first latent, or null
};

template <bool kEach>
int64_t append_portable(const Block& b, const Limit& limit, Candidate* out) {
  int64_t count = 0;
  for (int64_t i = 0; i < b.length; ++i) {
    const float slack = b.slack.constant + b.slack.row_norm * b.norm[i] + b.slack.row_rounded * b.residual[i];
    const float score = b.scores[i] + (b.bias ? b.bias[i] : 0.0f);
    if (score + slack < (kEach ? limit.each[i] : limit.all) ||
        (b.allowed && !(b.allowed[i / kLanes] >> (i % kLanes) & 1)))
      continue;
    out[count++] = {static_cast<int32_t>(b.first + i), score + slack, score - slack};
  }
  return count;
}

#ifdef SAEKERN_X86

// The three constants of a row, in registers: through the struct they would be loaded again after every store.
struct RowSlack {
  __m512 constant, row_norm, row_rounded;
};

SAEKERN_AVX512 inline RowSlack row_slack(const Slack& slack) {
  return {_mm512_set1_ps(slack.constant), _mm512_set1_ps(slack.row_norm), _mm512_set1_ps(slack.row_rounded)};
}

SAEKERN_AVX512 inline __m512 slack_of(const Block& b, const RowSlack& row, int64_t i) {
  return _mm512_fmadd_ps(row.row_norm, _mm512_loadu_ps(b.norm + i),
                         _mm512_fmadd_ps(row.row_rounded, _mm512_loadu_ps(b.residual + i), row.constant));
}

SAEKERN_AVX512 inline __m512 score_of(const Block& b, int64_t i) {
  const __m512 score = _mm512_loadu_ps(b.scores + i);
  return b.bias ? _mm512_add_ps(score, _mm512_loadu_ps(b.bias + i)) : score;
}

SAEKERN_AVX512 int64_t group_maxima_avx512(const Block& b, int64_t stride, float* maxima) {
  const RowSlack row = row_slack(b.slack);
  int64_t count = 0;
  for (int64_t v = 0; v < b.length; v += stride * kLanes, count += kLanes) {
    __m512 best = _mm512_set1_ps(-kInfinity);
    for (int64_t i = v; i < std::min(b.length, v + stride * kLanes); i += kLanes) {
      const __mmask16 mask = b.allowed ? b.allowed[i / kLanes] : 0xffff;
      const __m512 lower = _mm512_sub_ps(score_of(b, i), slack_of(b, row, i));
      best = _mm512_mask_max_ps(best, mask, lower, best);  // of a NaN and a number maxps returns its second operand
    }
    _mm512_storeu_ps(maxima + count, best);
  }
  return count;
}

// No higher than any score whose upper bound, with a slack of at most `most`, reaches the limit: three roundings here,
// two there.
SAEKERN_AVX512 inline __m512 least_score(__m512 limit, __m512 most) {
  const __m512 size = _mm512_add_ps(_mm512_abs_ps(limit), most);
  return _mm512_fnmadd_ps(size, _mm512_set1_ps(0x1p-20f), _mm512_sub_ps(limit, most));
}

// Four registers at a time, a group: most hold no candidate, and one branch says so. First by the group's largest
// slack, which leaves one load and one comparison a register (with each latent's own it was 6 % of topk_encode); what
// passes is then asked with its own.
template <bool kEach>
SAEKERN_AVX512 int64_t append_avx512(const Block& b, const Limit& limit, Candidate* out) {
  static_assert(Slack::kGroup == 4 * kLanes);
  int64_t count = 0;
  for (int64_t i = 0; i < b.length; i += Slack::kGroup) {
    const int64_t group = i / Slack::kGroup;
    const __m512 most = _mm512_set1_ps(b.slack.constant + b.slack.row_norm * b.group_norm[group] +
                                       b.slack.row_rounded * b.group_residual[group]);
    const __m512 all = least_score(_mm512_set1_ps(limit.all), most);
    __mmask16 in[4];
    for (int64_t v = 0; v < 4; ++v) {
      const int64_t j = i + v * kLanes;
      // "not less than", so that NaN stays in
      in[v] = _mm512_cmp_ps_mask(score_of(b, j), kEach ? least_score(_mm512_loadu_ps(limit.each + j), most) : all,
                                 _CMP_NLT_UQ);
    }
    uint64_t bits = static_cast<uint64_t>(in[0]) | static_cast<uint64_t>(in[1]) << 16 |
                    static_cast<uint64_t>(in[2]) << 32 | static_cast<uint64_t>(in[3]) << 48;
    if (b.allowed) {
      uint64_t allowed;
      __builtin_memcpy(&allowed, b.allowed + i / kLanes, sizeof allowed);
      bits &= allowed;
    }
    for (; bits; bits &= bits - 1) {
      const int64_t j = i + __builtin_ctzll(bits);
      const float slack = b.slack.constant + b.slack.row_norm * b.norm[j] + b.slack.row_rounded * b.residual[j];
      const float score = b.scores[j] + (b.bias ? b.bias[j] : 0.0f);
      out[count] = {static_cast<int32_t>(b.first + j), score + slack, score - slack};
      count += !(score + slack < (kEach ? limit.each[j] : limit.all));
    }
  }
  return count;
}

#endif  // SAEKERN_X86

int64_t group_maxima(const Block& b, int64_t stride, float* maxima, Isa isa) {
#ifdef SAEKERN_X86
  if (isa >= Isa::avx512) return group_maxima_avx512(b, stride, maxima);
#endif
  (void)isa;
  return group_maxima_portable(b, stride, maxima);
}

template <bool kEach>
int64_t append(const Block& b, const Limit& limit, Candidate* out, Isa isa) {
#ifdef SAEKERN_X86
  if (isa >= Isa::avx512) return append_avx512<kEach>(b, limit, out);
#endif
  (void)isa;
  return append_portable<kEach>(b, limit, out);
}

// Order-preserving integers: bisection in them halves the number of floats in question, infinities included.
int32_t ordered(float value) {
  int32_t bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  return bits < 0 ? bits ^ 0x7fffffff : bits;
}

float unordered(int32_t key) {
  const int32_t bits = key < 0 ? key ^ 0x7fffffff : key;
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}

SAEKERN_CLONES int64_t count_reaching(const float* values, int64_t n, float threshold) {
  int32_t count = 0;
  for (int64_t i = 0; i < n; ++i) count += values[i] >= threshold;
  return count;
}

SAEKERN_CLONES float largest(const float* values, int64_t n) {
  float best = -kInfinity;
  for (int64_t i = 0; i < n; ++i) best = values[i] > best ? values[i] : best;
  return best;
}

}  // namespace

std::vector<uint16_t> lane_mask(const bool* allowed, int64_t latents, int64_t padded) {
  std::vector<uint16_t> mask(padded / kLanes, 0);
  for (int64_t f = 0; f < latents; ++f) {
    if (!allowed || allowed[f]) mask[f / kLanes] = static_cast<uint16_t>(mask[f / kLanes] | 1u << (f % kLanes));
  }
  return mask;
}

float kth_largest_bound(const float* values, int64_t n, int64_t k) {
  if (n < k) return -kInfinity;
  int32_t high = ordered(largest(values, n));  // fewer than k exceed it
  int32_t low = ordered(-kInfinity);           // k reach it, or nothing does
  // Typical scores lie within a few binades of the largest: look there first.
  const int64_t near = int64_t{high} - (1 << 25);  // 64 bits: high may be −∞ already
  if (near > low && count_reaching(values, n, unordered(static_cast<int32_t>(near))) >= k)
    low = static_cast<int32_t>(near);
  for (int round = 0; round < 14 && low < high; ++round) {
    const auto middle = static_cast<int32_t>((static_cast<int64_t>(low) + high + 1) / 2);
    if (count_reaching(values, n, unordered(middle)) >= k) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return unordered(low);
}

int64_t candidates_reaching(float limit, const float* limits, const float* scores, const float* bias, int64_t first,
                            int64_t length, const Slack& slack, Isa isa, Candidate* out) {
  const Block block = block_of(scores, bias, nullptr, first, length, slack);
  return limits ? append<true>(block, {limit, limits}, out, isa) : append<false>(block, {limit, nullptr}, out, isa);
}

void CandidateList::add(const float* scores, const float* bias, const uint16_t* allowed, int64_t first, int64_t length,
                        int64_t k, const Slack& slack, Isa isa) {
  const Block block = block_of(scores, bias, allowed, first, length, slack);
  if (threshold_ == -kInfinity) {
    // The k-th largest of the group maxima bounds the k-th largest score from below: k different latents reach it.
    // Twice as many groups as k keep it close.
    float maxima[kBlock];
    const int64_t stride = std::max<int64_t>(1, std::min<int64_t>(8, length / (2 * k)));
    const int64_t groups = group_maxima(block, stride, maxima, isa);
    threshold_ = std::max(kth_largest_bound(maxima, groups, k), largest(maxima, groups) - window_);
  }
  Candidate found[kBlock];
  const int64_t count = append<false>(block, {threshold_, nullptr}, found, isa);
  items_.insert(items_.end(), found, found + count);
  if (limit_ == 0) limit_ = 2 * k + 64;
  if (size() > limit_) {
    compact(k);
    limit_ = std::max<int64_t>(limit_, 2 * size());
  }
}

void CandidateList::compact(int64_t k) {
  std::vector<float> lower(items_.size());
  for (size_t i = 0; i < items_.size(); ++i) lower[i] = items_[i].lower;
  const auto size = static_cast<int64_t>(lower.size());
  threshold_ = std::max({threshold_, kth_largest_bound(lower.data(), size, k), largest(lower.data(), size) - window_});
  size_t kept = 0;  // without branches, of which half would be mispredicted
  for (const Candidate& item : items_) {
    items_[kept] = item;
    kept += !(item.upper < threshold_);
  }
  items_.resize(kept);
}

void CandidateList::settle(const std::vector<uint64_t>& keys, int64_t k) {
  items_.clear();
  for (uint64_t key : keys) items_.push_back({static_cast<int32_t>(key_index(key)), key_score(key), key_score(key)});
  const float last = key_score(keys.back());
  if (static_cast<int64_t>(keys.size()) == k && last > threshold_) threshold_ = last;
}

}  // namespace saekern
