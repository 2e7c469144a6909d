#include "topk_encode.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "panel.h"
#include "parallel.h"
#include "select.h"

namespace saekern {
namespace {

constexpr int64_t kRowGroup = 8192;  // rows whose candidates are held at once: bounds the memory beyond the outputs
constexpr int64_t kRowBlock = 96;    // rows a thread scores against 1024 latents at a time: 384 KiB of scores, in L2
constexpr int64_t kPackedBytes = 8 << 20;  // packed panels at a time: they stay in L3, so the weights are read once

int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// Bit j of mask[i]: latent 16 i + j exists and counts.
std::vector<uint16_t> lane_mask(const bool* allowed, int64_t latents) {
  std::vector<uint16_t> mask(round_up(latents, kPanel) / kLanes, 0);
  for (int64_t f = 0; f < latents; ++f) {
    if (!allowed || allowed[f]) mask[f / kLanes] = static_cast<uint16_t>(mask[f / kLanes] | 1u << (f % kLanes));
  }
  return mask;
}

struct Selection {
  Selection(const TopK& out_, int64_t latents, int64_t group)
      : out(out_), mask(lane_mask(out_.allowed, latents)), lists(out_.k > 0 ? group : 0) {
    for (int64_t f = 0; out.allowed && f < latents && static_cast<int64_t>(padding.size()) < out.k; ++f) {
      if (!out.allowed[f]) padding.push_back(f);
    }
  }

  bool wanted(int64_t first, int64_t length) const {
    return out.k > 0 && std::any_of(mask.begin() + first / kLanes, mask.begin() + (first + length) / kLanes,
                                    [](uint16_t bits) { return bits != 0; });
  }

  TopK out;
  std::vector<uint16_t> mask;
  std::vector<CandidateList> lists;
  std::vector<int64_t> padding;  // the smallest latents not allowed
};

class Encoder {
 public:
  Encoder(const EncodeInput& input, const TopK& main, const TopK& aux, bool relu, int threads, Isa isa)
      : in_(input),
        relu_(relu),
        threads_(threads),
        kernel_(isa, input.width),
        padded_(round_up(input.latents, kPanel)),
        group_(std::min(kRowGroup, input.rows)),
        selections_{Selection(main, input.latents, group_), Selection(aux, input.latents, group_)},
        norm_(padded_, 0.0f),
        residual_(padded_, 0.0f),
        bias_(input.bias ? padded_ : 0, 0.0f) {
    if (in_.bias) std::copy(in_.bias, in_.bias + in_.latents, bias_.begin());
    for (float b : bias_) largest_bias_ = std::isfinite(b) ? std::max(largest_bias_, std::abs(b)) : largest_bias_;
    block_ = round_up(std::max<int64_t>(1, (group_ + blocks(group_) - 1) / blocks(group_)), kTile);
    packed_rows_.resize(round_up(group_, block_) * kernel_.steps());
    slack_.resize(group_);
    if (in_.pre_bias) centred_.resize(group_ * in_.width);
    panels_ = std::min(padded_ / kPanel,
                       std::max<int64_t>(CandidateList::kBlock / kPanel, kPackedBytes / (kernel_.panel_words() * 4)));
    packed_panels_.resize(panels_ * kernel_.panel_words());
    scores_.resize(std::max(1, threads));
  }

  void run() {
    for (int64_t first = 0; first < in_.rows; first += group_) {
      const int64_t rows = std::min(group_, in_.rows - first);
      const int64_t tasks = (rows + block_ - 1) / block_;
      parallel_for(tasks, threads_, [&](int64_t task, int) { pack_rows(first, rows, task); });
      for (int64_t panel = 0; panel < padded_ / kPanel; panel += panels_) {
        const int64_t count = std::min(panels_, padded_ / kPanel - panel);
        parallel_for(count, threads_, [&](int64_t i, int) { pack_panel(panel + i, i); });
        parallel_for(tasks, threads_, [&](int64_t task, int worker) {
          score(rows, task, panel * kPanel, count * kPanel, scores_[worker]);
        });
      }
      parallel_for(tasks, threads_, [&](int64_t task, int) { finish(first, rows, task); });
    }
  }

 private:
  // Blocks of at most kRowBlock rows, a multiple of the thread count so that no thread idles at the end.
  int64_t blocks(int64_t rows) const {
    return round_up(std::max<int64_t>(1, (rows + kRowBlock - 1) / kRowBlock), std::max(1, threads_));
  }

  const float* row(int64_t first, int64_t r) const {
    return in_.pre_bias ? centred_.data() + r * in_.width : in_.x + (first + r) * in_.width;
  }

  void pack_rows(int64_t first, int64_t rows, int64_t task) {
    for (int64_t r = task * block_; r < std::min(rows, (task + 1) * block_); ++r) {
      const float* x = in_.x + (first + r) * in_.width;
      if (in_.pre_bias) {
        for (int64_t d = 0; d < in_.width; ++d) centred_[r * in_.width + d] = x[d] - in_.pre_bias[d];
      }
      const float scale = in_.x_scale ? in_.x_scale[first + r] : 1.0f;
      const PackedNorms n = kernel_.pack_row(row(first, r), scale, packed_rows_.data() + r * kernel_.steps());
      Slack& slack = slack_[r];
      slack.norm = norm_.data();
      slack.residual = residual_.data();
      slack.row_norm = n.residual + kernel_.rounding() * n.norm;
      slack.row_rounded = n.rounded;
      // The bias rounds the score once in each of two computations; the products may lose what is below 2^-126.
      slack.constant = largest_bias_ * 0x1p-21f + static_cast<float>(in_.width) * 0x1p-124f;
      for (Selection& s : selections_) {
        if (s.out.k > 0) s.lists[r] = CandidateList();
      }
    }
  }

  void pack_panel(int64_t panel, int64_t slot) {
    const int64_t f = panel * kPanel, count = std::min(kPanel, in_.latents - f);
    PackedNorms norms[kPanel];
    kernel_.pack_panel(in_.weight + f * in_.width, count, in_.weight_scale ? in_.weight_scale + f : nullptr,
                       packed_panels_.data() + slot * kernel_.panel_words(), norms);
    for (int64_t j = 0; j < count; ++j) {
      norm_[f + j] = norms[j].norm;
      residual_[f + j] = norms[j].residual + kernel_.rounding() * norms[j].norm;
    }
  }

  void score(int64_t rows, int64_t task, int64_t first_latent, int64_t latents, std::vector<float>& scores) {
    constexpr int64_t kBlock = CandidateList::kBlock;
    constexpr int64_t kStride = kBlock + 16;  // rows 4 KiB apart would share one L1 set
    if (scores.empty()) scores.resize(block_ * kStride);
    const int64_t begin = task * block_, end = std::min(rows, begin + block_);
    for (int64_t block = 0; block < latents; block += kBlock) {
      const int64_t length = std::min(kBlock, latents - block), f = first_latent + block;
      for (int64_t p = 0; p < length; p += kPanel) {
        const uint32_t* panel = packed_panels_.data() + (block + p) / kPanel * kernel_.panel_words();
        for (int64_t r = begin; r < end; r += kTile) {
          kernel_.multiply(packed_rows_.data() + r * kernel_.steps(), panel, scores.data() + (r - begin) * kStride + p,
                           kStride);
        }
      }
      for (Selection& s : selections_) {
        if (!s.wanted(f, length)) continue;
        const bool whole = !s.out.allowed && f + length <= in_.latents;
        for (int64_t r = begin; r < end; ++r) {
          s.lists[r].add(scores.data() + (r - begin) * kStride, in_.bias ? bias_.data() + f : nullptr,
                         whole ? nullptr : s.mask.data() + f / kLanes, f, length, s.out.k, slack_[r], kernel_.isa);
        }
      }
    }
  }

  float exact_score(int64_t first, int64_t r, int64_t f) const {
    float score = kernel_.dot(row(first, r), in_.weight + f * in_.width);
    if (in_.x_scale) score *= in_.x_scale[first + r];
    if (in_.weight_scale) score *= in_.weight_scale[f];
    return in_.bias ? score + in_.bias[f] : score;
  }

  void prefetch(int64_t f) const {
    const char* weight = reinterpret_cast<const char*>(in_.weight + f * in_.width);
    for (int64_t byte = 0; byte < std::min<int64_t>(in_.width * 4, 2048); byte += 64) __builtin_prefetch(weight + byte);
  }

  void finish(int64_t first, int64_t rows, int64_t task) {
    std::vector<uint64_t> keys;
    for (int64_t r = task * block_; r < std::min(rows, (task + 1) * block_); ++r) {
      for (Selection& s : selections_) {
        if (s.out.k == 0) continue;
        const std::vector<Candidate>& items = s.lists[r].finish(s.out.k);
        keys.clear();
        for (size_t i = 0; i < items.size(); ++i) {
          if (i + 2 < items.size()) prefetch(items[i + 2].index);
          keys.push_back(order_key(exact_score(first, r, items[i].index), items[i].index));
        }
        const int64_t chosen = std::min<int64_t>(s.out.k, static_cast<int64_t>(keys.size()));
        std::nth_element(keys.begin(), keys.begin() + chosen, keys.end());
        std::sort(keys.begin(), keys.begin() + chosen);
        write(s, (first + r) * s.out.k, keys, chosen);
        s.lists[r] = CandidateList();
      }
    }
  }

  void write(const Selection& s, int64_t at, const std::vector<uint64_t>& keys, int64_t chosen) const {
    for (int64_t i = 0; i < s.out.k; ++i) {
      const bool real = i < chosen;
      const float score = real ? key_score(keys[i]) : 0.0f;
      s.out.values[at + i] = relu_ && score < 0 ? 0.0f : score;
      s.out.indices[at + i] = real ? static_cast<int64_t>(keys[i] & 0xffffffffu) : s.padding[i - chosen];
    }
  }

  const EncodeInput in_;
  const bool relu_;
  const int threads_;
  const PanelKernel kernel_;
  const int64_t padded_, group_;
  Selection selections_[2];
  std::vector<float> norm_, residual_, bias_;
  float largest_bias_ = 0;
  int64_t block_, panels_;
  std::vector<uint32_t> packed_rows_, packed_panels_;
  std::vector<Slack> slack_;
  std::vector<float> centred_;
  std::vector<std::vector<float>> scores_;  // one block a thread
};

}  // namespace

void topk_encode(const EncodeInput& input, const TopK& main, const TopK& aux, bool relu, int threads, Isa isa) {
  if (input.rows > 0) Encoder(input, main, aux, relu, threads, isa).run();
}

}  // namespace saekern
