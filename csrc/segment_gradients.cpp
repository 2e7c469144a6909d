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

// N codes of one latent: row_sum (=, or += unless `start`) Σ_j c[j] (y[j] − shift) and dot[j] = ⟨y[j], w⟩. Null
// pointers switch parts off; the compiler hoists those tests out of the loops.
template <int N>
inline void walk(const float* const* y, const float* c, const float* const* ahead, const float* shift, const float* w,
                 int64_t width, bool start, float* row_sum, float* dot) {
  Lanes dots[N] = {};
  float rest[N] = {};
  int64_t d = 0;
  for (; d + kLanes <= width; d += kLanes) {
    Lanes total = {};
    if (row_sum && !start) total = lanes(row_sum + d);
    for (int j = 0; j < N; ++j) {
      const Lanes row = lanes(y[j] + d);
      prefetch(ahead[j] + d);
      if (row_sum) total += c[j] * (shift ? row - lanes(shift + d) : row);
      if (dot) dots[j] += row * lanes(w + d);
    }
    if (row_sum) lanes(row_sum + d) = total;
  }
  for (; d < width; ++d) {
    float total = row_sum && !start ? row_sum[d] : 0.0f;
    for (int j = 0; j < N; ++j) {
      if (row_sum) total += c[j] * (shift ? y[j][d] - shift[d] : y[j][d]);
      if (dot) rest[j] += y[j][d] * w[d];
    }
    if (row_sum) row_sum[d] = total;
  }
  if (dot)
    for (int j = 0; j < N; ++j) dot[j] = sum(dots[j]) + rest[j];
}

SAEKERN_CLONES void walk_segment(const SegmentGradients& job, const float* w, int64_t begin, int64_t end,
                                 float* row_sum) {
  const int32_t* entries = job.order.entries();
  const int64_t last = job.order.segments()[job.order.latents()] - 1;
  const auto row = [&](int64_t p) { return job.rows + job.order.row_of(entries[std::min(p, last)]) * job.width; };
  if (begin == end && row_sum) std::fill(row_sum, row_sum + job.width, 0.0f);
  constexpr int kGroup = 4;
  int64_t p = begin;
  for (int taken; p < end; p += taken) {
    taken = p + kGroup <= end ? kGroup : 1;
    const float *y[kGroup], *ahead[kGroup];
    float c[kGroup] = {}, dot[kGroup];
    for (int j = 0; j < taken; ++j) {
      y[j] = row(p + j);
      ahead[j] = row(p + taken + j);
      if (row_sum) c[j] = job.coefficients[entries[p + j]];
    }
    float* dots = job.dots ? dot : nullptr;
    if (taken == kGroup)
      walk<kGroup>(y, c, ahead, job.shift, w, job.width, p == begin, row_sum, dots);
    else
      walk<1>(y, c, ahead, job.shift, w, job.width, p == begin, row_sum, dots);
    if (dots)
      for (int j = 0; j < taken; ++j) job.dots[entries[p + j]] = dot[j];
  }
}

void run(const SegmentGradients& job, const Task& task, float* partials) {
  const int32_t* segments = job.order.segments();
  for (int64_t m = task.first; m < task.last; ++m) {
    const int64_t f = job.listed ? job.listed[m] : m;
    const float* w = job.dots ? job.weight + f * job.width : nullptr;
    float* row_sum = job.row_sums ? job.row_sums + m * job.width : nullptr;
    if (task.begin < 0) {
      walk_segment(job, w, segments[f], segments[f + 1], row_sum);
    } else {
      if (row_sum && task.partial >= 0) row_sum = partials + task.partial * job.width;
      walk_segment(job, w, task.begin, task.end, row_sum);
    }
  }
}

SAEKERN_CLONES void add_scaled(float c, const float* SAEKERN_RESTRICT row, int64_t width, float* SAEKERN_RESTRICT out) {
  for (int64_t d = 0; d < width; ++d) out[d] += c * row[d];
}

}  // namespace

void segment_gradients(const SegmentGradients& job, int threads) {
  const Plan plan = plan_tasks(job);
  std::unique_ptr<float[]> partials;
  if (job.row_sums) {
    prefer_huge_pages(job.row_sums, job.count * job.width * sizeof(float));
    partials.reset(new float[plan.partials * job.width]);
  }
  parallel_for(plan.tasks.size(), threads, [&](int64_t i, int) { run(job, plan.tasks[i], partials.get()); });
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
