#include "linear_sum_assignment/dense_candidates.h"

#include <algorithm>
#include <limits>

#include "isa.h"
#include "parallel.h"

namespace saekern::assignment {
namespace {

constexpr int64_t kListed = 24;  // candidates a line; with 20 or 32 the benches of 8192 latents are no faster
constexpr int64_t kBatch = 16;   // lines copied together: one cache line of floats when reading across memory order

SAEKERN_CLONES void reduce(const float* SAEKERN_RESTRICT cost, const double* SAEKERN_RESTRICT price, int64_t n,
                           double* SAEKERN_RESTRICT out) {
  for (int64_t j = 0; j < n; ++j) out[j] = static_cast<double>(cost[j]) - price[j];
}
SAEKERN_CLONES void reduce(const double* SAEKERN_RESTRICT cost, const double* SAEKERN_RESTRICT price, int64_t n,
                           double* SAEKERN_RESTRICT out) {
  for (int64_t j = 0; j < n; ++j) out[j] = cost[j] - price[j];
}

}  // namespace

template <typename T>
DenseCandidates<T>::DenseCandidates(const Lines<T>& lines, int threads, Monitor& monitor)
    : Candidates<T>(lines.count()), lines_(lines), line_(lines.length()), reduced_(lines.length()) {
  const int64_t n = lines.count(), length = lines.length(), wanted = std::min(kListed, length);

  struct Workspace {
    std::vector<T> copy;
    Selector<T> selector;
    std::vector<Choice<T>> chosen;
  };
  std::vector<Workspace> workspaces(std::max(threads, 1));
  std::vector<char> valid(n);
  const int64_t batches = (n + kBatch - 1) / kBatch;
  parallel_for(batches, threads, [&](int64_t batch, int worker) {
    if (worker == 0) monitor.report("candidates", batch, batches);
    Workspace& work = workspaces[worker];
    const int64_t begin = batch * kBatch, end = std::min(n, begin + kBatch);
    if (!lines.in_place()) {
      work.copy.resize(kBatch * length);
      lines.copy(begin, end - begin, work.copy.data());
    }
    for (int64_t i = begin; i < end; ++i) {
      const T* x = lines.in_place() ? lines.line(i, nullptr) : work.copy.data() + (i - begin) * length;
      T rest;
      valid[i] = work.selector.smallest(x, length, wanted, i, work.chosen, rest);
      List<T>& list = this->lists_[i];
      list.entries.reserve(work.chosen.size());
      for (const Choice<T>& c : work.chosen) list.entries.push_back({c.value, c.value, c.index});
      list.rest = static_cast<double>(rest);
    }
  });
  const auto bad = std::find(valid.begin(), valid.end(), 0) - valid.begin();
  for (int64_t j = 0; bad < n && j < length; ++j) {
    if (!(lines.cost(bad, j) > -std::numeric_limits<T>::infinity())) throw InvalidEntry{bad, j};
  }
  for (const List<T>& list : this->lists_) listed_ += static_cast<int64_t>(list.entries.size());
  room_ = 16 * n * wanted;
}

template <typename T>
void DenseCandidates<T>::extend(const std::vector<int32_t>& lines, const std::vector<double>& prices) {
  for (const int32_t line : lines) extend(line, prices);
}

template <typename T>
void DenseCandidates<T>::extend(int32_t line, const std::vector<double>& prices) {
  List<T>& list = this->lists_[line];
  const int64_t length = lines_.length(), count = static_cast<int64_t>(list.entries.size());
  if (list.rest == std::numeric_limits<double>::infinity()) return;
  const int64_t wanted = 8 * count > length ? length : 2 * count;  // after an eighth of a line all of it
  const T* cost = lines_.line(line, line_.data());
  reduce(cost, prices.data(), length, reduced_.data());
  selector_.smallest(reduced_.data(), length, wanted, line, chosen_, list.rest);
  list.entries.clear();
  for (const Choice<double>& c : chosen_) {
    list.entries.push_back({cost[c.index], round_down(c.value, T()), c.index});
  }
  listed_ += static_cast<int64_t>(list.entries.size()) - count;
}

template <typename T>
bool DenseCandidates<T>::worthwhile(int64_t scans, int64_t entries, int64_t extensions) const {
  if (listed_ > room_) return false;
  // In units of a column of LineSearch (0.3 ns): an entry costs about 8, with its share of the heap, and so does a
  // column of a line that is read again. One such reading of every line is granted before the account is looked at.
  const int64_t columns = lines_.length();
  return 8 * (entries + columns * (extensions - lines_.count())) <= columns * scans;
}

template class DenseCandidates<float>;
template class DenseCandidates<double>;

}  // namespace saekern::assignment
