// For ThreadSanitizer (tests/test_sanitizers.py): both assignments on random problems, with 4 threads. Python under the
// sanitizer would report its own races.
#include <cstdio>
#include <random>
#include <vector>

#include "linear_sum_assignment.h"
#include "vector_assignment.h"

namespace {

using namespace saekern;

struct Silent final : Monitor {
  void report(const char*, int64_t, int64_t) override {}
};

template <typename T>
std::vector<T> random_numbers(int64_t n, unsigned seed, int levels) {
  std::mt19937 engine(seed);
  std::normal_distribution<double> normal;
  std::vector<T> values(n);
  for (T& x : values) x = static_cast<T>(levels ? static_cast<int>(engine() % levels) - levels / 2 : normal(engine));
  return values;
}

template <typename T>
std::vector<int64_t> dense(int64_t rows, int64_t columns, int levels, int threads) {
  const std::vector<T> cost = random_numbers<T>(rows * columns, 1, levels);
  std::vector<int64_t> assignment(rows);
  Silent monitor;
  linear_sum_assignment(CostMatrix<T>{cost.data(), rows, columns, columns, 1, false}, threads, monitor,
                        assignment.data());
  return assignment;
}

template <typename T>
std::vector<int64_t> vectors(int64_t lines, int64_t columns, int64_t width, int levels, int threads) {
  const std::vector<T> a = random_numbers<T>(lines * width, 2, levels),
                       b = random_numbers<T>(columns * width, 3, levels);
  std::vector<int64_t> assignment(lines);
  std::vector<T> similarity(lines);
  std::vector<double> u(lines), v(columns), margin(lines);
  Silent monitor;
  vector_assignment(assignment::VectorPair<T>{a.data(), b.data(), lines, columns, width, assignment::Metric::cosine},
                    AssignmentOptions{}, threads, best_isa(), monitor,
                    AssignmentProof<T>{assignment.data(), similarity.data(), u.data(), v.data(), margin.data()});
  return assignment;
}

template <typename T>
bool same_for_any_number_of_threads() {
  bool same = true;
  for (int levels : {0, 3}) {
    same &= dense<T>(300, 300, levels, 1) == dense<T>(300, 300, levels, 4);
    same &= dense<T>(200, 330, levels, 1) == dense<T>(200, 330, levels, 4);
    same &= vectors<T>(700, 720, 24, levels, 1) == vectors<T>(700, 720, 24, levels, 4);
    same &= vectors<T>(200, 900, 9, levels, 1) == vectors<T>(200, 900, 9, levels, 4);
  }
  return same;
}

}  // namespace

int main() {
  const bool same = same_for_any_number_of_threads<float>() && same_for_any_number_of_threads<double>();
  std::puts(same ? "same" : "different");
  return same ? 0 : 1;
}
