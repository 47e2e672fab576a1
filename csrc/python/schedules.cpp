#include "csrc/python/schedules.h"

#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <utility>

#include "csrc/algorithms/algorithms.h"
#include "csrc/algorithms/forecast.h"
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

using AlphaBeta = std::pair<double, double>;

py::dict simulate_algorithm(const std::string& name, int nodes, int local, double bytes, int pipeline_chunks,
                            AlphaBeta memory, AlphaBeta card, int nodes_per_switch, int uplinks, AlphaBeta core,
                            double gamma, double step) {
  const Hardware hardware{.local = local,
                          .memory = {memory.first, memory.second},
                          .card = {card.first, card.second},
                          .nodes_per_switch = nodes_per_switch,
                          .uplinks = uplinks,
                          .core = {core.first, core.second},
                          .gamma = gamma,
                          .step = step};
  Forecast result;
  {
    py::gil_scoped_release release;
    result = forecast(name, {nodes, bytes, pipeline_chunks}, hardware);
  }
  py::dict loads;
  for (std::size_t kind = 0; kind < link_kind_names.size(); ++kind) {
    const LinkLoad& load = result.simulated.loads[kind];
    loads[py::str(std::string(link_kind_names[kind]))] =
        py::dict(py::arg("links") = load.links, py::arg("bytes") = load.bytes, py::arg("busiest") = load.busiest,
                 py::arg("mean") = load.mean);
  }
  return py::dict(py::arg("seconds") = result.simulated.seconds, py::arg("messages") = result.simulated.messages,
                  py::arg("across") = result.across, py::arg("ranks_played") = result.ranks_played,
                  py::arg("loads") = loads);
}

}  // namespace

void bind_schedules(py::module_& module) {
  module.def("algorithm_table", &table, "(name, summary, rounds, bytes) of every algorithm.");
  module.def("draw", &draw_algorithm, py::arg("algorithm"), py::arg("size"), py::arg("pipeline_chunks"),
             "A verified schedule as text.");
  module.def("simulate", &simulate_algorithm, py::arg("algorithm"), py::kw_only(), py::arg("nodes"), py::arg("local"),
             py::arg("bytes"), py::arg("pipeline_chunks"), py::arg("memory"), py::arg("card"),
             py::arg("nodes_per_switch"), py::arg("uplinks"), py::arg("core"), py::arg("gamma"), py::arg("step"),
             "An allreduce on a modelled machine. Links are (seconds, seconds per byte).");
}

}  // namespace ringred
