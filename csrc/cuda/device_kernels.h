// The kernels of the device, as the table of kernels.h. Of ringred_cuda: everything that uses it links the CUDA
// runtime.
#pragma once

#include <memory>

#include "csrc/cuda/kernels.h"

namespace ringred::cuda {

std::unique_ptr<Kernels> device_kernels();

}  // namespace ringred::cuda
