#include "csrc/python/pool.h"

#include <pybind11/stl.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "csrc/memory/pool.h"
#include "csrc/python/python_engine.h"

namespace py = pybind11;

namespace ringred {
namespace {

std::shared_ptr<Pool> pool_of(const std::shared_ptr<PythonEngine>& engine, const std::vector<std::size_t>& sizes) {
  return std::make_shared<Pool>((*engine)->arena_memory(), sizes);
}

bool holds(const Pool& pool, std::uintptr_t address, std::size_t bytes) {
  return pool.holds(reinterpret_cast<const void*>(address), bytes);
}

}  // namespace

void bind_pool(py::module_& module) {
  module.def("replace_allocator", &replace_allocator, py::arg("library"));

  py::class_<Pool, std::shared_ptr<Pool>>(module, "Pool")
      .def(py::init(&pool_of), py::arg("engine"), py::arg("sizes"))
      .def("arm", &Pool::arm, py::arg("armed"))
      .def("holds", &holds, py::arg("address"), py::arg("bytes"))
      .def_property_readonly("blocks", &Pool::blocks);
}

}  // namespace ringred
