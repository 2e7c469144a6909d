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

#include <optional>
#include <string>

#include "isa.h"
#include "row_topk.h"
#include "topk_encode.h"

namespace py = pybind11;

namespace {

// Row-major, contiguous, never converted: a wrong dtype is a TypeError, not a silent copy.
template <typename T>
using Array = py::array_t<T, py::array::c_style>;
template <typename T>
using Optional = std::optional<Array<T>>;

template <typename T>
const T* data(const Optional<T>& array) {
  return array ? array->data() : nullptr;
}

// "" is the best level of this processor. Tests name lower ones.
saekern::Isa isa_of(const std::string& name) {
  using saekern::Isa;
  if (name.empty()) return saekern::best_isa();
  for (Isa isa : {Isa::portable, Isa::avx2, Isa::avx512, Isa::avx512bf16}) {
    if (name == saekern::isa_name(isa) && isa <= saekern::best_isa()) return isa;
  }
  throw py::value_error("isa: this processor has " + std::string(saekern::isa_name(saekern::best_isa())) +
                        " and what is below it, got '" + name + "'");
}

void topk_encode(const Array<float>& x, const Array<float>& weight, const Optional<float>& bias,
                 const Optional<float>& pre_bias, const Optional<float>& x_scale, const Optional<float>& weight_scale,
                 Array<float>& values, Array<int64_t>& indices, const Optional<bool>& dead, Array<float>& aux_values,
                 Array<int64_t>& aux_indices, bool relu, int threads, const std::string& isa) {
  saekern::EncodeInput input;
  input.x = x.data();
  input.weight = weight.data();
  input.bias = data(bias);
  input.pre_bias = data(pre_bias);
  input.x_scale = data(x_scale);
  input.weight_scale = data(weight_scale);
  input.rows = x.shape(0);
  input.latents = weight.shape(0);
  input.width = x.shape(1);
  const saekern::TopK main{values.shape(1), values.mutable_data(), indices.mutable_data(), nullptr};
  const saekern::TopK aux{aux_values.shape(1), aux_values.mutable_data(), aux_indices.mutable_data(), data(dead)};
  const saekern::Isa level = isa_of(isa);
  py::gil_scoped_release release;
  saekern::topk_encode(input, main, aux, relu, threads, level);
}

void row_topk(const Array<float>& scores, Array<float>& values, Array<int64_t>& indices, int threads,
              const std::string& isa) {
  const saekern::Isa level = isa_of(isa);
  float* v = values.mutable_data();
  int64_t* i = indices.mutable_data();
  const int64_t rows = scores.shape(0), columns = scores.shape(1), k = values.shape(1);
  py::gil_scoped_release release;
  saekern::row_topk(scores.data(), rows, columns, k, v, i, threads, level);
}

}  // namespace

PYBIND11_MODULE(_C, m, py::mod_gil_not_used()) {
  m.doc() = "C++ kernels behind saekern.ops; every array is contiguous and row-major.";
  using namespace py::literals;
  m.def("isa", [] { return saekern::isa_name(saekern::best_isa()); }, "The instruction set level in use.");
  m.def("topk_encode", &topk_encode, "x"_a.noconvert(), "weight"_a.noconvert(), "bias"_a.noconvert(),
        "pre_bias"_a.noconvert(), "x_scale"_a.noconvert(), "weight_scale"_a.noconvert(), "values"_a.noconvert(),
        "indices"_a.noconvert(), "dead"_a.noconvert(), "aux_values"_a.noconvert(), "aux_indices"_a.noconvert(),
        "relu"_a, "threads"_a, "isa"_a = "",
        "Fills values, indices [B, k] and aux_values, aux_indices [B, k_aux] for x [B, D] and weight [F, D].");
  m.def("row_topk", &row_topk, "scores"_a.noconvert(), "values"_a.noconvert(), "indices"_a.noconvert(), "threads"_a,
        "isa"_a = "", "Fills values, indices [rows, k] with the k largest of each row of scores [rows, columns].");
}
