#include "decode.h"

#include <algorithm>

#include "isa.h"
#include "lanes.h"
#include "memory.h"
#include "parallel.h"

namespace saekern {
namespace {

// out += Σ_j v[j] w[j] for N rows at once: the sum is loaded and stored once for N reads of weight. `ahead` are the
// rows of the next group: the hardware does not foresee a gather.
template <int N>
SAEKERN_INLINE void accumulate(const float* const* w, const float* v, const float* const* ahead, int64_t width,
                               float* out) {
  int64_t d = 0;
  for (; d + kLanes <= width; d += kLanes) {
    Lanes total = lanes(out + d);
    for (int j = 0; j < N; ++j) {
      total += v[j] * lanes(w[j] + d);
      prefetch(ahead[j] + d);
    }
    lanes(out + d) = total;
  }
  for (; d < width; ++d)
    for (int j = 0; j < N; ++j) out[d] += v[j] * w[j][d];
}

SAEKERN_CLONES void decode_rows(const Codes& codes, int64_t first, int64_t last, const float* weight, int64_t width,
                                const float* bias, float* out) {
  const int64_t end = codes.begin(last);
  const auto row = [&](int64_t i) { return weight + codes.indices[std::min(i, end - 1)] * width; };
  for (int64_t b = first; b < last; ++b) {
    float* target = out + b * width;
    if (bias)
      std::copy(bias, bias + width, target);
    else
      std::fill(target, target + width, 0.0f);
    int64_t i = codes.begin(b);
    const int64_t stop = codes.begin(b + 1);
    for (; i + 4 <= stop; i += 4) {
      const float* w[] = {row(i), row(i + 1), row(i + 2), row(i + 3)};
      const float* ahead[] = {row(i + 4), row(i + 5), row(i + 6), row(i + 7)};
      accumulate<4>(w, codes.values + i, ahead, width, target);
    }
    for (; i < stop; ++i) {
      const float* w[] = {row(i)};
      const float* ahead[] = {row(i + 1)};
      accumulate<1>(w, codes.values + i, ahead, width, target);
    }
  }
}

}  // namespace

void decode(const Codes& codes, const float* weight, int64_t width, const float* bias, int threads, float* out) {
  prefer_huge_pages(out, codes.batch * width * sizeof(float));
  const int64_t per_row = (codes.nnz / std::max<int64_t>(codes.batch, 1) + 1) * (width + 16);
  const int64_t block = std::max<int64_t>(1, (1 << 16) / per_row);  // rows a task: some 10 µs of work
  const int64_t tasks = (codes.batch + block - 1) / block;
  parallel_for(tasks, threads, [&](int64_t task, int) {
    decode_rows(codes, task * block, std::min((task + 1) * block, codes.batch), weight, width, bias, out);
  });
}

}  // namespace saekern
