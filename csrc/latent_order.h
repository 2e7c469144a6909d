// The codes of a batch, and the same codes sorted by latent (CSC).
#pragma once

#include <cstdint>
#include <vector>

namespace saekern {

// Codes [batch, k], or ragged where offsets [batch + 1] is not null: row b owns the codes begin(b) … begin(b + 1).
struct Codes {
  const float* values;     // [nnz]
  const int64_t* indices;  // [nnz], each in [0, latents)
  const int64_t* offsets;  // [batch + 1] or null
  int64_t batch, k, nnz;

  int64_t begin(int64_t row) const { return offsets ? offsets[row] : row * k; }
};

// Throws std::invalid_argument that names the first index outside [0, latents) and its position.
void check_indices(const int64_t* indices, int64_t nnz, int64_t latents);

// Throws std::invalid_argument unless offsets [batch + 1] ascend from 0 to nnz.
void check_offsets(const int64_t* offsets, int64_t batch, int64_t nnz);

// entries [nnz]: positions of the codes, grouped by latent, ascending within a latent; segments [latents + 1]:
// entries[segments[f]] … entries[segments[f + 1]] belong to latent f. The answer is unique, so any thread count gives
// it. Throws std::invalid_argument for an index out of range or 2^31 codes and more.
void latent_order(const int64_t* indices, int64_t nnz, int64_t latents, int threads, int32_t* entries,
                  int32_t* segments);

// An order given by the caller or, where entries is null, made and owned here.
class LatentOrder {
 public:
  LatentOrder(const Codes& codes, int64_t latents, const int32_t* entries, const int32_t* segments, int threads);

  const int32_t* entries() const { return entries_; }
  const int32_t* segments() const { return segments_; }
  int64_t latents() const { return latents_; }
  int64_t row_of(int32_t entry) const { return rows_.empty() ? entry / k_ : rows_[entry]; }

 private:
  const int32_t* entries_;
  const int32_t* segments_;
  int64_t latents_;
  int32_t k_;                  // a 32-bit division is three times as fast as a 64-bit one
  std::vector<int32_t> made_;  // entries, then segments
  std::vector<int64_t> rows_;  // [nnz] for ragged codes, else empty
};

}  // namespace saekern
