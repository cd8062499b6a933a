// The extension module dynprune._C: what is not an op. Importing it registers the CPU implementations of the ops.
#include <torch/csrc/utils/pybind.h>
#include <torch/extension.h>

#include "gemm.h"
#include "pack.h"
#include "run.h"

#define DYNPRUNE_STRING_(x) #x
#define DYNPRUNE_STRING(x) DYNPRUNE_STRING_(x)

namespace py = pybind11;

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled part of dynprune: weight packing and build information; ops are under torch.ops.dynprune.";
  m.attr("TORCH_VERSION") = DYNPRUNE_STRING(DYNPRUNE_TORCH_VERSION);
  m.attr("PANEL") = dynprune::kPanel;
  m.attr("UNIT_ALIGN") = dynprune::kUnitAlign;
  m.def("isa", [] { return std::string(dynprune::kernels().isa); }, "Instruction set of the CPU kernels in use.");
  m.def("has_brgemm", &dynprune::has_brgemm, "Whether small products run on oneDNN's brgemm (otherwise BLAS).");
  m.def("multiplies_bf16", &dynprune::multiplies_bf16, "Whether this CPU's own instructions multiply bfloat16.");
  m.def("threads", &dynprune::thread_count, "Threads that a kernel with enough work runs on.");
  using Optional = const std::optional<at::Tensor>&;
  m.def(
      "pack_linear",
      [](const at::Tensor& weight, Optional indices, Optional columns, Optional scale, Optional values, Optional sums) {
        return dynprune::pack_linear(weight, indices, columns, scale, {values, sums});
      },
      py::arg("weight"), py::arg("indices") = py::none(), py::arg("columns") = py::none(),
      py::arg("scale") = py::none(), py::arg("values") = py::none(), py::arg("sums") = py::none(),
      py::call_guard<py::gil_scoped_release>());
  m.def("pack_input_major", &dynprune::pack_input_major, py::arg("packed"));
  m.def("tap_sums", &dynprune::tap_sums, py::arg("weight"), py::arg("values"), py::arg("indices") = py::none(),
        py::call_guard<py::gil_scoped_release>());
  m.def(
      "pack_conv2d",
      [](const at::Tensor& weight, Optional indices, Optional input_indices, Optional scale, int64_t groups,
         Optional values, Optional sums) {
        return dynprune::pack_conv2d(weight, indices, input_indices, scale, groups, {values, sums});
      },
      py::arg("weight"), py::arg("indices") = py::none(), py::arg("input_indices") = py::none(),
      py::arg("scale") = py::none(), py::arg("groups") = 1, py::arg("values") = py::none(),
      py::arg("sums") = py::none(), py::call_guard<py::gil_scoped_release>());
}
