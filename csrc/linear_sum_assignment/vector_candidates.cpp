#include "linear_sum_assignment/vector_candidates.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <type_traits>

#include "linear_sum_assignment/ranking.h"
#include "parallel.h"
#include "screen.h"

namespace saekern::assignment {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr int64_t kGathered = 16 << 20;  // floats of `a` copied together, 64 MiB

// Bytes of packed `b` that are kept between passes, 174,762 rows of 768 in bfloat16. Larger ones are packed in every
// pass: a copy that grows with the dictionary would be most of the memory, and their passes take long as it is.
constexpr int64_t kKeptPanels = 256 << 20;

// Of the largest possible similarity. A latent with a clear partner lists hardly anything else, which saves a fifth of
// the first pass where 60 % have one.
constexpr double kWindow = 0.4;

// Entries a line that all lists together may hold: 400 MB for 131,072 lines. And 64 MB at least: small problems that
// have to cut lists take ten times as long.
constexpr int64_t kRoom = 256;
constexpr int64_t kLeastRoom = 1 << 22;

// So many times that much may be asked for together. With 1, lines that need all columns cut one another's lists before
// anybody is matched: 66 s instead of 4 for 2100 points that float32 products cannot tell apart.
constexpr int64_t kTogether = 4;

double inverse(double norm) { return norm > 0 ? 1 / norm : 0; }

}  // namespace

template <typename T>
VectorCandidates<T>::VectorCandidates(const Similarity<T>& similarity, int64_t spare, int threads, Isa isa,
                                      Monitor& monitor)
    : Candidates<T>(similarity.pair().lines + spare),
      similarity_(similarity),
      threads_(threads),
      isa_(isa),
      monitor_(monitor),
      asked_(similarity.pair().lines + spare, 1) {
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
  asked_.assign(asked_.size(), std::min(wanted, similarity_.pair().columns));
  std::vector<int32_t> lines(this->lists_.size());
  for (size_t i = 0; i < lines.size(); ++i) lines[i] = static_cast<int32_t>(i);
  choose(lines, prices);
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
  asked_.assign(asked_.size(), std::max<int64_t>(listed, 1));
  std::vector<int32_t> spare;
  for (auto i = lines; i < static_cast<int64_t>(this->lists_.size()); ++i) spare.push_back(static_cast<int32_t>(i));
  if (!spare.empty()) choose_spare(spare, prices);
}

template <typename T>
void VectorCandidates<T>::extend(const std::vector<int32_t>& lines, const std::vector<double>& prices) {
  const int64_t columns = similarity_.pair().columns;
  std::vector<int32_t> first;
  int64_t asked = 0;
  for (const int32_t line : lines) {
    const int64_t more = 8 * asked_[line] > columns ? columns : 2 * asked_[line];
    if (!first.empty() && asked + more > kTogether * room()) break;
    first.push_back(line);
    asked += asked_[line] = more;
  }
  recomputed_ += static_cast<int64_t>(first.size());
  window_ = std::numeric_limits<float>::infinity();
  shrink(prices);
  choose(first, prices);
}

template <typename T>
void VectorCandidates<T>::ask_anew() {
  asked_.assign(asked_.size(), 1);
  window_ = std::numeric_limits<float>::infinity();
}

template <typename T>
int64_t VectorCandidates<T>::room() const {
  return std::max(kLeastRoom, kRoom * static_cast<int64_t>(this->lists_.size()));
}

// Bounds the memory: cuts lists that have grown to what is cheapest at today's prices, so that the bound on the rest
// stays above what the line's own column costs it. What was asked for stays in asked_: a line whose list was cut gets a
// longer one than before when a search needs it again.
template <typename T>
void VectorCandidates<T>::shrink(const std::vector<double>& prices) {
  int64_t total = 0;
  for (const List<T>& list : this->lists_) total += static_cast<int64_t>(list.entries.capacity());
  if (total <= room()) return;
  for (List<T>& list : this->lists_) {
    constexpr size_t kKept = 32;
    if (list.entries.size() <= kKept) continue;
    const auto reduced = [&](const Entry<T>& entry) { return entry.cost - prices[entry.column]; };
    std::nth_element(list.entries.begin(), list.entries.begin() + kKept, list.entries.end(),
                     [&](const Entry<T>& x, const Entry<T>& y) { return reduced(x) < reduced(y); });
    list.rest = std::min(list.rest, reduced(list.entries[kKept]));
    list.entries.resize(kKept);
    list.entries.shrink_to_fit();
    for (Entry<T>& entry : list.entries) entry.bound = round_down(std::min(reduced(entry), list.rest), T());
    std::sort(list.entries.begin(), list.entries.end(),
              [](const Entry<T>& x, const Entry<T>& y) { return x.bound < y.bound; });
  }
}

template <typename T>
void VectorCandidates<T>::choose(const std::vector<int32_t>& lines, const std::vector<double>& prices) {
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
  std::vector<int32_t> real, spare;
  for (const int32_t line : lines) (line < pair.lines ? real : spare).push_back(line);
  if (!spare.empty()) choose_spare(spare, prices);
  const auto count = static_cast<int64_t>(real.size()), step = std::max<int64_t>(96, kGathered / pair.width);
  for (int64_t i = 0; i < count; i += step) {
    choose_some(real.data() + i, std::min(step, count - i), prices, bias);
  }
}

// The dearest columns are a spare line's cheapest. At first thousands tie: each line begins elsewhere among those.
template <typename T>
void VectorCandidates<T>::choose_spare(const std::vector<int32_t>& lines, const std::vector<double>& prices) {
  const int64_t columns = similarity_.pair().columns;
  std::vector<int32_t> order(columns);
  for (int64_t j = 0; j < columns; ++j) order[j] = static_cast<int32_t>(j);
  std::sort(order.begin(), order.end(),
            [&](int32_t a, int32_t b) { return prices[a] != prices[b] ? prices[a] > prices[b] : a < b; });
  const auto first_below =
      std::find_if(order.begin(), order.end(), [&](int32_t j) { return prices[j] < prices[order[0]]; });
  const int64_t tied = first_below - order.begin();
  for (const int32_t line : lines) {
    const int64_t wanted = std::min(asked_[line], columns), turn = tied > wanted ? line * wanted % tied : 0;
    List<T>& list = this->lists_[line];
    list.entries.clear();
    for (int64_t k = 0; k < wanted; ++k) {
      const int32_t column = order[tied > wanted ? (turn + k) % tied : k];
      list.entries.push_back({T(0), round_down(-prices[column], T()), column});
    }
    list.rest = wanted == columns ? kInfinity : -prices[order[tied > wanted ? 0 : wanted]];
  }
}

template <typename T>
void VectorCandidates<T>::choose_some(const int32_t* lines, int64_t count, const std::vector<double>& prices,
                                      const std::vector<float>& bias) {
  const VectorPair<T>& pair = similarity_.pair();
  const bool cosine = pair.metric == Metric::cosine;
  constexpr bool scaled = std::is_same_v<T, double>;  // doubles are scaled before they are rounded
  bool in_place = !scaled;                            // rows that lie one behind the other
  for (int64_t i = 1; i < count; ++i) in_place &= lines[i] == lines[0] + i;
  std::vector<float> rows(in_place ? 0 : count * pair.width), scale(count);
  parallel_for(count, threads_, [&](int64_t i, int) {
    const T* row = pair.a + lines[i] * pair.width;
    const double unit = cosine ? inverse(similarity_.a_norms()[lines[i]]) : 1.0;
    for (int64_t d = 0; !in_place && d < pair.width; ++d) {
      rows[i * pair.width + d] = static_cast<float>(scaled ? unit * row[d] : row[d]);
    }
    scale[i] = (scaled ? 1.0f : static_cast<float>(unit)) * (pair.metric == Metric::sqeuclidean ? 2.0f : 1.0f);
  });

  ScoreInput input;
  if constexpr (scaled) {
    input.x = rows.data();
    input.weight = copy_.data();
  } else {
    input.x = in_place ? pair.a + lines[0] * pair.width : rows.data();
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
    return Ranking<T>(similarity_, prices, lines[row], row_constant(lines[row]));
  };
  screen.run(
      [&](const ScoreBlock& block) {
        scored += block.rows * block.latents;
        if (block.worker == 0) monitor_.report("candidates", scored, count * screen.padded_latents());
        const bool whole = block.latent + block.latents <= pair.columns;
        const float* column_bias = screen.padded_bias() ? screen.padded_bias() + block.latent : nullptr;
        for (int64_t r = 0; r < block.rows; ++r) {
          const int64_t row = block.row + r, wanted = asked_[lines[row]];
          CandidateList& list = found[row % Screen::kRowGroup];
          list.add(block.scores + r * block.stride, column_bias, whole ? nullptr : &mask[block.latent / kLanes],
                   block.latent, block.latents, wanted, block.slack[r], isa_);
          if (list.size() > std::max<int64_t>(2048, 8 * wanted)) ranking_of(row).settle(list, wanted);
        }
      },
      [&](int64_t first, int64_t size) {
        for (int64_t row = first; row < first + size; ++row) {
          CandidateList& list = found[row % Screen::kRowGroup];
          list.compact(asked_[lines[row]]);
          // Rounding the threshold's own score to float32, where it came from an exact one, moves it by 2^-24.
          const double threshold = list.threshold() + std::abs(list.threshold()) * 0x1p-22;
          const double rest =
              list.size() == pair.columns ? kInfinity : -(threshold + row_constant(lines[row])) - tolerance_;
          ranking_of(row).finish(list, asked_[lines[row]], rest, this->lists_[lines[row]]);
          list = fresh;
        }
      });
}

template class VectorCandidates<float>;
template class VectorCandidates<double>;

}  // namespace saekern::assignment
