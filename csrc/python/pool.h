// Pools of memory for gradients, for Python.
#pragma once

#include <pybind11/pybind11.h>

namespace ringred {

void bind_pool(pybind11::module_& module);

}  // namespace ringred
