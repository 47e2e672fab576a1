#include "csrc/python/settings.h"

#include <pybind11/stl.h>

#include "csrc/reduce/instruction_sets.h"
#include "csrc/reduce/reduce.h"

namespace py = pybind11;

namespace ringred {
namespace {

py::list rows() {
  py::list list;
  for (const SettingInfo& row : setting_table())
    list.append(
        py::make_tuple(std::string(row.name), std::string(row.fallback), row.must_agree, std::string(row.help)));
  return list;
}

std::vector<std::string> agreed(const std::map<std::string, std::string>& environment) {
  return agreed_settings(lookup_in(environment));
}

}  // namespace

Lookup lookup_in(const std::map<std::string, std::string>& environment) {
  return [&environment](std::string_view name) -> std::optional<std::string> {
    const auto found = environment.find(std::string(name));
    if (found == environment.end()) return std::nullopt;
    return found->second;
  };
}

void bind_settings(py::module_& module) {
  module.def("setting_table", &rows, "(name, default, must_agree, help) of every RINGRED_* variable.");
  module.def("agreed_settings", &agreed, py::arg("environment"), "NAME=value of what ranks must agree on.");
  module.def(
      "instruction_set", [](const std::string& name) { return std::string(instruction_set(name).name); },
      py::arg("name") = "auto", "The instruction set that the reduce kernels use here.");
}

}  // namespace ringred
