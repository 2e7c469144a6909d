// The only file that knows Python: takes NumPy views, checks what the Python side cannot, releases the GIL.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include "linear_sum_assignment.h"
#include "parallel.h"

namespace py = pybind11;

namespace {

// Row-major, contiguous, never converted: a wrong dtype is a TypeError, not a silent copy.
template <typename T>
using Array = py::array_t<T, py::array::c_style>;

// cost [rows, columns] with any strides, so that transposed views and slices are solved where they lie.
template <typename T>
void linear_sum_assignment(const py::array_t<T>& cost, bool maximize, int threads, Array<int64_t> assignment) {
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
  const saekern::CostMatrix<T> view{
      cost.data(), cost.shape(0), cost.shape(1), cost.strides(0) / size, cost.strides(1) / size, maximize};
  int64_t* out = assignment.mutable_data();
  py::gil_scoped_release release;
  saekern::linear_sum_assignment(view, threads, out);
}

}  // namespace

PYBIND11_MODULE(_C, m, py::mod_gil_not_used()) {
  m.doc() = "C++ kernels behind saekern.ops; every array is contiguous and row-major unless it says otherwise.";
  m.def("linear_sum_assignment", &linear_sum_assignment<float>, py::arg("cost").noconvert(), py::arg("maximize"),
        py::arg("threads"), py::arg("assignment").noconvert());
  m.def("linear_sum_assignment", &linear_sum_assignment<double>, py::arg("cost").noconvert(), py::arg("maximize"),
        py::arg("threads"), py::arg("assignment").noconvert());
}
