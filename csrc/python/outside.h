#pragma once

#include <pybind11/pybind11.h>

namespace ringred {

void bind_outside(pybind11::module_& module);

}  // namespace ringred
