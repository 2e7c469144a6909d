#include "unexplained_variance.h"

#include <algorithm>
#include <vector>

#include "isa.h"
#include "parallel.h"

namespace saekern {
namespace {

constexpr int64_t kRows = 128;          // rows a partial sum covers
constexpr int64_t kElements = 1 << 15;  // elements a task of scaled_difference covers: some 10 µs

SAEKERN_CLONES void add_rows(const float* rows, int64_t count, int64_t width, double* sums) {
  for (int64_t r = 0; r < count; ++r) {
    for (int64_t d = 0; d < width; ++d) sums[d] += rows[r * width + d];
  }
}

// Column by column in eight partial sums: one would wait for each addition.
SAEKERN_CLONES void add_squares(const float* target, const float* estimate, const double* mean, int64_t count,
                                int64_t width, double* error, double* variance) {
  double e[8] = {}, v[8] = {};
  for (int64_t r = 0; r < count; ++r) {
    const float *t = target + r * width, *x = estimate + r * width;
    int64_t d = 0;
    for (; d + 8 <= width; d += 8) {
      for (int64_t j = 0; j < 8; ++j) {
        const double wide = t[d + j], left = wide - x[d + j], centred = wide - mean[d + j];
        e[j] += left * left;
        v[j] += centred * centred;
      }
    }
    for (; d < width; ++d) {
      const double wide = t[d], left = wide - x[d], centred = wide - mean[d];
      e[0] += left * left;
      v[0] += centred * centred;
    }
  }
  *error = ((e[0] + e[4]) + (e[1] + e[5])) + ((e[2] + e[6]) + (e[3] + e[7]));
  *variance = ((v[0] + v[4]) + (v[1] + v[5])) + ((v[2] + v[6]) + (v[3] + v[7]));
}

SAEKERN_CLONES void difference(const float* a, const float* b, int64_t n, double scale, float* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = static_cast<float>(scale * (static_cast<double>(a[i]) - b[i]));
}

}  // namespace

Unexplained unexplained_variance(const float* target, const float* estimate, int64_t rows, int64_t width, int threads) {
  const int64_t chunks = (rows + kRows - 1) / kRows;
  std::vector<double> sums(chunks * width), mean(width), errors(chunks), variances(chunks);
  const auto count = [&](int64_t chunk) { return std::min(kRows, rows - chunk * kRows); };
  parallel_for(chunks, threads, [&](int64_t chunk, int) {
    add_rows(target + chunk * kRows * width, count(chunk), width, sums.data() + chunk * width);
  });
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    for (int64_t d = 0; d < width; ++d) mean[d] += sums[chunk * width + d];
  }
  for (double& m : mean) m /= static_cast<double>(std::max<int64_t>(rows, 1));
  parallel_for(chunks, threads, [&](int64_t chunk, int) {
    const int64_t at = chunk * kRows * width;
    add_squares(target + at, estimate + at, mean.data(), count(chunk), width, &errors[chunk], &variances[chunk]);
  });
  Unexplained total{0, 0};
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    total.error += errors[chunk];
    total.variance += variances[chunk];
  }
  if (total.variance == 0) total.variance = 1;
  return total;
}

void scaled_difference(const float* a, const float* b, int64_t n, double scale, int threads, float* out) {
  parallel_for((n + kElements - 1) / kElements, threads, [&](int64_t task, int) {
    const int64_t at = task * kElements;
    difference(a + at, b + at, std::min(kElements, n - at), scale, out + at);
  });
}

}  // namespace saekern
