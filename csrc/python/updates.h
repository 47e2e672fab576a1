// Operations on arrays in the arena, in place: allreduce, and the step of an optimizer.
#pragma once

#include <pybind11/pybind11.h>

namespace ringred {

void bind_updates(pybind11::module_& module);

}  // namespace ringred
