// What the distributed optimizer does for each gradient of each backward pass, without Python code in between.
#pragma once

#include <pybind11/pybind11.h>

namespace ringred {

void bind_gradients(pybind11::module_& module);

}  // namespace ringred
