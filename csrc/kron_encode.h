// The k largest scores of a Kronecker-factorised encoder in each row, without the [B, F] matrix.
#pragma once

#include <cstdint>

#include "isa.h"

namespace saekern {

enum class KronActivation {
  mand,     // sqrt(u v + eps) where u, v > 0, else sqrt(eps)
  relu,     // relu(u) relu(v)
  product,  // u v, negative values chosen last and returned as 0
};

// u = ⟨x − pre_bias, p⟩ + bias_p for each p [heads, m, width], v likewise for each q [heads, n, width]; the latent
// (h m + i) n + j has the factors u_hi and v_hj. Biases and pre_bias may be null.
struct KronInput {
  const float* x;         // [rows, width]
  const float* weight_p;  // [heads, m, width]
  const float* weight_q;  // [heads, n, width]
  const float* bias_p;    // [heads, m]
  const float* bias_q;    // [heads, n]
  const float* pre_bias;  // [width]
  int64_t rows, width, heads, m, n;
  KronActivation activation;
  float eps;
};

// [rows, k] each. Ordered by the float32 product of the factors, descending, ties to the smaller latent, NaN largest.
// Of the latents with allowed[f] (null: all); where there are fewer than k the other slots hold 0 at the smallest not
// allowed.
struct KronTopK {
  int64_t k = 0;
  float* values = nullptr;
  int64_t* indices = nullptr;
  float* u = nullptr;
  float* v = nullptr;
  const bool* allowed = nullptr;
};

// Exact: each factor is one sum in a fixed order, the same for any number of threads. `aux` (k = 0: none) is a second
// selection on the same factors.
void kron_encode(const KronInput& input, const KronTopK& main, const KronTopK& aux, int threads, Isa isa);

}  // namespace saekern
