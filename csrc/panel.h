// Approximate products of rows with a dictionary, with what is needed to bound their error.
//
// A panel is 64 dictionary rows interleaved so that one inner step multiplies all of them: in bfloat16 pairs where the
// processor multiplies those (about 4 times float32's rate), in float32 elsewhere. With x̂, ŵ the packed (rounded) rows,
//   |⟨x, w⟩ − product| ≤ ‖x − x̂‖ ‖w‖ + ‖x̂‖ ‖w − ŵ‖ + rounding of the sums,
// and the norms on the right are those of the roundings actually made, about a third of the worst case: fewer
// candidates have to be computed again in float32.
#pragma once

#include <cstdint>

#include "isa.h"

namespace saekern {

constexpr int64_t kPanel = 64;  // dictionary rows in a panel
constexpr int64_t kTile = 6;  // rows multiplied at once: 6 x 4 accumulators of 16 lanes leave 8 registers for operands

struct PackedNorms {
  float rounded;   // ≥ ‖x̂‖
  float residual;  // ≥ ‖x − x̂‖
  float norm;      // ≥ ‖x‖
};

struct PanelKernel {
  Isa isa;
  int64_t width;  // D

  PanelKernel(Isa isa_, int64_t width_) : isa(isa_), width(width_) {}

  bool bf16() const { return isa == Isa::avx512bf16; }
  int64_t steps() const { return bf16() ? (width + 1) / 2 : width; }  // 4-byte words of a packed row
  int64_t panel_words() const { return steps() * kPanel; }

  // row [D], multiplied by `scale` -> packed [steps()].
  PackedNorms pack_row(const float* row, float scale, uint32_t* packed) const;

  // rows [count, D], count ≤ 64, row j multiplied by scale[j] (all 1 if null) -> panel [panel_words()]; norms [count].
  // Missing rows are packed as zeros.
  void pack_panel(const float* rows, int64_t count, const float* scale, uint32_t* panel, PackedNorms* norms) const;

  // packed [kTile, steps()] x panel -> out [kTile, 64], rows `out_stride` apart.
  void multiply(const uint32_t* packed, const uint32_t* panel, float* out, int64_t out_stride) const;

  // ⟨x, w⟩ in float32 in one fixed order: 64 interleaved partial sums by fused multiply-add, then a fixed tree. The
  // same bits on every level that has FMA.
  float dot(const float* x, const float* w) const;

  // Bound on the relative rounding of `multiply` and of `dot` together, in units of ‖x‖ ‖w‖.
  float rounding() const;
};

}  // namespace saekern
