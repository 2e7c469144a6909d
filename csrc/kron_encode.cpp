#include "kron_encode.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "parallel.h"
#include "screen.h"
#include "select.h"

namespace saekern {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int64_t kRows = 256;  // a thread's share at a time: factors of 6144 columns are 6 MB then, and stay in L3

// u or v of some rows, [rows, columns]: the float32 product of the panels, each a sum over the width in order.
class Factors {
 public:
  Factors(const float* weight, const float* bias, int64_t columns) : weight_(weight), bias_(bias), columns_(columns) {}

  void compute(const KronInput& in, int64_t first, int64_t rows, int threads, Isa isa) {
    values_.resize(rows * columns_);
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
            float* to = values_.data() + (block.row + r) * columns_ + block.latent;
            for (int64_t j = 0; j < count; ++j) to[j] = bias ? from[j] + bias[j] : from[j];
          }
        },
        [](int64_t, int64_t) {});
  }

  const float* row(int64_t r) const { return values_.data() + r * columns_; }

 private:
  const float *weight_, *bias_;
  const int64_t columns_;
  PackedPanels panels_;
  std::vector<float> values_;
};

struct Range {
  float least = kInfinity, most = -kInfinity;
  bool nan = false;
};

Range range_of(const float* values, int64_t n) {
  Range range;
  for (int64_t i = 0; i < n; ++i) {
    range.least = values[i] < range.least ? values[i] : range.least;
    range.most = values[i] > range.most ? values[i] : range.most;
    range.nan |= values[i] != values[i];
  }
  return range;
}

// What latents are ordered by. A factor that is not positive makes it 0, also beside an infinite one.
template <bool kSigned>
float product(float u, float v) {
  if (kSigned) return u * v;
  const bool off = (u <= 0 && v == v) || (v <= 0 && u == u);
  return off ? 0.0f : u * v;
}

// The largest product of a head, itself one of them; +infinity where one is NaN.
template <bool kSigned>
float bound_of(const Range& u, const Range& v) {
  if (u.nan || v.nan) return kInfinity;
  const float both = product<kSigned>(u.most, v.most);
  if (!kSigned) return both;
  const float corners[] = {both, u.least * v.least, u.least * v.most, u.most * v.least};
  float best = -kInfinity;
  for (const float corner : corners) {
    if (corner != corner) return kInfinity;  // 0 · infinity
    best = std::max(best, corner);
  }
  return best;
}

class Selection {
 public:
  Selection(const KronInput& in, const KronTopK& out) : in_(in), out_(out) {
    const int64_t latents = in.heads * in.m * in.n;
    for (int64_t f = 0; out.allowed && f < latents; ++f) {
      if (out.allowed[f]) allowed_.push_back(static_cast<int32_t>(f));
      if (!out.allowed[f] && static_cast<int64_t>(padding_.size()) < out.k) padding_.push_back(f);
    }
  }

  // u [heads, m], v [heads, n] of a row. `keys` and `bounds` are scratch.
  template <bool kSigned>
  void row(int64_t r, const float* u, const float* v, std::vector<uint64_t>& keys, std::vector<float>& bounds) const {
    keys.clear();
    if (out_.allowed) {
      for (const int32_t f : allowed_) {
        keys.push_back(order_key(product<kSigned>(u[f / in_.n], v[column_of_q(f)]), f));
      }
    } else {
      candidates<kSigned>(u, v, keys, bounds);
    }
    const auto chosen = keys.begin() + std::min<int64_t>(out_.k, static_cast<int64_t>(keys.size()));
    std::nth_element(keys.begin(), chosen, keys.end());
    std::sort(keys.begin(), chosen);
    const int64_t found = chosen - keys.begin();
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
      out_.v[at] = v[column_of_q(f)];
    }
  }

 private:
  int64_t column_of_q(int64_t f) const { return f / (in_.m * in_.n) * in_.n + f % in_.n; }

  float value(float score) const {
    if (in_.activation == KronActivation::mand) return std::sqrt(score + in_.eps);
    return score < 0 ? 0.0f : score;
  }

  // Each head reaches its bound with one of its latents. So k latents reach the k-th largest bound, and a head below it
  // holds none of the k best: with (4, 8, 512) and K = 32 some 40 of 512 heads are left.
  template <bool kSigned>
  void candidates(const float* u, const float* v, std::vector<uint64_t>& keys, std::vector<float>& bounds) const {
    const int64_t m = in_.m, n = in_.n;
    bounds.resize(in_.heads);
    for (int64_t h = 0; h < in_.heads; ++h) {
      bounds[h] = bound_of<kSigned>(range_of(u + h * m, m), range_of(v + h * n, n));
    }
    const float threshold = kth_largest_bound(bounds.data(), in_.heads, out_.k);
    for (int64_t h = 0; h < in_.heads; ++h) {
      if (bounds[h] < threshold) continue;
      for (int64_t i = 0; i < m; ++i) {
        for (int64_t j = 0; j < n; ++j) {
          const float score = product<kSigned>(u[h * m + i], v[h * n + j]);
          if (!(score < threshold)) keys.push_back(order_key(score, static_cast<int32_t>((h * m + i) * n + j)));
        }
      }
    }
  }

  const KronInput& in_;
  const KronTopK& out_;
  std::vector<int32_t> allowed_;
  std::vector<int64_t> padding_;
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
      std::vector<uint64_t> keys;
      std::vector<float> bounds;
      for (int64_t r = task * kTogether; r < std::min(rows, (task + 1) * kTogether); ++r) {
        for (const Selection& selection : selections) {
          if (is_signed) {
            selection.row<true>(first + r, u.row(r), v.row(r), keys, bounds);
          } else {
            selection.row<false>(first + r, u.row(r), v.row(r), keys, bounds);
          }
        }
      }
    });
  }
}

}  // namespace saekern
