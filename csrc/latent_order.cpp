#include "latent_order.h"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>

#include "parallel.h"

namespace saekern {
namespace {

std::string number(int64_t value) { return std::to_string(value); }

void check_count(int64_t nnz) {
  if (nnz > std::numeric_limits<int32_t>::max())
    throw std::invalid_argument("indices: expected fewer than 2^31 codes, got " + number(nnz));
}

// A caller's order is trusted to be sorted, but never to stay inside the arrays.
void check_order(const int32_t* entries, const int32_t* segments, int64_t nnz, int64_t latents) {
  bool good = segments[0] == 0 && segments[latents] == nnz;
  for (int64_t f = 0; f < latents; ++f) good &= segments[f] <= segments[f + 1];
  for (int64_t p = 0; p < nnz; ++p) good &= entries[p] >= 0 && entries[p] < nnz;
  if (!good) throw std::invalid_argument("order: its entries or segments do not belong to these codes");
}

}  // namespace

void check_indices(const int64_t* indices, int64_t nnz, int64_t latents) {
  bool good = true;
  for (int64_t i = 0; i < nnz; ++i) good &= static_cast<uint64_t>(indices[i]) < static_cast<uint64_t>(latents);
  if (good) return;
  const int64_t* bad =
      std::find_if(indices, indices + nnz, [latents](int64_t index) { return index < 0 || index >= latents; });
  throw std::invalid_argument("indices: expected 0 <= index < F = " + number(latents) + ", got " + number(*bad) +
                              " at position " + number(bad - indices) + " of " + number(nnz));
}

void check_offsets(const int64_t* offsets, int64_t batch, int64_t nnz) {
  if (offsets[0] != 0) throw std::invalid_argument("offsets: expected offsets[0] = 0, got " + number(offsets[0]));
  if (offsets[batch] != nnz)
    throw std::invalid_argument("offsets: expected the last to be nnz = " + number(nnz) + ", got " +
                                number(offsets[batch]));
  for (int64_t b = 0; b < batch; ++b)
    if (offsets[b] > offsets[b + 1])
      throw std::invalid_argument("offsets: expected ascending, got " + number(offsets[b]) + " before " +
                                  number(offsets[b + 1]) + " at row " + number(b));
}

void latent_order(const int64_t* indices, int64_t nnz, int64_t latents, int threads, int32_t* entries,
                  int32_t* segments) {
  check_count(nnz);
  check_indices(indices, nnz, latents);
  // Each chunk of codes counts for itself, which costs a pass over the latents: a chunk has at least as many codes.
  const int64_t chunks = std::clamp<int64_t>(nnz / std::max<int64_t>(latents, 16384), 1, threads);
  std::vector<int32_t> next(chunks * latents, 0);  // [chunks, latents]: counts, then where the next code goes
  parallel_for(chunks, threads, [&](int64_t chunk, int) {
    int32_t* count = next.data() + chunk * latents;
    for (int64_t i = chunk * nnz / chunks; i < (chunk + 1) * nnz / chunks; ++i) ++count[indices[i]];
  });
  int32_t total = 0;
  for (int64_t f = 0; f < latents; ++f) {
    segments[f] = total;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const int32_t count = next[chunk * latents + f];
      next[chunk * latents + f] = total;
      total += count;
    }
  }
  segments[latents] = total;
  parallel_for(chunks, threads, [&](int64_t chunk, int) {
    int32_t* slot = next.data() + chunk * latents;
    for (int64_t i = chunk * nnz / chunks; i < (chunk + 1) * nnz / chunks; ++i)
      entries[slot[indices[i]]++] = static_cast<int32_t>(i);
  });
}

LatentOrder::LatentOrder(const Codes& codes, int64_t latents, const int32_t* entries, const int32_t* segments,
                         int threads)
    : entries_(entries), segments_(segments), latents_(latents), k_(static_cast<int32_t>(codes.k)) {
  check_count(codes.nnz);
  if (entries) {
    check_order(entries, segments, codes.nnz, latents);
  } else {
    made_.resize(codes.nnz + latents + 1);
    latent_order(codes.indices, codes.nnz, latents, threads, made_.data(), made_.data() + codes.nnz);
    entries_ = made_.data();
    segments_ = made_.data() + codes.nnz;
  }
  if (codes.offsets) {
    rows_.resize(codes.nnz);
    for (int64_t b = 0; b < codes.batch; ++b)
      std::fill(rows_.begin() + codes.offsets[b], rows_.begin() + codes.offsets[b + 1], b);
  }
}

}  // namespace saekern
