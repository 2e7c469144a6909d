#include "screen.h"

#include <algorithm>
#include <cmath>

#include "parallel.h"

namespace saekern {
namespace {

constexpr int64_t kRowBlock = 96;  // rows scored against 1024 latents at a time: 390 KiB of scores, in L2
constexpr int64_t kStride = Screen::kLatentBlock + 16;  // rows 4 KiB apart would share one L1 set
constexpr int64_t kPackedBytes = 8 << 20;  // packed panels at a time: they stay in L3, the weights are read once

constexpr int64_t kFewRows = 48;  // 25 MB of scores at 131,072 latents

int64_t divide_up(int64_t n, int64_t by) { return (n + by - 1) / by; }
int64_t round_up(int64_t n, int64_t multiple) { return divide_up(n, multiple) * multiple; }

}  // namespace

Screen::Screen(const ScoreInput& input, int threads, Isa isa)
    : in_(input),
      threads_(std::max(1, threads)),
      kernel_(isa, input.width),
      padded_(round_up(input.latents, kPanel)),
      group_(std::min(kRowGroup, input.rows)),
      packed_(input.packed ? *input.packed : own_),
      bias_(input.bias ? padded_ : 0, 0.0f),
      slack_(group_),
      centred_(input.pre_bias ? group_ * input.width : 0),
      scores_(threads_) {
  packed_rows_.resize(round_up(group_, kTile) * kernel_.steps());
  // Chunks of equal size in whole blocks of latents: of 256 panels of which 85 fit, 64 at a time and not 85, 85, 85, 1.
  constexpr int64_t kBlockPanels = kLatentBlock / kPanel;
  const int64_t all = padded_ / kPanel;
  const int64_t bytes = kernel_.panel_words() * static_cast<int64_t>(sizeof(uint32_t));
  const int64_t fit = kPackedBytes / std::max<int64_t>(1, bytes);  // rows may have no elements
  const int64_t chunks = divide_up(all, std::max(kBlockPanels, fit / kBlockPanels * kBlockPanels));
  panels_ = std::min(all, round_up(divide_up(all, chunks), kBlockPanels));
  packed_.norm.resize(padded_);
  packed_.residual.resize(padded_);
  packed_.group_norm.resize(padded_ / Slack::kGroup);
  packed_.group_residual.resize(padded_ / Slack::kGroup);
  if (!in_.packed) {
    packed_.words.resize(panels_ * kernel_.panel_words());
  } else if (packed_.words.empty()) {
    packed_.words.resize(all * kernel_.panel_words());
    parallel_for(all, threads_,
                 [&](int64_t panel, int) { pack_panel(panel, packed_.words.data() + panel * kernel_.panel_words()); });
  }
  if (in_.bias) std::copy(in_.bias, in_.bias + in_.latents, bias_.begin());
  for (float b : bias_) {
    if (std::isfinite(b)) largest_bias_ = std::max(largest_bias_, std::abs(b));
  }
}

void Screen::run(const std::function<void(const ScoreBlock&)>& block,
                 const std::function<void(int64_t, int64_t)>& finish) {
  for (group_first_ = 0; group_first_ < in_.rows; group_first_ += group_) {
    const int64_t rows = std::min(group_, in_.rows - group_first_);
    // As many blocks as threads, or a multiple, all within a tile of the same size: with 11 blocks of 90 rows and one
    // of 34 a thread idled for 5 % of the product of 1024 rows.
    const int64_t tiles = divide_up(rows, kTile);
    const int64_t blocks = std::min(tiles, round_up(divide_up(rows, kRowBlock), threads_));
    const auto for_row_blocks = [&](const std::function<void(int64_t, int64_t, int)>& body) {
      parallel_for(blocks, threads_, [&](int64_t task, int worker) {
        const int64_t begin = task * tiles / blocks * kTile, end = (task + 1) * tiles / blocks * kTile;
        body(group_first_ + begin, std::min(end, rows) - begin, worker);
      });
    };
    for_row_blocks([&](int64_t row, int64_t count, int) {
      for (int64_t r = row; r < row + count; ++r) pack_row(r);
    });
    if (few_rows(rows)) {
      run_few(rows, block);
    } else {
      for (int64_t panel = 0; panel < padded_ / kPanel; panel += panels_) {
        const int64_t count = std::min(panels_, padded_ / kPanel - panel);
        uint32_t* words = packed_.words.data();
        if (in_.packed) {
          words += panel * kernel_.panel_words();
        } else {
          parallel_for(count, threads_,
                       [&](int64_t i, int) { pack_panel(panel + i, words + i * kernel_.panel_words()); });
        }
        for_row_blocks([&](int64_t row, int64_t row_count, int worker) {
          multiply(row, row_count, panel * kPanel, count * kPanel, words, worker, block);
        });
      }
    }
    for_row_blocks([&](int64_t row, int64_t count, int) { finish(row, count); });
  }
}

float Screen::exact(int64_t row, int64_t latent) const {
  float score = kernel_.dot(centred_row(row), in_.weight + latent * in_.width);
  if (in_.x_scale) score *= in_.x_scale[row];
  if (in_.weight_scale) score *= in_.weight_scale[latent];
  return in_.bias ? score + in_.bias[latent] : score;
}

void Screen::prefetch(int64_t latent) const {
  const char* weight = reinterpret_cast<const char*>(in_.weight + latent * in_.width);
  // Two KiB hide the latency of the first lines; the processor's own prefetcher has found the stream by then.
  for (int64_t byte = 0; byte < std::min<int64_t>(in_.width * 4, 2048); byte += 64) __builtin_prefetch(weight + byte);
}

const float* Screen::centred_row(int64_t row) const {
  return in_.pre_bias ? centred_.data() + (row - group_first_) * in_.width : in_.x + row * in_.width;
}

void Screen::pack_row(int64_t row) {
  const int64_t r = row - group_first_;
  if (in_.pre_bias) {
    const float* x = in_.x + row * in_.width;
    for (int64_t d = 0; d < in_.width; ++d) centred_[r * in_.width + d] = x[d] - in_.pre_bias[d];
  }
  const float scale = in_.x_scale ? in_.x_scale[row] : 1.0f;
  const PackedNorms n = kernel_.pack_row(centred_row(row), scale, packed_rows_.data() + r * kernel_.steps());
  Slack& slack = slack_[r];
  slack.norm = packed_.norm.data();
  slack.residual = packed_.residual.data();
  slack.group_norm = packed_.group_norm.data();
  slack.group_residual = packed_.group_residual.data();
  slack.row_norm = n.residual + kernel_.rounding() * n.norm;
  slack.row_rounded = n.rounded;
  // Adding the bias rounds, here and in the exact score; the products may lose what is below 2^-126.
  slack.constant = in_.tolerance + largest_bias_ * 0x1p-21f + static_cast<float>(in_.width) * 0x1p-124f;
}

void Screen::pack_panel(int64_t panel, uint32_t* words) {
  const int64_t f = panel * kPanel, count = std::min(kPanel, in_.latents - f);
  PackedNorms norms[kPanel];
  kernel_.pack_panel(in_.weight + f * in_.width, count, in_.weight_scale ? in_.weight_scale + f : nullptr, words,
                     norms);
  for (int64_t j = 0; j < count; ++j) {
    packed_.norm[f + j] = norms[j].norm;
    packed_.residual[f + j] = norms[j].residual + kernel_.rounding() * norms[j].norm;
  }
  static_assert(Slack::kGroup == kPanel);
  packed_.group_norm[panel] = *std::max_element(&packed_.norm[f], &packed_.norm[f] + count);
  packed_.group_residual[panel] = *std::max_element(&packed_.residual[f], &packed_.residual[f] + count);
}

// With a few rows only, it is the latents that have to be divided among the threads.
bool Screen::few_rows(int64_t rows) const { return in_.packed && rows <= kFewRows; }

void Screen::run_few(int64_t rows, const std::function<void(const ScoreBlock&)>& block) {
  constexpr int64_t kBlockPanels = kLatentBlock / kPanel;
  const int64_t blocks = divide_up(padded_ / kPanel, kBlockPanels), stride = padded_;
  few_scores_.resize(round_up(rows, kTile) * stride);
  parallel_for(blocks, threads_, [&](int64_t task, int) {
    for (int64_t p = task * kBlockPanels; p < std::min(padded_ / kPanel, (task + 1) * kBlockPanels); ++p) {
      for (int64_t r = 0; r < rows; r += kTile) {
        kernel_.multiply(packed_rows_.data() + r * kernel_.steps(), packed_.words.data() + p * kernel_.panel_words(),
                         few_scores_.data() + r * stride + p * kPanel, stride);
      }
    }
  });
  parallel_for(rows, threads_, [&](int64_t r, int worker) {
    for (int64_t f = 0; f < padded_; f += kLatentBlock) {
      block({few_scores_.data() + r * stride + f, stride, group_first_ + r, 1, f, std::min(kLatentBlock, padded_ - f),
             slack_.data() + r, worker});
    }
  });
}

void Screen::multiply(int64_t row, int64_t rows, int64_t latent, int64_t latents, const uint32_t* words, int worker,
                      const std::function<void(const ScoreBlock&)>& block) {
  std::vector<float>& scores = scores_[worker];
  if (scores.empty()) scores.resize((kRowBlock + kTile) * kStride);
  const int64_t r0 = row - group_first_;
  for (int64_t begin = 0; begin < latents; begin += kLatentBlock) {
    const int64_t length = std::min(kLatentBlock, latents - begin);
    for (int64_t p = 0; p < length; p += kPanel) {
      const uint32_t* panel = words + (begin + p) / kPanel * kernel_.panel_words();
      for (int64_t r = 0; r < rows; r += kTile) {
        kernel_.multiply(packed_rows_.data() + (r0 + r) * kernel_.steps(), panel, scores.data() + r * kStride + p,
                         kStride);
      }
    }
    block({scores.data(), kStride, row, rows, latent + begin, length, slack_.data() + r0, worker});
  }
}

}  // namespace saekern
