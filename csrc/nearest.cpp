#include "nearest.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <vector>

#include "parallel.h"
#include "screen.h"

namespace saekern {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr uint64_t kNone = ~uint64_t{0};

struct Pair {
  int32_t column, row;
};

// What one thread has seen of every column: a bound that its best cosine reaches, and the pairs that may be the best.
struct Columns {
  std::vector<float> reached;  // [padded columns]
  std::vector<uint64_t> best;  // [columns], order keys of the exact cosines ranked so far
  std::vector<Pair> pairs;
};

// Columns 16 at a time; first how far each column is surely reached in this block, then which rows may exceed that.
SAEKERN_CLONES void raise_reached(const ScoreBlock& block, const bool* row_counts, float* reached) {
  for (int64_t r = 0; r < block.rows; ++r) {
    if (!row_counts[block.row + r]) continue;
    const Slack& slack = block.slack[r];
    const float* norm = slack.norm + block.latent;
    const float* residual = slack.residual + block.latent;
    const float* score = block.scores + r * block.stride;
    for (int64_t j = 0; j < block.latents; ++j) {
      const float lower = score[j] - (slack.constant + slack.row_norm * norm[j] + slack.row_rounded * residual[j]);
      reached[j] = lower > reached[j] ? lower : reached[j];  // NaN never raises a bound
    }
  }
}

SAEKERN_CLONES void mark_candidates(const ScoreBlock& block, int64_t r, const float* reached, uint8_t* in) {
  const Slack& slack = block.slack[r];
  const float* norm = slack.norm + block.latent;
  const float* residual = slack.residual + block.latent;
  const float* score = block.scores + r * block.stride;
  for (int64_t j = 0; j < block.latents; ++j) {
    const float upper = score[j] + (slack.constant + slack.row_norm * norm[j] + slack.row_rounded * residual[j]);
    in[j] = !(upper < reached[j]);  // so that NaN stays in
  }
}

class Nearest {
 public:
  Nearest(const ScoreInput& input, int threads, Isa isa)
      : in_(input),
        screen_(input, threads, isa),
        threads_(threads),
        lists_(screen_.row_group()),
        row_counts_(new bool[input.rows]),
        column_counts_(screen_.padded_latents() / kLanes, 0),
        workers_(std::max(1, threads)) {
    // Zero rows score 0 against everything: ties without end for a known answer.
    for (int64_t r = 0; r < in_.rows; ++r) row_counts_[r] = in_.x_scale[r] != 0;
    for (int64_t f = 0; f < in_.latents; ++f) {
      if (in_.weight_scale[f] != 0) {
        column_counts_[f / kLanes] = static_cast<uint16_t>(column_counts_[f / kLanes] | 1u << (f % kLanes));
      }
    }
  }

  void run(float* a_cosine, int64_t* a_index, float* b_cosine, int64_t* b_index) {
    screen_.run([this](const ScoreBlock& block) { visit(block); },
                [&](int64_t row, int64_t rows) {
                  for (int64_t r = row; r < row + rows; ++r) finish_row(r, a_cosine, a_index);
                });
    finish_columns(b_cosine, b_index);
  }

 private:
  void visit(const ScoreBlock& block) {
    for (int64_t r = 0; r < block.rows; ++r) {
      if (!row_counts_[block.row + r]) continue;
      CandidateList& list = lists_[(block.row + r) % Screen::kRowGroup];
      list.add(block.scores + r * block.stride, nullptr, column_counts_.data() + block.latent / kLanes, block.latent,
               block.latents, 1, block.slack[r], screen_.isa());
      if (list.size() > 2048) list.settle({best_of(block.row + r, list)}, 1);
    }
    visit_columns(block, workers_[block.worker]);
  }

  void visit_columns(const ScoreBlock& block, Columns& columns) {
    if (columns.reached.empty()) {
      columns.reached.assign(screen_.padded_latents(), -kInfinity);
      columns.best.assign(in_.latents, kNone);
    }
    float* reached = columns.reached.data() + block.latent;
    raise_reached(block, row_counts_.get(), reached);
    uint8_t in[Screen::kLatentBlock];
    for (int64_t r = 0; r < block.rows; ++r) {
      if (!row_counts_[block.row + r]) continue;
      mark_candidates(block, r, reached, in);
      for (int64_t j = 0; j < block.latents; j += 8) {
        uint64_t eight;
        __builtin_memcpy(&eight, in + j, sizeof eight);
        for (int64_t i = j; eight; ++i, eight >>= 8) {
          const int64_t f = block.latent + i;
          if (!(eight & 1) || !(column_counts_[f / kLanes] >> (f % kLanes) & 1)) continue;
          columns.pairs.push_back({static_cast<int32_t>(f), static_cast<int32_t>(block.row + r)});
        }
      }
    }
    // Ranking as the pairs come bounds their number (exact duplicates tie without end).
    if (static_cast<int64_t>(columns.pairs.size()) > 4 * in_.latents + 65536) rank(columns);
  }

  void rank(Columns& columns) {
    for (const Pair& pair : columns.pairs) {
      const float cosine = screen_.exact(pair.row, pair.column);
      columns.best[pair.column] = std::min(columns.best[pair.column], order_key(cosine, pair.row));
      if (cosine > columns.reached[pair.column]) columns.reached[pair.column] = cosine;
    }
    columns.pairs.clear();
  }

  uint64_t best_of(int64_t row, const CandidateList& list) const {
    uint64_t best = kNone;
    for (const Candidate& item : list.items()) {
      best = std::min(best, order_key(screen_.exact(row, item.index), item.index));
    }
    return best;
  }

  static void write(uint64_t key, float* cosine, int64_t* index) {
    *cosine = key == kNone ? 0.0f : key_score(key);  // no partner: a zero row, or none but zero rows to choose from
    *index = key == kNone ? 0 : key_index(key);
  }

  // Zero rows on the other side score 0, which beats a negative best; the smallest of them wins ties with 0.
  static uint64_t with_zero(uint64_t key, int64_t first_zero) {
    return first_zero < 0 ? key : std::min(key, order_key(0.0f, static_cast<int32_t>(first_zero)));
  }

  void finish_row(int64_t row, float* cosine, int64_t* index) {
    CandidateList& list = lists_[row % Screen::kRowGroup];
    list.compact(1);
    const uint64_t key =
        row_counts_[row] ? with_zero(best_of(row, list), first_zero(in_.weight_scale, in_.latents)) : kNone;
    write(key, cosine + row, index + row);
    list = CandidateList();
  }

  static int64_t first_zero(const float* scale, int64_t count) {
    const float* zero = std::find(scale, scale + count, 0.0f);
    return zero == scale + count ? -1 : zero - scale;
  }

  void finish_columns(float* cosine, int64_t* index) {
    parallel_for(static_cast<int64_t>(workers_.size()), threads_, [&](int64_t i, int) { rank(workers_[i]); });
    const int64_t zero = first_zero(in_.x_scale, in_.rows);
    for (int64_t f = 0; f < in_.latents; ++f) {
      uint64_t key = kNone;
      for (const Columns& columns : workers_) {
        if (!columns.best.empty()) key = std::min(key, columns.best[f]);
      }
      write(in_.weight_scale[f] != 0 ? with_zero(key, zero) : kNone, cosine + f, index + f);
    }
  }

  const ScoreInput in_;
  Screen screen_;
  const int threads_;
  std::vector<CandidateList> lists_;
  std::unique_ptr<bool[]> row_counts_;
  std::vector<uint16_t> column_counts_;
  std::vector<Columns> workers_;
};

}  // namespace

void inverse_norms(const float* rows, int64_t count, int64_t width, float* inverse, int threads) {
  constexpr int64_t kChunk = 256;
  parallel_for((count + kChunk - 1) / kChunk, threads, [&](int64_t task, int) {
    for (int64_t r = task * kChunk; r < std::min(count, (task + 1) * kChunk); ++r) {
      double sum[8] = {};  // eight sums, so that additions do not wait for one another
      const float* row = rows + r * width;
      for (int64_t d = 0; d < width; ++d) sum[d % 8] += static_cast<double>(row[d]) * row[d];
      const double norm = std::sqrt(((sum[0] + sum[4]) + (sum[1] + sum[5])) + ((sum[2] + sum[6]) + (sum[3] + sum[7])));
      inverse[r] = norm == 0 ? 0.0f : std::isfinite(norm) ? static_cast<float>(1 / norm) : NAN;
    }
  });
}

void nearest(const float* a, int64_t a_rows, const float* b, int64_t b_rows, int64_t width, float* a_cosine,
             int64_t* a_index, float* b_cosine, int64_t* b_index, int threads, Isa isa) {
  std::vector<float> a_inverse(a_rows), b_inverse(b_rows);
  inverse_norms(a, a_rows, width, a_inverse.data(), threads);
  inverse_norms(b, b_rows, width, b_inverse.data(), threads);
  ScoreInput input;
  input.x = a;
  input.weight = b;
  input.x_scale = a_inverse.data();
  input.weight_scale = b_inverse.data();
  input.rows = a_rows;
  input.latents = b_rows;
  input.width = width;
  Nearest(input, threads, isa).run(a_cosine, a_index, b_cosine, b_index);
}

}  // namespace saekern
