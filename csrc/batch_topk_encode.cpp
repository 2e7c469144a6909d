#include "batch_topk_encode.h"

#include <algorithm>
#include <atomic>
#include <functional>
#include <mutex>

namespace saekern {
namespace {

// A score below which no answer lies: at least `total` scores reach it. It starts at 0, because of ReLU, and only
// rises.
class RisingThreshold {
 public:
  explicit RisingThreshold(int64_t total) : total_(total), limit_(2 * total + 4096) {}

  float get() const { return value_.load(std::memory_order_relaxed); }

  // Lower bounds of further scores, each of another one.
  void add(const std::vector<float>& lower) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const float current = get();
    for (float bound : lower) {
      if (bound >= current) lower_.push_back(bound);
    }
    if (static_cast<int64_t>(lower_.size()) <= limit_) return;
    const float raised = kth_largest_bound(lower_.data(), static_cast<int64_t>(lower_.size()), total_);
    if (raised > current) {
      value_.store(raised, std::memory_order_relaxed);
      lower_.erase(std::remove_if(lower_.begin(), lower_.end(), [&](float bound) { return bound < raised; }),
                   lower_.end());
    }
    limit_ = std::max<int64_t>(limit_, 2 * static_cast<int64_t>(lower_.size()));  // many ties
  }

 private:
  const int64_t total_;
  int64_t limit_;
  std::atomic<float> value_{0.0f};
  std::mutex mutex_;
  std::vector<float> lower_;  // those of at least get()
};

// Ascending with the score, NaN last.
uint32_t rank_of(float score) { return ~static_cast<uint32_t>(order_key(score, 0) >> 32); }

// All positive scores and NaN are in `rows`; adds zeros at the first places that are not.
void fill_with_zeros(std::vector<RowCodes>& rows, int64_t latents, int64_t missing) {
  for (size_t r = 0; r < rows.size() && missing > 0; ++r) {
    RowCodes filled;
    auto next = rows[r].cbegin();
    for (int64_t f = 0; f < latents; ++f) {
      if (next != rows[r].cend() && next->index == f) {
        filled.push_back(*next++);
      } else if (missing > 0) {
        filled.push_back({static_cast<int32_t>(f), 0.0f});
        --missing;
      }
    }
    rows[r].swap(filled);
  }
}

// Keeps the best `total` of more.
void cut(std::vector<RowCodes>& rows, int64_t total, int64_t count) {
  std::vector<uint32_t> ranks;
  ranks.reserve(count);
  for (const RowCodes& row : rows) {
    for (const Code& code : row) ranks.push_back(rank_of(code.value));
  }
  std::nth_element(ranks.begin(), ranks.begin() + total - 1, ranks.end(), std::greater<uint32_t>());
  const uint32_t last = ranks[total - 1];
  int64_t ties = std::count(ranks.begin(), ranks.begin() + total, last);  // that the answer has room for
  for (RowCodes& row : rows) {
    size_t kept = 0;
    for (const Code& code : row) {
      const uint32_t rank = rank_of(code.value);
      if (rank > last || (rank == last && ties-- > 0)) row[kept++] = code;
    }
    row.resize(kept);
  }
}

}  // namespace

std::vector<RowCodes> batch_topk_encode(const ScoreInput& input, int64_t total, int threads, Isa isa) {
  std::vector<RowCodes> rows(input.rows);
  if (input.rows == 0 || total == 0) return rows;
  Screen screen(input, threads, isa);
  RisingThreshold threshold(total);
  std::vector<std::vector<Candidate>> candidates(screen.row_group());
  const auto candidates_of = [&](int64_t row) -> std::vector<Candidate>& {
    return candidates[row % Screen::kRowGroup];
  };
  const float* bias = screen.padded_bias();
  screen.run(
      [&](const ScoreBlock& block) {
        Candidate found[Screen::kLatentBlock];
        std::vector<float> lower;
        for (int64_t r = 0; r < block.rows; ++r) {
          int64_t count = candidates_reaching(threshold.get(), nullptr, block.scores + r * block.stride,
                                              bias ? bias + block.latent : nullptr, block.latent, block.latents,
                                              block.slack[r], screen.isa(), found);
          while (count > 0 && found[count - 1].index >= input.latents) --count;  // padding scores NaN in a row of NaN
          std::vector<Candidate>& list = candidates_of(block.row + r);
          list.insert(list.end(), found, found + count);
          for (int64_t i = 0; i < count; ++i) lower.push_back(found[i].lower);
          // The threshold has risen most while a quarter of the first block was seen.
          if (lower.size() > 16384 || r + 1 == block.rows) {
            threshold.add(lower);
            lower.clear();
          }
        }
      },
      [&](int64_t first, int64_t count) {
        for (int64_t row = first; row < first + count; ++row) {
          std::vector<Candidate>& list = candidates_of(row);
          const float limit = threshold.get();
          const auto out = [&](const Candidate& candidate) { return candidate.upper < limit; };
          list.erase(std::remove_if(list.begin(), list.end(), out), list.end());
          rows[row].reserve(list.size());
          for (size_t i = 0; i < list.size(); ++i) {
            if (i + 2 < list.size()) screen.prefetch(list[i + 2].index);
            const float score = screen.exact(row, list[i].index);
            if (!(score <= 0)) rows[row].push_back({list[i].index, score});
          }
          list = std::vector<Candidate>();
        }
      });
  int64_t count = 0;
  for (const RowCodes& row : rows) count += static_cast<int64_t>(row.size());
  if (count < total) fill_with_zeros(rows, input.latents, total - count);
  if (count > total) cut(rows, total, count);
  return rows;
}

}  // namespace saekern
