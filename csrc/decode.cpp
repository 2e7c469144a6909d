#include "decode.h"

#include <algorithm>

#include "isa.h"
#include "lanes.h"
#include "memory.h"
#include "parallel.h"

namespace saekern {
namespace {

// Columns [d, d + 16 N) of rows [first, last). A sum stays in registers while all codes of its row pass by, and is
// stored once. The rows of weight needed kAhead codes later are fetched meanwhile: the hardware does not foresee a
// gather.
template <int N>
SAEKERN_INLINE void decode_slice(const Codes& codes, int64_t first, int64_t last, const float* weight, int64_t width,
                                 const float* bias, int64_t d, float* out) {
  constexpr int64_t kAhead = 8;
  const int64_t end = codes.begin(last);
  for (int64_t b = first; b < last; ++b) {
    Lanes total[N] = {};
    for (int j = 0; bias && j < N; ++j) total[j] = *lanes(bias + d + j * kLanes);
    for (int64_t i = codes.begin(b); i < codes.begin(b + 1); ++i) {
      const float value = codes.values[i];
      const float* w = weight + codes.indices[i] * width + d;
      const float* ahead = weight + codes.indices[std::min(i + kAhead, end - 1)] * width + d;
#pragma GCC unroll 24
      for (int j = 0; j < N; ++j) {
        total[j] += value * *lanes(w + j * kLanes);
        prefetch(ahead + j * kLanes);
      }
    }
    for (int j = 0; j < N; ++j) *lanes(out + b * width + d + j * kLanes) = total[j];
  }
}

SAEKERN_CLONES void decode_rows(const Codes& codes, int64_t first, int64_t last, const float* weight, int64_t width,
                                const float* bias, float* out) {
  constexpr int kWide = 16;
  int64_t d = 0;
  for (; d + kWide * kLanes <= width; d += kWide * kLanes)
    decode_slice<kWide>(codes, first, last, weight, width, bias, d, out);
  for (; d + 4 * kLanes <= width; d += 4 * kLanes) decode_slice<4>(codes, first, last, weight, width, bias, d, out);
  for (; d + kLanes <= width; d += kLanes) decode_slice<1>(codes, first, last, weight, width, bias, d, out);
  for (; d < width; ++d) {
    for (int64_t b = first; b < last; ++b) {
      float total = bias ? bias[d] : 0.0f;
      for (int64_t i = codes.begin(b); i < codes.begin(b + 1); ++i)
        total += codes.values[i] * weight[codes.indices[i] * width + d];
      out[b * width + d] = total;
    }
  }
}

}  // namespace

void decode(const Codes& codes, const float* weight, int64_t width, const float* bias, int threads, float* out) {
  prefer_huge_pages(out, codes.batch * width * sizeof(float));
  const int64_t per_row = (codes.nnz / std::max<int64_t>(codes.batch, 1) + 1) * (width + 16);
  const int64_t block = std::max<int64_t>(1, (1 << 18) / per_row);  // rows a task: some 20 µs of work
  const int64_t tasks = (codes.batch + block - 1) / block;
  parallel_for(tasks, threads, [&](int64_t task, int) {
    decode_rows(codes, task * block, std::min((task + 1) * block, codes.batch), weight, width, bias, out);
  });
}

}  // namespace saekern
