#include "row_topk.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "parallel.h"
#include "select.h"

#ifdef SAEKERN_X86
#include <immintrin.h>
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC bug 105593, as in panel.cpp
#endif
#endif

namespace saekern {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

void make_room(std::vector<uint64_t>& keys, int64_t size) {
  if (static_cast<int64_t>(keys.size()) < size) keys.resize(2 * size);
}

// The group-max bound: if a row is cut into groups and the k-th largest group maximum is t, then k elements are ≥ t, so
// every top-k element is ≥ t. One pass for the maxima, one over the blocks with a maximum that reaches t; about k + 10
// % elements are left to sort. A group is lane j of `stride` 16-lane vectors, so that no maximum crosses lanes.
struct Scan {
  // maxima[16 g + j] over elements 16 (g·stride + i) + j, i < stride; NaN counts as +infinity. Returns their number.
  static int64_t maxima(const float* row, int64_t n, int64_t stride, float* out) {
    int64_t count = 0;
    for (int64_t begin = 0; begin < n; begin += stride * kLanes, count += kLanes) {
      std::fill(out + count, out + count + kLanes, -kInfinity);
      for (int64_t i = begin; i < std::min(n, begin + stride * kLanes); ++i) {
        const float value = row[i] == row[i] ? row[i] : kInfinity;
        float& best = out[count + i % kLanes];
        best = value > best ? value : best;
      }
    }
    return count;
  }

  // Keys of the elements that reach the threshold, from groups whose maximum does; NaN does. Returns their number.
  static int64_t collect(const float* row, int64_t n, int64_t stride, const float* maxima, float threshold,
                         std::vector<uint64_t>& keys) {
    const int64_t span = stride * kLanes;
    int64_t count = 0;
    for (int64_t begin = 0; begin < n; begin += span, maxima += kLanes) {
      if (std::none_of(maxima, maxima + kLanes, [&](float best) { return best >= threshold; })) continue;
      make_room(keys, count + span);
      for (int64_t i = begin; i < std::min(n, begin + span); ++i)
        if (!(row[i] < threshold)) keys[count++] = order_key(row[i], static_cast<int32_t>(i));
    }
    return count;
  }
};

#ifdef SAEKERN_X86

struct Scan512 {
  // The hardware fetches too late for one core to use what memory delivers, and stops at every 4 KiB page: 64 vectors
  // ahead, across rows, 4.8 -> 4.4 ms for 134 MB in rows of 16,384 on 2 cores, 2.75 -> 2.55 ms in rows of 131,072.
  static constexpr int64_t kAhead = 64 * kLanes;

  SAEKERN_AVX512 static int64_t maxima(const float* row, int64_t n, int64_t stride, float* out) {
    int64_t count = 0;
    const __m512 low = _mm512_set1_ps(-kInfinity);
    for (int64_t begin = 0; begin < n; begin += stride * kLanes, count += kLanes) {
      __m512 best = low;
      __mmask16 nan = 0;
      const int64_t end = std::min(n, begin + stride * kLanes);
      int64_t i = begin;
      for (; i + kLanes <= end; i += kLanes) {
        prefetch(row + i + kAhead);
        const __m512 value = _mm512_loadu_ps(row + i);
        nan = static_cast<__mmask16>(nan | _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q));
        best = _mm512_max_ps(value, best);  // of a NaN and a number maxps returns its second operand
      }
      if (i < end) {
        const auto tail = static_cast<__mmask16>((1u << (end - i)) - 1);
        const __m512 value = _mm512_mask_loadu_ps(low, tail, row + i);
        nan = static_cast<__mmask16>(nan | _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q));
        best = _mm512_max_ps(value, best);
      }
      _mm512_storeu_ps(out + count, _mm512_mask_mov_ps(best, nan, _mm512_set1_ps(kInfinity)));
    }
    return count;
  }

  SAEKERN_AVX512 static int64_t collect(const float* row, int64_t n, int64_t stride, const float* maxima,
                                        float threshold, std::vector<uint64_t>& keys) {
    const __m512 limit = _mm512_set1_ps(threshold);
    const int64_t span = stride * kLanes;
    int64_t count = 0;
    const float* next = row + n + kAhead;  // the next row, while nothing else is asked of memory: 4.4 -> 4.2 ms
    for (int64_t begin = 0; begin < n; begin += span, maxima += kLanes) {
      for (int line = 0; line < 4; ++line, next += kLanes) prefetch(next);
      const __mmask16 groups = _mm512_cmp_ps_mask(_mm512_loadu_ps(maxima), limit, _CMP_GE_OQ);
      if (!groups) continue;
      make_room(keys, count + span);
      for (int64_t i = begin; i < std::min(n, begin + span); i += kLanes) {
        const int64_t left = n - i;
        const auto lanes = static_cast<__mmask16>(left >= kLanes ? groups : groups & ((1u << left) - 1));
        unsigned in = _mm512_mask_cmp_ps_mask(lanes, _mm512_maskz_loadu_ps(lanes, row + i), limit, _CMP_NLT_UQ);
        for (; in; in &= in - 1) {
          const int64_t at = i + __builtin_ctz(in);
          keys[count++] = order_key(row[at], static_cast<int32_t>(at));
        }
      }
    }
    return count;
  }
};

#endif

SAEKERN_CLONES void raise(float* best, const float* values, int64_t n) {
  for (int64_t j = 0; j < n; ++j) best[j] = values[j] > best[j] ? values[j] : best[j];
}

struct Workspace {
  std::vector<float> maxima, folded;
  std::vector<uint64_t> keys;
};

template <typename Scanner>
void one_row(const float* row, int64_t n, int64_t k, float* values, int64_t* indices, Workspace& work) {
  // Small blocks, so that few elements are looked at twice; not so small that their maxima cost more than they save.
  const int64_t stride = std::max<int64_t>(1, std::min<int64_t>(32, n / 2048)), span = stride * kLanes;
  work.maxima.resize((n / span + 1) * kLanes);
  const int64_t groups = Scanner::maxima(row, n, stride, work.maxima.data());
  // The bound needs no more than 8 k groups: unite the maxima before ranking them.
  const int64_t united = std::min(groups, (8 * k + kLanes - 1) / kLanes * kLanes);
  work.folded.assign(work.maxima.begin(), work.maxima.begin() + united);
  for (int64_t g = united; g < groups; g += united) {
    raise(work.folded.data(), work.maxima.data() + g, std::min(united, groups - g));
  }
  const float threshold = kth_largest_bound(work.folded.data(), united, k);
  const int64_t count = Scanner::collect(row, n, stride, work.maxima.data(), threshold, work.keys);
  const auto first = work.keys.begin();
  std::nth_element(first, first + k - 1, first + count);
  std::sort(first, first + k);
  for (int64_t i = 0; i < k; ++i) {
    values[i] = key_score(work.keys[i]);
    indices[i] = key_index(work.keys[i]);
  }
}

}  // namespace

void row_topk(const float* scores, int64_t rows, int64_t columns, int64_t k, float* values, int64_t* indices,
              int threads, Isa isa) {
  auto* row = one_row<Scan>;
#ifdef SAEKERN_X86
  if (isa >= Isa::avx512) row = one_row<Scan512>;
#endif
  (void)isa;
  constexpr int64_t kChunk = 8;  // rows a task
  parallel_for((rows + kChunk - 1) / kChunk, threads, [&](int64_t task, int) {
    Workspace work;
    for (int64_t r = task * kChunk; r < std::min(rows, (task + 1) * kChunk); ++r) {
      row(scores + r * columns, columns, k, values + r * k, indices + r * k, work);
    }
  });
}

}  // namespace saekern
