#include "encode_backward.h"

#include <memory>

#include "decode.h"
#include "segment_gradients.h"

namespace saekern {

void encode_backward(const EncodeBackward& job, int threads) {
  const int64_t latents = job.order.latents();
  std::unique_ptr<float[]> masked(new float[job.codes.nnz]);
  for (int64_t i = 0; i < job.codes.nnz; ++i) masked[i] = job.relu && job.codes.values[i] <= 0 ? 0.0f : job.grad[i];
  if (job.dx) {
    Codes codes = job.codes;
    codes.values = masked.get();
    decode(codes, job.weight, job.width, nullptr, threads, job.dx);
  }
  if (job.dweight)
    segment_gradients(
        {job.order, masked.get(), job.x, job.pre_bias, nullptr, nullptr, latents, job.width, job.dweight, nullptr},
        threads);
  if (!job.dbias && !job.dpre_bias) return;
  std::unique_ptr<float[]> own;
  float* dbias = job.dbias;
  if (!dbias) own.reset(dbias = new float[latents]);
  segment_sums(job.order, masked.get(), threads, dbias);
  if (!job.dpre_bias) return;
  weighted_row_sum(dbias, job.weight, latents, job.width, threads, job.dpre_bias);
  for (int64_t d = 0; d < job.width; ++d) job.dpre_bias[d] = -job.dpre_bias[d];
}

}  // namespace saekern
