#include "hierarchical_loss.h"

#include <algorithm>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "isa.h"
#include "lanes.h"
#include "memory.h"
#include "parallel.h"

namespace saekern {
namespace {

// What each prefix of a row counts, by its length: at(b)[p] for its first p codes. One row where all are alike.
class PrefixWeights {
 public:
  PrefixWeights(const HierarchicalLoss& job, double scale)
      : codes_(job.codes), shared_(!job.per_row && !codes_.offsets) {
    const int64_t rows = shared_ ? 1 : codes_.batch;
    weights_.resize(shared_ ? codes_.k + 1 : codes_.nnz + codes_.batch);
    std::vector<double> sums;
    for (int64_t b = 0; b < rows; ++b) {
      const int64_t count = shared_ ? codes_.k : codes_.begin(b + 1) - codes_.begin(b);
      const int64_t* cuts = job.cuts + (job.per_row ? b * job.budgets : 0);
      if (job.per_row) check(cuts, job.budgets, count, b);
      sums.assign(count + 1, 0.0);
      for (int64_t j = 0; j < job.budgets; ++j) sums[std::clamp<int64_t>(cuts[j], 0, count)] += job.weights[j];
      float* row = weights_.data() + (shared_ ? 0 : codes_.begin(b) + b);
      for (int64_t p = 0; p <= count; ++p) row[p] = static_cast<float>(scale * sums[p]);
    }
  }

  const float* at(int64_t b) const { return weights_.data() + (shared_ ? 0 : codes_.begin(b) + b); }

 private:
  static void check(const int64_t* cuts, int64_t budgets, int64_t count, int64_t b) {
    int64_t before = 0;
    for (int64_t j = 0; j < budgets; ++j) {
      if (cuts[j] < before || cuts[j] > count)
        throw std::invalid_argument("cuts: expected each row to ascend from 0 to its number of codes " +
                                    std::to_string(count) + " at most, got " + std::to_string(cuts[j]) + " after " +
                                    std::to_string(before) + " at row " + std::to_string(b));
      before = cuts[j];
    }
  }

  const Codes& codes_;
  const bool shared_;
  std::vector<float> weights_;
};

// A column of the kernels below: sixteen floats, or one of those that are left at the end of a row.
SAEKERN_INLINE void load(const float* p, Lanes& v) { v = *lanes(p); }
SAEKERN_INLINE void load(const float* p, float& v) { v = *p; }
SAEKERN_INLINE void store(float* p, const Lanes& v) { *lanes(p) = v; }
SAEKERN_INLINE void store(float* p, const float& v) { *p = v; }
SAEKERN_INLINE float total(const Lanes& v) { return sum(v); }
SAEKERN_INLINE float total(const float& v) { return v; }

constexpr int64_t kAhead = 8;  // codes whose rows of weight are fetched before their turn, as in decode

// N columns from d of rows [first, last): x̂, and the sum of their squared errors. The prefix stays in registers.
template <typename V, int N>
SAEKERN_INLINE double loss_slice(const HierarchicalLoss& job, const PrefixWeights& prefixes, int64_t first,
                                 int64_t last, int64_t d, float* x_hat) {
  constexpr int64_t kStep = sizeof(V) / sizeof(float);
  constexpr int kSums = N < 4 ? N : 4;
  const Codes& codes = job.codes;
  const int64_t end = codes.begin(last), width = job.width;
  double result = 0;
  for (int64_t b = first; b < last; ++b) {
    const float *target = job.target + b * width + d, *counts = prefixes.at(b);
    V x[N] = {}, error[kSums] = {};
    const auto add_error = [&](float count) {
      for (int j = 0; j < N; ++j) {
        V left;
        load(target + j * kStep, left);
        left = x[j] - left;
        error[j % kSums] += (count * left) * left;
      }
    };
    for (int j = 0; job.bias && j < N; ++j) load(job.bias + d + j * kStep, x[j]);
    if (counts[0] != 0) add_error(counts[0]);
    for (int64_t i = codes.begin(b); i < codes.begin(b + 1); ++i) {
      const float value = codes.values[i];
      const float* w = job.weight + codes.indices[i] * width + d;
      const float* ahead = job.weight + codes.indices[std::min(i + kAhead, end - 1)] * width + d;
      for (int j = 0; j < N; ++j) {
        V row;
        load(w + j * kStep, row);
        x[j] += value * row;
        prefetch(ahead + j * kStep);
      }
      const float count = *++counts;
      if (count != 0) add_error(count);
    }
    for (int j = 0; j < N; ++j) store(x_hat + b * width + d + j * kStep, x[j]);
    for (int j = 1; j < kSums; ++j) error[0] += error[j];
    result += total(error[0]);
  }
  return result;
}

SAEKERN_CLONES double loss_rows(const HierarchicalLoss& job, const PrefixWeights& prefixes, int64_t first, int64_t last,
                                float* x_hat) {
  constexpr int kWide = 8;
  double result = 0;
  int64_t d = 0;
  for (; d + kWide * kLanes <= job.width; d += kWide * kLanes)
    result += loss_slice<Lanes, kWide>(job, prefixes, first, last, d, x_hat);
  for (; d + kLanes <= job.width; d += kLanes) result += loss_slice<Lanes, 1>(job, prefixes, first, last, d, x_hat);
  for (; d < job.width; ++d) result += loss_slice<float, 1>(job, prefixes, first, last, d, x_hat);
  return result;
}

constexpr int kColumns = 8;                         // Lanes a task of the backward pass owns
constexpr int64_t kSlice = kColumns * kLanes;       // in floats
constexpr int64_t kPartialDots = int64_t{1} << 20;  // dots of all slices that exist at a time: 4 MiB

// What one task of the backward pass writes: rows [first, last), columns of one slice.
struct SliceJob {
  const HierarchicalLoss& loss;
  const PrefixWeights& prefixes;
  const HierarchicalGradients& out;
  int64_t first, last;
  float* residuals;  // scratch [longest row, kSlice]
  float* dots;       // [codes of the rows], or null: ⟨S, weight⟩ over the slice's columns, added to what is there
  double* bias;      // [width], added to, or null
};

// S_i, the sum of counted residuals over the prefixes that hold code i, is what the code and its latent receive. The
// first walk over a row keeps its residuals, the second goes back through them. The task alone owns its columns of
// dweight, in all rows, and takes the rows in order: no atomics, no sort, and no S in memory.
template <typename V, int N>
SAEKERN_INLINE void gradient_slice(const SliceJob& job, int64_t d) {
  constexpr int64_t kStep = sizeof(V) / sizeof(float);
  const HierarchicalLoss& loss = job.loss;
  const Codes& codes = loss.codes;
  const int64_t start = codes.begin(job.first), end = codes.begin(job.last), width = loss.width;
  for (int64_t b = job.first; b < job.last; ++b) {
    const int64_t begin = codes.begin(b);
    const float *counts = job.prefixes.at(b), *target = loss.target + b * width + d;
    int64_t used = codes.begin(b + 1) - begin;  // codes in the longest prefix that counts
    while (used > 0 && counts[used] == 0) --used;
    V x[N] = {}, t[N], suffix[N] = {};
    for (int j = 0; j < N; ++j) {
      load(target + j * kStep, t[j]);
      if (loss.bias) load(loss.bias + d + j * kStep, x[j]);
    }
    for (int64_t i = 0; i < used; ++i) {
      const float value = codes.values[begin + i];
      const int64_t at = codes.indices[begin + i] * width + d;
      const float* ahead = loss.weight + codes.indices[std::min(begin + i + kAhead, end - 1)] * width + d;
      for (int j = 0; j < N; ++j) {
        V row;
        load(loss.weight + at + j * kStep, row);
        x[j] += value * row;
        prefetch(ahead + j * kStep);
        if (job.out.dweight) __builtin_prefetch(job.out.dweight + at + j * kStep, 1, 3);
        if (counts[i + 1] != 0) store(job.residuals + i * kSlice + j * kStep, x[j] - t[j]);
      }
    }
    for (int64_t i = used - 1; i >= 0; --i) {
      const int64_t at = codes.indices[begin + i] * width + d;
      if (const float count = counts[i + 1]; count != 0)
        for (int j = 0; j < N; ++j) {
          V residual;
          load(job.residuals + i * kSlice + j * kStep, residual);
          suffix[j] += count * residual;
        }
      if (job.dots) {
        V dot = {};
        for (int j = 0; j < N; ++j) {
          V row;
          load(loss.weight + at + j * kStep, row);
          dot += suffix[j] * row;
        }
        job.dots[begin + i - start] += total(dot);
      }
      if (job.out.dweight) {
        const float value = codes.values[begin + i];
        for (int j = 0; j < N; ++j) {
          V row;
          load(job.out.dweight + at + j * kStep, row);
          store(job.out.dweight + at + j * kStep, row + value * suffix[j]);
        }
      }
    }
    if (counts[0] != 0)
      for (int j = 0; j < N; ++j) {
        V empty = {};
        if (loss.bias) load(loss.bias + d + j * kStep, empty);
        suffix[j] += counts[0] * (empty - t[j]);
      }
    for (int j = 0; job.out.dtarget && j < N; ++j) store(job.out.dtarget + b * width + d + j * kStep, -suffix[j]);
    if (job.bias) {
      float flat[N * kStep];
      for (int j = 0; j < N; ++j) store(flat + j * kStep, suffix[j]);
      for (int64_t c = 0; c < N * kStep; ++c) job.bias[d + c] += flat[c];
    }
  }
}

SAEKERN_CLONES void gradient_columns(const SliceJob& job, int64_t d, int64_t end) {
  for (; d + kSlice <= end; d += kSlice) gradient_slice<Lanes, kColumns>(job, d);
  for (; d + kLanes <= end; d += kLanes) gradient_slice<Lanes, 1>(job, d);
  for (; d < end; ++d) gradient_slice<float, 1>(job, d);
}

int64_t longest_row(const Codes& codes) {
  if (!codes.offsets) return codes.k;
  int64_t longest = 0;
  for (int64_t b = 0; b < codes.batch; ++b) longest = std::max(longest, codes.begin(b + 1) - codes.begin(b));
  return longest;
}

}  // namespace

double hierarchical_loss(const HierarchicalLoss& job, int threads, float* x_hat) {
  const Codes& codes = job.codes;
  const PrefixWeights prefixes(job, 1.0);
  const int64_t per_row = (codes.nnz / std::max<int64_t>(codes.batch, 1) + 1) * (job.width + 16);
  const int64_t block = std::max<int64_t>(1, (1 << 18) / per_row);  // rows a task: some 30 µs of work
  const int64_t tasks = (codes.batch + block - 1) / block;
  std::vector<double> sums(tasks);
  parallel_for(tasks, threads, [&](int64_t task, int) {
    sums[task] = loss_rows(job, prefixes, task * block, std::min((task + 1) * block, codes.batch), x_hat);
  });
  double result = 0;
  for (const double sum : sums) result += sum;
  return result;
}

void hierarchical_loss_backward(const HierarchicalLoss& job, double scale, int threads,
                                const HierarchicalGradients& out) {
  const Codes& codes = job.codes;
  const PrefixWeights prefixes(job, scale);
  const int64_t slices = (job.width + kSlice - 1) / kSlice, longest = longest_row(codes);
  const int64_t rows = std::max<int64_t>(64, kPartialDots / std::max<int64_t>(1, slices * longest));
  std::vector<double> bias(out.dbias ? job.width : 0);
  std::unique_ptr<float[]> residuals(new float[threads * longest * kSlice]);
  std::vector<float> dots;
  if (out.dweight) prefer_huge_pages(out.dweight, job.latents * job.width * sizeof(float));
  for (int64_t first = 0; first == 0 || first < codes.batch; first += rows) {
    const int64_t last = std::min(first + rows, codes.batch), start = codes.begin(first);
    const int64_t count = codes.begin(last) - start;
    if (out.dvalues) dots.assign(slices * count, 0.0f);
    parallel_for(slices, threads, [&](int64_t slice, int worker) {
      const int64_t d = slice * kSlice, end = std::min(d + kSlice, job.width);
      for (int64_t f = 0; first == 0 && out.dweight && f < job.latents; ++f)
        std::fill(out.dweight + f * job.width + d, out.dweight + f * job.width + end, 0.0f);
      const SliceJob task{job,
                          prefixes,
                          out,
                          first,
                          last,
                          residuals.get() + worker * longest * kSlice,
                          out.dvalues ? dots.data() + slice * count : nullptr,
                          out.dbias ? bias.data() : nullptr};
      gradient_columns(task, d, end);
    });
    for (int64_t i = 0; out.dvalues && i < count; ++i) {
      float total = 0;
      for (int64_t slice = 0; slice < slices; ++slice) total += dots[slice * count + i];
      out.dvalues[start + i] = total;
    }
  }
  for (int64_t d = 0; out.dbias && d < job.width; ++d) out.dbias[d] = static_cast<float>(bias[d]);
}

}  // namespace saekern
