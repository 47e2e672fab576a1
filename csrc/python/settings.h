#pragma once

#include <pybind11/pybind11.h>

namespace ringred {

void bind_settings(pybind11::module_& module);

}  // namespace ringred
