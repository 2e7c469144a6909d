#include "linear_sum_assignment/similarity.h"

#include <algorithm>
#include <cmath>

#include "isa.h"
#include "lanes.h"
#include "parallel.h"

namespace saekern::assignment {
namespace {

constexpr int64_t kSums = 32;  // four AVX-512 registers of doubles: enough that no addition waits for another

template <typename S, typename T, class Term>
SAEKERN_INLINE double sum_of(const S* SAEKERN_RESTRICT x, const T* SAEKERN_RESTRICT y, int64_t n, const Term& term) {
  double sum[kSums] = {};
  int64_t d = 0;
  for (; d + kSums <= n; d += kSums) {
    for (int64_t j = 0; j < kSums; ++j) sum[j] += term(static_cast<double>(x[d + j]), static_cast<double>(y[d + j]));
  }
  for (int64_t j = 0; d + j < n; ++j) sum[j] += term(static_cast<double>(x[d + j]), static_cast<double>(y[d + j]));
  for (int64_t half = kSums / 2; half > 0; half /= 2) {
    for (int64_t j = 0; j < half; ++j) sum[j] += sum[j + half];
  }
  return sum[0];
}

template <typename S, typename T>
SAEKERN_INLINE double product(const S* x, const T* y, int64_t n) {
  return sum_of(x, y, n, [](double a, double b) __attribute__((always_inline)) { return a * b; });
}

template <typename S, typename T>
SAEKERN_INLINE double squared_distance(const S* x, const T* y, int64_t n) {
  return sum_of(x, y, n, [](double a, double b) __attribute__((always_inline)) { return (a - b) * (a - b); });
}

// Products of two floats are exact in double, so these do not depend on whether a clone fuses the addition.
SAEKERN_CLONES double dot(const float* x, const float* y, int64_t n) { return product(x, y, n); }
SAEKERN_CLONES double dot(const double* x, const float* y, int64_t n) { return product(x, y, n); }
SAEKERN_CLONES double dot(const double* x, const double* y, int64_t n) { return product(x, y, n); }
SAEKERN_CLONES double distance(const float* x, const float* y, int64_t n) { return squared_distance(x, y, n); }
SAEKERN_CLONES double distance(const double* x, const float* y, int64_t n) { return squared_distance(x, y, n); }
SAEKERN_CLONES double distance(const double* x, const double* y, int64_t n) { return squared_distance(x, y, n); }

template <typename T>
std::vector<double> norms(const T* rows, int64_t count, int64_t width, int threads) {
  constexpr int64_t kChunk = 256;
  std::vector<double> result(count);
  parallel_for((count + kChunk - 1) / kChunk, threads, [&](int64_t task, int) {
    for (int64_t i = task * kChunk; i < std::min(count, (task + 1) * kChunk); ++i) {
      result[i] = std::sqrt(dot(rows + i * width, rows + i * width, width));
    }
  });
  return result;
}

}  // namespace

template <typename T>
Similarity<T>::Similarity(const VectorPair<T>& pair, int threads)
    : pair_(pair),
      a_norms_(norms(pair.a, pair.lines, pair.width, threads)),
      b_norms_(norms(pair.b, pair.columns, pair.width, threads)) {}

template <typename T>
template <typename Row>
T Similarity<T>::of(const Row* x, int64_t line, int64_t column) const {
  const T* y = pair_.b + column * pair_.width;
  switch (pair_.metric) {
    case Metric::dot:
      return static_cast<T>(dot(x, y, pair_.width));
    case Metric::sqeuclidean:
      return static_cast<T>(-distance(x, y, pair_.width));
    case Metric::cosine:
      break;
  }
  const double norm = a_norms_[line] * b_norms_[column];
  return norm > 0 ? static_cast<T>(dot(x, y, pair_.width) / norm) : T(0);
}

template <typename T>
T Similarity<T>::operator()(int64_t line, int64_t column) const {
  return of(pair_.a + line * pair_.width, line, column);
}

template <typename T>
Similarity<T>::Line::Line(const Similarity& similarity, int64_t line)
    : similarity_(similarity),
      line_(line),
      wide_(similarity.pair_.a + line * similarity.pair_.width,
            similarity.pair_.a + (line + 1) * similarity.pair_.width) {}

template <typename T>
T Similarity<T>::Line::operator()(int64_t column) const {
  return similarity_.of(wide_.data(), line_, column);
}

template <typename T>
void Similarity<T>::prefetch(int64_t column) const {
  const char* row = reinterpret_cast<const char*>(pair_.b + column * pair_.width);
  // Two KiB hide the latency of the first lines; the processor's own prefetcher has found the stream by then.
  for (int64_t byte = 0; byte < std::min<int64_t>(pair_.width * sizeof(T), 2048); byte += 64) {
    saekern::prefetch(row + byte);
  }
}

template class Similarity<float>;
template class Similarity<double>;

}  // namespace saekern::assignment
