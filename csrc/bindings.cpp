// The only file that knows Python: takes NumPy views, checks what the Python side cannot, releases the GIL.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include "parallel.h"

namespace py = pybind11;

namespace {

// Row-major, contiguous, never converted: a wrong dtype is a TypeError, not a silent copy.
template <typename T>
using Array = py::array_t<T, py::array::c_style>;

}  // namespace

PYBIND11_MODULE(_C, m, py::mod_gil_not_used()) {
  m.doc() = "C++ kernels behind saekern.ops; every array is contiguous and row-major.";
}
