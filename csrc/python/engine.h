#pragma once

#include <pybind11/pybind11.h>

namespace ringred {

void bind_engine(pybind11::module_& module);

}  // namespace ringred
