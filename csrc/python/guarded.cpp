#include "csrc/python/guarded.h"

#include <pybind11/stl.h>

#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "csrc/memory/guarded_view.h"
#include "csrc/python/python_engine.h"

namespace py = pybind11;

namespace ringred {
namespace {

std::shared_ptr<GuardedView> make(PythonEngine& engine, int rank, std::size_t offset, std::size_t bytes) {
  if (rank < 0 || rank >= engine->size())
    fail_usage("A guarded view shows memory of a rank, 0 to " + std::to_string(engine->size() - 1) + ": it is " +
               std::to_string(rank) + ".");
  const std::size_t length = engine->length(rank);
  if (offset > length || bytes > length - offset)
    fail_usage("A guarded view lies in the segment of a rank, which has " + std::to_string(length) + " bytes: it is " +
               std::to_string(bytes) + " bytes from " + std::to_string(offset) + ".");
  return std::make_shared<GuardedView>(engine->address(rank, offset), bytes, engine->rank());
}

void name_ranges(GuardedView& self, std::vector<std::tuple<std::size_t, std::size_t, std::string>> ranges) {
  std::vector<NamedRange> named;
  for (auto& [begin, end, name] : ranges) named.push_back({begin, end, std::move(name)});
  self.name_ranges(std::move(named));
}

// A writable buffer even while the pages are read-only: numpy and torch ask once, when they make an array of it. It
// keeps the view, so the mapping lives as long as an array does.
py::buffer_info buffer_of(GuardedView& view) {
  return py::buffer_info(reinterpret_cast<unsigned char*>(view.data()), static_cast<py::ssize_t>(view.size()));
}

}  // namespace

void bind_guarded(py::module_& module) {
  py::class_<GuardedView, std::shared_ptr<GuardedView>>(module, "GuardedView", py::buffer_protocol())
      .def(py::init(&make), py::arg("engine"), py::arg("rank"), py::arg("offset"), py::arg("bytes"))
      .def_buffer(&buffer_of)
      .def("protect", &GuardedView::protect)
      .def("unprotect", &GuardedView::unprotect)
      .def("name_ranges", &name_ranges, py::arg("ranges"));
}

}  // namespace ringred
