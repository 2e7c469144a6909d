#include "kron_encode.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <vector>

#include "lanes.h"
#include "parallel.h"
#include "screen.h"
#include "select.h"

namespace saekern {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int64_t kRows = 128;  // a thread's share at a time: 6144 columns of factors are 3 MB then, and stay in L3

// u or v of some rows, [rows, columns]: the float32 product of the panels, each a sum over the width in order.
class Factors {
 public:
  Factors(const float* weight, const float* bias, int64_t columns) : weight_(weight), bias_(bias), columns_(columns) {}

  void compute(const KronInput& in, int64_t first, int64_t rows, int threads, Isa isa) {
    if (rows > room_) values_.reset(new float[(room_ = rows) * columns_]);
    ScoreInput input;
    input.x = in.x + first * in.width;
    input.weight = weight_;
    input.bias = bias_;
    input.pre_bias = in.pre_bias;
    input.rows = rows;
    input.latents = columns_;
    input.width = in.width;
    input.packed = &panels_;
    Screen screen(input, threads, isa);
    screen.run(
        [&](const ScoreBlock& block) {
          const int64_t count = std::min(block.latents, columns_ - block.latent);
          const float* bias = bias_ ? bias_ + block.latent : nullptr;
          for (int64_t r = 0; r < block.rows; ++r) {
            const float* from = block.scores + r * block.stride;
            float* to = values_.get() + (block.row + r) * columns_ + block.latent;
            for (int64_t j = 0; j < count; ++j) to[j] = bias ? from[j] + bias[j] : from[j];
          }
        },
        [](int64_t, int64_t) {});
  }

  const float* row(int64_t r) const { return values_.get() + r * columns_; }

 private:
  const float *weight_, *bias_;
  const int64_t columns_;
  PackedPanels panels_;
  int64_t room_ = 0;
  std::unique_ptr<float[]> values_;
};

// The larger of two or, if kLeast, the smaller; NaN if one is.
template <bool kLeast>
SAEKERN_INLINE float extreme(float a, float b) {
  return (kLeast ? a < b : a > b) || a != a ? a : b;
}

// out[h]: the extreme of values[h * size] … values[h * size + size - 1]. Neighbours are paired off for all heads at
// once while the size is even, which vectorises: 3 times as fast as head by head at sizes of 4 and 8.
template <bool kLeast>
SAEKERN_INLINE void extremes(const float* values, int64_t heads, int64_t size, float* pairs, float* out) {
  float* to = pairs;
  for (; size % 2 == 0; size /= 2) {
    const int64_t count = heads * size / 2;
    for (int64_t i = 0; i < count; ++i) to[i] = extreme<kLeast>(values[2 * i], values[2 * i + 1]);
    values = to;
    to += count;
  }
  for (int64_t h = 0; h < heads; ++h) {
    float best = values[h * size];
    for (int64_t i = 1; i < size; ++i) best = extreme<kLeast>(best, values[h * size + i]);
    out[h] = best;
  }
}

SAEKERN_CLONES void most_of(const float* values, int64_t heads, int64_t size, float* pairs, float* out) {
  extremes<false>(values, heads, size, pairs, out);
}

SAEKERN_CLONES void least_of(const float* values, int64_t heads, int64_t size, float* pairs, float* out) {
  extremes<true>(values, heads, size, pairs, out);
}

// What latents are ordered by. A factor that is not positive makes it 0, also beside an infinite one.
template <bool kSigned>
SAEKERN_INLINE float product(float u, float v) {
  if (kSigned) return u * v;
  const bool off = (u <= 0 && v == v) || (v <= 0 && u == u);
  return off ? 0.0f : u * v;
}

// The largest product of each head, itself one of them; NaN if one is, which no threshold excludes.
SAEKERN_CLONES void head_bounds(const float* p_most, const float* q_most, int64_t heads, float* SAEKERN_RESTRICT best) {
  for (int64_t h = 0; h < heads; ++h) best[h] = product<false>(p_most[h], q_most[h]);
}

SAEKERN_CLONES void head_bounds(const float* p_most, const float* q_most, const float* p_least, const float* q_least,
                                int64_t heads, float* SAEKERN_RESTRICT best) {
  for (int64_t h = 0; h < heads; ++h) {
    const float alike = extreme<false>(p_most[h] * q_most[h], p_least[h] * q_least[h]);
    const float unlike = extreme<false>(p_most[h] * q_least[h], p_least[h] * q_most[h]);
    best[h] = extreme<false>(alike, unlike);
  }
}

// What a head's products are bounded by.
struct Bounds {
  std::vector<float> pairs, p_most, q_most, p_least, q_least, best;

  // u [heads, m], v [heads, n]
  template <bool kSigned>
  void find(const KronInput& in, const float* u, const float* v) {
    pairs.resize(in.heads * std::max(in.m, in.n));
    for (auto* each : {&p_most, &q_most, &p_least, &q_least, &best}) each->resize(in.heads);
    most_of(u, in.heads, in.m, pairs.data(), p_most.data());
    most_of(v, in.heads, in.n, pairs.data(), q_most.data());
    if (!kSigned) return head_bounds(p_most.data(), q_most.data(), in.heads, best.data());
    least_of(u, in.heads, in.m, pairs.data(), p_least.data());
    least_of(v, in.heads, in.n, pairs.data(), q_least.data());
    head_bounds(p_most.data(), q_most.data(), p_least.data(), q_least.data(), in.heads, best.data());
  }
};

class Selection {
 public:
  Selection(const KronInput& in, const KronTopK& out) : in_(in), out_(out) {
    if (!out.allowed) return;
    const int64_t pairs = in.m * in.n;
    allowed_begin_.push_back(0);
    for (int64_t f = 0; f < in.heads * pairs; ++f) {
      if (out.allowed[f]) allowed_.push_back(static_cast<int32_t>(f % pairs));
      if (!out.allowed[f] && static_cast<int64_t>(padding_.size()) < out.k) padding_.push_back(f);
      if ((f + 1) % pairs == 0) allowed_begin_.push_back(static_cast<int64_t>(allowed_.size()));
    }
  }

  struct Scratch {
    Bounds bounds;
    std::vector<uint64_t> keys;
  };

  // u [heads, m], v [heads, n] of a row.
  template <bool kSigned>
  void row(int64_t r, const float* u, const float* v, Scratch& scratch) const {
    std::vector<uint64_t>& keys = scratch.keys;
    keys.clear();
    collect<kSigned>(u, v, scratch);
    std::sort(keys.begin(), keys.end());
    const auto found = static_cast<int64_t>(keys.size());
    for (int64_t i = 0; i < out_.k; ++i) {
      const int64_t at = r * out_.k + i;
      if (i >= found) {
        out_.indices[at] = padding_[i - found];
        out_.values[at] = out_.u[at] = out_.v[at] = 0;
        continue;
      }
      const int64_t f = key_index(keys[i]);
      out_.indices[at] = f;
      out_.values[at] = value(key_score(keys[i]));
      out_.u[at] = u[f / in_.n];
      out_.v[at] = v[f / (in_.m * in_.n) * in_.n + f % in_.n];
    }
  }

 private:
  float value(float score) const {
    if (in_.activation == KronActivation::mand) return std::sqrt(score + in_.eps);
    return score < 0 ? 0.0f : score;
  }

  // The keys of the k best, or of all if there are fewer, in any order. Each head reaches its bound with one of its
  // latents. So k latents reach the k-th largest bound, and a head below it holds none of the k best: with (4, 8, 512)
  // and K = 32 some 40 of 512 heads are left.
  template <bool kSigned>
  void collect(const float* u, const float* v, Scratch& scratch) const {
    const int64_t m = in_.m, n = in_.n;
    scratch.bounds.find<kSigned>(in_, u, v);
    const std::vector<float>& bounds = scratch.bounds.best;
    // Of a few allowed latents it need not be one that reaches the bound: their threshold comes from those seen.
    float threshold = out_.allowed ? -kInfinity : kth_largest_bound(bounds.data(), in_.heads, out_.k);
    std::vector<uint64_t>& keys = scratch.keys;
    const auto most = static_cast<size_t>(2 * out_.k + 64);
    const auto add = [&](int64_t h, int64_t i, int64_t j) {
      const float score = product<kSigned>(u[h * m + i], v[h * n + j]);
      if (score < threshold) return;
      keys.push_back(order_key(score, static_cast<int32_t>((h * m + i) * n + j)));
      if (keys.size() >= most) threshold = std::max(threshold, cut(keys));
    };
    for (int64_t h = 0; h < in_.heads; ++h) {
      if (bounds[h] < threshold) continue;
      if (out_.allowed) {
        for (int64_t a = allowed_begin_[h]; a < allowed_begin_[h + 1]; ++a) add(h, allowed_[a] / n, allowed_[a] % n);
      } else {
        for (int64_t i = 0; i < m; ++i) {
          if (!kSigned && product<false>(u[h * m + i], scratch.bounds.q_most[h]) < threshold) continue;
          for (int64_t j = 0; j < n; ++j) add(h, i, j);
        }
      }
    }
    if (static_cast<int64_t>(keys.size()) > out_.k) cut(keys);
  }

  // Keeps the k best; what comes later must reach the result, which is above the k-th: a tie loses to it.
  float cut(std::vector<uint64_t>& keys) const {
    std::nth_element(keys.begin(), keys.begin() + out_.k - 1, keys.end());
    keys.resize(out_.k);
    const float last = key_score(keys.back());
    return last != last ? kInfinity : std::nextafter(last, kInfinity);
  }

  const KronInput& in_;
  const KronTopK out_;
  std::vector<int32_t> allowed_;        // within their head, head by head
  std::vector<int64_t> allowed_begin_;  // [heads + 1]
  std::vector<int64_t> padding_;        // the smallest latents not allowed
};

}  // namespace

void kron_encode(const KronInput& input, const KronTopK& main, const KronTopK& aux, int threads, Isa isa) {
  if (input.rows == 0) return;
  // Of bfloat16 products most heads' bounds would overlap: both factors would have to be computed again for them.
  isa = std::min(isa, Isa::avx512);
  Factors u(input.weight_p, input.bias_p, input.heads * input.m);
  Factors v(input.weight_q, input.bias_q, input.heads * input.n);
  std::vector<Selection> selections;
  for (const KronTopK* out : {&main, &aux}) {
    if (out->k > 0) selections.emplace_back(input, *out);
  }
  const bool is_signed = input.activation == KronActivation::product;
  const int64_t step = kRows * std::max(1, threads);
  for (int64_t first = 0; first < input.rows; first += step) {
    const int64_t rows = std::min(step, input.rows - first);
    u.compute(input, first, rows, threads, isa);
    v.compute(input, first, rows, threads, isa);
    constexpr int64_t kTogether = 8;  // rows that share scratch memory
    parallel_for((rows + kTogether - 1) / kTogether, threads, [&](int64_t task, int) {
      Selection::Scratch scratch;
      for (int64_t r = task * kTogether; r < std::min(rows, (task + 1) * kTogether); ++r) {
        for (const Selection& selection : selections) {
          if (is_signed) {
            selection.row<true>(first + r, u.row(r), v.row(r), scratch);
          } else {
            selection.row<false>(first + r, u.row(r), v.row(r), scratch);
          }
        }
      }
    });
  }
}

}  // namespace saekern
