// The synchronous calls of a world that spans nodes.
#pragma once

#include <pybind11/pybind11.h>

namespace ringred {

void bind_spanning(pybind11::module_& module);

}  // namespace ringred
