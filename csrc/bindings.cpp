// The only file that knows Python: takes NumPy views, checks what the Python side cannot, releases the GIL.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>

#include "adam_step.h"
#include "decode.h"
#include "encode_backward.h"
#include "latent_order.h"
#include "parallel.h"
#include "segment_gradients.h"

namespace py = pybind11;

namespace {

using namespace saekern;

// Row-major, contiguous, never converted: a wrong dtype is a TypeError, not a silent copy.
template <typename T>
using Array = py::array_t<T, py::array::c_style>;
template <typename T>
using Optional = std::optional<Array<T>>;

template <typename T>
const T* in(const Optional<T>& array) {
  return array ? array->data() : nullptr;
}

template <typename T>
T* out(Optional<T>& array) {
  return array ? array->mutable_data() : nullptr;
}

Codes codes_of(const Optional<float>& values, const Array<int64_t>& indices, const Optional<int64_t>& offsets) {
  Codes codes{in(values), indices.data(), in(offsets), 0, 0, indices.size()};
  if (offsets) {
    codes.batch = offsets->size() - 1;
    check_offsets(codes.offsets, codes.batch, codes.nnz);
  } else {
    codes.batch = indices.shape(0);
    codes.k = indices.shape(1);
  }
  return codes;
}

void bind_latent_order(const Array<int64_t>& indices, int64_t latents, int threads, Array<int32_t> entries,
                       Array<int32_t> segments) {
  int32_t *to_entries = entries.mutable_data(), *to_segments = segments.mutable_data();
  py::gil_scoped_release nogil;
  latent_order(indices.data(), indices.size(), latents, threads, to_entries, to_segments);
}

void bind_decode(const Array<float>& values, const Array<int64_t>& indices, const Array<float>& weight,
                 const Optional<float>& bias, const Optional<int64_t>& offsets, int threads, Array<float> target) {
  const Codes codes = codes_of(values, indices, offsets);
  float* result = target.mutable_data();
  py::gil_scoped_release nogil;
  check_indices(codes.indices, codes.nnz, weight.shape(0));
  decode(codes, weight.data(), weight.shape(1), in(bias), threads, result);
}

// listed: the latents of dweight's rows, all where None.
void bind_decode_backward(const Array<float>& grad, const Array<float>& values, const Array<int64_t>& indices,
                          const Array<float>& weight, const Optional<int64_t>& offsets,
                          const Optional<int32_t>& entries, const Optional<int32_t>& segments,
                          const Optional<int64_t>& listed, int threads, Optional<float> dvalues,
                          Optional<float> dweight, Optional<float> dbias) {
  const Codes codes = codes_of(values, indices, offsets);
  const int64_t latents = weight.shape(0), width = weight.shape(1);
  float *to_values = out(dvalues), *to_weight = out(dweight), *to_bias = out(dbias);
  py::gil_scoped_release nogil;
  if (to_values || to_weight) {
    const LatentOrder order(codes, latents, in(entries), in(segments), threads);
    segment_gradients({order, codes.values, grad.data(), nullptr, weight.data(), in(listed),
                       listed ? listed->size() : latents, width, to_weight, to_values},
                      threads);
  }
  if (to_bias) weighted_row_sum(nullptr, grad.data(), codes.batch, width, threads, to_bias);
}

void bind_encode_backward(const Array<float>& grad, const Array<float>& values, const Array<int64_t>& indices,
                          const Array<float>& x, const Array<float>& weight, const Optional<float>& pre_bias,
                          const Optional<int32_t>& entries, const Optional<int32_t>& segments, bool relu, int threads,
                          Optional<float> dx, Optional<float> dweight, Optional<float> dbias,
                          Optional<float> dpre_bias) {
  const Codes codes = codes_of(values, indices, std::nullopt);
  float *to_x = out(dx), *to_weight = out(dweight), *to_bias = out(dbias), *to_pre_bias = out(dpre_bias);
  py::gil_scoped_release nogil;
  check_indices(codes.indices, codes.nnz, weight.shape(0));
  const LatentOrder order(codes, weight.shape(0), in(entries), in(segments), threads);
  encode_backward({codes, order, grad.data(), x.data(), weight.data(), in(pre_bias), weight.shape(1), relu, to_x,
                   to_weight, to_bias, to_pre_bias},
                  threads);
}

void bind_adam_step(Array<float> param, const Array<float>& grad, Array<float> exp_avg, Array<float> exp_avg_sq,
                    int64_t step, double lr, double beta1, double beta2, double eps, bool project, bool normalize,
                    int threads) {
  AdamStep job{1,     grad.size(), lr,        beta1,        beta2, eps, step, project, normalize, grad.data(),
               param.mutable_data(), exp_avg.mutable_data(), exp_avg_sq.mutable_data()};
  if (grad.ndim() == 2) job.rows = grad.shape(0), job.width = grad.shape(1);
  py::gil_scoped_release nogil;
  adam_step(job, threads);
}

}  // namespace

PYBIND11_MODULE(_C, m, py::mod_gil_not_used()) {
  m.doc() = "C++ kernels behind saekern.ops; every array is contiguous and row-major.";
  const auto a = [](const char* name) { return py::arg(name).noconvert(); };
  m.def("latent_order", &bind_latent_order, a("indices"), a("latents"), a("threads"), a("entries"), a("segments"));
  m.def("decode", &bind_decode, a("values"), a("indices"), a("weight"), a("bias"), a("offsets"), a("threads"),
        a("out"));
  m.def("decode_backward", &bind_decode_backward, a("grad"), a("values"), a("indices"), a("weight"), a("offsets"),
        a("entries"), a("segments"), a("listed"), a("threads"), a("dvalues"), a("dweight"), a("dbias"));
  m.def("topk_encode_backward", &bind_encode_backward, a("grad"), a("values"), a("indices"), a("x"), a("weight"),
        a("pre_bias"), a("entries"), a("segments"), a("relu"), a("threads"), a("dx"), a("dweight"), a("dbias"),
        a("dpre_bias"));
  m.def("adam_step", &bind_adam_step, a("param"), a("grad"), a("exp_avg"), a("exp_avg_sq"), a("step"), a("lr"),
        a("beta1"), a("beta2"), a("eps"), a("project"), a("normalize"), a("threads"));
}
