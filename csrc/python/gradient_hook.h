// The hook of a parameter, a Python object without Python code: torch calls it with the parameter.
#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>
#include <memory>

#include "csrc/python/gradient_slots.h"

namespace ringred::gradients {

py::object make_hook(std::shared_ptr<State> state, std::size_t number);

}  // namespace ringred::gradients
