#include "linear_sum_assignment/candidates.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "isa.h"
#include "parallel.h"

namespace saekern::assignment {
namespace {

constexpr int64_t kListed = 32;  // candidates a line: on 4096 x 4096 cosines 0.2 % of the lines ever need more
constexpr int64_t kBatch = 16;   // lines copied together: one cache line of floats when reading across memory order

SAEKERN_CLONES void reduce(const float* SAEKERN_RESTRICT cost, const double* SAEKERN_RESTRICT price, int64_t n,
                           double* SAEKERN_RESTRICT out) {
  for (int64_t j = 0; j < n; ++j) out[j] = static_cast<double>(cost[j]) - price[j];
}
SAEKERN_CLONES void reduce(const double* SAEKERN_RESTRICT cost, const double* SAEKERN_RESTRICT price, int64_t n,
                           double* SAEKERN_RESTRICT out) {
  for (int64_t j = 0; j < n; ++j) out[j] = cost[j] - price[j];
}

float round_down(double x, float) {
  const auto y = static_cast<float>(x);
  return static_cast<double>(y) > x ? std::nextafter(y, -std::numeric_limits<float>::infinity()) : y;
}
double round_down(double x, double) { return x; }

}  // namespace

template <typename T>
DenseCandidates<T>::DenseCandidates(const Lines<T>& lines, int threads)
    : lines_(lines), lists_(lines.count()), line_(lines.length()), reduced_(lines.length()) {
  const int64_t n = lines.count(), length = lines.length(), listed = std::min(kListed, length);
  entries_.resize(n * listed);
  room_ = 16 * entries_.size();

  struct Workspace {
    std::vector<T> copy;
    Selector<T> selector;
    std::vector<Choice<T>> chosen;
  };
  std::vector<Workspace> workspaces(std::max(threads, 1));
  std::vector<char> valid(n);
  const int64_t batches = (n + kBatch - 1) / kBatch;
  parallel_for(batches, threads, [&](int64_t batch, int worker) {
    Workspace& work = workspaces[worker];
    const int64_t begin = batch * kBatch, end = std::min(n, begin + kBatch);
    if (!lines.in_place()) {
      work.copy.resize(kBatch * length);
      lines.copy(begin, end - begin, work.copy.data());
    }
    for (int64_t i = begin; i < end; ++i) {
      const T* x = lines.in_place() ? lines.line(i, nullptr) : work.copy.data() + (i - begin) * length;
      T rest;
      valid[i] = work.selector.smallest(x, length, listed, i, work.chosen, rest);
      Candidate<T>* entry = entries_.data() + i * listed;
      for (const Choice<T>& c : work.chosen) *entry++ = {c.value, c.value, c.index};
      lists_[i] = {i * listed, static_cast<int64_t>(work.chosen.size()), static_cast<double>(rest)};
    }
  });
  const auto bad = std::find(valid.begin(), valid.end(), 0) - valid.begin();
  if (bad == n) return;
  for (int64_t j = 0; j < length; ++j) {
    if (!(lines.cost(bad, j) > -std::numeric_limits<T>::infinity())) throw InvalidEntry{bad, j};
  }
}

template <typename T>
void DenseCandidates<T>::extend(int64_t line, const std::vector<double>& prices) {
  List& list = lists_[line];
  const int64_t length = lines_.length();
  const int64_t wanted = 8 * list.count > length ? length : 2 * list.count;  // a quarter of a line: then all of it
  const T* cost = lines_.line(line, line_.data());
  reduce(cost, prices.data(), length, reduced_.data());
  selector_.smallest(reduced_.data(), length, wanted, line, chosen_, list.rest);
  list.first = static_cast<int64_t>(entries_.size());
  list.count = static_cast<int64_t>(chosen_.size());
  for (const Choice<double>& c : chosen_) entries_.push_back({cost[c.index], round_down(c.value, T()), c.index});
}

template class DenseCandidates<float>;
template class DenseCandidates<double>;

}  // namespace saekern::assignment
