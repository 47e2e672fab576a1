// Views of shared memory that are read-only but when their owner says otherwise.
#pragma once

#include <pybind11/pybind11.h>

namespace ringred {

void bind_guarded(pybind11::module_& module);

}  // namespace ringred
