#include "panel.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#ifdef SAEKERN_X86
#include <immintrin.h>
#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 reports its own _mm512_undefined_* inside every intrinsic (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#endif

namespace saekern {
namespace {

// Upper bound of a norm from a sum of squares in 16 interleaved float32 sums: width/16 additions and a tree of 4 each
// round by 2^-24, and each square may lose up to 2^-126 by underflow.
float norm_bound(double sum_of_squares, int64_t width) {
  const double inflate = 1.0 + (static_cast<double>(width) / 16 + 16) * 0x1p-23;
  return static_cast<float>(std::sqrt(sum_of_squares + static_cast<double>(width) * 0x1p-126) * inflate);
}

PackedNorms float32_norms(const float* row, float scale, int64_t width) {
  double sums[8] = {};  // one would wait for each addition: 2 of the 12 ms that a product of 6144 x 512 x 1024 takes
  int64_t d = 0;
  for (; d + 8 <= width; d += 8) {
    for (int64_t j = 0; j < 8; ++j) sums[j] += static_cast<double>(row[d + j]) * row[d + j];
  }
  for (; d < width; ++d) sums[0] += static_cast<double>(row[d]) * row[d];
  double sum = 0;
  for (const double part : sums) sum += part;
  // In float32 the packed row is the row: only the product with the scale rounds, which rounding() covers.
  const float norm = norm_bound(sum * scale * scale, width);
  return {norm, 0.0f, norm};
}

void pack_row_float32(const float* row, float scale, int64_t width, uint32_t* packed) {
  for (int64_t d = 0; d < width; ++d) {
    const float value = row[d] * scale;
    std::memcpy(packed + d, &value, sizeof value);
  }
}

void multiply_portable(const uint32_t* packed, const uint32_t* panel, int64_t steps, float* out, int64_t out_stride) {
  const auto* x = reinterpret_cast<const float*>(packed);
  const auto* w = reinterpret_cast<const float*>(panel);
  for (int64_t r = 0; r < kTile; ++r) {
    float sum[kPanel] = {};
    for (int64_t d = 0; d < steps; ++d) {
      for (int64_t j = 0; j < kPanel; ++j) sum[j] += x[r * steps + d] * w[d * kPanel + j];
    }
    std::copy(sum, sum + kPanel, out + r * out_stride);
  }
}

float tree_sum(float* sum, int64_t lanes) {
  for (int64_t half = lanes / 2; half > 0; half /= 2) {
    for (int64_t j = 0; j < half; ++j) sum[j] += sum[j + half];
  }
  return sum[0];
}

float dot_portable(const float* x, const float* w, int64_t width) {
  float sum[64] = {};
  int64_t d = 0;
  for (; d + 64 <= width; d += 64) {
    for (int64_t j = 0; j < 64; ++j) sum[j] += x[d + j] * w[d + j];
  }
  for (int64_t j = 0; d + j < width; ++j) sum[j] += x[d + j] * w[d + j];
  return tree_sum(sum, 64);
}

#ifdef SAEKERN_X86

SAEKERN_AVX2 void multiply_avx2(const uint32_t* packed, const uint32_t* panel, int64_t steps, float* out,
                                int64_t out_stride) {
  const auto* x = reinterpret_cast<const float*>(packed);
  const auto* w = reinterpret_cast<const float*>(panel);
  for (int64_t j = 0; j < kPanel; j += 16) {  // 12 accumulators, 2 loads and a broadcast fill the 16 registers
    __m256 sum[kTile][2];
    for (auto& row : sum) row[0] = row[1] = _mm256_setzero_ps();
    for (int64_t d = 0; d < steps; ++d) {
      const __m256 w0 = _mm256_loadu_ps(w + d * kPanel + j), w1 = _mm256_loadu_ps(w + d * kPanel + j + 8);
#pragma GCC unroll 6
      for (int64_t r = 0; r < kTile; ++r) {
        const __m256 value = _mm256_broadcast_ss(x + r * steps + d);
        sum[r][0] = _mm256_fmadd_ps(value, w0, sum[r][0]);
        sum[r][1] = _mm256_fmadd_ps(value, w1, sum[r][1]);
      }
    }
    for (int64_t r = 0; r < kTile; ++r) {
      _mm256_storeu_ps(out + r * out_stride + j, sum[r][0]);
      _mm256_storeu_ps(out + r * out_stride + j + 8, sum[r][1]);
    }
  }
}

SAEKERN_AVX2 float dot_avx2(const float* x, const float* w, int64_t width) {
  __m256 sum[8];
  for (auto& s : sum) s = _mm256_setzero_ps();
  int64_t d = 0;
  for (; d + 64 <= width; d += 64) {
#pragma GCC unroll 8
    for (int64_t j = 0; j < 8; ++j) {
      sum[j] = _mm256_fmadd_ps(_mm256_loadu_ps(x + d + 8 * j), _mm256_loadu_ps(w + d + 8 * j), sum[j]);
    }
  }
  alignas(32) float lanes[64];
  for (int64_t j = 0; j < 8; ++j) _mm256_store_ps(lanes + 8 * j, sum[j]);
  for (int64_t j = 0; d + j < width; ++j) lanes[j] = std::fma(x[d + j], w[d + j], lanes[j]);
  return tree_sum(lanes, 64);
}

SAEKERN_AVX512 void multiply_avx512(const uint32_t* packed, const uint32_t* panel, int64_t steps, float* out,
                                    int64_t out_stride) {
  __m512 sum[kTile][4];
  for (auto& row : sum) row[0] = row[1] = row[2] = row[3] = _mm512_setzero_ps();
  for (int64_t d = 0; d < steps; ++d) {
    __m512 w[4];
    for (int64_t j = 0; j < 4; ++j) w[j] = _mm512_loadu_ps(panel + d * kPanel + 16 * j);
#pragma GCC unroll 6
    for (int64_t r = 0; r < kTile; ++r) {
      const __m512 value = _mm512_castsi512_ps(_mm512_set1_epi32(static_cast<int>(packed[r * steps + d])));
#pragma GCC unroll 4
      for (int64_t j = 0; j < 4; ++j) sum[r][j] = _mm512_fmadd_ps(value, w[j], sum[r][j]);
    }
  }
  for (int64_t r = 0; r < kTile; ++r) {
    for (int64_t j = 0; j < 4; ++j) _mm512_storeu_ps(out + r * out_stride + 16 * j, sum[r][j]);
  }
}

SAEKERN_AVX512BF16 void multiply_bf16(const uint32_t* packed, const uint32_t* panel, int64_t steps, float* out,
                                      int64_t out_stride) {
  __m512 sum[kTile][4];
  for (auto& row : sum) row[0] = row[1] = row[2] = row[3] = _mm512_setzero_ps();
  for (int64_t d = 0; d < steps; ++d) {
    __m512bh w[4];
    for (int64_t j = 0; j < 4; ++j) w[j] = (__m512bh)_mm512_loadu_si512(panel + d * kPanel + 16 * j);
#pragma GCC unroll 6
    for (int64_t r = 0; r < kTile; ++r) {
      const auto pair = (__m512bh)_mm512_set1_epi32(static_cast<int>(packed[r * steps + d]));
#pragma GCC unroll 4
      for (int64_t j = 0; j < 4; ++j) sum[r][j] = _mm512_dpbf16_ps(sum[r][j], pair, w[j]);
    }
  }
  for (int64_t r = 0; r < kTile; ++r) {
    for (int64_t j = 0; j < 4; ++j) _mm512_storeu_ps(out + r * out_stride + 16 * j, sum[r][j]);
  }
}

SAEKERN_AVX512 float dot_avx512(const float* x, const float* w, int64_t width) {
  __m512 sum[4];
  for (auto& s : sum) s = _mm512_setzero_ps();
  int64_t d = 0;
  for (; d + 64 <= width; d += 64) {
#pragma GCC unroll 4
    for (int64_t j = 0; j < 4; ++j) {
      sum[j] = _mm512_fmadd_ps(_mm512_loadu_ps(x + d + 16 * j), _mm512_loadu_ps(w + d + 16 * j), sum[j]);
    }
  }
  for (int64_t j = 0; j < 4 && d < width; ++j, d += 16) {
    const auto mask = static_cast<__mmask16>(width - d >= 16 ? 0xffff : (1u << (width - d)) - 1);
    sum[j] =
        _mm512_mask3_fmadd_ps(_mm512_maskz_loadu_ps(mask, x + d), _mm512_maskz_loadu_ps(mask, w + d), sum[j], mask);
  }
  // The same tree as tree_sum: lanes 0..31 + 32..63, then halves of 16, 8, 4, 2, 1.
  const __m512 all = _mm512_add_ps(_mm512_add_ps(sum[0], sum[2]), _mm512_add_ps(sum[1], sum[3]));
  const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

struct Sums {
  __m512 rounded, residual, square;
};

// Rounds 32 floats to bfloat16 and adds the squares of what came, what went and what was there.
SAEKERN_AVX512BF16 inline __m512i round_to_bf16(__m512 low, __m512 high, Sums& sums) {
  const auto rounded = (__m512i)_mm512_cvtne2ps_pbh(high, low);
  const __m512 back_low =
      _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(rounded)), 16));
  const __m512 back_high =
      _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(rounded, 1)), 16));
  sums.rounded = _mm512_fmadd_ps(back_low, back_low, _mm512_fmadd_ps(back_high, back_high, sums.rounded));
  sums.square = _mm512_fmadd_ps(low, low, _mm512_fmadd_ps(high, high, sums.square));
  const __m512 left_low = _mm512_sub_ps(low, back_low), left_high = _mm512_sub_ps(high, back_high);
  sums.residual = _mm512_fmadd_ps(left_low, left_low, _mm512_fmadd_ps(left_high, left_high, sums.residual));
  return rounded;
}

SAEKERN_AVX512BF16 __m512i load_rounded(const float* row, __m512 scale, int64_t left, Sums& sums) {
  const __mmask16 low = left >= 16 ? 0xffff : static_cast<__mmask16>((1u << left) - 1);
  const __mmask16 high = left >= 32 ? 0xffff : left <= 16 ? 0 : static_cast<__mmask16>((1u << (left - 16)) - 1);
  return round_to_bf16(_mm512_mul_ps(_mm512_maskz_loadu_ps(low, row), scale),
                       _mm512_mul_ps(_mm512_maskz_loadu_ps(high, row + 16), scale), sums);
}

SAEKERN_AVX512BF16 PackedNorms norms_of(const Sums& sums, int64_t width) {
  return {norm_bound(_mm512_reduce_add_ps(sums.rounded), width), norm_bound(_mm512_reduce_add_ps(sums.residual), width),
          norm_bound(_mm512_reduce_add_ps(sums.square), width)};
}

SAEKERN_AVX512BF16 PackedNorms pack_row_bf16(const float* row, float scale, int64_t width, uint32_t* packed) {
  Sums sums{_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()};
  const int64_t steps = (width + 1) / 2;
  for (int64_t d = 0; d < width; d += 32) {
    const __m512i rounded = load_rounded(row + d, _mm512_set1_ps(scale), width - d, sums);
    const int64_t words = std::min<int64_t>(16, steps - d / 2);
    _mm512_mask_storeu_epi32(packed + d / 2, static_cast<__mmask16>((1u << words) - 1), rounded);
  }
  return norms_of(sums, width);
}

// 16 x 16 words, in registers.
SAEKERN_AVX512 inline void transpose16(__m512i rows[16]) {
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    rows[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    rows[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    rows[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    rows[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int half = 0; half < 16; half += 8) {
    for (int i = 0; i < 4; ++i) {
      t[half + i] = _mm512_shuffle_i32x4(rows[half + i], rows[half + i + 4], 0x88);
      t[half + i + 4] = _mm512_shuffle_i32x4(rows[half + i], rows[half + i + 4], 0xdd);
    }
  }
  for (int i = 0; i < 8; ++i) {
    rows[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    rows[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
  }
}

SAEKERN_AVX512BF16 void pack_panel_bf16(const float* rows, int64_t count, const float* scale, int64_t width,
                                        uint32_t* panel, PackedNorms* norms) {
  const int64_t steps = (width + 1) / 2;
  for (int64_t j = 0; j < kPanel; j += 16) {
    Sums sums[16];
    for (auto& sum : sums) sum = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()};
    for (int64_t d = 0; d < width; d += 32) {
      __m512i tile[16];
      for (int64_t i = 0; i < 16; ++i) {
        tile[i] = j + i < count ? load_rounded(rows + (j + i) * width + d, _mm512_set1_ps(scale ? scale[j + i] : 1.0f),
                                               width - d, sums[i])
                                : _mm512_setzero_si512();
      }
      transpose16(tile);
      const int64_t words = std::min<int64_t>(16, steps - d / 2);
      for (int64_t i = 0; i < words; ++i) _mm512_storeu_si512(panel + (d / 2 + i) * kPanel + j, tile[i]);
    }
    for (int64_t i = 0; i < 16 && j + i < count; ++i) norms[j + i] = norms_of(sums[i], width);
  }
}

#endif  // SAEKERN_X86

}  // namespace

PackedNorms PanelKernel::pack_row(const float* row, float scale, uint32_t* packed) const {
#ifdef SAEKERN_X86
  if (bf16()) return pack_row_bf16(row, scale, width, packed);
#endif
  pack_row_float32(row, scale, width, packed);
  return float32_norms(row, scale, width);
}

void PanelKernel::pack_panel(const float* rows, int64_t count, const float* scale, uint32_t* panel,
                             PackedNorms* norms) const {
#ifdef SAEKERN_X86
  if (bf16()) return pack_panel_bf16(rows, count, scale, width, panel, norms);
#endif
  auto* values = reinterpret_cast<float*>(panel);
  for (int64_t j = 0; j < count; ++j) norms[j] = float32_norms(rows + j * width, scale ? scale[j] : 1.0f, width);
  constexpr int64_t kBlock = 16;  // columns at a time, so that both sides of the transposition stay in L1
  for (int64_t d0 = 0; d0 < width; d0 += kBlock) {
    const int64_t d1 = std::min(width, d0 + kBlock);
    for (int64_t j = 0; j < kPanel; ++j) {
      const float factor = scale && j < count ? scale[j] : 1.0f;
      for (int64_t d = d0; d < d1; ++d) values[d * kPanel + j] = j < count ? rows[j * width + d] * factor : 0.0f;
    }
  }
}

void PanelKernel::multiply(const uint32_t* packed, const uint32_t* panel, float* out, int64_t out_stride) const {
  switch (isa) {
#ifdef SAEKERN_X86
    case Isa::avx512bf16:
      return multiply_bf16(packed, panel, steps(), out, out_stride);
    case Isa::avx512:
      return multiply_avx512(packed, panel, steps(), out, out_stride);
    case Isa::avx2:
      return multiply_avx2(packed, panel, steps(), out, out_stride);
#endif
    default:
      return multiply_portable(packed, panel, steps(), out, out_stride);
  }
}

float PanelKernel::dot(const float* x, const float* w) const {
  switch (isa) {
#ifdef SAEKERN_X86
    case Isa::avx512bf16:
    case Isa::avx512:
      return dot_avx512(x, w, width);
    case Isa::avx2:
      return dot_avx2(x, w, width);
#endif
    default:
      return dot_portable(x, w, width);
  }
}

float PanelKernel::rounding() const {
  // `multiply` adds D products one after the other, each step rounding by at most 2^-23 (bfloat16 units may truncate);
  // `dot` does D/64 + 6 such steps; the scales and the bias add a few more.
  return static_cast<float>(2 * width + 32) * 0x1p-23f;
}

}  // namespace saekern
