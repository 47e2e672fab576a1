// Each kind of Error as a Python exception class, defined in ringred/errors.py.
#pragma once

#include <pybind11/pybind11.h>

namespace ringred {

void bind_errors(pybind11::module_& module);

}  // namespace ringred
