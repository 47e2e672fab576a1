#include "csrc/python/selection.h"

#include <pybind11/stl.h>

#include "csrc/base/error.h"

namespace py = pybind11;

namespace ringred {
namespace {

constexpr const char* near_name = "near_bytes";

CostTable table_of(const Costs& costs) {
  CostTable table{{near_name, costs.near_bytes}};
  for (std::size_t cost = 0; cost < cost_count; ++cost)
    table.emplace(std::string(cost_names[cost]), costs.seconds[cost]);
  return table;
}

std::vector<std::string> names_of(const std::vector<Way>& ways) {
  std::vector<std::string> names;
  for (const Way way : ways) names.emplace_back(name_of(way));
  return names;
}

}  // namespace

std::optional<Costs> costs_of(const std::optional<CostTable>& table) {
  if (!table) return std::nullopt;
  Costs costs;
  costs.near_bytes = table->at(near_name);
  for (std::size_t cost = 0; cost < cost_count; ++cost) costs.seconds[cost] = table->at(std::string(cost_names[cost]));
  return costs;
}

std::optional<Way> way_of(const std::string& name) {
  const std::optional<Way> way = way_named(name);
  if (!way && name != "auto") fail_usage("The algorithm must be auto or one that ringred has: it is '" + name + "'.");
  return way;
}

py::dict tuned(const std::vector<Sample>& samples, const Selection& selection) {
  const Placement& placement = selection.placement();
  const Costs costs = fit(samples, placement, usual_costs(placement.several()));
  py::list rows;
  for (const auto& [probe, seconds] : samples)
    rows.append(py::dict(py::arg("algorithm") = std::string(name_of(probe.way)), py::arg("bytes") = probe.bytes,
                         py::arg("memory") = probe.arena ? "arena" : "private", py::arg("seconds") = seconds));
  return py::dict(py::arg("costs") = table_of(costs), py::arg("error") = error_of(costs, samples, placement),
                  py::arg("samples") = rows);
}

void bind_selection(py::module_& module) {
  module.def(
      "usual_costs", [] { return table_of(usual_costs()); }, "What holds until something was measured, by name.");
  py::class_<Selection>(module, "Selection")
      .def_property_readonly("algorithms", [](const Selection& self) { return names_of(self.ways()); })
      .def_property_readonly("costs", [](const Selection& self) { return table_of(self.costs()); })
      .def_property_readonly("one_shot_room", &Selection::one_shot_room)
      .def(
          "chosen",
          [](const Selection& self, std::size_t bytes, bool arena) {
            return std::string(name_of(self.chosen(bytes, arena)));
          },
          py::arg("bytes"), py::arg("arena"))
      .def(
          "predicted",
          [](const Selection& self, const std::string& algorithm, std::size_t bytes, bool arena) {
            return self.predicted(way_of(algorithm).value(), bytes, arena);
          },
          py::arg("algorithm"), py::arg("bytes"), py::arg("arena"));
}

}  // namespace ringred
