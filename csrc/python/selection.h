#pragma once

#include <pybind11/pybind11.h>

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "csrc/select/fit.h"
#include "csrc/select/selection.h"

namespace ringred {

using CostTable = std::map<std::string, double>;  // by the names of the tuning file

std::optional<Costs> costs_of(const std::optional<CostTable>& table);

// "auto": none.
std::optional<Way> way_of(const std::string& name);

// What `ringred tune` writes: costs, their error, and what they were fitted to.
pybind11::dict tuned(const std::vector<Sample>& samples, const Selection& selection);

void bind_selection(pybind11::module_& module);

}  // namespace ringred
