#pragma once

#include <pybind11/pybind11.h>

#include <map>
#include <string>

#include "csrc/base/settings.h"

namespace ringred {

// Reads in `environment`, which outlives it.
Lookup lookup_in(const std::map<std::string, std::string>& environment);

void bind_settings(pybind11::module_& module);

}  // namespace ringred
