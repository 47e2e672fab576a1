#include "csrc/python/schedules.h"

#include <optional>
#include <string>

#include "csrc/algorithms/algorithms.h"
#include "csrc/base/error.h"
#include "csrc/schedule/draw.h"
#include "csrc/schedule/verify.h"

namespace py = pybind11;

namespace ringred {
namespace {

py::list table() {
  py::list rows;
  for (const AlgorithmInfo& row : algorithm_table)
    rows.append(py::make_tuple(std::string(row.name), std::string(row.summary), std::string(row.rounds),
                               std::string(row.bytes)));
  return rows;
}

std::string draw_algorithm(const std::string& name, int size, int pipeline_chunks) {
  const std::optional<Algorithm> algorithm = algorithm_named(name);
  if (!algorithm) fail_usage("The algorithm must be one of the table's: it is '" + name + "'.");
  if (size < 1 || size > 1024 || pipeline_chunks < 1 || pipeline_chunks > 1024)
    fail_usage("Ranks and chunks must be from 1 to 1024: they are " + std::to_string(size) + " and " +
               std::to_string(pipeline_chunks) + ".");
  const Schedule schedule = record(*algorithm, size, pipeline_chunks);
  verify(schedule);
  return draw(schedule);
}

}  // namespace

void bind_schedules(py::module_& module) {
  module.def("algorithm_table", &table, "(name, summary, rounds, bytes) of every algorithm.");
  module.def("draw", &draw_algorithm, py::arg("algorithm"), py::arg("size"), py::arg("pipeline_chunks"),
             "A verified schedule as text.");
}

}  // namespace ringred
