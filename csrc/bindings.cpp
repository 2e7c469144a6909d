// The only file that knows Python: takes NumPy views, checks what the Python side cannot, releases the GIL.
#if defined(__GNUC__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wshadow"  // in pybind11's own headers
#endif
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#if defined(__GNUC__)
#pragma GCC diagnostic pop
#endif

#include <chrono>
#include <optional>
#include <string>

#include "adam_step.h"
#include "batch_topk_encode.h"
#include "decode.h"
#include "encode_backward.h"
#include "hierarchical_loss.h"
#include "isa.h"
#include "kron_encode.h"
#include "latent_order.h"
#include "linear_sum_assignment.h"
#include "memory.h"
#include "nearest.h"
#include "ragged.h"
#include "row_topk.h"
#include "segment_gradients.h"
#include "threshold_encode.h"
#include "topk_encode.h"
#include "unexplained_variance.h"
#include "vector_assignment.h"

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

// "" is the best level of this processor. Tests name lower ones.
Isa isa_of(const std::string& name) {
  if (name.empty()) return best_isa();
  for (Isa isa : {Isa::portable, Isa::avx2, Isa::avx512, Isa::avx512bf16}) {
    if (name == isa_name(isa) && isa <= best_isa()) return isa;
  }
  throw py::value_error("isa: this processor has " + std::string(isa_name(best_isa())) +
                        " and what is below it, got '" + name + "'");
}

ScoreInput score_input(const Array<float>& x, const Array<float>& weight, const Optional<float>& bias,
                       const Optional<float>& pre_bias) {
  ScoreInput input;
  input.x = x.data();
  input.weight = weight.data();
  input.bias = in(bias);
  input.pre_bias = in(pre_bias);
  input.rows = x.shape(0);
  input.latents = weight.shape(0);
  input.width = x.shape(1);
  return input;
}

void bind_topk_encode(const Array<float>& x, const Array<float>& weight, const Optional<float>& bias,
                      const Optional<float>& pre_bias, const Optional<float>& x_scale,
                      const Optional<float>& weight_scale, Array<float>& values, Array<int64_t>& indices,
                      const Optional<bool>& dead, Array<float>& aux_values, Array<int64_t>& aux_indices, bool relu,
                      int threads, const std::string& isa) {
  ScoreInput input = score_input(x, weight, bias, pre_bias);
  input.x_scale = in(x_scale);
  input.weight_scale = in(weight_scale);
  const TopK main{values.shape(1), values.mutable_data(), indices.mutable_data(), nullptr};
  const TopK aux{aux_values.shape(1), aux_values.mutable_data(), aux_indices.mutable_data(), in(dead)};
  const Isa level = isa_of(isa);
  py::gil_scoped_release nogil;
  topk_encode(input, main, aux, relu, threads, level);
}

KronTopK kron_top(Array<float>& values, Array<int64_t>& indices, Array<float>& u, Array<float>& v,
                  const Optional<bool>& allowed) {
  return {values.shape(1),  values.mutable_data(), indices.mutable_data(),
          u.mutable_data(), v.mutable_data(),      in(allowed)};
}

// activation: 0 mand, 1 relu, 2 product.
void bind_kron_encode(const Array<float>& x, const Array<float>& weight_p, const Array<float>& weight_q,
                      const Optional<float>& bias_p, const Optional<float>& bias_q, const Optional<float>& pre_bias,
                      int activation, float eps, Array<float> values, Array<int64_t> indices, Array<float> u,
                      Array<float> v, const Optional<bool>& dead, Array<float> aux_values, Array<int64_t> aux_indices,
                      Array<float> aux_u, Array<float> aux_v, int threads, const std::string& isa) {
  if (activation < 0 || activation > 2) throw py::value_error("kron_encode: expected activation 0, 1 or 2");
  const KronInput input{x.data(),
                        weight_p.data(),
                        weight_q.data(),
                        in(bias_p),
                        in(bias_q),
                        in(pre_bias),
                        x.shape(0),
                        x.shape(1),
                        weight_p.shape(0),
                        weight_p.shape(1),
                        weight_q.shape(1),
                        static_cast<KronActivation>(activation),
                        eps};
  if (input.heads * input.m * input.n > INT32_MAX) throw py::value_error("kron_encode: at most 2^31 - 1 latents");
  const KronTopK main = kron_top(values, indices, u, v, std::nullopt);
  const KronTopK aux = kron_top(aux_values, aux_indices, aux_u, aux_v, dead);
  const Isa level = isa_of(isa);
  py::gil_scoped_release nogil;
  kron_encode(input, main, aux, threads, level);
}

// -> values, indices [nnz]; offsets [rows + 1] is filled.
py::tuple bind_threshold_encode(const Array<float>& x, const Array<float>& weight, const Optional<float>& bias,
                                const Optional<float>& pre_bias, const Array<float>& thresholds, Array<int64_t> offsets,
                                int threads, const std::string& isa) {
  const ScoreInput input = score_input(x, weight, bias, pre_bias);
  const Isa level = isa_of(isa);
  int64_t* to_offsets = offsets.mutable_data();
  std::vector<RowCodes> rows;
  {
    py::gil_scoped_release nogil;
    rows = threshold_encode(input, thresholds.data(), threads, level);
    row_offsets(rows, to_offsets);
  }
  Array<float> values(to_offsets[input.rows]);
  Array<int64_t> indices(to_offsets[input.rows]);
  float* to_values = values.mutable_data();
  int64_t* to_indices = indices.mutable_data();
  {
    py::gil_scoped_release nogil;
    gather_rows(rows, to_offsets, threads, to_values, to_indices);
    rows.clear();
  }
  return py::make_tuple(values, indices);
}

void bind_batch_topk_encode(const Array<float>& x, const Array<float>& weight, const Optional<float>& bias,
                            const Optional<float>& pre_bias, Array<float> values, Array<int64_t> indices,
                            Array<int64_t> offsets, int threads, const std::string& isa) {
  const ScoreInput input = score_input(x, weight, bias, pre_bias);
  const Isa level = isa_of(isa);
  float* to_values = values.mutable_data();
  int64_t *to_indices = indices.mutable_data(), *to_offsets = offsets.mutable_data();
  const int64_t total = values.size();
  py::gil_scoped_release nogil;
  const std::vector<RowCodes> rows = batch_topk_encode(input, total, threads, level);
  row_offsets(rows, to_offsets);
  gather_rows(rows, to_offsets, threads, to_values, to_indices);
}

void bind_nearest(const Array<float>& a, const Array<float>& b, Array<float>& a_cosine, Array<int64_t>& a_index,
                  Array<float>& b_cosine, Array<int64_t>& b_index, int threads, const std::string& isa) {
  const Isa level = isa_of(isa);
  float *ac = a_cosine.mutable_data(), *bc = b_cosine.mutable_data();
  int64_t *ai = a_index.mutable_data(), *bi = b_index.mutable_data();
  const int64_t a_rows = a.shape(0), b_rows = b.shape(0), width = a.shape(1);
  py::gil_scoped_release nogil;
  nearest(a.data(), a_rows, b.data(), b_rows, width, ac, ai, bc, bi, threads, level);
}

void bind_inverse_norms(const Array<float>& rows, Array<float>& inverse, int threads) {
  float* out = inverse.mutable_data();
  const int64_t count = rows.shape(0), width = rows.shape(1);
  py::gil_scoped_release nogil;
  inverse_norms(rows.data(), count, width, out, threads);
}

void bind_row_topk(const Array<float>& scores, Array<float>& values, Array<int64_t>& indices, int threads,
                   const std::string& isa) {
  const Isa level = isa_of(isa);
  float* v = values.mutable_data();
  int64_t* i = indices.mutable_data();
  const int64_t rows = scores.shape(0), columns = scores.shape(1), k = values.shape(1);
  py::gil_scoped_release nogil;
  row_topk(scores.data(), rows, columns, k, v, i, threads, level);
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

// cuts [budgets] or [batch, budgets].
HierarchicalLoss hierarchical_job(const Codes& codes, const Array<float>& weight, const Optional<float>& bias,
                                  const Array<float>& target, const Array<int64_t>& cuts, const Array<float>& weights) {
  return {codes,          weight.data(),  in(bias),        target.data(),   cuts.data(),
          weights.data(), weights.size(), weight.shape(0), weight.shape(1), cuts.ndim() == 2};
}

double bind_hierarchical_loss(const Array<float>& values, const Array<int64_t>& indices, const Array<float>& weight,
                              const Optional<float>& bias, const Array<float>& target, const Array<int64_t>& cuts,
                              const Array<float>& weights, const Optional<int64_t>& offsets, int threads,
                              Array<float> x_hat) {
  const Codes codes = codes_of(values, indices, offsets);
  const HierarchicalLoss job = hierarchical_job(codes, weight, bias, target, cuts, weights);
  float* to_x_hat = x_hat.mutable_data();
  py::gil_scoped_release nogil;
  check_indices(codes.indices, codes.nnz, job.latents);
  return hierarchical_loss(job, threads, to_x_hat);
}

void bind_hierarchical_loss_backward(double scale, const Array<float>& values, const Array<int64_t>& indices,
                                     const Array<float>& weight, const Optional<float>& bias,
                                     const Array<float>& target, const Array<int64_t>& cuts,
                                     const Array<float>& weights, const Optional<int64_t>& offsets, int threads,
                                     Optional<float> dvalues, Optional<float> dweight, Optional<float> dbias,
                                     Optional<float> dtarget) {
  const Codes codes = codes_of(values, indices, offsets);
  const HierarchicalLoss job = hierarchical_job(codes, weight, bias, target, cuts, weights);
  const HierarchicalGradients to{out(dvalues), out(dweight), out(dbias), out(dtarget)};
  py::gil_scoped_release nogil;
  check_indices(codes.indices, codes.nnz, job.latents);
  hierarchical_loss_backward(job, scale, threads, to);
}

void bind_encode_backward(const Array<float>& grad, const Array<float>& values, const Array<int64_t>& indices,
                          const Array<float>& x, const Array<float>& weight, const Optional<float>& pre_bias,
                          const Optional<int64_t>& offsets, const Optional<int32_t>& entries,
                          const Optional<int32_t>& segments, bool relu, int threads, Optional<float> dx,
                          Optional<float> dweight, Optional<float> dbias, Optional<float> dpre_bias) {
  const Codes codes = codes_of(values, indices, offsets);
  float *to_x = out(dx), *to_weight = out(dweight), *to_bias = out(dbias), *to_pre_bias = out(dpre_bias);
  py::gil_scoped_release nogil;
  check_indices(codes.indices, codes.nnz, weight.shape(0));
  const LatentOrder order(codes, weight.shape(0), in(entries), in(segments), threads);
  encode_backward({codes, order, grad.data(), x.data(), weight.data(), in(pre_bias), weight.shape(1), relu, to_x,
                   to_weight, to_bias, to_pre_bias},
                  threads);
}

// latents: the rows of param that grad holds, all where None.
void bind_adam_step(Array<float> param, const Array<float>& grad, Array<float> exp_avg, Array<float> exp_avg_sq,
                    const Optional<int64_t>& latents, int64_t step, double lr, double beta1, double beta2, double eps,
                    bool project, bool normalize, int threads) {
  AdamStep job{1,
               grad.size(),
               lr,
               beta1,
               beta2,
               eps,
               step,
               project,
               normalize,
               grad.data(),
               param.mutable_data(),
               exp_avg.mutable_data(),
               exp_avg_sq.mutable_data()};
  if (param.ndim() == 2) job.rows = param.shape(0), job.width = param.shape(1);
  if (latents) job.listed = latents->data(), job.count = latents->size();
  py::gil_scoped_release nogil;
  adam_step(job, threads);
}

py::tuple bind_unexplained_variance(const Array<float>& target, const Array<float>& estimate, int threads) {
  const int64_t rows = target.shape(0), width = target.shape(1);
  Unexplained result;
  {
    py::gil_scoped_release nogil;
    result = unexplained_variance(target.data(), estimate.data(), rows, width, threads);
  }
  return py::make_tuple(result.error, result.variance);
}

void bind_scaled_difference(const Array<float>& a, const Array<float>& b, double scale, int threads,
                            Array<float> target) {
  float* to = target.mutable_data();
  const int64_t n = target.size();
  py::gil_scoped_release nogil;
  scaled_difference(a.data(), b.data(), n, scale, threads, to);
}

// Answers Ctrl-C and calls progress(phase, done, total) about 20 times a second, from a thread without the GIL.
class PythonMonitor final : public Monitor {
 public:
  explicit PythonMonitor(py::object progress) : progress_(std::move(progress)) {}

  void report(const char* phase, int64_t done, int64_t total) override {
    const auto now = std::chrono::steady_clock::now();
    if (now < next_) return;
    next_ = now + std::chrono::milliseconds(50);
    const py::gil_scoped_acquire gil;
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    if (!progress_.is_none()) progress_(phase, done, total);
  }

 private:
  const py::object progress_;
  std::chrono::steady_clock::time_point next_ = std::chrono::steady_clock::now() + std::chrono::milliseconds(50);
};

// cost [rows, columns] with any strides, so that transposed views and slices are solved where they lie.
template <typename T>
void bind_linear_sum_assignment(const py::array_t<T>& cost, bool maximize, int threads, Array<int64_t> assignment) {
  if (cost.ndim() != 2 || assignment.ndim() != 1 || assignment.shape(0) != cost.shape(0)) {
    throw py::value_error("linear_sum_assignment: expected cost [rows, columns] and assignment [rows]");
  }
  if (cost.shape(0) > INT32_MAX || cost.shape(1) > INT32_MAX) {
    throw py::value_error("linear_sum_assignment: at most 2^31 - 1 rows and columns");
  }
  const auto size = static_cast<py::ssize_t>(sizeof(T));
  if (cost.strides(0) % size != 0 || cost.strides(1) % size != 0) {
    throw py::value_error("linear_sum_assignment: strides must be multiples of the item size");
  }
  const CostMatrix<T> view{cost.data(), cost.shape(0), cost.shape(1), cost.strides(0) / size, cost.strides(1) / size,
                           maximize};
  int64_t* to = assignment.mutable_data();
  PythonMonitor monitor{py::none()};
  const py::gil_scoped_release nogil;
  linear_sum_assignment(view, threads, monitor, to);
}

// The lines are the matrix's columns where `transposed`; `length` counts the other side.
template <typename T>
void bind_sparse_assignment(const Array<int64_t>& offsets, const Array<int32_t>& columns, const Array<T>& costs,
                            int64_t length, bool transposed, bool maximize, Array<int64_t> assignment) {
  const SparseCostMatrix<T> view{offsets.data(), columns.data(), costs.data(), offsets.size() - 1,
                                 length,         transposed,     maximize};
  if (view.lines > length || assignment.size() != (transposed ? length : view.lines)) {
    throw py::value_error("sparse_assignment: expected no more lines than columns, and assignment [rows]");
  }
  int64_t* to = assignment.mutable_data();
  PythonMonitor monitor{py::none()};
  const py::gil_scoped_release nogil;
  check_offsets(view.offsets, view.lines, costs.size());
  linear_sum_assignment(view, monitor, to);
}

// -> lines recomputed. start_*: prices [columns]; or index [lines, listed] and rest [lines]; or None.
template <typename T>
int64_t bind_vector_assignment(const Array<T>& a, const Array<T>& b, int metric, const Optional<double>& start_prices,
                               const Optional<int64_t>& start_index, const Optional<double>& start_rest,
                               Array<int64_t> assignment, Array<T> similarity, Array<double> u, Array<double> v,
                               Array<double> margin, bool exact_margins, int threads, const std::string& isa,
                               py::object progress) {
  const auto size = [](const auto& array) { return array ? array->size() : 0; };
  const bool sides = a.ndim() == 2 && b.ndim() == 2 && a.shape(1) == b.shape(1) && a.shape(0) <= b.shape(0);
  if (!sides || a.size() == 0 || b.shape(0) > INT32_MAX || metric < 0 || metric > 2) {
    throw py::value_error("vector_assignment: expected a [lines, width], b [columns, width], 1 <= lines <= columns");
  }
  const py::ssize_t lines = a.shape(0), columns = b.shape(0);
  if (assignment.size() != lines || similarity.size() != lines || u.size() != lines || v.size() != columns ||
      margin.size() != lines || (start_prices && size(start_prices) != columns) ||
      (start_index && (start_index->ndim() != 2 || start_index->shape(0) != lines || size(start_rest) != lines))) {
    throw py::value_error("vector_assignment: expected outputs and beginnings of as many lines and columns");
  }
  const assignment::VectorPair<T> pair{a.data(),   b.data(),   a.shape(0),
                                       b.shape(0), a.shape(1), static_cast<assignment::Metric>(metric)};
  AssignmentOptions options;
  options.prices = in(start_prices);
  options.index = in(start_index);
  options.rest = in(start_rest);
  if (start_index) options.listed = start_index->shape(1);
  options.exact_margins = exact_margins;
  const AssignmentProof<T> proof{assignment.mutable_data(), similarity.mutable_data(), u.mutable_data(),
                                 v.mutable_data(), margin.mutable_data()};
  const Isa level = isa_of(isa);
  PythonMonitor monitor(std::move(progress));
  const py::gil_scoped_release nogil;
  return vector_assignment(pair, options, threads, level, monitor, proof);
}

template <typename T>
void define_assignments(py::module_& m) {
  const auto a = [](const char* name) { return py::arg(name).noconvert(); };
  m.def("linear_sum_assignment", &bind_linear_sum_assignment<T>, a("cost"), a("maximize"), a("threads"),
        a("assignment"));
  m.def("sparse_assignment", &bind_sparse_assignment<T>, a("offsets"), a("columns"), a("costs"), a("length"),
        a("transposed"), a("maximize"), a("assignment"));
  m.def("vector_assignment", &bind_vector_assignment<T>, a("a"), a("b"), a("metric"), a("start_prices"),
        a("start_index"), a("start_rest"), a("assignment"), a("similarity"), a("u"), a("v"), a("margin"),
        a("exact_margins"), a("threads"), py::arg("isa") = "", py::arg("progress") = py::none());
}

Array<float> bind_large_output(const std::vector<py::ssize_t>& shape) {
  py::ssize_t bytes = sizeof(float);
  for (const py::ssize_t size : shape) bytes *= size;
  void* block = take_block(static_cast<size_t>(bytes));
  const py::capsule owner(block, &free_block);
  return Array<float>(shape, static_cast<float*>(block), owner);
}

}  // namespace

PYBIND11_MODULE(_C, m, py::mod_gil_not_used()) {
  m.doc() = "C++ kernels behind saekern.ops; every array is contiguous and row-major unless it says otherwise.";
  const auto a = [](const char* name) { return py::arg(name).noconvert(); };
  const auto isa = py::arg("isa") = "";
  m.def("isa", [] { return isa_name(best_isa()); });
  m.def("large_output", &bind_large_output, a("shape"));
  m.def("release_memory", &release_blocks, py::call_guard<py::gil_scoped_release>());
  m.attr("LARGE_OUTPUT") = kLargeBlock;
  m.def("topk_encode", &bind_topk_encode, a("x"), a("weight"), a("bias"), a("pre_bias"), a("x_scale"),
        a("weight_scale"), a("values"), a("indices"), a("dead"), a("aux_values"), a("aux_indices"), a("relu"),
        a("threads"), isa);
  m.def("threshold_encode", &bind_threshold_encode, a("x"), a("weight"), a("bias"), a("pre_bias"), a("thresholds"),
        a("offsets"), a("threads"), isa);
  m.def("batch_topk_encode", &bind_batch_topk_encode, a("x"), a("weight"), a("bias"), a("pre_bias"), a("values"),
        a("indices"), a("offsets"), a("threads"), isa);
  m.def("kron_encode", &bind_kron_encode, a("x"), a("weight_p"), a("weight_q"), a("bias_p"), a("bias_q"), a("pre_bias"),
        a("activation"), a("eps"), a("values"), a("indices"), a("u"), a("v"), a("dead"), a("aux_values"),
        a("aux_indices"), a("aux_u"), a("aux_v"), a("threads"), isa);
  m.def("row_topk", &bind_row_topk, a("scores"), a("values"), a("indices"), a("threads"), isa);
  m.def("nearest", &bind_nearest, a("a"), a("b"), a("a_cosine"), a("a_index"), a("b_cosine"), a("b_index"),
        a("threads"), isa);
  m.def("inverse_norms", &bind_inverse_norms, a("rows"), a("inverse"), a("threads"));
  m.def("latent_order", &bind_latent_order, a("indices"), a("latents"), a("threads"), a("entries"), a("segments"));
  m.def("decode", &bind_decode, a("values"), a("indices"), a("weight"), a("bias"), a("offsets"), a("threads"),
        a("out"));
  m.def("decode_backward", &bind_decode_backward, a("grad"), a("values"), a("indices"), a("weight"), a("offsets"),
        a("entries"), a("segments"), a("listed"), a("threads"), a("dvalues"), a("dweight"), a("dbias"));
  m.def("topk_encode_backward", &bind_encode_backward, a("grad"), a("values"), a("indices"), a("x"), a("weight"),
        a("pre_bias"), a("offsets"), a("entries"), a("segments"), a("relu"), a("threads"), a("dx"), a("dweight"),
        a("dbias"), a("dpre_bias"));
  m.def("hierarchical_loss", &bind_hierarchical_loss, a("values"), a("indices"), a("weight"), a("bias"), a("target"),
        a("cuts"), a("weights"), a("offsets"), a("threads"), a("x_hat"));
  m.def("hierarchical_loss_backward", &bind_hierarchical_loss_backward, a("scale"), a("values"), a("indices"),
        a("weight"), a("bias"), a("target"), a("cuts"), a("weights"), a("offsets"), a("threads"), a("dvalues"),
        a("dweight"), a("dbias"), a("dtarget"));
  m.def("adam_step", &bind_adam_step, a("param"), a("grad"), a("exp_avg"), a("exp_avg_sq"), a("latents"), a("step"),
        a("lr"), a("beta1"), a("beta2"), a("eps"), a("project"), a("normalize"), a("threads"));
  m.def("unexplained_variance", &bind_unexplained_variance, a("target"), a("estimate"), a("threads"));
  m.def("scaled_difference", &bind_scaled_difference, a("a"), a("b"), a("scale"), a("threads"), a("out"));
  define_assignments<float>(m);
  define_assignments<double>(m);
}
