#include "adam_step.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>
#include <vector>

#include "isa.h"
#include "lanes.h"
#include "parallel.h"

namespace saekern {
namespace {

struct Factors {
  float decay1, gain1, decay2, gain2;  // β₁, 1 − β₁, β₂, 1 − β₂
  float root_correction, eps, size;    // 1/√(1 − β₂ᵗ), eps, lr/(1 − β₁ᵗ)
};

SAEKERN_INLINE float dot(const float* a, const float* b, int64_t width) {
  Lanes total = {};
  int64_t d = 0;
  for (; d + kLanes <= width; d += kLanes) total += *lanes(a + d) * *lanes(b + d);
  float rest = 0;
  for (; d < width; ++d) rest += a[d] * b[d];
  return sum(total) + rest;
}

// The row is read from memory once; the later passes over it find it in the first-level cache.
SAEKERN_CLONES void step_row(const Factors& f, bool project, bool normalize, int64_t width,
                             const float* SAEKERN_RESTRICT grad, float* SAEKERN_RESTRICT param,
                             float* SAEKERN_RESTRICT exp_avg, float* SAEKERN_RESTRICT exp_avg_sq) {
  float along = 0;
  if (project) {
    const float square = dot(param, param, width);
    if (square > 0) along = dot(grad, param, width) / square;
  }
  for (int64_t d = 0; d < width; ++d) {
    const float g = grad[d] - along * param[d];
    const float m = f.decay1 * exp_avg[d] + f.gain1 * g;
    const float v = f.decay2 * exp_avg_sq[d] + f.gain2 * (g * g);
    exp_avg[d] = m;
    exp_avg_sq[d] = v;
    param[d] -= f.size * m / (std::sqrt(v) * f.root_correction + f.eps);
  }
  if (normalize) {
    const float norm = std::sqrt(dot(param, param, width));
    if (norm > 0)
      for (int64_t d = 0; d < width; ++d) param[d] /= norm;
  }
}

void check_listed(const AdamStep& job) {
  for (int64_t i = 0; i < job.count; ++i) {
    const int64_t row = job.listed[i];
    if (row >= 0 && row < job.rows && (i == 0 || row > job.listed[i - 1])) continue;
    throw std::invalid_argument("latents: expected ascending numbers from 0 to " + std::to_string(job.rows - 1) +
                                ", got " + std::to_string(row) + " at position " + std::to_string(i));
  }
}

}  // namespace

void adam_step(const AdamStep& job, int threads) {
  const Factors factors{
      static_cast<float>(job.beta1),
      static_cast<float>(1 - job.beta1),
      static_cast<float>(job.beta2),
      static_cast<float>(1 - job.beta2),
      static_cast<float>(1 / std::sqrt(1 - std::pow(job.beta2, static_cast<double>(job.step)))),
      static_cast<float>(job.eps),
      static_cast<float>(job.lr / (1 - std::pow(job.beta1, static_cast<double>(job.step)))),
  };
  if (job.listed) check_listed(job);
  // Without row operations the matrix is one long vector, cut evenly whatever its shape.
  const bool by_rows = job.project || job.normalize || job.listed;
  const int64_t size = job.rows * job.width, width = by_rows ? job.width : 4096;
  const int64_t block = by_rows ? std::max<int64_t>(1, 16384 / std::max<int64_t>(width, 1)) * width : 16384;
  const std::vector<float> zeros(job.listed ? width : 0, 0.0f);
  parallel_for(block ? (size + block - 1) / block : 0, threads, [&](int64_t i, int) {
    const int64_t end = std::min((i + 1) * block, size);
    const int64_t* const past = job.listed + job.count;
    const int64_t* next = job.listed ? std::lower_bound(job.listed, past, i * block / width) : nullptr;
    for (int64_t at = i * block; at < end; at += width) {
      const float* grad = job.grad + at;
      if (job.listed) {
        const bool present = next < past && *next == at / width;
        grad = present ? job.grad + (next++ - job.listed) * width : zeros.data();
      }
      step_row(factors, job.project, job.normalize, std::min(width, end - at), grad, job.param + at, job.exp_avg + at,
               job.exp_avg_sq + at);
    }
  });
}

}  // namespace saekern
