#include "segment_gradients.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "isa.h"
#include "lanes.h"
#include "memory.h"
#include "parallel.h"

namespace saekern {
namespace {

constexpr int64_t kChunk = 256;  // codes that one partial sum covers

// Whole latents, or one chunk of a latent with more codes than that. `first`, `last` count listed latents.
struct Task {
  int64_t first, last;
  int64_t begin, end;  // the chunk's entries; begin = -1: whole latents
  int64_t partial;     // which partial sum the chunk writes; -1: straight to the output
};

struct LongSegment {
  int64_t position, first_partial, partials;
};

struct Plan {
  std::vector<Task> tasks;
  std::vector<LongSegment> long_segments;
  int64_t partials = 0;
};

Plan plan_tasks(const SegmentGradients& job) {
  const int64_t enough = std::max<int64_t>(1, (1 << 17) / (job.width + 16));  // rows walked: some 30 µs
  const int32_t* segments = job.order.segments();
  Plan plan;
  int64_t open = 0, cost = 0;
  const auto close = [&](int64_t m) {
    if (m > open) plan.tasks.push_back({open, m, -1, -1, -1});
    open = m, cost = 0;
  };
  for (int64_t m = 0; m < job.count; ++m) {
    const int64_t f = job.listed ? job.listed[m] : m;
    const int64_t begin = segments[f], end = segments[f + 1];
    if (end - begin > kChunk) {
      close(m);
      plan.long_segments.push_back({m, plan.partials, (end - begin - 1) / kChunk});
      for (int64_t at = begin; at < end; at += kChunk)
        plan.tasks.push_back({m, m + 1, at, std::min(at + kChunk, end), at == begin ? -1 : plan.partials++});
      open = m + 1;
    } else if ((cost += end - begin + 1) >= enough) {
      close(m + 1);
    }
  }
  close(job.count);
  return plan;
}

enum Parts { kRowSums = 1, kDots = 2, kShift = 4, kStream = 8 };

// N codes of one latent: row_sum (=, or += unless `start`) Σ_j c[j] (y[j] − shift) and dot[j] = ⟨y[j], w⟩, as far as
// `kParts` asks for them. With kStream the row is finished here and goes past the caches. `ahead` and `w_ahead` are
// rows needed soon: most segments hold one or two codes, too short for the hardware to see where the next begins (a
// sweep over 16384 codes of width 768: 4.4 ms without, 3.7 ms with).
template <int kParts, int N>
SAEKERN_INLINE void walk(const float* const* y, const float* c, const float* const* ahead, const float* shift,
                         const float* w, const float* w_ahead, int64_t width, bool start, float* row_sum, float* dot) {
  Lanes even[N] = {}, odd[N] = {};  // two sums for each dot: one would wait four cycles for every addition
  int64_t d = 0;
  for (; d + 2 * kLanes <= width; d += 2 * kLanes) {
    Lanes low = {}, high = {};
    if ((kParts & kRowSums) && !start) low = *lanes(row_sum + d), high = *lanes(row_sum + d + kLanes);
    for (int j = 0; j < N; ++j) {
      Lanes left = *lanes(y[j] + d), right = *lanes(y[j] + d + kLanes);
      prefetch(ahead[j] + d);
      prefetch(ahead[j] + d + kLanes);
      if (kParts & kDots) even[j] += left * *lanes(w + d), odd[j] += right * *lanes(w + d + kLanes);
      if (kParts & kShift) left -= *lanes(shift + d), right -= *lanes(shift + d + kLanes);
      if (kParts & kRowSums) low += c[j] * left, high += c[j] * right;
    }
    if (kParts & kDots) prefetch(w_ahead + d), prefetch(w_ahead + d + kLanes);
    if (kParts & kStream)
      stream(row_sum + d, low), stream(row_sum + d + kLanes, high);
    else if (kParts & kRowSums)
      *lanes(row_sum + d) = low, *lanes(row_sum + d + kLanes) = high;
  }
  float rest[N] = {};
  for (; d < width; ++d) {
    float total = (kParts & kRowSums) && !start ? row_sum[d] : 0.0f;
    for (int j = 0; j < N; ++j) {
      if (kParts & kDots) rest[j] += y[j][d] * w[d];
      if (kParts & kRowSums) total += c[j] * ((kParts & kShift) ? y[j][d] - shift[d] : y[j][d]);
    }
    if (kParts & kRowSums) row_sum[d] = total;
  }
  if (kParts & kDots)
    for (int j = 0; j < N; ++j) {
      even[j] += odd[j];
      dot[j] = sum(even[j]) + rest[j];
    }
}

template <bool kStreams>
SAEKERN_INLINE void clear(float* row, int64_t width) {
  int64_t d = 0;
  for (; kStreams && d + kLanes <= width; d += kLanes) stream(row + d, Lanes{});
  std::fill(row + d, row + width, 0.0f);
}

constexpr int kGroup = 2;  // codes that are walked together

template <int kParts>
SAEKERN_INLINE void walk_segment(const SegmentGradients& job, const float* w, const float* w_ahead, int64_t begin,
                                 int64_t end, float* row_sum) {
  const int32_t* entries = job.order.entries();
  const int64_t last = job.order.segments()[job.order.latents()] - 1;
  const auto row = [&](int64_t p) { return job.rows + job.order.row_of(entries[std::min(p, last)]) * job.width; };
  if (begin == end && (kParts & kRowSums)) clear<(kParts & kStream) != 0>(row_sum, job.width);
  constexpr int kAhead = 2;
  int64_t p = begin;
  for (int taken; p < end; p += taken) {
    taken = p + kGroup <= end ? kGroup : 1;
    const float *y[kGroup], *ahead[kGroup];
    float c[kGroup] = {}, dot[kGroup];
    for (int j = 0; j < taken; ++j) {
      y[j] = row(p + j);
      ahead[j] = row(p + kAhead + j);
      if (kParts & kRowSums) c[j] = job.coefficients[entries[p + j]];
    }
    if (taken == kGroup)
      walk<kParts, kGroup>(y, c, ahead, job.shift, w, w_ahead, job.width, p == begin, row_sum, dot);
    else
      walk<kParts, 1>(y, c, ahead, job.shift, w, w_ahead, job.width, p == begin, row_sum, dot);
    if (kParts & kDots)
      for (int j = 0; j < taken; ++j) job.dots[entries[p + j]] = dot[j];
  }
}

SAEKERN_CLONES void walk_segment(const SegmentGradients& job, const float* w, const float* w_ahead, int64_t begin,
                                 int64_t end, float* row_sum, bool streams) {
  streams = streams && end - begin <= kGroup;  // a longer segment comes back to its sum
  if (job.shift)
    streams ? walk_segment<kRowSums | kShift | kStream>(job, w, w_ahead, begin, end, row_sum)
            : walk_segment<kRowSums | kShift>(job, w, w_ahead, begin, end, row_sum);
  else if (!job.dots)
    streams ? walk_segment<kRowSums | kStream>(job, w, w_ahead, begin, end, row_sum)
            : walk_segment<kRowSums>(job, w, w_ahead, begin, end, row_sum);
  else if (!row_sum)
    walk_segment<kDots>(job, w, w_ahead, begin, end, row_sum);
  else
    streams ? walk_segment<kRowSums | kDots | kStream>(job, w, w_ahead, begin, end, row_sum)
            : walk_segment<kRowSums | kDots>(job, w, w_ahead, begin, end, row_sum);
}

void run(const SegmentGradients& job, const Task& task, float* partials, bool streams) {
  const int32_t* segments = job.order.segments();
  for (int64_t m = task.first; m < task.last; ++m) {
    const int64_t f = job.listed ? job.listed[m] : m;
    const float* w = job.dots ? job.weight + f * job.width : nullptr;
    int64_t next = f + 1;
    while (next < job.order.latents() - 1 && segments[next] == segments[next + 1]) ++next;
    const float* w_ahead = job.dots ? job.weight + std::min(next, job.order.latents() - 1) * job.width : nullptr;
    float* row_sum = job.row_sums ? job.row_sums + m * job.width : nullptr;
    if (task.begin < 0) {
      walk_segment(job, w, w_ahead, segments[f], segments[f + 1], row_sum, streams);
    } else {
      if (row_sum && task.partial >= 0) row_sum = partials + task.partial * job.width;
      walk_segment(job, w, w, task.begin, task.end, row_sum, false);
    }
  }
  if (streams) streamed();
}

SAEKERN_CLONES void add_scaled(float c, const float* SAEKERN_RESTRICT row, int64_t width, float* SAEKERN_RESTRICT out) {
  for (int64_t d = 0; d < width; ++d) out[d] += c * row[d];
}

}  // namespace

void segment_gradients(const SegmentGradients& job, int threads) {
  const Plan plan = plan_tasks(job);
  const size_t bytes = job.row_sums ? job.count * job.width * sizeof(float) : 0;
  const bool streams =
      bytes >= kLargeBlock && reinterpret_cast<uintptr_t>(job.row_sums) % 16 == 0 && job.width % 4 == 0;
  std::unique_ptr<float[]> partials;
  if (job.row_sums) {
    prefer_huge_pages(job.row_sums, bytes);
    partials.reset(new float[plan.partials * job.width]);
  }
  parallel_for(plan.tasks.size(), threads, [&](int64_t i, int) { run(job, plan.tasks[i], partials.get(), streams); });
  if (!job.row_sums) return;
  parallel_for(plan.long_segments.size(), threads, [&](int64_t i, int) {
    const LongSegment& segment = plan.long_segments[i];
    for (int64_t part = segment.first_partial; part < segment.first_partial + segment.partials; ++part)
      add_scaled(1.0f, partials.get() + part * job.width, job.width, job.row_sums + segment.position * job.width);
  });
}

void segment_sums(const LatentOrder& order, const float* coefficients, int threads, float* out) {
  constexpr int64_t kBlock = 2048;
  parallel_for((order.latents() + kBlock - 1) / kBlock, threads, [&](int64_t block, int) {
    for (int64_t f = block * kBlock; f < std::min((block + 1) * kBlock, order.latents()); ++f) {
      float total = 0;
      for (int64_t p = order.segments()[f]; p < order.segments()[f + 1]; ++p) total += coefficients[order.entries()[p]];
      out[f] = total;
    }
  });
}

void weighted_row_sum(const float* coefficients, const float* rows, int64_t count, int64_t width, int threads,
                      float* out) {
  const int64_t chunk = std::max<int64_t>(64, (count + 255) / 256);  // at most 256 partial sums
  const int64_t chunks = (count + chunk - 1) / chunk;
  std::unique_ptr<float[]> partials(new float[chunks * width]);
  parallel_for(chunks, threads, [&](int64_t i, int) {
    float* partial = partials.get() + i * width;
    std::fill(partial, partial + width, 0.0f);
    for (int64_t r = i * chunk; r < std::min((i + 1) * chunk, count); ++r) {
      const float c = coefficients ? coefficients[r] : 1.0f;
      if (c != 0) add_scaled(c, rows + r * width, width, partial);
    }
  });
  std::fill(out, out + width, 0.0f);
  for (int64_t i = 0; i < chunks; ++i) add_scaled(1.0f, partials.get() + i * width, width, out);
}

}  // namespace saekern
