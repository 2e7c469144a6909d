#include "linear_sum_assignment/vector_candidates.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <type_traits>

#include "parallel.h"
#include "screen.h"

namespace saekern::assignment {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr int64_t kGathered = 16 << 20;     // floats of `a` copied together, 64 MiB
constexpr int64_t kKeptPanels = 256 << 20;  // bytes

// Of the largest possible similarity. A latent with a clear partner lists hardly anything else, which saves a fifth of
// the first pass where 60 % have one.
constexpr double kWindow = 0.4;

// Entries a line that all lists together may hold: 400 MB for 131,072 lines.
constexpr int64_t kRoom = 256;

double inverse(double norm) { return norm > 0 ? 1 / norm : 0; }

// A line's candidates among all columns, once their costs are known.
template <typename T>
class Ranking {
 public:
  Ranking(const Similarity<T>& similarity, const std::vector<double>& prices, int64_t line)
      : similarity_(similarity), prices_(prices), line_(line), columns_(similarity.pair().columns) {}

  // Lines begin their ties at different columns, so that lines full of ties list different ones.
  int64_t turn(int64_t column) const { return (column - line_ % columns_ + columns_) % columns_; }

  // Replaces a list in which too many tie by the best `wanted` of them.
  void settle(CandidateList& list, int64_t wanted) const {
    std::vector<uint64_t> keys(list.items().size());
    for (size_t i = 0; i < keys.size(); ++i) {
      const int32_t column = list.items()[i].index;
      const double score = similarity_(line_, column) + row_constant_ + prices_[column];
      keys[i] = order_key(static_cast<float>(score), static_cast<int32_t>(turn(column)));
    }
    const auto chosen = keys.begin() + std::min<int64_t>(wanted, static_cast<int64_t>(keys.size()));
    std::nth_element(keys.begin(), chosen, keys.end());
    std::sort(keys.begin(), chosen);
    keys.erase(chosen, keys.end());
    for (uint64_t& key : keys) {
      const int64_t column = (key_index(key) + line_) % columns_;
      key = order_key(key_score(key), static_cast<int32_t>(column));
    }
    list.settle(keys, wanted);
  }

  // rest: a lower bound on the reduced cost of what `list` dropped.
  void finish(const CandidateList& list, int64_t wanted, double rest, List<T>& out) const {
    struct Known {
      double reduced;
      T cost;
      int32_t column;
      int64_t turn;
    };
    const std::vector<saekern::Candidate>& items = list.items();
    std::vector<Known> found(items.size());
    for (size_t i = 0; i < items.size(); ++i) {
      if (i + 2 < items.size()) similarity_.prefetch(items[i + 2].index);
      const int32_t column = items[i].index;
      const T cost = -similarity_(line_, column);
      found[i] = {static_cast<double>(cost) - prices_[column], cost, column, turn(column)};
    }
    std::sort(found.begin(), found.end(), [](const Known& a, const Known& b) {
      return a.reduced != b.reduced ? a.reduced < b.reduced : a.turn < b.turn;
    });
    // What lies below the bound on the rest is listed too, now that it is known: its costs were paid for.
    const auto found_count = static_cast<int64_t>(found.size());
    int64_t kept = std::min(wanted, found_count);
    while (kept < std::min(found_count, 2 * wanted) && found[kept].reduced <= rest) ++kept;
    if (kept < found_count) rest = std::min(rest, found[kept].reduced);
    out.rest = rest;
    out.entries.clear();
    out.entries.reserve(kept);
    for (int64_t i = 0; i < kept; ++i) {
      // No bound may exceed the rest's: the search stops at the first one that it does not reach.
      const T bound = round_down(std::min(found[i].reduced, rest), T());
      out.entries.push_back({found[i].cost, bound, found[i].column});
    }
  }

  void set_row_constant(double constant) { row_constant_ = constant; }

 private:
  const Similarity<T>& similarity_;
  const std::vector<double>& prices_;
  const int64_t line_, columns_;
  double row_constant_ = 0;
};

}  // namespace

template <typename T>
VectorCandidates<T>::VectorCandidates(const Similarity<T>& similarity, int threads, Isa isa, Monitor& monitor)
    : Candidates<T>(similarity.pair().lines),
      similarity_(similarity),
      threads_(threads),
      isa_(isa),
      monitor_(monitor),
      asked_(similarity.pair().lines, 1) {
  const VectorPair<T>& pair = similarity.pair();
  const bool cosine = pair.metric == Metric::cosine;
  if (std::is_same_v<T, double>) {
    copy_.resize(pair.columns * pair.width);
    for (int64_t j = 0; j < pair.columns; ++j) {
      const double scale = cosine ? inverse(similarity.b_norms()[j]) : 1.0;
      for (int64_t d = 0; d < pair.width; ++d) {
        copy_[j * pair.width + d] = static_cast<float>(scale * pair.b[j * pair.width + d]);
      }
    }
  } else if (cosine) {
    for (double norm : similarity.b_norms()) b_scale_.push_back(static_cast<float>(inverse(norm)));
  }
  const int64_t word_bytes = isa == Isa::avx512bf16 ? 2 : 4;
  keeps_panels_ = pair.columns * pair.width * word_bytes <= kKeptPanels;
  // Scales, copies in float32 and the cost itself round a few times by 2^-24 of the largest product.
  const auto largest = [](const std::vector<double>& norms) { return *std::max_element(norms.begin(), norms.end()); };
  const double a = cosine ? 1.0 : largest(similarity.a_norms()), b = cosine ? 1.0 : largest(similarity.b_norms());
  const double scale = pair.metric == Metric::sqeuclidean ? (a + b) * (a + b) : a * b;
  tolerance_ = static_cast<float>(0x1p-20 * scale);
  window_ = static_cast<float>(kWindow * scale);
}

// What a score of the screen lacks of the similarity.
template <typename T>
double VectorCandidates<T>::row_constant(int64_t line) const {
  const double norm = similarity_.a_norms()[line];
  return similarity_.pair().metric == Metric::sqeuclidean ? -norm * norm : 0.0;
}

template <typename T>
void VectorCandidates<T>::list_all(int64_t wanted, const std::vector<double>& prices) {
  asked_.assign(asked_.size(), wanted);
  std::vector<int32_t> lines(similarity_.pair().lines);
  for (size_t i = 0; i < lines.size(); ++i) lines[i] = static_cast<int32_t>(i);
  choose(lines, std::vector<int64_t>(lines.size(), std::min(wanted, similarity_.pair().columns)), prices);
}

template <typename T>
void VectorCandidates<T>::list_given(const int64_t* index, const double* rest, int64_t listed) {
  const int64_t lines = similarity_.pair().lines;
  const std::vector<double> prices(similarity_.pair().columns, 0.0);
  parallel_for(lines, threads_, [&](int64_t i, int worker) {
    if (worker == 0) monitor_.report("candidates", i, lines);
    List<T>& list = this->lists_[i];
    list.rest = -rest[i];
    for (int64_t k = 0; k < listed && index[i * listed + k] >= 0; ++k) {
      const auto column = static_cast<int32_t>(index[i * listed + k]);
      const T cost = -similarity_(i, column);
      list.entries.push_back({cost, std::min(cost, round_down(list.rest, T())), column});
    }
    std::sort(list.entries.begin(), list.entries.end(),
              [](const Entry<T>& x, const Entry<T>& y) { return x.cost < y.cost; });
  });
}

template <typename T>
void VectorCandidates<T>::extend(const std::vector<int32_t>& lines, const std::vector<double>& prices) {
  const int64_t columns = similarity_.pair().columns;
  std::vector<int64_t> wanted(lines.size());
  for (size_t i = 0; i < lines.size(); ++i) {
    int64_t& asked = asked_[lines[i]];
    asked = 8 * asked > columns ? columns : 2 * asked;
    wanted[i] = asked;
  }
  recomputed_ += static_cast<int64_t>(lines.size());
  ++passes_;
  window_ = std::numeric_limits<float>::infinity();
  shrink();
  choose(lines, wanted, prices);
}

// Bounds the memory: cuts lists that have grown. What was asked for stays in asked_, so a line whose list was cut gets
// a longer one than before when a search needs it again, and no search can go in circles.
template <typename T>
void VectorCandidates<T>::shrink() {
  int64_t total = 0;
  for (const List<T>& list : this->lists_) total += static_cast<int64_t>(list.entries.capacity());
  if (total <= kRoom * similarity_.pair().lines) return;
  for (List<T>& list : this->lists_) {
    constexpr size_t kKept = 32;
    if (list.entries.size() <= kKept) continue;
    list.rest = static_cast<double>(list.entries[kKept].bound);
    list.entries.resize(kKept);
    list.entries.shrink_to_fit();
  }
}

template <typename T>
void VectorCandidates<T>::choose(const std::vector<int32_t>& lines, const std::vector<int64_t>& wanted,
                                 const std::vector<double>& prices) {
  const VectorPair<T>& pair = similarity_.pair();
  const bool distance = pair.metric == Metric::sqeuclidean;
  std::vector<float> bias;
  if (distance || std::any_of(prices.begin(), prices.end(), [](double price) { return price != 0; })) {
    bias.resize(pair.columns);
    for (int64_t j = 0; j < pair.columns; ++j) {
      const double norm = distance ? similarity_.b_norms()[j] : 0;
      bias[j] = static_cast<float>(prices[j] - norm * norm);
    }
  }
  const auto count = static_cast<int64_t>(lines.size()), step = std::max<int64_t>(96, kGathered / pair.width);
  for (int64_t i = 0; i < count; i += step) {
    choose_some(lines.data() + i, wanted.data() + i, std::min(step, count - i), prices, bias);
  }
}

template <typename T>
void VectorCandidates<T>::choose_some(const int32_t* lines, const int64_t* wanted, int64_t count,
                                      const std::vector<double>& prices, const std::vector<float>& bias) {
  const VectorPair<T>& pair = similarity_.pair();
  const bool cosine = pair.metric == Metric::cosine;
  std::vector<float> rows(count * pair.width), scale(count);
  parallel_for(count, threads_, [&](int64_t i, int) {
    const T* row = pair.a + lines[i] * pair.width;
    const double unit = cosine ? inverse(similarity_.a_norms()[lines[i]]) : 1.0;
    const bool scaled = std::is_same_v<T, double>;  // doubles are scaled before they are rounded
    for (int64_t d = 0; d < pair.width; ++d) {
      rows[i * pair.width + d] = static_cast<float>(scaled ? unit * row[d] : row[d]);
    }
    scale[i] = (scaled ? 1.0f : static_cast<float>(unit)) * (pair.metric == Metric::sqeuclidean ? 2.0f : 1.0f);
  });

  ScoreInput input;
  input.x = rows.data();
  if constexpr (std::is_same_v<T, double>) {
    input.weight = copy_.data();
  } else {
    input.weight = pair.b;
  }
  input.bias = bias.empty() ? nullptr : bias.data();
  input.x_scale = scale.data();
  input.weight_scale = b_scale_.empty() ? nullptr : b_scale_.data();
  input.rows = count;
  input.latents = pair.columns;
  input.width = pair.width;
  input.tolerance = tolerance_;
  input.packed = keeps_panels_ ? &panels_ : nullptr;
  Screen screen(input, threads_, isa_);
  const std::vector<uint16_t> mask = lane_mask(nullptr, pair.columns, screen.padded_latents());
  const CandidateList fresh(window_);
  std::vector<CandidateList> found(screen.row_group(), fresh);
  std::atomic<int64_t> scored{0};
  const auto ranking_of = [&](int64_t row) {
    Ranking<T> ranking(similarity_, prices, lines[row]);
    ranking.set_row_constant(-row_constant(lines[row]));
    return ranking;
  };
  screen.run(
      [&](const ScoreBlock& block) {
        scored += block.rows * block.latents;
        if (block.worker == 0) monitor_.report("candidates", scored, count * screen.padded_latents());
        const bool whole = block.latent + block.latents <= pair.columns;
        const float* column_bias = screen.padded_bias() ? screen.padded_bias() + block.latent : nullptr;
        for (int64_t r = 0; r < block.rows; ++r) {
          const int64_t row = block.row + r;
          CandidateList& list = found[row % Screen::kRowGroup];
          list.add(block.scores + r * block.stride, column_bias, whole ? nullptr : &mask[block.latent / kLanes],
                   block.latent, block.latents, wanted[row], block.slack[r], isa_);
          if (list.size() > std::max<int64_t>(2048, 8 * wanted[row])) ranking_of(row).settle(list, wanted[row]);
        }
      },
      [&](int64_t first, int64_t size) {
        for (int64_t row = first; row < first + size; ++row) {
          CandidateList& list = found[row % Screen::kRowGroup];
          list.compact(wanted[row]);
          // Rounding the threshold's own score to float32, where it came from an exact one, moves it by 2^-24.
          const double threshold = list.threshold() + std::abs(list.threshold()) * 0x1p-22;
          const double rest =
              list.size() == pair.columns ? kInfinity : -(threshold + row_constant(lines[row])) - tolerance_;
          ranking_of(row).finish(list, wanted[row], rest, this->lists_[lines[row]]);
          list = fresh;
        }
      });
}

template class VectorCandidates<float>;
template class VectorCandidates<double>;

}  // namespace saekern::assignment
