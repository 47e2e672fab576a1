// The device communicator for Python: addresses are numbers, as data_ptr() and __cuda_array_interface__ give them.
#pragma once

#include <pybind11/pybind11.h>

#include <functional>
#include <memory>

#include "csrc/cuda/device.h"
#include "csrc/cuda/kernels.h"
#include "csrc/cuda/share.h"

namespace ringred::cuda {

struct OpenDevice {
  Gpu gpu;
  std::shared_ptr<Kernels> kernels;
  ProcessIdentity self = ProcessIdentity::of_this_process();
};

// `open` gives the device of an ordinal and the kernels for it; it throws where there is none.
void bind_communicator(pybind11::module_& module, std::function<OpenDevice(int ordinal)> open);

}  // namespace ringred::cuda
